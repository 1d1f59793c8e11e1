//! A year of real baskets, each placed as an order, until the views show the last.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;

use super::rebuild::mark;
use crate::client::Call;
use crate::error::BenchError;
use crate::process;
use crate::report::{Bound, Row};
use crate::shop::Shop;

/// The figure of importing.
pub(super) async fn import(shop: &Shop, staff: &str, data: &Path) -> Result<Vec<Row>, BenchError> {
    eprintln!("import of all baskets");
    let lines = count_lines(&data.join("basket_lines.csv.gz"))?;
    let folder =
        data.to_str().ok_or_else(|| BenchError::Wrong("the data's folder is no UTF-8".to_owned()))?;
    let command = shop.command(["import", "complete-journey", folder]);
    let begin = Instant::now();
    let child = tokio::process::Command::from(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(BenchError::io("starting the import"))?;
    let process = child.id();
    let mut most = (0, 0);
    let finished = async { child.wait_with_output().await.map_err(BenchError::io("waiting for the import")) };
    let watch = async {
        loop {
            let of = async |id: Option<u32>| match id {
                Some(id) => process::resident_bytes(id).await.unwrap_or(0),
                None => 0,
            };
            most = (most.0.max(of(process).await), most.1.max(of(Some(shop.process_id())).await));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let output = tokio::select! {
        output = finished => output?,
        never = watch => never,
    };
    let imported = begin.elapsed();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(BenchError::Program {
            program: "tidemark import".to_owned(),
            status: output.status.to_string(),
            output: said + &String::from_utf8_lossy(&output.stderr),
        });
    }
    let position = mark(shop, staff).await?;
    shop.caught_up(Call::get("/v1/orders?limit=1").token(staff), &position).await?;
    shop.caught_up(Call::get("/v1/products?limit=1"), &position).await?;
    let whole = begin.elapsed();
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut row = Row::new("import", "import of all baskets, views caught up", "lines/s", vec![
        lines as f64 / whole.as_secs_f64(),
    ])
    .bound(Bound::Above(20_000.0))
    .note(format!(
        "{lines} lines, products and opening stock included in the time: {:.1} s, of which views took {:.1} s to \
         catch up at the end",
        whole.as_secs_f64(),
        (whole - imported).as_secs_f64()
    ))
    .note(format!(
        "most memory meanwhile: import {:.0} MB, shop {:.0} MB",
        megabytes(most.0),
        megabytes(most.1)
    ));
    row.notes.extend(said.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    Ok(vec![row])
}

/// Lines of the table, without its header.
fn count_lines(path: &Path) -> Result<usize, BenchError> {
    let what = format!("reading {}", path.display());
    let file = File::open(path).map_err(BenchError::io(&what))?;
    let mut reader = BufReader::with_capacity(1 << 20, GzDecoder::new(file));
    let mut lines = 0_usize;
    loop {
        let block = reader.fill_buf().map_err(BenchError::io(&what))?;
        if block.is_empty() {
            return Ok(lines.saturating_sub(1));
        }
        lines += block.iter().filter(|byte| **byte == b'\n').count();
        let read = block.len();
        reader.consume(read);
    }
}
