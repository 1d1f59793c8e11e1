//! The table of figures, and the same as JSON.

use std::path::Path;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::BenchError;
use crate::stats::median;
use crate::steal::Ticks;

/// What a figure is held against.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// At least this part of the baseline.
    Ratio(f64),
    /// Above this value.
    Above(f64),
    /// Below this value.
    Below(f64),
    /// Only told.
    None,
}

/// A limit that was measured in the same run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Baseline {
    /// What reached it.
    pub(crate) what: String,
    /// Of each round, in the figure's unit.
    pub(crate) rounds: Vec<f64>,
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// Its short name.
    pub(crate) name: &'static str,
    /// What was done.
    pub(crate) what: String,
    /// Of the values.
    pub(crate) unit: &'static str,
    /// The value of each round.
    pub(crate) rounds: Vec<f64>,
    /// What it is compared with.
    pub(crate) baseline: Option<Baseline>,
    /// What it should reach.
    pub(crate) bound: Bound,
    /// What a reader should know beside it.
    pub(crate) notes: Vec<String>,
    /// Why there is no figure.
    pub(crate) error: Option<String>,
}

impl Row {
    /// A figure without a baseline.
    pub(crate) fn new(
        name: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        rounds: Vec<f64>,
    ) -> Self {
        Self {
            name,
            what: what.into(),
            unit,
            rounds,
            baseline: None,
            bound: Bound::None,
            notes: Vec::new(),
            error: None,
        }
    }

    /// A figure that could not be had.
    pub(crate) fn broken(name: &'static str, error: &BenchError) -> Self {
        Self { error: Some(error.to_string()), ..Self::new(name, name, "", Vec::new()) }
    }

    /// Compared with this.
    pub(crate) fn against(mut self, what: impl Into<String>, rounds: Vec<f64>) -> Self {
        self.baseline = Some(Baseline { what: what.into(), rounds });
        self
    }

    /// Should reach this.
    pub(crate) fn bound(mut self, bound: Bound) -> Self {
        self.bound = bound;
        self
    }

    /// With something to know.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The median of the rounds.
    pub(crate) fn measured(&self) -> f64 {
        median(&self.rounds)
    }

    /// The median against the baseline's median.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.baseline.as_ref().map(|baseline| self.measured() / median(&baseline.rounds))
    }

    /// The smallest and the largest ratio of a round with the baseline's same round.
    fn spread(&self) -> Option<(f64, f64)> {
        let baseline = self.baseline.as_ref()?;
        let ratios = self.rounds.iter().zip(&baseline.rounds).map(|(measured, limit)| measured / limit);
        let widen = |(low, high): (f64, f64), ratio: f64| (low.min(ratio), high.max(ratio));
        (self.rounds.len() > 1).then(|| ratios.fold((f64::INFINITY, 0.0), widen))
    }

    /// Whether it reached its bound, `None` if it has none.
    pub(crate) fn ok(&self) -> Option<bool> {
        if self.error.is_some() {
            return Some(false);
        }
        match self.bound {
            Bound::Ratio(least) => Some(self.ratio().is_some_and(|ratio| ratio >= least)),
            Bound::Above(least) => Some(self.measured() > least),
            Bound::Below(most) => Some(self.measured() < most),
            Bound::None => None,
        }
    }

    fn cells(&self) -> [String; 6] {
        let value = |value: f64| format!("{} {}", number(value), self.unit);
        let ratio = self.ratio().map_or_else(String::new, |ratio| match self.spread() {
            Some((low, high)) => format!("{ratio:.2} ({low:.2}–{high:.2})"),
            None => format!("{ratio:.2}"),
        });
        let bound = match self.bound {
            Bound::Ratio(least) => format!("≥ {least}"),
            Bound::Above(least) => format!("> {}", value(least)),
            Bound::Below(most) => format!("< {}", value(most)),
            Bound::None => String::new(),
        };
        [
            self.what.clone(),
            if self.error.is_some() { "failed".to_owned() } else { value(self.measured()) },
            self.baseline
                .as_ref()
                .map_or_else(String::new, |b| format!("{}: {}", b.what, number(median(&b.rounds)))),
            ratio,
            bound,
            self.ok().map_or("", |ok| if ok { "yes" } else { "NO" }).to_owned(),
        ]
    }
}

/// With thousands separated, and as many decimals as its size deserves.
fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A run's figures.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Report {
    /// When it began.
    pub(crate) at: chrono::DateTime<chrono::Utc>,
    /// The machine, the database and its settings.
    pub(crate) conditions: Vec<String>,
    /// The figures.
    pub(crate) rows: Vec<Row>,
    /// When the figure before the next one was added.
    #[serde(skip)]
    ticks: Option<Ticks>,
}

impl Report {
    /// A report that begins now.
    pub(crate) fn begin() -> Self {
        Self { at: chrono::Utc::now(), ticks: Ticks::now(), ..Self::default() }
    }

    /// Adds a figure, or what kept it from being had; says so at once. What others took of the processors since the
    /// one before is noted beside it.
    pub(crate) fn add(&mut self, name: &'static str, rows: Result<Vec<Row>, BenchError>) {
        let mut rows = rows.unwrap_or_else(|error| vec![Row::broken(name, &error)]);
        let now = Ticks::now();
        if let Some(told) = now.zip(self.ticks).and_then(|(now, before)| now.told_since(before))
            && let Some(first) = rows.first_mut()
        {
            first.notes.push(told);
        }
        self.ticks = now;
        for row in &rows {
            let [what, measured, _, ratio, ..] = row.cells();
            eprintln!("  {what}: {measured} {ratio}");
        }
        self.rows.extend(rows);
    }

    /// Whether every figure could be had. One that missed its bound counts as had.
    pub(crate) fn complete(&self) -> bool {
        self.rows.iter().all(|row| row.error.is_none())
    }

    /// Prints table and notes, in Markdown.
    #[expect(clippy::print_stdout, reason = "the table is what this program is for")]
    pub(crate) fn print(&self) {
        println!("\n{self}");
    }

    /// Stores it as JSON.
    pub(crate) fn store(&self, path: &Path) -> Result<(), BenchError> {
        let json = serde_json::to_vec_pretty(self).map_err(BenchError::json("the report"))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(BenchError::io(format!("making {}", folder.display())))?;
        }
        std::fs::write(path, json).map_err(BenchError::io(format!("writing {}", path.display())))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "what",
            "measured",
            "baseline of the same run",
            "ratio (of rounds)",
            "to reach",
            "ok",
        ]);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        for condition in &self.conditions {
            writeln!(f, "{condition}")?;
        }
        writeln!(f, "\n{table}")?;
        for row in &self.rows {
            for note in row.notes.iter().chain(&row.error) {
                writeln!(f, "- {}: {note}", row.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_and_show_their_spread() {
        let row = Row::new("a", "A", "requests/s", vec![80.0, 70.0, 90.0])
            .against("bare", vec![100.0, 100.0, 100.0])
            .bound(Bound::Ratio(0.75));
        assert_eq!(row.ratio(), Some(0.8));
        assert_eq!(row.ok(), Some(true));
        assert_eq!(row.cells()[3], "0.80 (0.70–0.90)");
    }

    #[test]
    fn bounds_hold_or_not() {
        let p99 = |value| Row::new("a", "A", "ms", vec![value]).bound(Bound::Below(20.0)).ok();
        assert_eq!(p99(19.9), Some(true));
        assert_eq!(p99(20.0), Some(false));
        assert_eq!(Row::new("a", "A", "ms", vec![1.0]).ok(), None);
        assert_eq!(Row::broken("a", &BenchError::Wrong("no".to_owned())).ok(), Some(false));
    }

    #[test]
    fn numbers_can_be_read() {
        assert_eq!(number(7.25), "7.2");
        assert_eq!(number(999.6), "1,000");
        assert_eq!(number(1_234_567.0), "1,234,567");
    }
}
