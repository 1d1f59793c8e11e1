//! E-mail addresses, as accounts are found by them.

use std::fmt;

use serde::Deserialize;
use unicode_normalization::UnicodeNormalization;
use utoipa::ToSchema;

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
    type Error = &'static str;

    /// Takes what mail servers deliver to, not all that RFC 5321 would let pass: quoted local parts and addresses in
    /// brackets are refused.
    fn try_from(raw: String) -> Result<Self, &'static str> {
        const WRONG: &str = "must be an e-mail address, like ada@example.org";
        let text: String = raw.trim().nfc().collect();
        if text.len() > Self::MOST {
            return Err("must have at most 254 bytes");
        }
        let (local, domain) = text.rsplit_once('@').ok_or(WRONG)?;
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
            Err(WRONG)
        }
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
}
