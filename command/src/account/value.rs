//! What people are reached by and prove themselves with.

use std::fmt;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::value::InvalidValue;

/// An e-mail address as its owner writes it, 3 to 254 bytes.
#[derive(Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, min_length = 3, max_length = 254, format = "email", example = "ada@example.org")]
pub struct Email(String);

impl Email {
    const MOST: usize = 254;
    const MOST_LOCAL: usize = 64;

    /// The address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What makes two addresses the same: case does not count.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_lowercase().nfc().collect()
    }
}

/// It is personal, and errors and logs are not.
impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email")
    }
}

impl TryFrom<String> for Email {
    type Error = InvalidValue;

    /// Takes what mail servers deliver to, not all that RFC 5321 would let pass: quoted local parts and addresses in
    /// brackets are refused.
    fn try_from(raw: String) -> Result<Self, InvalidValue> {
        let text: String = raw.trim().nfc().collect();
        let wrong = || InvalidValue::new("must be an e-mail address, like ada@example.org");
        if text.len() > Self::MOST {
            return Err(InvalidValue::new("must have at most 254 bytes"));
        }
        let (local, domain) = text.rsplit_once('@').ok_or_else(wrong)?;
        let of_local = |c: char| !c.is_control() && !c.is_whitespace() && !"()<>[],;:\\\"@".contains(c);
        let is_local = (1..=Self::MOST_LOCAL).contains(&local.len())
            && local.chars().all(of_local)
            && !local.starts_with('.')
            && !local.ends_with('.')
            && !local.contains("..");
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.chars().all(|c| c.is_alphanumeric() || c == '-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if is_local && domain.split('.').all(is_label) && domain.contains('.') {
            Ok(Self(text))
        } else {
            Err(wrong())
        }
    }
}

/// A password as it is set: 12 to 256 characters, none of them forbidden. Normalised to NFC, so that it is the same
/// from every keyboard; never trimmed. Wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, min_length = 12, max_length = 256, format = "password")]
pub struct NewPassword(Zeroizing<String>);

/// A password as it is shown at log-in; what could never have been set is just wrong.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(from = "String")]
#[schema(value_type = String, max_length = 1024, format = "password")]
pub struct ShownPassword(Zeroizing<String>);

impl NewPassword {
    const LEAST: usize = 12;
    const MOST: usize = 256;

    /// As it is hashed.
    #[must_use]
    pub fn normal(&self) -> &Zeroizing<String> {
        &self.0
    }
}

impl TryFrom<String> for NewPassword {
    type Error = InvalidValue;

    fn try_from(raw: String) -> Result<Self, InvalidValue> {
        let normal = normal(raw);
        let length = normal.chars().count();
        if (Self::LEAST..=Self::MOST).contains(&length) {
            Ok(Self(normal))
        } else {
            let (least, most) = (Self::LEAST, Self::MOST);
            Err(InvalidValue::new(format!("must have {least} to {most} characters, has {length}")))
        }
    }
}

impl ShownPassword {
    /// As it is compared; `None` if no password can be so.
    #[must_use]
    pub fn normal(&self) -> Option<&Zeroizing<String>> {
        (self.0.chars().take(NewPassword::MOST + 1).count() <= NewPassword::MOST).then_some(&self.0)
    }
}

impl From<String> for ShownPassword {
    fn from(raw: String) -> Self {
        Self(normal(raw))
    }
}

fn normal(raw: String) -> Zeroizing<String> {
    let raw = Zeroizing::new(raw);
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
    fn addresses_that_mail_reaches_are_taken() {
        for good in [
            "ada@example.org",
            "a.b+c@sub.example.co",
            " ada@example.org ",
            "ädä@exämple.org",
            "o'neil@a-b.de",
        ] {
            assert!(Email::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "@",
            "a@",
            "@b.c",
            "a@b",
            "a b@c.de",
            "a@b..c",
            "a@-b.c",
            "a@b-.c",
            ".a@b.c",
            "a.@b.c",
            "a..b@c.de",
            "a@b.c\nBcc: x@y.z",
            "\"a b\"@c.de",
            "a@[127.0.0.1]",
            "a,b@c.de",
            "<a@b.c>",
            "a@b.c>",
            "a\0@b.c",
        ] {
            assert!(Email::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(Email::try_from(format!("{}@b.cd", "a".repeat(65))).is_err());
        assert!(Email::try_from(format!("a@{}.cd", "b".repeat(250))).is_err());
    }

    #[test]
    fn two_spellings_of_an_address_are_one() {
        let folded = |text: &str| Email::try_from(text.to_owned()).unwrap().folded();
        assert_eq!(folded("Ada@Example.ORG"), folded("ada@example.org"));
        assert_eq!(folded("\u{c4}da@example.org"), folded("a\u{308}da@example.org"));
    }

    #[test]
    fn passwords_are_bounded_and_normalised_and_never_shown() {
        assert!(NewPassword::try_from("elevenchars".to_owned()).is_err());
        assert!(NewPassword::try_from("twelve chars".to_owned()).is_ok());
        assert!(NewPassword::try_from("x".repeat(257)).is_err());
        let set = NewPassword::try_from("Pa\u{df}wort mit \u{c4}!".to_owned()).unwrap();
        let shown = ShownPassword::from("Pa\u{df}wort mit A\u{308}!".to_owned());
        assert_eq!(Some(set.normal()), shown.normal());
        assert!(!format!("{set:?} {shown:?}").contains("wort"));
        assert!(ShownPassword::from("x".repeat(300)).normal().is_none());
    }

    #[test]
    fn telephone_numbers_are_international() {
        assert_eq!(Phone::try_from("+49 30 123-456".to_owned()).unwrap().as_str(), "+4930123456");
        for bad in ["030123456", "+12", "+12345678901234567", "+49x30123", ""] {
            assert!(Phone::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
