//! Master keys: they wrap the accounts' keys, and stand in the environment or a file, never in a database.

use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{KEY_LEN, Key, VaultError, open_bytes, seal};

/// What a wrapped key is bound to, with its subject.
const FIELD: &str = "key";

/// The master keys of this process: the first wraps, all of them unwrap. Cheap to clone.
#[derive(Clone)]
pub struct MasterKeys(Arc<[(String, Key)]>);

impl std::fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(id, _)| id)).finish()
    }
}

/// A text that holds no master keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// There is none in it.
    #[error(
        "one master key at least: 32 random bytes in base64, the newest first, with commas or lines between"
    )]
    None,
    /// One of them is none.
    #[error("32 random bytes in base64, as `openssl rand -base64 32` prints them; key {0} is not")]
    Malformed(usize),
    /// All its bytes are the same, or nearly so.
    #[error("32 random bytes; key {0} is not random")]
    Weak(usize),
}

impl MasterKeys {
    /// Reads keys of 32 bytes in base64, with commas, spaces or lines between, the newest first.
    ///
    /// # Errors
    /// [`MasterKeyError`].
    pub fn parse(text: &str) -> Result<Self, MasterKeyError> {
        let mut keys = Vec::new();
        let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
        for (at, part) in parts.enumerate() {
            let number = at + 1;
            let bytes = Zeroizing::new(STANDARD.decode(part).map_err(|_| MasterKeyError::Malformed(number))?);
            let key: [u8; KEY_LEN] =
                bytes.as_slice().try_into().map_err(|_| MasterKeyError::Malformed(number))?;
            let different = key.iter().collect::<std::collections::HashSet<_>>().len();
            if different < KEY_LEN / 4 {
                return Err(MasterKeyError::Weak(number));
            }
            keys.push((id_of(&key), Zeroizing::new(key)));
        }
        if keys.is_empty() { Err(MasterKeyError::None) } else { Ok(Self(keys.into())) }
    }

    /// A new key, as [`MasterKeys::parse`] reads it.
    ///
    /// # Errors
    /// [`VaultError::Randomness`].
    pub fn generate() -> Result<Zeroizing<String>, VaultError> {
        let mut key = Key::default();
        aws_lc_rs::rand::fill(&mut key[..]).map_err(|_| VaultError::Randomness)?;
        Ok(Zeroizing::new(STANDARD.encode(&key[..])))
    }

    /// The id of the key that wraps: says nothing of the key.
    #[must_use]
    pub fn newest_id(&self) -> &str {
        self.0.first().map_or("", |(id, _)| id)
    }

    pub(crate) fn wrap(&self, subject: Uuid, key: &Key) -> Result<(Vec<u8>, &str), VaultError> {
        let (id, master) = self.0.first().ok_or(VaultError::Randomness)?;
        Ok((seal(master, subject, FIELD, &key[..])?, id))
    }

    pub(crate) fn unwrap(&self, subject: Uuid, wrapped: &[u8], master: &str) -> Result<Key, VaultError> {
        let (_, key) = self
            .0
            .iter()
            .find(|(id, _)| id == master)
            .ok_or_else(|| VaultError::UnknownMaster { subject, master: master.to_owned() })?;
        let bytes = open_bytes(key, subject, FIELD, wrapped)?;
        let key: [u8; KEY_LEN] = bytes.as_slice().try_into().map_err(|_| VaultError::Broken(subject))?;
        Ok(Zeroizing::new(key))
    }
}

/// The first 64 bits of a hash of the key, in hexadecimal.
fn id_of(key: &[u8; KEY_LEN]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"tidemark master key id");
    context.update(key);
    let hash = context.finish();
    hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wraps_and_all_unwrap() {
        let (old, new) = (MasterKeys::generate().unwrap(), MasterKeys::generate().unwrap());
        let before = MasterKeys::parse(&old).unwrap();
        let both = MasterKeys::parse(&format!("{}\n{}", *new, *old)).unwrap();
        let alone = MasterKeys::parse(&new).unwrap();
        let (subject, key) = (Uuid::from_u128(5), Zeroizing::new([9; KEY_LEN]));
        let (wrapped, id) = before.wrap(subject, &key).unwrap();
        assert_eq!(both.unwrap(subject, &wrapped, id).unwrap(), key);
        assert!(matches!(alone.unwrap(subject, &wrapped, id), Err(VaultError::UnknownMaster { .. })));
        assert!(both.unwrap(Uuid::from_u128(6), &wrapped, id).is_err(), "bound to its subject");
        assert_eq!(both.newest_id(), alone.newest_id());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(MasterKeys::parse(" \n").unwrap_err(), MasterKeyError::None);
        assert_eq!(MasterKeys::parse("short").unwrap_err(), MasterKeyError::Malformed(1));
        let good = MasterKeys::generate().unwrap();
        assert_eq!(MasterKeys::parse(&format!("{},x", *good)).unwrap_err(), MasterKeyError::Malformed(2));
        let weak = STANDARD.encode([7; KEY_LEN]);
        assert_eq!(MasterKeys::parse(&weak).unwrap_err(), MasterKeyError::Weak(1));
    }
}
