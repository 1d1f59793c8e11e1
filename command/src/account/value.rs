//! What people are reached by and prove themselves with, but their e-mail addresses ([`tidemark_http::Email`]).

use std::fmt;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::value::InvalidValue;

/// A password as it is set: 12 to 256 characters, none of them forbidden. Normalised to NFC, so that it is the same
/// from every keyboard; never trimmed. Wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, min_length = 12, max_length = 256, format = "password")]
pub struct NewPassword(Zeroizing<String>);

/// A password as it is shown at log-in; what could never have been set is just wrong.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, max_length = 1024, format = "password")]
pub struct ShownPassword(Zeroizing<String>);

impl NewPassword {
    pub(super) const LEAST: usize = 12;
    const MOST: usize = 256;
    pub(super) const LENGTHS: std::ops::RangeInclusive<usize> = Self::LEAST..=Self::MOST;

    /// As it is hashed.
    #[must_use]
    pub fn normal(&self) -> &Zeroizing<String> {
        &self.0
    }
}

impl TryFrom<String> for NewPassword {
    type Error = InvalidValue;

    fn try_from(raw: String) -> Result<Self, InvalidValue> {
        let normal = normal(Zeroizing::new(raw));
        let length = normal.chars().count();
        if Self::LENGTHS.contains(&length) {
            Ok(Self(normal))
        } else {
            let (least, most) = (Self::LEAST, Self::MOST);
            Err(InvalidValue::new(format!("must have {least} to {most} characters, has {length}")))
        }
    }
}

impl ShownPassword {
    const MOST: usize = 1_024;

    /// As it is compared; `None` if no password can be so.
    #[must_use]
    pub fn normal(&self) -> Option<&Zeroizing<String>> {
        (self.0.chars().take(NewPassword::MOST + 1).count() <= NewPassword::MOST).then_some(&self.0)
    }
}

impl TryFrom<String> for ShownPassword {
    type Error = InvalidValue;

    fn try_from(raw: String) -> Result<Self, InvalidValue> {
        let raw = Zeroizing::new(raw);
        if raw.chars().take(Self::MOST + 1).count() > Self::MOST {
            return Err(InvalidValue::new(format!("must have at most {} characters", Self::MOST)));
        }
        Ok(Self(normal(raw)))
    }
}

fn normal(raw: Zeroizing<String>) -> Zeroizing<String> {
    Zeroizing::new(raw.nfc().collect())
}

macro_rules! secret_debug {
    ($($name:ident),+) => { $(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )+ };
}
secret_debug!(NewPassword, ShownPassword);

/// A telephone number in the international form (E.164): `+` and 7 to 15 digits; spaces and hyphens are left out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, max_length = 40, pattern = r"^\+([ -]*[0-9]){7,15}[ -]*$", example = "+4930123456")]
pub struct Phone(String);

impl Phone {
    /// The number.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Phone {
    type Error = InvalidValue;

    fn try_from(raw: String) -> Result<Self, InvalidValue> {
        const MOST: usize = 40;
        let number: String = raw.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
        let digits = number.strip_prefix('+').unwrap_or_default();
        if raw.starts_with('+')
            && raw.len() <= MOST
            && (7..=15).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
        {
            Ok(Self(number))
        } else {
            Err(InvalidValue::new("must be + and 7 to 15 digits, like +4930123456"))
        }
    }
}

impl From<Phone> for String {
    fn from(phone: Phone) -> Self {
        phone.0
    }
}

impl fmt::Debug for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Phone")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_bounded_and_normalised_and_never_shown() {
        assert!(NewPassword::try_from("elevenchars".to_owned()).is_err());
        assert!(NewPassword::try_from("twelve chars".to_owned()).is_ok());
        assert!(NewPassword::try_from("x".repeat(257)).is_err());
        let set = NewPassword::try_from("Pa\u{df}wort mit \u{c4}!".to_owned()).unwrap();
        let shown = ShownPassword::try_from("Pa\u{df}wort mit A\u{308}!".to_owned()).unwrap();
        assert_eq!(Some(set.normal()), shown.normal());
        assert!(!format!("{set:?} {shown:?}").contains("wort"));
        assert!(ShownPassword::try_from("x".repeat(300)).unwrap().normal().is_none());
        assert!(ShownPassword::try_from("x".repeat(1_024)).is_ok());
        assert!(ShownPassword::try_from("x".repeat(1_025)).is_err());
    }

    #[test]
    fn telephone_numbers_are_international() {
        assert_eq!(Phone::try_from("+49 30 123-456".to_owned()).unwrap().as_str(), "+4930123456");
        for bad in ["030123456", "+12", "+12345678901234567", "+49x30123", ""] {
            assert!(Phone::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
