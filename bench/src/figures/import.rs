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
use crate::position::number;
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
    let report = Report::read(&said)
        .ok_or_else(|| BenchError::Wrong(format!("the import's report cannot be read:\n{said}")))?;
    let position = mark(shop, staff).await?;
    let orders = Call::get("/v1/orders?limit=1").token(staff);
    let behind = shop.caught_up(orders, &position).await?
        + shop.caught_up(Call::get("/v1/products?limit=1"), &position).await?;
    let events = number(&position)?;
    // Nearly every line takes units out of stock, which is an event.
    if report.lines != lines || events < lines as i64 {
        return Err(BenchError::Wrong(format!(
            "the file has {lines} lines, the import read {}, the log has {events} events",
            report.lines
        )));
    }
    // What the views lack at the import's end counts as part of it.
    let seconds = report.seconds + behind.as_secs_f64();
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut row =
        Row::new("import", "import of all baskets, views caught up", "lines/s", vec![lines as f64 / seconds])
            .bound(Bound::Above(20_000.0))
            .note(format!(
                "{lines} lines in {seconds:.1} s, {events} events; with products and opening stock {:.1} s",
                imported.as_secs_f64()
            ))
            .note(format!(
                "most memory meanwhile: import {:.0} MB, shop {:.0} MB",
                megabytes(most.0),
                megabytes(most.1)
            ));
    row.notes.push(said.lines().filter_map(table_row).collect::<Vec<_>>().join("; "));
    Ok(vec![row])
}

/// A row of the report's tables on one line: `| orders | 4,945 | 0 |` is `orders 4,945 / 0`.
fn table_row(line: &str) -> Option<String> {
    let mut cells = line.strip_prefix("| ")?.trim_end().trim_end_matches('|').split('|').map(str::trim);
    let name = cells.next()?;
    Some(format!("{name} {}", cells.collect::<Vec<_>>().join(" / ")).trim().to_owned())
}

/// What the import says at its end: `1,469,307 lines of baskets in 61.2 s, views caught up: …`.
#[derive(Debug, PartialEq)]
struct Report {
    lines: usize,
    seconds: f64,
}

impl Report {
    fn read(said: &str) -> Option<Self> {
        let (lines, rest) = said.lines().find_map(|line| line.split_once(" lines of baskets in "))?;
        let (seconds, _) = rest.split_once(" s")?;
        Some(Self { lines: lines.trim().replace(',', "").parse().ok()?, seconds: seconds.parse().ok()? })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_an_import_is_read() {
        let said = "| lines | 1,460,000 | 0 |\n1,469,307 lines of baskets in 61.2 s, views caught up: 24,008 lines/s\n";
        assert_eq!(Report::read(said), Some(Report { lines: 1_469_307, seconds: 61.2 }));
        assert_eq!(Report::read("error"), None);
        assert_eq!(table_row("| orders | 4,945  | 0  |").as_deref(), Some("orders 4,945 / 0"));
        assert_eq!(table_row("|--------+--------+----|"), None);
    }
}
