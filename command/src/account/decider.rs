//! What may happen to an account: pending → active ⇄ deactivated → erased, each with an e-mail address of its own; and
//! to a session.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tidemark_events::account::{
    AccountDeactivated, AccountErased, AccountRegistered, AccountReinstated, AccountRole, AddressAdded,
    AddressRemoved, AddressRevised, EmailClaimed, EmailReleased, EmailVerified, LoginFailed, PasswordChanged,
    PasswordResetRequested, ProfileUpdated, RegistrationRepeated, RoleGranted, SecondFactorDisabled,
    SecondFactorEnabled, SessionEnd, SessionEnded, SessionStarted, VerificationRequested,
};
use tidemark_events::fact::{AccountEvent, EmailEvent, SessionEvent};
use tidemark_events::{Fact, Personal};
use uuid::Uuid;

use crate::decision::{Decision, Happened, Rejection};
use crate::shop::{Shop, States};

/// The most addresses of one account.
pub const MAX_ADDRESSES: usize = 100;

/// How long nothing more is said to an owner of an address, or of failed log-ins: mails and log are not to be filled
/// by strangers.
const REPEATED_AT_MOST: TimeDelta = TimeDelta::hours(1);
const FAILED_AT_MOST: TimeDelta = TimeDelta::minutes(1);
/// The same for mails that somebody asks for.
const MAILED_AT_MOST: TimeDelta = TimeDelta::minutes(1);

/// How an account stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountStatus {
    /// Registered; the e-mail address is not verified.
    #[default]
    Pending,
    /// In use.
    Active,
    /// Nobody can log in.
    Deactivated,
    /// Forgotten.
    Erased,
}

impl AccountStatus {
    /// Its name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Deactivated => "deactivated",
            Self::Erased => "erased",
        }
    }
}

/// A mail that was sent and can be used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mailed {
    /// What the mail speaks of.
    pub id: Uuid,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

/// What decisions need to know of an account. Nothing in it is personal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// How it stands.
    pub status: AccountStatus,
    /// The claim on its e-mail address.
    pub claim: Uuid,
    /// Where its password's hash is kept.
    pub credential_id: Uuid,
    /// What it may do.
    pub role: AccountRole,
    /// Where its second factor is kept, if it has one.
    pub factor_id: Option<Uuid>,
    /// The mail that verifies its address, until it is used.
    pub verification: Option<Mailed>,
    /// The mail that sets a new password, until it is used.
    pub reset: Option<Mailed>,
    /// Its address book.
    pub addresses: Vec<Uuid>,
    /// When its owner was last told that somebody tried to register with its address.
    pub repeated_at: Option<DateTime<Utc>>,
    /// When a failed log-in was last written down.
    pub failed_at: Option<DateTime<Utc>>,
}

impl Account {
    /// Folds an event in.
    pub fn evolve(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::AccountRegistered(event) => {
                self.claim = event.claim;
                self.credential_id = event.credential_id;
                self.verification =
                    Some(Mailed { id: event.verification_id, expires_at: event.verification_expires_at });
            }
            AccountEvent::VerificationRequested(event) => {
                self.verification = Some(Mailed { id: event.verification_id, expires_at: event.expires_at });
            }
            AccountEvent::RegistrationRepeated(event) => self.repeated_at = Some(event.attempted_at),
            AccountEvent::EmailVerified(_) => {
                self.status = AccountStatus::Active;
                self.verification = None;
            }
            AccountEvent::PasswordResetRequested(event) => {
                self.reset = Some(Mailed { id: event.reset_id, expires_at: event.expires_at });
            }
            AccountEvent::PasswordChanged(event) => {
                self.credential_id = event.credential_id;
                self.reset = None;
            }
            AccountEvent::ProfileUpdated(_) | AccountEvent::AddressRevised(_) => {}
            AccountEvent::AddressAdded(event) => self.addresses.push(event.address_id),
            AccountEvent::AddressRemoved(event) => self.addresses.retain(|id| *id != event.address_id),
            AccountEvent::RoleGranted(event) => self.role = event.role,
            AccountEvent::SecondFactorEnabled(event) => self.factor_id = Some(event.factor_id),
            AccountEvent::SecondFactorDisabled(_) => self.factor_id = None,
            AccountEvent::LoginFailed(event) => self.failed_at = Some(event.failed_at),
            AccountEvent::AccountDeactivated(_) => self.status = AccountStatus::Deactivated,
            AccountEvent::AccountReinstated(_) => self.status = self.reinstated(),
            AccountEvent::AccountErased(_) => {
                *self = Self { status: AccountStatus::Erased, claim: self.claim, ..Self::default() };
            }
        }
    }

    /// How it stands once it is reinstated: a mail that verifies its address waits until that is done, however it
    /// stood in between.
    fn reinstated(&self) -> AccountStatus {
        if self.verification.is_some() { AccountStatus::Pending } else { AccountStatus::Active }
    }
}

/// What decisions need to know of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Whose it is.
    pub account_id: Uuid,
    /// Whether it was ended.
    pub ended: bool,
}

impl Session {
    /// Folds an event in.
    pub fn evolve(&mut self, event: &SessionEvent) {
        match event {
            SessionEvent::SessionStarted(event) => self.account_id = event.account_id,
            SessionEvent::SessionEnded(_) => self.ended = true,
        }
    }
}

/// Who owns an e-mail address now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmailClaim {
    /// The account, or nobody.
    pub owner: Option<Uuid>,
}

impl EmailClaim {
    /// Folds an event in.
    pub fn evolve(&mut self, event: &EmailEvent) {
        self.owner = match event {
            EmailEvent::EmailClaimed(claimed) => Some(claimed.account_id),
            EmailEvent::EmailReleased(_) => None,
        }
    }
}

/// What is asked of accounts and sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountCommand {
    /// Registers, unless the address belongs to somebody: then its owner is told.
    Register {
        /// The id it gets.
        account_id: Uuid,
        /// The address, sealed.
        email: Personal,
        /// The claim on it.
        claim: Uuid,
        /// A name, sealed.
        name: Option<Personal>,
        /// Where the password's hash is.
        credential_id: Uuid,
        /// The mail that verifies the address.
        verification: Mailed,
    },
    /// Asks for another mail that verifies the address.
    RequestVerification {
        /// Whose.
        account_id: Uuid,
        /// The mail.
        verification: Mailed,
    },
    /// Shows that the mail was read.
    VerifyEmail {
        /// Whose.
        account_id: Uuid,
        /// Which mail.
        verification_id: Uuid,
    },
    /// Asks for a mail with which a new password can be set.
    RequestReset {
        /// Whose.
        account_id: Uuid,
        /// The mail.
        reset: Mailed,
    },
    /// Sets a new password with a mail; it verifies the address of a pending account, too.
    Reset {
        /// Whose.
        account_id: Uuid,
        /// Which mail.
        reset_id: Uuid,
        /// Where the new password's hash is.
        credential_id: Uuid,
    },
    /// Sets a new password with the old one.
    ChangePassword {
        /// Whose.
        account_id: Uuid,
        /// The credential whose password was shown.
        old: Uuid,
        /// Where the new password's hash is.
        new: Uuid,
        /// The session that goes on.
        kept_session: Option<Uuid>,
    },
    /// Logs in.
    StartSession {
        /// The id it gets, fresh.
        session_id: Uuid,
        /// Whose.
        account_id: Uuid,
        /// The credential whose password was shown.
        credential_id: Uuid,
        /// The second factor that was shown.
        factor_id: Option<Uuid>,
        /// Roles that need a second factor: without one, the session is a customer's.
        factor_for: Vec<AccountRole>,
        /// Where from, sealed.
        source: Option<Personal>,
        /// With which client, sealed.
        client: Option<Personal>,
    },
    /// Logs out, or ends a session whose token was reused.
    EndSession {
        /// Which.
        session_id: Uuid,
        /// Whose.
        account_id: Uuid,
        /// Why.
        reason: SessionEnd,
        /// Where from, sealed.
        source: Option<Personal>,
    },
    /// Writes down that a log-in failed.
    ReportFailure {
        /// Whose.
        account_id: Uuid,
        /// Why.
        reason: &'static str,
        /// Where from, sealed.
        source: Option<Personal>,
    },
    /// Writes the profile anew.
    UpdateProfile {
        /// Whose.
        account_id: Uuid,
        /// A name, sealed.
        name: Option<Personal>,
        /// A telephone number, sealed.
        phone: Option<Personal>,
    },
    /// Adds an address to the address book.
    AddAddress {
        /// Whose.
        account_id: Uuid,
        /// The id it gets.
        address_id: Uuid,
        /// The address, sealed.
        address: Personal,
    },
    /// Writes an address anew.
    ReviseAddress {
        /// Whose.
        account_id: Uuid,
        /// Which.
        address_id: Uuid,
        /// The address, sealed.
        address: Personal,
    },
    /// Removes an address.
    RemoveAddress {
        /// Whose.
        account_id: Uuid,
        /// Which.
        address_id: Uuid,
    },
    /// Gives a role.
    GrantRole {
        /// To whom.
        account_id: Uuid,
        /// Which.
        role: AccountRole,
    },
    /// Asks for a second factor from here on.
    EnableSecondFactor {
        /// Whose.
        account_id: Uuid,
        /// Where it is kept.
        factor_id: Uuid,
    },
    /// Asks for none any more.
    DisableSecondFactor {
        /// Whose.
        account_id: Uuid,
    },
    /// Lets nobody log in.
    Deactivate {
        /// Whose.
        account_id: Uuid,
        /// Why.
        reason: Option<String>,
    },
    /// Lets its owner log in again, or verify the address if that was never done.
    Reinstate {
        /// Whose.
        account_id: Uuid,
    },
    /// Forgets the person.
    Erase {
        /// Whose.
        account_id: Uuid,
    },
}

impl AccountCommand {
    /// The stream whose version the answer tells.
    #[must_use]
    pub fn stream(&self) -> Uuid {
        match self {
            Self::StartSession { session_id, .. } | Self::EndSession { session_id, .. } => *session_id,
            _ => self.account(),
        }
    }

    fn account(&self) -> Uuid {
        match self {
            Self::Register { account_id, .. }
            | Self::RequestVerification { account_id, .. }
            | Self::VerifyEmail { account_id, .. }
            | Self::RequestReset { account_id, .. }
            | Self::Reset { account_id, .. }
            | Self::ChangePassword { account_id, .. }
            | Self::StartSession { account_id, .. }
            | Self::EndSession { account_id, .. }
            | Self::ReportFailure { account_id, .. }
            | Self::UpdateProfile { account_id, .. }
            | Self::AddAddress { account_id, .. }
            | Self::ReviseAddress { account_id, .. }
            | Self::RemoveAddress { account_id, .. }
            | Self::GrantRole { account_id, .. }
            | Self::EnableSecondFactor { account_id, .. }
            | Self::DisableSecondFactor { account_id }
            | Self::Deactivate { account_id, .. }
            | Self::Reinstate { account_id }
            | Self::Erase { account_id } => *account_id,
        }
    }

    /// Decides.
    ///
    /// # Errors
    /// `NotFound`, `State`, `LinkVoid`, `LoginRefused`, `TooManyAddresses`.
    pub fn decide<S: States>(&self, shop: &Shop<'_, S>, now: DateTime<Utc>) -> Result<Decision, Rejection> {
        let id = self.account();
        if let Self::Register { email, claim, name, credential_id, verification, .. } = self {
            return Ok(register(shop, now, id, email, *claim, name.as_ref(), *credential_id, *verification));
        }
        let account = known(id, shop)?;
        let one = |event: Fact| vec![Happened::to_account(id, event)];
        let (status, events) = match self {
            Self::Register { .. } => return Err(Rejection::AlreadyExists { id }),
            Self::RequestVerification { verification, .. } => {
                let due = account.status == AccountStatus::Pending
                    && is_due(account.verification, *verification, now);
                let event = VerificationRequested {
                    verification_id: verification.id,
                    expires_at: verification.expires_at,
                };
                (account.status, if due { one(event.into()) } else { Vec::new() })
            }
            Self::VerifyEmail { verification_id, .. } => {
                // The mail of a deactivated account would undo what the staff did.
                if account.status != AccountStatus::Pending {
                    return Err(Rejection::LinkVoid);
                }
                usable(account.verification, *verification_id, now)?;
                (AccountStatus::Active, one(EmailVerified {}.into()))
            }
            Self::RequestReset { reset, .. } => {
                let due = account.status != AccountStatus::Deactivated && is_due(account.reset, *reset, now);
                let event = PasswordResetRequested { reset_id: reset.id, expires_at: reset.expires_at };
                (account.status, if due { one(event.into()) } else { Vec::new() })
            }
            Self::Reset { reset_id, credential_id, .. } => {
                usable(account.reset, *reset_id, now)?;
                let changed =
                    PasswordChanged { credential_id: *credential_id, by_reset: true, kept_session: None };
                let mut events = one(changed.into());
                let mut status = account.status;
                if status == AccountStatus::Pending {
                    events.push(Happened::to_account(id, EmailVerified {}));
                    status = AccountStatus::Active;
                }
                (status, events)
            }
            Self::ChangePassword { old, new, kept_session, .. } => {
                in_use(account)?;
                if account.credential_id != *old {
                    return Err(Rejection::LoginRefused);
                }
                let changed =
                    PasswordChanged { credential_id: *new, by_reset: false, kept_session: *kept_session };
                (account.status, one(changed.into()))
            }
            Self::StartSession {
                session_id, credential_id, factor_id, factor_for, source, client, ..
            } => {
                let fits = account.status == AccountStatus::Active
                    && account.credential_id == *credential_id
                    && account.factor_id == *factor_id;
                if !fits {
                    return Err(Rejection::LoginRefused);
                }
                let role = if factor_id.is_none() && factor_for.contains(&account.role) {
                    AccountRole::Customer
                } else {
                    account.role
                };
                let started = SessionStarted {
                    account_id: id,
                    role,
                    second_factor: factor_id.is_some(),
                    source: source.clone(),
                    client: client.clone(),
                };
                let events = vec![Happened::to_session(*session_id, id, started)];
                return Ok(decision(*session_id, *session_id, role.as_str(), events));
            }
            Self::EndSession { session_id, reason, source, .. } => {
                let session = shop.session(*session_id).filter(|session| session.account_id == id);
                let session = session.ok_or(Rejection::NotFound { kind: "session", id: *session_id })?;
                let ended = SessionEnded { account_id: id, reason: *reason, source: source.clone() };
                let events = if session.ended {
                    Vec::new()
                } else {
                    vec![Happened::to_session(*session_id, id, ended)]
                };
                return Ok(decision(*session_id, *session_id, "ended", events));
            }
            Self::ReportFailure { reason, source, .. } => {
                let due = account.failed_at.is_none_or(|at| now - at >= FAILED_AT_MOST);
                let event =
                    LoginFailed { reason: (*reason).to_owned(), source: source.clone(), failed_at: now };
                (account.status, if due { one(event.into()) } else { Vec::new() })
            }
            Self::UpdateProfile { name, phone, .. } => {
                in_use(account)?;
                let updated = ProfileUpdated { name: name.clone(), phone: phone.clone() };
                (account.status, one(updated.into()))
            }
            Self::AddAddress { address_id, address, .. } => {
                in_use(account)?;
                if account.addresses.len() >= MAX_ADDRESSES {
                    return Err(Rejection::TooManyAddresses { most: MAX_ADDRESSES });
                }
                let added = AddressAdded { address_id: *address_id, address: address.clone() };
                let events = one(added.into());
                return Ok(decision(*address_id, id, account.status.as_str(), events));
            }
            Self::ReviseAddress { address_id, address, .. } => {
                has_address(account, *address_id)?;
                let revised = AddressRevised { address_id: *address_id, address: address.clone() };
                (account.status, one(revised.into()))
            }
            Self::RemoveAddress { address_id, .. } => {
                has_address(account, *address_id)?;
                (account.status, one(AddressRemoved { address_id: *address_id }.into()))
            }
            Self::GrantRole { role, .. } => {
                in_use(account)?;
                let events =
                    if account.role == *role { Vec::new() } else { one(RoleGranted { role: *role }.into()) };
                (account.status, events)
            }
            Self::EnableSecondFactor { factor_id, .. } => {
                in_use(account)?;
                (account.status, one(SecondFactorEnabled { factor_id: *factor_id }.into()))
            }
            Self::DisableSecondFactor { .. } => {
                let has = account.factor_id.is_some();
                (account.status, if has { one(SecondFactorDisabled {}.into()) } else { Vec::new() })
            }
            Self::Deactivate { reason, .. } => {
                let events = match account.status {
                    AccountStatus::Deactivated => Vec::new(),
                    _ => one(AccountDeactivated { reason: reason.clone() }.into()),
                };
                (AccountStatus::Deactivated, events)
            }
            Self::Reinstate { .. } => {
                let events = match account.status {
                    AccountStatus::Deactivated => one(AccountReinstated {}.into()),
                    _ => Vec::new(),
                };
                let status = if events.is_empty() { account.status } else { account.reinstated() };
                (status, events)
            }
            Self::Erase { .. } => {
                let mut events = one(AccountErased {}.into());
                if shop.owner_of_email(account.claim) == Some(id) {
                    events.push(Happened::to_email(account.claim, id, EmailReleased { account_id: id }));
                }
                (AccountStatus::Erased, events)
            }
        };
        Ok(decision(id, id, status.as_str(), events))
    }
}

#[expect(clippy::too_many_arguments, reason = "the fields of one command")]
fn register<S: States>(
    shop: &Shop<'_, S>,
    now: DateTime<Utc>,
    id: Uuid,
    email: &Personal,
    claim: Uuid,
    name: Option<&Personal>,
    credential_id: Uuid,
    verification: Mailed,
) -> Decision {
    let Some(owner) = shop.owner_of_email(claim) else {
        let registered = AccountRegistered {
            email: email.clone(),
            name: name.cloned(),
            claim,
            credential_id,
            verification_id: verification.id,
            verification_expires_at: verification.expires_at,
        };
        let claimed = EmailClaimed { account_id: id };
        let events = vec![Happened::to_account(id, registered), Happened::to_email(claim, id, claimed)];
        return decision(id, id, AccountStatus::Pending.as_str(), events);
    };
    // The answer is the same; only the owner learns of it, now and then.
    let told = shop.account(owner).and_then(|owner| owner.repeated_at);
    let events = if told.is_none_or(|at| now - at >= REPEATED_AT_MOST) {
        vec![Happened::to_account(owner, RegistrationRepeated { attempted_at: now })]
    } else {
        Vec::new()
    };
    decision(owner, owner, TAKEN, events)
}

/// The status of a registration whose address belongs to somebody. It is not told to the client.
pub const TAKEN: &str = "taken";

fn decision(subject: Uuid, stream_id: Uuid, status: &'static str, events: Vec<Happened>) -> Decision {
    Decision { subject, stream_id, status, total: None, events }
}

fn known<'a, S: States>(id: Uuid, shop: &Shop<'a, S>) -> Result<&'a Account, Rejection> {
    shop.account(id)
        .filter(|account| account.status != AccountStatus::Erased)
        .ok_or(Rejection::NotFound { kind: "account", id })
}

fn in_use(account: &Account) -> Result<(), Rejection> {
    if account.status == AccountStatus::Active {
        return Ok(());
    }
    Err(Rejection::State {
        kind: "account",
        status: account.status.as_str(),
        reason: "only an active account can be changed",
    })
}

fn has_address(account: &Account, id: Uuid) -> Result<(), Rejection> {
    in_use(account)?;
    let has = account.addresses.contains(&id);
    has.then_some(()).ok_or(Rejection::NotFound { kind: "address", id })
}

/// Whether another mail may be sent: not right after the one before. Mails are asked for with one lifetime, so the one
/// before was asked for as long ago as it expires earlier.
fn is_due(last: Option<Mailed>, next: Mailed, now: DateTime<Utc>) -> bool {
    last.is_none_or(|last| last.expires_at < now || next.expires_at - last.expires_at >= MAILED_AT_MOST)
}

fn usable(mailed: Option<Mailed>, id: Uuid, now: DateTime<Utc>) -> Result<(), Rejection> {
    let usable = mailed.is_some_and(|mailed| mailed.id == id && mailed.expires_at > now);
    usable.then_some(()).ok_or(Rejection::LinkVoid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailed_token_is_good_once_and_until_it_expires() {
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let (id, another) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mailed = |seconds| Some(Mailed { id, expires_at: now + chrono::TimeDelta::seconds(seconds) });
        assert_eq!(usable(mailed(1), id, now), Ok(()));
        for (mailed, shown) in [(mailed(0), id), (mailed(-1), id), (mailed(1), another), (None, id)] {
            assert_eq!(usable(mailed, shown, now), Err(Rejection::LinkVoid), "{mailed:?}");
        }
        // What was used is forgotten.
        let mut account = Account { verification: mailed(1), reset: mailed(1), ..Account::default() };
        account.evolve(&AccountEvent::EmailVerified(EmailVerified {}));
        assert_eq!(account.verification, None);
        let changed = PasswordChanged { credential_id: another, by_reset: true, kept_session: None };
        account.evolve(&AccountEvent::PasswordChanged(changed));
        assert_eq!(account.reset, None);
    }
}
