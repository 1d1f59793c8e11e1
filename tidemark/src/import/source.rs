//! The files of the "Complete Journey" data set, and the ids that follow from theirs.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use csv::{Reader, StringRecord};
use flate2::read::MultiGzDecoder;
use uuid::{Builder, Uuid};

use crate::Failure;

/// Where ids without a time of their own begin: 2017-01-01, the first day of the data.
const FIRST_DAY_MILLIS: u64 = 1_483_228_800_000;

/// A gzipped CSV file with a header.
pub(super) type Table = Reader<BufReader<MultiGzDecoder<File>>>;

/// Opens a table and checks its columns.
pub(super) fn open(path: &Path, columns: &[&str]) -> Result<Table, Failure> {
    let file = File::open(path)
        .map_err(|error| Failure::Configuration(format!("cannot open {}: {error}", path.display())))?;
    let mut table =
        csv::ReaderBuilder::new().from_reader(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file)));
    let headers = table.headers().map_err(|error| broken(path, &error))?;
    if headers.iter().ne(columns.iter().copied()) {
        return Err(Failure::Configuration(format!(
            "{} should have the columns {}",
            path.display(),
            columns.join(", ")
        )));
    }
    Ok(table)
}

/// A file that cannot be read further.
pub(super) fn broken(path: &Path, error: &csv::Error) -> Failure {
    Failure::Configuration(format!("{}: {error}", path.display()))
}

/// A field, empty if the row is short.
pub(super) fn field(row: &StringRecord, column: usize) -> &str {
    row.get(column).unwrap_or_default().trim()
}

/// A UUIDv7 that follows from a source id: the same each time, in the order of the times.
pub(super) fn derived(kind: &str, source_id: &str, at: Option<DateTime<Utc>>) -> Uuid {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in ["complete-journey", kind, source_id] {
        context.update(&part.len().to_be_bytes());
        context.update(part.as_bytes());
    }
    let digest = context.finish();
    let mut bits = [0; 10];
    bits.copy_from_slice(&digest.as_ref()[..10]);
    let millis = at.and_then(|at| u64::try_from(at.timestamp_millis()).ok()).unwrap_or(FIRST_DAY_MILLIS);
    Builder::from_unix_timestamp_millis(millis, &bits).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_stable_distinct_and_in_order() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0);
        let first = derived("order", "1", at(1_500_000_000));
        assert_eq!(first, derived("order", "1", at(1_500_000_000)));
        assert_ne!(first, derived("order", "2", at(1_500_000_000)));
        assert_ne!(derived("product", "1", None), derived("household", "1", None));
        assert!(first < derived("order", "0", at(1_500_000_001)));
        assert_eq!(first.get_version_num(), 7);
    }
}
