//! Second factors: one-time codes of an authenticator (TOTP, RFC 6238: SHA-1, 6 digits, 30 seconds, one step of slack)
//! and recovery codes.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use totp_rs::{Builder, Secret, Totp};
use zeroize::Zeroizing;

/// How many recovery codes an account gets.
pub const RECOVERY_CODES: usize = 10;

/// Bytes of a secret (RFC 4226 recommends 160 bits).
const SECRET_LEN: usize = 20;

/// A new secret, in base32 as authenticators take it.
#[must_use]
pub fn new_secret() -> Option<Zeroizing<String>> {
    let mut secret = Zeroizing::new([0_u8; SECRET_LEN]);
    aws_lc_rs::rand::fill(&mut secret[..]).ok()?;
    Some(Zeroizing::new(Secret::from(*secret).to_base32()))
}

/// The address that an authenticator reads from a QR code.
#[must_use]
pub fn authenticator_url(secret: &str, label: &str) -> String {
    let label: String = form_urlencoded::byte_serialize(label.as_bytes()).collect();
    format!("otpauth://totp/Tidemark:{}?secret={secret}&issuer=Tidemark", label.replace('+', "%20"))
}

/// The time step that a code is of, if it is one of the secret's around `now`.
#[must_use]
pub fn step_of(secret: &str, code: &str, now: DateTime<Utc>) -> Option<i64> {
    let seconds = u64::try_from(now.timestamp()).ok()?;
    let is_code = code.len() == 6 && code.bytes().all(|byte| byte.is_ascii_digit());
    let step = is_code.then(|| totp(secret)).flatten()?.check(code, seconds)?;
    i64::try_from(step).ok()
}

fn totp(secret: &str) -> Option<Totp> {
    let secret = Secret::try_from_base32(secret).ok()?;
    Some(Builder::new().with_secret(secret).with_skew(1).build_noncompliant())
}

/// New recovery codes, each with its hash: 96 random bits in base64url, which need no slow hash.
#[must_use]
pub fn new_recovery_codes() -> Option<Vec<(Zeroizing<String>, Vec<u8>)>> {
    (0..RECOVERY_CODES)
        .map(|_| {
            let mut bytes = Zeroizing::new([0_u8; 12]);
            aws_lc_rs::rand::fill(&mut bytes[..]).ok()?;
            let code = Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes[..]));
            let hash = hash_of(&code);
            Some((code, hash))
        })
        .collect()
}

/// What is stored of a recovery code.
#[must_use]
pub fn hash_of(code: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, code.trim().as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238, appendix B, SHA-1, the last six digits.
    #[test]
    fn codes_are_those_of_the_standard() {
        let secret = Secret::from(*b"12345678901234567890").to_base32();
        for (seconds, code) in
            [(59, "287082"), (1_111_111_109, "081804"), (1_234_567_890, "005924"), (2_000_000_000, "279037")]
        {
            let now = DateTime::from_timestamp(seconds, 0).unwrap();
            assert_eq!(step_of(&secret, code, now), Some(seconds / 30));
            let later = DateTime::from_timestamp(seconds + 30, 0).unwrap();
            assert_eq!(step_of(&secret, code, later), Some(seconds / 30), "one step of slack");
            let much_later = DateTime::from_timestamp(seconds + 90, 0).unwrap();
            assert_eq!(step_of(&secret, code, much_later), None);
        }
        let now = DateTime::from_timestamp(59, 0).unwrap();
        for bad in ["", "28708", "2870820", "28708a", "٢٨٧٠٨٢", "287 082", "000000"] {
            assert_eq!(step_of(&secret, bad, now), None, "{bad}");
        }
    }

    #[test]
    fn recovery_codes_differ_and_are_stored_hashed() {
        let codes = new_recovery_codes().unwrap();
        let different: std::collections::HashSet<_> = codes.iter().map(|(code, _)| code.as_str()).collect();
        assert_eq!(different.len(), RECOVERY_CODES);
        for (code, hash) in &codes {
            assert_eq!(&hash_of(&format!(" {} ", code.as_str())), hash);
            assert!(!hash.windows(4).any(|part| code.as_bytes().starts_with(part)));
        }
    }

    #[test]
    fn an_authenticator_can_read_the_url() {
        let url = authenticator_url("ABC", "ada@example.org");
        assert_eq!(url, "otpauth://totp/Tidemark:ada%40example.org?secret=ABC&issuer=Tidemark");
    }
}
