//! Where the log stands, as commands tell it: `epoch-position`.

use crate::error::BenchError;

/// The number of a position.
pub(crate) fn number(position: &str) -> Result<i64, BenchError> {
    let number = position.rsplit('-').next().and_then(|number| number.parse().ok());
    number.ok_or_else(|| BenchError::Wrong(format!("{position:?} is no position")))
}

/// The position with the highest number: whoever stands there has seen all of them.
pub(crate) fn latest(positions: &[String]) -> Result<&str, BenchError> {
    let mut latest = None;
    for position in positions {
        latest = latest.max(Some((number(position)?, position.as_str())));
    }
    latest.map(|(_, position)| position).ok_or_else(|| BenchError::Wrong("no position at all".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_compared_by_number() {
        assert_eq!(number("1-4711").unwrap(), 4711);
        assert!(number("1-").is_err());
        let positions = ["1-99", "1-100", "1-9"].map(str::to_owned);
        assert_eq!(latest(&positions).unwrap(), "1-100");
        assert!(latest(&[]).is_err());
    }
}
