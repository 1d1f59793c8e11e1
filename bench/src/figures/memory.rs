//! How much memory the shop's process takes.

use crate::error::BenchError;
use crate::process;
use crate::report::{Bound, Row};
use crate::shop::Shop;

/// The figure of memory.
pub(super) async fn memory(shop: &Shop, when: &str) -> Result<Vec<Row>, BenchError> {
    let bytes = process::resident_bytes(shop.process_id())
        .await
        .ok_or_else(|| BenchError::Wrong("the shop has ended".to_owned()))?;
    let what = format!("memory of the process {when} (resident)");
    Ok(vec![Row::new("memory", what, "MB", vec![bytes as f64 / 1e6]).bound(Bound::Below(600.0))])
}
