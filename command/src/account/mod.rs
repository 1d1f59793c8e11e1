//! Accounts: who somebody is, proven by a password, a second factor, and tokens.
//!
//! | module | what it does |
//! |---|---|
//! | [`decider`] | what may happen (pure) |
//! | [`value`] | e-mail addresses, passwords, addresses |
//! | [`password`] | Argon2id in a bounded pool of its own |
//! | [`link`] | the tokens of mails |
//! | [`factor`] | one-time codes and recovery codes |
//! | [`store`] | secrets beside the log: hashes, sessions, refresh tokens |
//! | [`steward`] | follows the log: ends sessions, destroys keys, sends mails |
//! | [`http`] | routes |

pub mod decider;
pub mod factor;
pub mod http;
pub mod link;
pub mod mail;
pub mod password;
pub mod refused;
pub mod service;
pub mod steward;
pub mod store;
pub mod value;

pub use decider::{Account, AccountCommand, AccountStatus, EmailClaim, Mailed, Session};
pub use mail::{Mailer, MailerConfig};
pub use password::PasswordConfig;
pub use refused::RefusedPasswords;
pub use service::{Accounts, AccountsConfig};
