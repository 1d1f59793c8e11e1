//! Values that cannot be bad: whoever holds one needs no check. They are made where requests are parsed.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use tidemark_events::{Currency, Money};
use unicode_normalization::UnicodeNormalization;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, ObjectBuilder, OneOfBuilder, Schema, Type};

/// What a value must be, said to whoever sent another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    /// Says what it must be.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Trims, normalises to NFC, and bounds a text, as it came and as it is kept; control characters (NUL among them) are refused.
fn text(raw: &str, most: usize) -> Result<String, InvalidValue> {
    let normal: String = raw.trim().nfc().collect();
    if normal.chars().any(char::is_control) {
        return Err(InvalidValue("must not contain control characters".to_owned()));
    }
    let length = normal.chars().count();
    let length = if length == 0 { 0 } else { length.max(raw.chars().count()) };
    if length == 0 || length > most {
        return Err(InvalidValue(format!("must have 1 to {most} characters, has {length}")));
    }
    Ok(normal)
}

macro_rules! texts {
    ($pattern:tt; $( $(#[$doc:meta])* $name:ident, $most:tt; )+) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, min_length = 1, max_length = $most, pattern = $pattern)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;
            fn try_from(raw: String) -> Result<Self, InvalidValue> { text(&raw, $most).map(Self) }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self { value.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    )+ };
}

texts! {
    // What `text` takes, as a regular expression: white space around, no control character within.
    r"^[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*[^\x00- \x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]([^\x00-\x1f\x7f-\x9f]*[^\x00- \x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000])?[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*$";
    /// Stock keeping unit, 1 to 64 characters, unique in the shop.
    Sku, 64;
    /// What shoppers read, 1 to 200 characters.
    Name, 200;
    /// A longer text, 1 to 5,000 characters.
    Description, 5000;
    /// A part of the shop, 1 to 100 characters.
    Department, 100;
    /// What somebody wants to be called, 1 to 200 characters.
    PersonName, 200;
    /// A line of an address, 1 to 200 characters.
    AddressLine, 200;
    /// A postal code, 1 to 20 characters.
    PostalCode, 20;
    /// Why something was done, 1 to 500 characters.
    Reason, 500;
}

/// Units of a product, 1 to 1,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "i64", into = "i64")]
#[schema(value_type = i64, minimum = 1, maximum = 1_000_000)]
pub struct Quantity(i64);

impl Quantity {
    /// The most units one command may name.
    pub const MAX: i64 = 1_000_000;

    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

impl TryFrom<i64> for Quantity {
    type Error = InvalidValue;
    fn try_from(units: i64) -> Result<Self, InvalidValue> {
        if (1..=Self::MAX).contains(&units) {
            Ok(Self(units))
        } else {
            Err(InvalidValue(format!("must be 1 to {}, is {units}", Self::MAX)))
        }
    }
}

impl From<Quantity> for i64 {
    fn from(quantity: Quantity) -> Self {
        quantity.0
    }
}

/// A correction of a stock count: −1,000,000 to 1,000,000, not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Delta(i64);

impl Delta {
    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

impl TryFrom<i64> for Delta {
    type Error = InvalidValue;
    fn try_from(units: i64) -> Result<Self, InvalidValue> {
        if units != 0 && (-Quantity::MAX..=Quantity::MAX).contains(&units) {
            Ok(Self(units))
        } else {
            Err(InvalidValue(format!("must be −{0} to {0} and not 0, is {units}", Quantity::MAX)))
        }
    }
}

impl From<Delta> for i64 {
    fn from(delta: Delta) -> Self {
        delta.0
    }
}

impl utoipa::PartialSchema for Delta {
    fn schema() -> RefOr<Schema> {
        let between = |least: i64, most: i64| {
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least)).maximum(Some(most))
        };
        let description = "A correction of a stock count, not 0.";
        let (down, up) = (between(-Quantity::MAX, -1), between(1, Quantity::MAX));
        OneOfBuilder::new().item(down).item(up).description(Some(description)).into()
    }
}

impl ToSchema for Delta {
    fn name() -> Cow<'static, str> {
        "Delta".into()
    }
}

/// The price of one unit: 0 to 2^53 − 1 minor units of a currency in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawPrice", into = "Money")]
pub struct Price(Money);

/// A price as it is written in JSON.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Price)]
pub struct RawPrice {
    /// Minor units: 1999 is 19.99 EUR.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_i64)]
    amount: i64,
    /// ISO 4217 alphabetic code.
    #[schema(schema_with = currencies)]
    currency: String,
}

fn currencies() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(Currency::codes()))
        .description(Some("ISO 4217 alphabetic code"))
        .build()
}

impl Price {
    /// The amount and its currency.
    #[must_use]
    pub fn money(self) -> Money {
        self.0
    }
}

impl TryFrom<Money> for Price {
    type Error = InvalidValue;
    fn try_from(money: Money) -> Result<Self, InvalidValue> {
        if (0..=Money::MAX_AMOUNT).contains(&money.amount) {
            Ok(Self(money))
        } else {
            Err(InvalidValue(format!("amount must be 0 to {}, is {}", Money::MAX_AMOUNT, money.amount)))
        }
    }
}

impl TryFrom<RawPrice> for Price {
    type Error = InvalidValue;
    fn try_from(raw: RawPrice) -> Result<Self, InvalidValue> {
        let currency = Currency::parse(&raw.currency)
            .ok_or_else(|| InvalidValue("currency must be a code of ISO 4217 in use, like EUR".to_owned()))?;
        Self::try_from(Money { amount: raw.amount, currency })
    }
}

impl From<Price> for Money {
    fn from(price: Price) -> Self {
        price.0
    }
}

impl utoipa::PartialSchema for Price {
    fn schema() -> RefOr<Schema> {
        RawPrice::schema()
    }
}

impl ToSchema for Price {
    fn name() -> Cow<'static, str> {
        "Price".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_trimmed_normalised_and_bounded() {
        let name = Name::try_from("  Cafe\u{301}  ".to_owned()).unwrap();
        assert_eq!(name.as_str(), "Café");
        for bad in ["", "   ", "a\0b", "a\u{7}b", "line\nbreak", "\u{85}x\u{85}y"] {
            assert!(Name::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(Sku::try_from("x".repeat(64)).is_ok());
        assert!(Sku::try_from("x".repeat(65)).is_err());
        assert!(Sku::try_from(format!("x{}", " ".repeat(64))).is_err(), "as it came, too");
    }

    #[test]
    fn quantities_and_prices_have_bounds() {
        for bad in [0, -1, 1_000_001, i64::MIN, i64::MAX] {
            assert!(Quantity::try_from(bad).is_err());
        }
        assert!(Quantity::try_from(1_000_000).is_ok());
        for bad in [
            r#"{"amount":-1,"currency":"EUR"}"#,
            r#"{"amount":9007199254740992,"currency":"EUR"}"#,
            r#"{"amount":1,"currency":"eur"}"#,
            r#"{"amount":1,"currency":"QQQ"}"#,
            r#"{"amount":1.5,"currency":"EUR"}"#,
            r#"{"amount":"1","currency":"EUR"}"#,
            r#"{"amount":1}"#,
            r#"{"amount":1,"currency":"EUR","x":1}"#,
        ] {
            assert!(serde_json::from_str::<Price>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Price>(r#"{"amount":0,"currency":"JPY"}"#).is_ok());
    }
}
