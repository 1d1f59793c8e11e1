//! Rows in PostgreSQL's binary COPY format: the cheapest way to write many.
//!
//! COPY inserts whole pages at a time, where `INSERT … SELECT unnest` inserts row by row. The format: a signature,
//! then for each row the number of its fields and each field's length and bytes, all integers big-endian, then −1.
//! See PostgreSQL's manual, COPY, "Binary Format".

use chrono::{DateTime, Utc};
use uuid::Uuid;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Rows being written.
#[derive(Debug, Clone)]
pub struct Rows {
    bytes: Vec<u8>,
}

impl Default for Rows {
    fn default() -> Self {
        Self { bytes: SIGNATURE.to_vec() }
    }
}

impl Rows {
    /// Begins a row of `fields` fields; each must then be written, in the order of the statement's columns.
    pub fn row(&mut self, fields: i16) {
        self.bytes.extend_from_slice(&fields.to_be_bytes());
    }

    /// NULL.
    pub fn null(&mut self) {
        self.bytes.extend_from_slice(&(-1_i32).to_be_bytes());
    }

    /// A `smallint`.
    pub fn i16(&mut self, value: i16) {
        self.field(&value.to_be_bytes());
    }

    /// A `bigint`.
    pub fn i64(&mut self, value: i64) {
        self.field(&value.to_be_bytes());
    }

    /// A `uuid`.
    pub fn uuid(&mut self, value: Uuid) {
        self.field(value.as_bytes());
    }

    /// A `text`.
    pub fn text(&mut self, value: &str) {
        self.field(value.as_bytes());
    }

    /// A `bytea`.
    pub fn bytes(&mut self, value: &[u8]) {
        self.field(value);
    }

    /// A `timestamptz`, to the microsecond.
    pub fn time(&mut self, value: DateTime<Utc>) {
        self.i64(value.timestamp_micros() - POSTGRES_EPOCH_MICROS);
    }

    /// A `jsonb`, from what `write` appends. Returns how many bytes that were, or its error (the row is broken
    /// then, and so is the whole).
    pub fn json<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<usize, E> {
        const JSONB_VERSION: u8 = 1;
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.push(JSONB_VERSION);
        write(&mut self.bytes)?;
        let length = self.bytes.len() - length_at - 4;
        let stated = i32::try_from(length).unwrap_or(i32::MAX);
        self.bytes[length_at..length_at + 4].copy_from_slice(&stated.to_be_bytes());
        Ok(length - 1)
    }

    /// How many bytes have been written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no row has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == SIGNATURE.len()
    }

    /// All of it, with the trailer.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        self.bytes
    }

    fn field(&mut self, value: &[u8]) {
        let length = i32::try_from(value.len()).unwrap_or(i32::MAX);
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
    }
}
