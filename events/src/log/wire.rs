//! Rows for one parameter of a statement: an array of a composite type, in PostgreSQL's binary format.
//!
//! An array for each column would be simpler to write, but to put twelve of them together into rows costs the server
//! about as much as to store them; an array of rows it takes apart once
//! (`docs/decisions/0006-rows-as-one-parameter.md`). Rows are written as they come, into one buffer, without a value
//! in between.
//!
//! The formats are those of `array_recv` and `record_recv`: an array is the number of its dimensions, whether it has
//! nulls, its element's type, and for its one dimension length and lower bound; each element is its length and
//! bytes; a row is the number of its columns and for each its type, length (−1: null) and bytes. Numbers are
//! big-endian.

use std::ops::Range;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};
use uuid::Uuid;

use crate::Origin;

/// Types of columns, as `pg_type` numbers them in every PostgreSQL.
const BYTEA: u32 = 17;
const BIGINT: u32 = 20;
const SMALLINT: u32 = 21;
const TEXT: u32 = 25;
const JSON: u32 = 114;
const CIDR: u32 = 650;
const UUID: u32 = 2950;

/// A composite type and the array type of it, as this database numbers them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowType {
    pub(super) row: Oid,
    pub(super) array: Oid,
}

/// Rows of one composite type.
#[derive(Debug, Default)]
pub(super) struct Rows {
    count: i32,
    bytes: Vec<u8>,
}

impl Rows {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a row of so many columns: all of them must be written, in their order.
    pub(super) fn push(&mut self, columns: i32, write: impl FnOnce(&mut Row<'_>)) {
        let begin = self.begin(columns);
        write(&mut Row(&mut self.bytes));
        self.end(begin);
    }

    /// As [`Rows::push`]; an error takes the row back.
    pub(super) fn try_push<E>(
        &mut self,
        columns: i32,
        write: impl FnOnce(&mut Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let begin = self.begin(columns);
        let written = write(&mut Row(&mut self.bytes));
        match written {
            Ok(()) => self.end(begin),
            Err(_) => self.bytes.truncate(begin),
        }
        written
    }

    /// All that was written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn begin(&mut self, columns: i32) -> usize {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&columns.to_be_bytes());
        begin
    }

    fn end(&mut self, begin: usize) {
        write_length(&mut self.bytes, begin);
        self.count += 1;
    }

    /// As a parameter.
    pub(super) fn of(&self, row_type: RowType) -> Parameter<'_> {
        Parameter { rows: self, row_type }
    }
}

/// A row being written.
pub(super) struct Row<'a>(&'a mut Vec<u8>);

impl Row<'_> {
    pub(super) fn uuid(&mut self, value: Uuid) -> &mut Self {
        self.column(UUID, value.as_bytes())
    }

    pub(super) fn optional_uuid(&mut self, value: Option<Uuid>) -> &mut Self {
        match value {
            Some(value) => self.uuid(value),
            None => self.null(UUID),
        }
    }

    pub(super) fn bigint(&mut self, value: i64) -> &mut Self {
        self.column(BIGINT, &value.to_be_bytes())
    }

    pub(super) fn smallint(&mut self, value: i16) -> &mut Self {
        self.column(SMALLINT, &value.to_be_bytes())
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.column(TEXT, value.as_bytes())
    }

    pub(super) fn optional_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(value),
            None => self.null(TEXT),
        }
    }

    pub(super) fn optional_origin(&mut self, value: Option<Origin>) -> &mut Self {
        let Some(value) = value else { return self.null(CIDR) };
        self.column_by(CIDR, |buffer| value.write_cidr(buffer))
    }

    pub(super) fn bytea(&mut self, value: &[u8]) -> &mut Self {
        self.column(BYTEA, value)
    }

    /// JSON as `write` puts it behind what is there; returns where it stands in [`Rows::bytes`].
    pub(super) fn json<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Range<usize>, E> {
        self.0.extend_from_slice(&JSON.to_be_bytes());
        let begin = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        write(self.0)?;
        write_length(self.0, begin);
        Ok(begin + 4..self.0.len())
    }

    fn column(&mut self, column_type: u32, value: &[u8]) -> &mut Self {
        self.column_by(column_type, |buffer| buffer.extend_from_slice(value))
    }

    fn column_by(&mut self, column_type: u32, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        self.0.extend_from_slice(&column_type.to_be_bytes());
        let begin = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        write(self.0);
        write_length(self.0, begin);
        self
    }

    fn null(&mut self, column_type: u32) -> &mut Self {
        self.0.extend_from_slice(&column_type.to_be_bytes());
        self.0.extend_from_slice(&(-1_i32).to_be_bytes());
        self
    }
}

/// Writes the length of what follows into the four bytes at `begin`. What does not fit becomes a length that the server
/// refuses.
fn write_length(bytes: &mut [u8], begin: usize) {
    let length = i32::try_from(bytes.len() - begin - 4).unwrap_or(i32::MAX);
    bytes[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
}

/// Rows with the type they have in this database.
#[derive(Debug)]
pub(super) struct Parameter<'a> {
    rows: &'a Rows,
    row_type: RowType,
}

impl Type<Postgres> for Parameter<'_> {
    fn type_info() -> PgTypeInfo {
        // The type that counts is the one that `produces` tells.
        PgTypeInfo::with_name("record[]")
    }
}

impl Encode<'_, Postgres> for Parameter<'_> {
    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(self.row_type.array))
    }

    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let dimensions = i32::from(!self.rows.is_empty());
        buffer.extend_from_slice(&dimensions.to_be_bytes());
        buffer.extend_from_slice(&0_i32.to_be_bytes());
        buffer.extend_from_slice(&self.row_type.row.0.to_be_bytes());
        if dimensions > 0 {
            buffer.extend_from_slice(&self.rows.count.to_be_bytes());
            buffer.extend_from_slice(&1_i32.to_be_bytes());
            buffer.extend_from_slice(&self.rows.bytes);
        }
        Ok(IsNull::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_columns_with_type_and_length() {
        let mut rows = Rows::default();
        rows.try_push(3, |row| {
            row.smallint(258).optional_text(None);
            row.json(|buffer| {
                buffer.extend_from_slice(b"{}");
                Ok::<_, ()>(())
            })
            .map(|text| assert_eq!(text.len(), 2))
        })
        .unwrap();
        let expected = [
            &[0, 0, 0, 32][..],
            &[0, 0, 0, 3],
            &[0, 0, 0, 21, 0, 0, 0, 2, 1, 2],
            &[0, 0, 0, 25, 255, 255, 255, 255],
            &[0, 0, 0, 114, 0, 0, 0, 2, b'{', b'}'],
        ];
        assert_eq!(rows.bytes, expected.concat());
        assert_eq!(rows.count, 1);
    }

    #[test]
    fn a_row_that_cannot_be_written_is_not_there() {
        let mut rows = Rows::default();
        rows.push(1, |row| {
            row.bigint(7);
        });
        let before = rows.bytes.clone();
        rows.try_push(2, |row| {
            row.bigint(8);
            Err("no")
        })
        .unwrap_err();
        assert_eq!((rows.bytes, rows.count), (before, 1));
    }
}
