//! What a run came to, as tables, and whether it passed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::check::Check;
use crate::faults::{EVERYTHING, Struck, causes, counted};
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
        faults: &[EVERYTHING],
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

/// The longest that anybody may wait for a write, through however many faults, unless everything is killed.
const NOBODY_WAITS_FOR: Duration = Duration::from_secs(10);

/// How many of the longest waits for a write are shown.
const LONGEST_WAITS: usize = 8;

/// Acknowledged commands that a minute must bring, and faults that any run must have.
const LEAST_COMMANDS_A_MINUTE: u64 = 20_000;
const LEAST_FAULTS: usize = 40;

/// What is asked of a run as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Least {
    /// Acknowledged commands.
    pub(crate) commands: u64,
    /// Faults.
    pub(crate) faults: usize,
    /// Whether every bound must have been measured.
    pub(crate) bounds: bool,
    /// Whether all whose turn has come must have been struck.
    pub(crate) members: bool,
    /// How many times longer than its bound an outage may be: more than once on a machine that others use, too.
    pub(crate) patience: u32,
}

impl Least {
    /// Of a run of so many seconds with all faults.
    pub(crate) fn whole(seconds: u64, patience: u32) -> Self {
        let commands = LEAST_COMMANDS_A_MINUTE * seconds / 60;
        Self { commands, faults: LEAST_FAULTS, bounds: true, members: true, patience }
    }

    /// Of a run with some faults: one of them at all.
    pub(crate) fn something(patience: u32) -> Self {
        Self { commands: 1, faults: 1, bounds: false, members: false, patience }
    }
}

/// A run.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) lasted: Duration,
    pub(crate) struck: Vec<Struck>,
    /// Whom lanes strike that were through with all of their faults: no chance can have left them out.
    pub(crate) due: BTreeSet<&'static str>,
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
                for (fault, part) in causes(&self.struck, *wait, writes) {
                    let cost = costs.entry(&fault.name).or_default();
                    let waited = part.to.saturating_sub(part.from);
                    if writes && waited > cost.longest_write {
                        cost.longest_write_from = part.from;
                    }
                    let (longest, errors) = if writes {
                        (&mut cost.longest_write, &mut cost.write_errors)
                    } else {
                        (&mut cost.longest_read, &mut cost.read_errors)
                    };
                    *longest = (*longest).max(waited);
                    *errors += u64::from(part.errors);
                }
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
        let everything: Vec<_> = self.struck.iter().filter(|fault| fault.name == EVERYTHING).collect();
        let alone =
            |wait: &&Wait| !everything.iter().any(|fault| fault.from <= wait.to && fault.over >= wait.from);
        let waited = |wait: &Wait| wait.to.saturating_sub(wait.from);
        let longest = self.history.write_waits.iter().filter(alone).max_by_key(|wait| waited(wait));
        if let Some(wait) = longest.filter(|wait| waited(wait) > NOBODY_WAITS_FOR * self.least.patience) {
            failures.push(format!(
                "somebody waited {:.2} s for a write from {:.2} s on, the bound is {:.0} s",
                waited(wait).as_secs_f64(),
                wait.from.as_secs_f64(),
                (NOBODY_WAITS_FOR * self.least.patience).as_secs_f64()
            ));
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
        let was_struck = |member: &str| {
            let names = [format!("kill -9 {member}"), format!("pause {member}")];
            self.struck.iter().any(|fault| names.contains(&fault.name))
        };
        let due = self.due.iter().filter(|_| self.least.members);
        failures
            .extend(due.filter(|member| !was_struck(member)).map(|member| format!("{member}: never struck")));
        let endless = self.struck.iter().filter(|fault| fault.back.is_none());
        failures.extend(endless.map(|fault| {
            let from = fault.from.as_secs_f64();
            format!("{} at {from:.2} s: what it broke was never seen to be back", fault.name)
        }));
        failures
    }

    /// The longest waits for a write, and all that was broken meanwhile: what a wait is charged to is only the likeliest.
    fn longest_waits(&self) -> Table {
        let mut waits = self.history.write_waits.clone();
        waits.sort_unstable_by_key(|wait| std::cmp::Reverse(wait.to.saturating_sub(wait.from)));
        let mut rows = table(["no write for", "from", "refused", "meanwhile"]);
        for wait in waits.iter().take(LONGEST_WAITS) {
            let broken = self.struck.iter().filter(|fault| fault.from <= wait.to && fault.over >= wait.from);
            let broken = broken.map(|fault| {
                format!("{} {:.2}-{:.2}", fault.name, fault.from.as_secs_f64(), fault.over.as_secs_f64())
            });
            rows.add_row(vec![
                seconds(wait.to.saturating_sub(wait.from)),
                seconds(wait.from),
                right(wait.errors),
                Cell::new(broken.collect::<Vec<_>>().join(", ")),
            ]);
        }
        rows
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
        println!("{faults}\n{answers}\n{}\n{bounds}\n{checks}", self.longest_waits());
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::access::Actor;
    use crate::faults::LANES;
    use crate::history::{Accepted, Ask, Intent};

    const NONE: [&str; 0] = [];

    fn intent(number: u128) -> Intent {
        let order = Uuid::from_u128(number);
        let accepted =
            Accepted { id: order, status: "shipped".to_owned(), version: 2, epoch: 1, position: 2 };
        Intent {
            trace: order,
            actor: Actor::staff(Uuid::from_u128(1)),
            ask: Ask::Ship { order },
            sent: Duration::ZERO,
            done: Duration::from_millis(5),
            attempts: 1,
            end: End::Accepted(accepted),
        }
    }

    /// A minute, with so many acknowledged commands and so many faults, one after the other at everybody.
    fn report(commands: u128, faults: usize) -> Report {
        let members = LANES.concat().into_iter().map(|member| format!("kill -9 {member}"));
        let alone = ["kill -9 everything", "kafka and redis gone"].map(str::to_owned);
        let names: Vec<String> = members.chain(alone).collect();
        let struck = names.iter().cycle().take(faults).map(|name| Struck {
            name: name.clone(),
            on_the_way_of_writes: true,
            from: Duration::from_secs(1),
            over: Duration::from_secs(2),
            back: Some(Duration::from_secs(2)),
        });
        let mut intents: Vec<Intent> = (0..commands).map(intent).collect();
        // Neither of them is counted.
        let refused = End::Refused { status: 409, kind: String::new(), detail: String::new() };
        intents.push(Intent { end: refused, ..intent(commands) });
        intents.push(Intent { end: End::Unknown { last: String::new() }, ..intent(commands + 1) });
        Report {
            seed: 1,
            lasted: Duration::from_secs(60),
            struck: struck.collect(),
            due: LANES.concat().into_iter().collect(),
            history: History { intents, ..History::default() },
            checks: Vec::new(),
            least: Least::whole(60, 1),
        }
    }

    #[test]
    fn a_run_in_which_too_little_happens_fails() {
        assert_eq!(report(20_000, 40).failures(), NONE);
        assert_eq!(report(19_999, 40).failures(), ["19999 commands were acknowledged, 20000 are needed"]);
        assert_eq!(report(20_000, 39).failures(), ["39 faults have struck, 40 are needed"]);
        let some = Report { least: Least::something(1), ..report(1, 1) };
        assert_eq!(some.failures(), NONE);
        assert_eq!(Report { struck: Vec::new(), ..some }.failures().len(), 1);
    }

    #[test]
    fn whoever_was_due_must_have_been_struck() {
        let without = |member: &str| {
            let mut report = report(20_000, 60);
            report.struck.retain(|fault| fault.name != format!("kill -9 {member}"));
            report
        };
        for member in LANES.concat() {
            // The bounds name some of them, too.
            let expected = format!("{member}: never struck");
            assert!(without(member).failures().contains(&expected), "{member}");
        }
        let mut report = without("redis");
        assert_eq!(report.failures(), ["redis: never struck"]);
        // Its lane did not come to the end of a round: chance may have left it out.
        report.due.remove("redis");
        assert_eq!(report.failures(), NONE);
        report.due.insert("redis");
        report.least.members = false;
        assert_eq!(report.failures(), NONE);
        report.least.members = true;
        report.struck[0].name = "pause redis".to_owned();
        assert_eq!(report.failures(), NONE, "kill or pause");
        // Everybody was killed in this one, but nobody alone.
        report.struck[0].name = "kill -9 everything".to_owned();
        assert_eq!(report.failures(), ["redis: never struck"]);
    }

    #[test]
    fn an_outage_whose_end_was_not_seen_is_a_failure() {
        let mut report = report(20_000, 40);
        report.struck[3].back = None;
        let name = &report.struck[3].name;
        assert_eq!(report.failures(), [format!("{name} at 1.00 s: what it broke was never seen to be back")]);
    }

    #[test]
    fn an_outage_beyond_its_bound_is_a_failure() {
        let mut report = report(20_000, 40);
        let (from, to) = (Duration::from_secs(1), Duration::from_millis(2_100));
        report.struck.retain(|fault| fault.name == "kill -9 command");
        report.least = Least::something(1);
        report.history.write_waits.push(Wait { from, to, errors: 1 });
        assert_eq!(report.failures().len(), 1, "{:?}", report.failures());
        report.least.patience = 2;
        assert_eq!(report.failures(), NONE);
    }
}
