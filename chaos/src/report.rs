//! What a run came to, as tables, and whether it passed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::check::Check;
use crate::faults::{Struck, cause, counted};
use crate::history::{End, History, Wait};

/// A limit on what a fault may cost those who write.
struct Bound {
    what: &'static str,
    /// The faults that it holds for.
    faults: &'static [&'static str],
    within: Duration,
    /// Whether nobody may have been refused, either.
    without_errors: bool,
}

const BOUNDS: [Bound; 4] = [
    Bound {
        what: "one of two command services is killed",
        faults: &["kill -9 command", "kill -9 publisher"],
        within: Duration::from_secs(1),
        without_errors: false,
    },
    Bound {
        what: "the log's PostgreSQL is killed",
        faults: &["kill -9 postgres-log", "kill -9 a session of postgres-log"],
        within: Duration::from_secs(10),
        without_errors: false,
    },
    Bound {
        what: "everything is killed at once",
        faults: &["kill -9 everything"],
        within: Duration::from_secs(45),
        without_errors: false,
    },
    Bound {
        what: "Kafka and Redis are gone",
        faults: &["kafka and redis gone", "kafka gone"],
        within: Duration::from_secs(1),
        without_errors: true,
    },
];

/// What is asked of a run as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Least {
    /// Acknowledged commands.
    pub(crate) commands: u64,
    /// Faults.
    pub(crate) faults: usize,
    /// Whether every bound must have been measured.
    pub(crate) bounds: bool,
    /// How many times longer than its bound an outage may be: more than once on a machine that others use, too.
    pub(crate) patience: u32,
}

/// A run.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) lasted: Duration,
    pub(crate) struck: Vec<Struck>,
    pub(crate) history: History,
    pub(crate) checks: Vec<Check>,
    pub(crate) least: Least,
}

/// What one kind of fault cost.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    longest_write: Duration,
    /// When that wait began.
    longest_write_from: Duration,
    write_errors: u64,
    longest_read: Duration,
    read_errors: u64,
    longest_recovery: Duration,
}

fn seconds(time: Duration) -> Cell {
    right(format!("{:.2} s", time.as_secs_f64()))
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    table
}

impl Report {
    fn costs(&self) -> BTreeMap<&str, Cost> {
        let mut costs: BTreeMap<&str, Cost> = BTreeMap::new();
        for fault in &self.struck {
            let cost = costs.entry(&fault.name).or_default();
            let back = fault.back.map_or(Duration::MAX, |back| back.saturating_sub(fault.from));
            cost.longest_recovery = cost.longest_recovery.max(back);
        }
        let mut charge = |waits: &[Wait], writes: bool| {
            for wait in waits {
                let Some(fault) = cause(&self.struck, wait.from, wait.to, writes) else { continue };
                let cost = costs.entry(&fault.name).or_default();
                let waited = wait.to.saturating_sub(wait.from);
                if writes && waited > cost.longest_write {
                    cost.longest_write_from = wait.from;
                }
                let (longest, errors) = if writes {
                    (&mut cost.longest_write, &mut cost.write_errors)
                } else {
                    (&mut cost.longest_read, &mut cost.read_errors)
                };
                *longest = (*longest).max(waited);
                *errors += u64::from(wait.errors);
            }
        };
        charge(&self.history.write_waits, true);
        charge(&self.history.read_waits, false);
        costs
    }

    /// What was not reached, one line each; none: it passed.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = failed_checks(&self.checks);
        for (bound, cost) in self.bounds() {
            match cost {
                Some(cost) if cost.longest_write > bound.within * self.least.patience => {
                    failures.push(format!(
                        "{}: nothing could be written for {:.2} s from {:.2} s on, the bound is {:.0} s",
                        bound.what,
                        cost.longest_write.as_secs_f64(),
                        cost.longest_write_from.as_secs_f64(),
                        (bound.within * self.least.patience).as_secs_f64()
                    ))
                }
                Some(cost) if bound.without_errors && cost.write_errors > 0 => {
                    failures.push(format!("{}: {} commands were not taken", bound.what, cost.write_errors));
                }
                None if self.least.bounds => failures.push(format!("{}: this did not happen", bound.what)),
                _ => {}
            }
        }
        let accepted = self.history.accepted().count() as u64;
        if accepted < self.least.commands {
            failures
                .push(format!("{accepted} commands were acknowledged, {} are needed", self.least.commands));
        }
        if self.struck.len() < self.least.faults {
            failures.push(format!(
                "{} faults have struck, {} are needed",
                self.struck.len(),
                self.least.faults
            ));
        }
        failures
    }

    fn bounds(&self) -> Vec<(&'static Bound, Option<Cost>)> {
        let costs = self.costs();
        let cost = |bound: &Bound| {
            let of: Vec<&Cost> = bound.faults.iter().filter_map(|fault| costs.get(fault)).collect();
            let longest = of.iter().max_by_key(|cost| cost.longest_write)?;
            let write_errors = of.iter().map(|cost| cost.write_errors).sum();
            Some(Cost { write_errors, ..**longest })
        };
        BOUNDS.iter().map(|bound| (bound, cost(bound))).collect()
    }

    /// Prints all of it.
    #[expect(clippy::print_stdout, reason = "the report is what this program is for")]
    pub(crate) fn print(&self) {
        let counts = counted(&self.struck);
        let mut faults =
            table(["fault", "times", "no write for", "refused", "no read for", "refused", "back after"]);
        for (name, cost) in self.costs() {
            faults.add_row(vec![
                Cell::new(name),
                right(counts.get(name).copied().unwrap_or(0)),
                seconds(cost.longest_write),
                right(cost.write_errors),
                seconds(cost.longest_read),
                right(cost.read_errors),
                if cost.longest_recovery == Duration::MAX {
                    right("never")
                } else {
                    seconds(cost.longest_recovery)
                },
            ]);
        }
        let mut answers = table(["asked", "answered", "times"]);
        for ((what, outcome), count) in &self.history.answers {
            answers.add_row(vec![Cell::new(what), Cell::new(outcome), right(count)]);
        }
        let mut bounds = table(["when", "no write for", "from", "at most", "refused"]);
        for (bound, cost) in self.bounds() {
            bounds.add_row(vec![
                Cell::new(bound.what),
                cost.map_or_else(|| right("not measured"), |cost| seconds(cost.longest_write)),
                cost.map_or_else(|| right(""), |cost| seconds(cost.longest_write_from)),
                seconds(bound.within * self.least.patience),
                cost.map_or_else(|| right(""), |cost| right(cost.write_errors)),
            ]);
        }
        let checks = checks_table(&self.checks);
        println!("{faults}\n{answers}\n{bounds}\n{checks}");
        let (mut refused, mut unknown) = (0, 0);
        for intent in &self.history.intents {
            match intent.end {
                End::Accepted(_) => {}
                End::Refused { .. } => refused += 1,
                End::Unknown { .. } => unknown += 1,
            }
        }
        let history = &self.history;
        println!(
            "seed {}, {:.0} s, {} faults of {} kinds; {} commands: {} acknowledged, {refused} refused, {unknown} unknown; \
             {} reads; {} requests sent again, {} commands asked for twice",
            self.seed,
            self.lasted.as_secs_f64(),
            self.struck.len(),
            self.struck.iter().map(|fault| &fault.name).collect::<BTreeSet<_>>().len(),
            history.intents.len(),
            history.accepted().count(),
            history.reads.len(),
            history.retries,
            history.repeated,
        );
        let failures = self.failures();
        for failure in &failures {
            println!("{failure}");
        }
        println!("{}", verdict(&failures));
    }
}

/// Prints checks that belong to no report; whether all of them hold.
#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
pub(crate) fn print_checks(checks: &[Check]) -> bool {
    println!("{}", checks_table(checks));
    let failures = failed_checks(checks);
    for failure in &failures {
        println!("{failure}");
    }
    println!("{}", verdict(&failures));
    failures.is_empty()
}

fn checks_table(checks: &[Check]) -> Table {
    let mut rows = table(["invariant", "compared", "mismatched"]);
    for check in checks {
        rows.add_row(vec![Cell::new(check.name), right(check.compared), right(check.mismatched)]);
    }
    rows
}

/// Checks that do not hold, or that looked at nothing, one line each and their examples below.
fn failed_checks(checks: &[Check]) -> Vec<String> {
    let mut failures = Vec::new();
    for check in checks {
        if check.mismatched > 0 {
            failures.push(format!("{}: {} of {}", check.name, check.mismatched, check.compared));
            failures.extend(check.examples.iter().map(|example| format!("    {example}")));
        } else if check.compared == 0 {
            failures.push(format!("{}: nothing was compared", check.name));
        }
    }
    failures
}

fn verdict(failures: &[String]) -> &'static str {
    if failures.is_empty() { "passed" } else { "FAILED" }
}
