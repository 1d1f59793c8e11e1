//! Which events belong into the audit: what people of the shop did, and whatever happened to accounts.
//!
//! A customer's own orders do not, they are most of the log; they are found in the streams of the orders. Nor does what
//! only follows from another event of the same commit: an order that is shipped takes its units from the stock.
//!
//! The rule stands here twice, for events in memory and as SQL, so that the log's database sends no others.

use crate::account::SessionEnd;
use crate::envelope::RecordedEvent;
use crate::fact::{AccountEvent, SessionEvent};
use crate::stream::{ACCOUNT, ORDER, PRODUCT, SESSION, STOCK_CATEGORY};
use crate::{Fact, Personal};

/// What follows from an order's events.
const CONSEQUENCES: [&str; 3] = ["StockReserved", "StockReleased", "StockShipped"];

/// How the names of customers begin, and of what takes in data from outside. An import places the orders of customers.
const CUSTOMER: &str = "customer:";
const IMPORT: &str = "import:";

/// [`is_audited`], of a row of `log.events`.
macro_rules! is_audited_sql {
    () => {
        "(category IN ('account', 'session') OR (category IN ('product', 'stock', 'order') \
         AND NOT starts_with(actor, 'customer:') \
         AND event_type NOT IN ('StockReserved', 'StockReleased', 'StockShipped') \
         AND NOT (event_type = 'OrderPlaced' AND starts_with(actor, 'import:'))))"
    };
}
pub(crate) use is_audited_sql;

/// Whether an event belongs into the audit.
#[must_use]
pub fn is_audited(event: &RecordedEvent) -> bool {
    let (event_type, actor) = (event.event_type.as_ref(), event.metadata.actor.as_str());
    match event.category.as_ref() {
        ACCOUNT | SESSION => true,
        PRODUCT | STOCK_CATEGORY | ORDER => {
            let is_imported = event_type == "OrderPlaced" && actor.starts_with(IMPORT);
            !(actor.starts_with(CUSTOMER) || CONSEQUENCES.contains(&event_type) || is_imported)
        }
        // A claim follows from what was said of the product or the account.
        _ => false,
    }
}

/// What an event says about security.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityEvent<'a> {
    /// What kind, one of [`SECURITY_KINDS`].
    pub kind: &'static str,
    /// What more there is to say of it: a role, or what was wrong.
    pub detail: Option<&'a str>,
    /// The address that the request came from, sealed.
    pub source: Option<&'a Personal>,
}

/// Kinds of security events.
pub const SECURITY_KINDS: &[&str] = &[
    "account_registered",
    "registration_repeated",
    "verification_requested",
    "email_verified",
    "log_in",
    "log_in_failed",
    "log_out",
    "refresh_token_reused",
    "password_reset_requested",
    "password_reset",
    "password_changed",
    "second_factor_enabled",
    "second_factor_disabled",
    "role_granted",
    "account_deactivated",
    "account_reinstated",
    "account_erased",
];

/// What an event says about security; `None` if it is about something else.
#[must_use]
pub fn security_event(fact: &Fact) -> Option<SecurityEvent<'_>> {
    let plain = |kind| Some(SecurityEvent { kind, detail: None, source: None });
    match fact {
        Fact::Session(SessionEvent::SessionStarted(event)) => Some(SecurityEvent {
            kind: "log_in",
            detail: Some(event.role.as_str()),
            source: event.source.as_ref(),
        }),
        Fact::Session(SessionEvent::SessionEnded(event)) => Some(SecurityEvent {
            kind: match event.reason {
                SessionEnd::LoggedOut => "log_out",
                SessionEnd::TokenReused => "refresh_token_reused",
            },
            detail: None,
            source: event.source.as_ref(),
        }),
        Fact::Account(event) => match event {
            AccountEvent::AccountRegistered(_) => plain("account_registered"),
            AccountEvent::VerificationRequested(_) => plain("verification_requested"),
            AccountEvent::RegistrationRepeated(_) => plain("registration_repeated"),
            AccountEvent::EmailVerified(_) => plain("email_verified"),
            AccountEvent::PasswordResetRequested(_) => plain("password_reset_requested"),
            AccountEvent::PasswordChanged(event) if event.by_reset => plain("password_reset"),
            AccountEvent::PasswordChanged(_) => plain("password_changed"),
            AccountEvent::RoleGranted(event) => {
                Some(SecurityEvent { kind: "role_granted", detail: Some(event.role.as_str()), source: None })
            }
            AccountEvent::SecondFactorEnabled(_) => plain("second_factor_enabled"),
            AccountEvent::SecondFactorDisabled(_) => plain("second_factor_disabled"),
            AccountEvent::LoginFailed(event) => Some(SecurityEvent {
                kind: "log_in_failed",
                detail: Some(&event.reason),
                source: event.source.as_ref(),
            }),
            AccountEvent::AccountDeactivated(_) => plain("account_deactivated"),
            AccountEvent::AccountReinstated(_) => plain("account_reinstated"),
            AccountEvent::AccountErased(_) => plain("account_erased"),
            AccountEvent::ProfileUpdated(_)
            | AccountEvent::AddressAdded(_)
            | AccountEvent::AddressRevised(_)
            | AccountEvent::AddressRemoved(_) => None,
        },
        Fact::Product(_) | Fact::Stock(_) | Fact::Order(_) | Fact::Sku(_) | Fact::Email(_) => None,
    }
}
