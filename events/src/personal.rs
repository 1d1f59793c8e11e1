//! Personal data in events: sealed with its subject's key, so that destroying the key erases it wherever the event
//! went (crypto-shredding).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A text about a person. In the log, in Kafka and in every export it is sealed; who holds the keys opens it in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Personal {
    sealed: Box<str>,
    clear: Clear,
}

/// What is known of a sealed text.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Clear {
    /// It has not been opened.
    #[default]
    Unopened,
    /// What it says.
    Text(Box<str>),
    /// The key was destroyed: nobody can open it any more.
    Erased,
}

impl Personal {
    /// A text that is sealed already.
    #[must_use]
    pub fn sealed(sealed: impl Into<Box<str>>) -> Self {
        Self { sealed: sealed.into(), clear: Clear::Unopened }
    }

    /// As it is stored.
    #[must_use]
    pub fn as_sealed(&self) -> &str {
        &self.sealed
    }

    /// Notes what opening it came to.
    pub fn open(&mut self, clear: Clear) {
        self.clear = clear;
    }

    /// What it says, if it was opened and is not erased.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.clear {
            Clear::Text(text) => Some(text),
            Clear::Unopened | Clear::Erased => None,
        }
    }
}

/// Says nothing of the text: it may end up in a log file.
impl fmt::Debug for Personal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.clear {
            Clear::Unopened => "Personal(sealed)",
            Clear::Text(_) => "Personal(opened)",
            Clear::Erased => "Personal(erased)",
        })
    }
}

impl Serialize for Personal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.sealed)
    }
}

impl<'de> Deserialize<'de> for Personal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<str>::deserialize(deserializer).map(Self::sealed)
    }
}

impl JsonSchema for Personal {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Personal".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "Personal data, sealed with the key of the account (AES-256-GCM, base64url). \
                            Unreadable for ever once the account is erased."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_is_neither_written_nor_shown() {
        let mut personal = Personal::sealed("v1.c2VhbGVk");
        personal.open(Clear::Text("ada@example.org".into()));
        assert_eq!(personal.text(), Some("ada@example.org"));
        assert_eq!(serde_json::to_string(&personal).unwrap(), "\"v1.c2VhbGVk\"");
        assert!(!format!("{personal:?}").contains("ada"));
        personal.open(Clear::Erased);
        assert_eq!(personal.text(), None);
    }
}
