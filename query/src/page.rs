//! Parameters and cursors of lists.

use aws_lc_rs::digest;
use axum::http::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidemark_http::problem::{self, Problem};

/// The longest query string.
const MAX_QUERY: usize = 4_096;

/// Items of a page, if the request does not say.
const DEFAULT_LIMIT: usize = 20;

/// The most items of a page.
pub(crate) const MAX_LIMIT: usize = 100;

/// The parameters of a list, each at most once and all of them known.
#[derive(Debug, Default)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads a query string.
    pub(crate) fn read(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let query = query.unwrap_or_default();
        if query.len() > MAX_QUERY {
            return Err(Problem::new(
                &problem::INVALID_PARAMETER,
                format!("more than {MAX_QUERY} bytes of query"),
            ));
        }
        let mut parameters: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&name.as_ref()) {
                let detail = format!("not a parameter of this list; there are {}", known.join(", "));
                return Err(invalid(&name, detail));
            }
            if parameters.iter().any(|(seen, _)| *seen == name) {
                return Err(invalid(&name, "named twice"));
            }
            if value.chars().any(char::is_control) {
                return Err(invalid(&name, "must not contain control characters"));
            }
            parameters.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(parameters))
    }

    /// A parameter that is there and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// A parameter as something else.
    pub(crate) fn parse<T: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, Problem> {
        self.get(name)
            .map(|text| text.parse().map_err(|_| invalid(name, format!("must be {what}"))))
            .transpose()
    }

    /// A parameter that is one of some words.
    pub(crate) fn one_of(&self, name: &str, words: &[&str]) -> Result<Option<&str>, Problem> {
        match self.get(name) {
            Some(word) if !words.contains(&word) => {
                Err(invalid(name, format!("must be one of {}", words.join(", "))))
            }
            word => Ok(word),
        }
    }

    /// How many items a page has.
    pub(crate) fn limit(&self) -> Result<usize, Problem> {
        let limit = self.parse("limit", "a number")?.unwrap_or(DEFAULT_LIMIT);
        if (1..=MAX_LIMIT).contains(&limit) {
            Ok(limit)
        } else {
            Err(invalid("limit", format!("must be 1 to {MAX_LIMIT}")))
        }
    }

    /// Tells one query from another: a cursor belongs to one. Its page and its form do not count.
    pub(crate) fn fingerprint(&self) -> String {
        let mut parts: Vec<&(String, String)> = self
            .0
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "cursor" | "limit" | "fields"))
            .collect();
        parts.sort();
        let mut context = digest::Context::new(&digest::SHA256);
        for (name, value) in parts {
            context.update(name.as_bytes());
            context.update(&[0]);
            context.update(value.as_bytes());
            context.update(&[0]);
        }
        URL_SAFE_NO_PAD.encode(&context.finish().as_ref()[..6])
    }

    /// Where the page begins: the sort key of the last item before it.
    pub(crate) fn cursor<K: DeserializeOwned>(&self) -> Result<Option<K>, Problem> {
        self.cursor_that(|_| true)
    }

    /// The same where not every key of the type is one of the query's.
    pub(crate) fn cursor_that<K: DeserializeOwned>(
        &self,
        is_one: impl FnOnce(&K) -> bool,
    ) -> Result<Option<K>, Problem> {
        let Some(text) = self.get("cursor") else { return Ok(None) };
        let refused = || Problem::new(&problem::INVALID_CURSOR, "not a cursor of this query");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
        let cursor: Cursor<K> = serde_json::from_slice(&bytes).map_err(|_| refused())?;
        if cursor.query == self.fingerprint() && is_one(&cursor.key) {
            Ok(Some(cursor.key))
        } else {
            Err(refused())
        }
    }

    /// The cursor behind an item with this sort key.
    pub(crate) fn cursor_after<K: Serialize>(&self, key: K) -> String {
        let cursor = Cursor { query: self.fingerprint(), key };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).expect("texts and numbers can be written as JSON"))
    }

    /// The link to the next page (RFC 8288).
    pub(crate) fn link(&self, path: &str, cursor: &str) -> Option<HeaderValue> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in self.0.iter().filter(|(name, _)| name != "cursor") {
            query.append_pair(name, value);
        }
        let query = query.append_pair("cursor", cursor).finish();
        HeaderValue::try_from(format!("<{path}?{query}>; rel=\"next\"")).ok()
    }
}

#[derive(Serialize, Deserialize)]
struct Cursor<K> {
    #[serde(rename = "q")]
    query: String,
    #[serde(rename = "k")]
    key: K,
}

/// A parameter that cannot be taken.
pub(crate) fn invalid(name: &str, detail: impl Into<String>) -> Problem {
    let detail = detail.into();
    Problem::new(&problem::INVALID_PARAMETER, format!("{name}: {detail}")).with_error(name, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["q", "limit", "cursor", "sort"];

    fn read(query: &str) -> Result<Parameters, Problem> {
        Parameters::read(Some(query), KNOWN)
    }

    #[test]
    fn parameters_are_known_and_bounded() {
        for bad in [
            "x=1",
            "q=1&q=2",
            "q=%00",
            "limit=0",
            "limit=101",
            "limit=-1",
            "limit=ten",
            "limit=99999999999999999999",
        ] {
            assert!(read(bad).and_then(|parameters| parameters.limit()).is_err(), "{bad}");
        }
        assert!(read(&format!("q={}", "a".repeat(5_000))).is_err());
        assert_eq!(read("").unwrap().limit().unwrap(), 20);
        assert_eq!(read("limit=100").unwrap().limit().unwrap(), 100);
    }

    proptest::proptest! {
        /// Whatever a client makes up, it is refused or was issued.
        #[test]
        fn no_text_is_taken_for_a_cursor(text in "[ -~]{0,120}", at in 0_usize..200, byte in 33_u8..127) {
            let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("cursor", &text).finish();
            let read_back = |query: &str| read(query).and_then(|parameters| parameters.cursor::<(String, i32)>());
            proptest::prop_assert!(!matches!(read_back(&query), Ok(Some(_))));
            let key = ("Lamp".to_owned(), 3);
            let mut bytes = read("q=lamp").unwrap().cursor_after(&key).into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let query: String = form_urlencoded::Serializer::new(String::new())
                .append_pair("q", "lamp")
                .append_pair("cursor", &String::from_utf8(bytes).unwrap())
                .finish();
            // A letter of a name may change and the text be a cursor still; it leads to a place in the same list.
            drop(read_back(&query));
        }
    }

    #[test]
    fn a_cursor_belongs_to_its_query() {
        let first = read("q=lamp&limit=5").unwrap();
        let cursor = first.cursor_after(("Lamp".to_owned(), 3));
        let next = read(&format!("limit=7&q=lamp&cursor={cursor}")).unwrap();
        assert_eq!(next.cursor::<(String, i32)>().unwrap(), Some(("Lamp".to_owned(), 3)));
        for other in [
            format!("q=shade&cursor={cursor}"),
            format!("q=lamp&cursor=x{cursor}"),
            "cursor=%7B%7D".to_owned(),
        ] {
            assert!(read(&other).unwrap().cursor::<(String, i32)>().is_err(), "{other}");
        }
        assert!(next.cursor::<(i32, i32)>().is_err(), "keys of another form");
    }
}
