//! Accounts: who somebody is, and what they may do. What is personal is sealed with the account's own key; secrets
//! (passwords, tokens) never stand in an event.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::personal::Personal;

/// What an account may do. One role at a time; every account begins as a customer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccountRole {
    /// Buys; sees and cancels own orders.
    #[default]
    Customer,
    /// Runs the shop: catalog, stock, all orders.
    Staff,
    /// Reads the log.
    Analyst,
    /// Runs the machinery.
    Operator,
    /// May do everything.
    Admin,
}

impl AccountRole {
    /// Its name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Staff => "staff",
            Self::Analyst => "analyst",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Somebody registered; the e-mail address is yet to be verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountRegistered {
    /// The e-mail address.
    pub email: Personal,
    /// What the person wants to be called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Personal>,
    /// The stream of the claim on the e-mail address, named by a keyed hash of it.
    pub claim: Uuid,
    /// Where the password's hash is kept.
    pub credential_id: Uuid,
    /// What the mail that verifies the address speaks of.
    pub verification_id: Uuid,
    /// Until when it can be used.
    pub verification_expires_at: DateTime<Utc>,
}

/// Another mail to verify the address was asked for; earlier ones are void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerificationRequested {
    /// What the mail speaks of.
    pub verification_id: Uuid,
    /// Until when it can be used.
    pub expires_at: DateTime<Utc>,
}

/// Somebody tried to register with this account's e-mail address; its owner is told by mail, nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegistrationRepeated {
    /// When.
    pub attempted_at: DateTime<Utc>,
}

/// Whoever reads the address's mail has shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmailVerified {}

/// A new password was asked for by mail; earlier mails are void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PasswordResetRequested {
    /// What the mail speaks of.
    pub reset_id: Uuid,
    /// Until when it can be used.
    pub expires_at: DateTime<Utc>,
}

/// The password is another one. All sessions end, but one that may be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PasswordChanged {
    /// Where the new password's hash is kept.
    pub credential_id: Uuid,
    /// Whether it was set by a mailed token, not with the old password.
    pub by_reset: bool,
    /// The session in which it was changed, which goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_session: Option<Uuid>,
}

/// The profile was written anew; the fields are the whole new profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileUpdated {
    /// What the person wants to be called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Personal>,
    /// A telephone number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<Personal>,
}

/// An address was added to the address book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressAdded {
    /// Its id.
    pub address_id: Uuid,
    /// JSON of the address.
    pub address: Personal,
}

/// An address was written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressRevised {
    /// Its id.
    pub address_id: Uuid,
    /// JSON of the address.
    pub address: Personal,
}

/// An address was removed from the address book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressRemoved {
    /// Its id.
    pub address_id: Uuid,
}

/// The account may do something else from here on. All sessions end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RoleGranted {
    /// What it may do now.
    pub role: AccountRole,
}

/// A second factor is asked for at log-in from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecondFactorEnabled {
    /// Where its secret is kept.
    pub factor_id: Uuid,
}

/// No second factor is asked for any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecondFactorDisabled {}

/// Log-ins failed. One event stands for several, so that an attack does not fill the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoginFailed {
    /// `password` or `second_factor`.
    pub reason: String,
    /// The address that the last one came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Personal>,
    /// When.
    pub failed_at: DateTime<Utc>,
}

/// Nobody can log in any more, until it is reinstated. All sessions end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountDeactivated {
    /// Why, in the words of whoever did it; nothing personal belongs here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// It can be used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountReinstated {}

/// The person is forgotten: the account's key is destroyed, and with it everything sealed by it, everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountErased {}

/// An e-mail address belongs to an account. The stream is named by a keyed hash of the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmailClaimed {
    /// Its owner.
    pub account_id: Uuid,
}

/// Its owner gave it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmailReleased {
    /// Its owner until now.
    pub account_id: Uuid,
}

/// Somebody logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStarted {
    /// Whose session it is.
    pub account_id: Uuid,
    /// What its access tokens may do.
    pub role: AccountRole,
    /// Whether a second factor was shown.
    pub second_factor: bool,
    /// The address that the log-in came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Personal>,
    /// What the client calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Personal>,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionEnd {
    /// Logged out.
    LoggedOut,
    /// A refresh token was used twice: one of the two was not its owner.
    TokenReused,
}

/// A session ended before its time. Those that end with something else (another password, another role) have no event
/// of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionEnded {
    /// Whose session it was.
    pub account_id: Uuid,
    /// Why.
    pub reason: SessionEnd,
    /// The address that the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Personal>,
}
