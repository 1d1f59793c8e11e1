//! The tokens of mails: made from what an event says and the shop's own key, so that no token is kept anywhere. Whether
//! one can still be used is the account's state to say.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tidemark_vault::Vault;
use uuid::Uuid;

/// What a mail's token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Shows that the address's mail is read.
    Verify,
    /// Sets a new password.
    Reset,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Verify => "mail token: verify",
            Self::Reset => "mail token: reset",
        }
    }
}

/// Whom and what a token speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The account.
    pub account_id: Uuid,
    /// The mail.
    pub mail_id: Uuid,
}

const IDS: usize = 32;
const LENGTH: usize = IDS + 32;

impl Link {
    fn bytes(self) -> [u8; IDS] {
        let mut bytes = [0; IDS];
        bytes[..16].copy_from_slice(self.account_id.as_bytes());
        bytes[16..].copy_from_slice(self.mail_id.as_bytes());
        bytes
    }

    /// Its token: both ids and a keyed hash of them, 86 characters of base64url.
    #[must_use]
    pub fn token(self, vault: &Vault, purpose: Purpose) -> String {
        let ids = self.bytes();
        let hash = vault.keyed_hash(purpose.name(), &ids);
        URL_SAFE_NO_PAD.encode([ids.as_slice(), &hash].concat())
    }

    /// Reads a token; `None` if it is none of this shop's for this purpose.
    #[must_use]
    pub fn read(token: &str, vault: &Vault, purpose: Purpose) -> Option<Self> {
        // Longer texts are not even decoded.
        let bytes = (token.len() == 86).then(|| URL_SAFE_NO_PAD.decode(token).ok()).flatten()?;
        let (ids, hash) = bytes.split_at_checked(IDS).filter(|_| bytes.len() == LENGTH)?;
        let expected = vault.keyed_hash(purpose.name(), ids);
        aws_lc_rs::constant_time::verify_slices_are_equal(hash, &expected).ok()?;
        Some(Self {
            account_id: Uuid::from_slice(&ids[..16]).ok()?,
            mail_id: Uuid::from_slice(&ids[16..]).ok()?,
        })
    }
}
