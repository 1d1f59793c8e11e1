//! Money and currency, as they stand in events and in JSON.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An amount in minor units (cents, yen) of one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// Minor units: 1999 is 19.99 EUR, or 1999 JPY.
    pub amount: i64,
    /// ISO 4217 alphabetic code.
    pub currency: Currency,
}

impl Money {
    /// The largest amount that every JSON reader holds exactly (2^53 − 1).
    pub const MAX_AMOUNT: i64 = 9_007_199_254_740_991;

    /// `unit × quantity`, or `None` beyond [`Money::MAX_AMOUNT`].
    #[must_use]
    pub fn times(amount: i64, quantity: i64) -> Option<i64> {
        amount.checked_mul(quantity).filter(|product| product.abs() <= Self::MAX_AMOUNT)
    }

    /// The sum of two amounts, or `None` beyond [`Money::MAX_AMOUNT`].
    #[must_use]
    pub fn plus(amount: i64, other: i64) -> Option<i64> {
        amount.checked_add(other).filter(|sum| sum.abs() <= Self::MAX_AMOUNT)
    }
}

/// Three letters of ISO 4217.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

/// Codes in use, ISO 4217:2015 with its amendments to 2025, without funds, metals and test codes.
const CODES: &str = "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD \
CAD CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD \
HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL \
MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD \
RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD \
UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG";

impl Currency {
    /// Reads a code as ISO 4217 writes it: three upper-case letters, and one of the codes in use.
    #[must_use]
    pub fn parse(code: &str) -> Option<Self> {
        let currency = Self::from_letters(code)?;
        Self::codes().any(|known| known == code).then_some(currency)
    }

    /// The codes in use, in alphabetic order.
    pub fn codes() -> impl Iterator<Item = &'static str> {
        CODES.split(' ')
    }

    /// Any three upper-case letters: what stands in an old event must stay readable when ISO drops a code.
    fn from_letters(code: &str) -> Option<Self> {
        let letters: [u8; 3] = code.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_uppercase).then_some(Self(letters))
    }

    /// The three letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a currency holds three ASCII letters")
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::from_letters(&code)
            .ok_or_else(|| serde::de::Error::custom("a currency is three upper-case letters of ISO 4217"))
    }
}

impl JsonSchema for Currency {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Currency".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217 alphabetic code" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_currency_is_a_code_in_use() {
        assert!(Currency::parse("EUR").is_some());
        for wrong in ["eur", "EU", "EURO", "QQQ", "", "E R", "€€€"] {
            assert!(Currency::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn amounts_never_wrap() {
        assert_eq!(Money::times(1_999, 3), Some(5_997));
        assert_eq!(Money::times(i64::MAX, 2), None);
        assert_eq!(Money::times(Money::MAX_AMOUNT, 2), None);
        assert_eq!(Money::plus(Money::MAX_AMOUNT, 1), None);
        assert_eq!(Money::plus(i64::MAX, i64::MAX), None);
    }
}
