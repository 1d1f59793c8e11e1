//! What may be done side by side: keys fall into a fixed number of partitions, in the views and in Kafka alike.

use uuid::Uuid;

/// How many partitions by key there are. Each projection has a checkpoint for each, and the topic as many partitions.
pub const PARTITIONS: i16 = 8;

/// The partition that a key belongs to.
#[must_use]
pub fn partition_of(key: Uuid) -> i16 {
    // The last bits of a UUID of version 5 or 7 are evenly spread.
    i16::from(key.as_bytes()[15]) % PARTITIONS
}
