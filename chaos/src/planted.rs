//! The checker is tested, too: bugs that a test build of the services holds are switched on one at a time, and each must
//! be found. A checker that was never seen to fail proves nothing.

use std::time::{Duration, Instant};

use comfy_table::{Cell, Table, presets};
use tokio_util::sync::CancellationToken;

use crate::check::Check;
use crate::error::ChaosError;
use crate::report::Least;
use crate::run::{self, Options};

/// The run in which nothing may be found.
const NO_BUG: &str = "none";

/// What switches a bug on.
const SWITCH: &str = "TIDEMARK_PLANTED";

/// How long faults strike in one such run; without faults, how long the load lasts.
const STRIKE: Duration = Duration::from_secs(12);
const LOAD: Duration = Duration::from_secs(4);

/// How long all of them may take together: three times what they take on two busy cores.
const ALL_WITHIN: Duration = Duration::from_secs(30 * 60);

/// Commands a second: enough to strike a bug, few enough for a build that is not optimised.
const RATE: f64 = 200.0;
const SHOPPERS: usize = 12;

/// A bug.
struct Bug {
    name: &'static str,
    what: &'static str,
    /// The faults that bring it to light; many need none.
    faults: &'static [&'static str],
    /// The checks that it breaks, one at least. What else fails says nothing of it: a member may be slow to come back.
    found_by: &'static [&'static str],
}

const fn bug(
    name: &'static str,
    what: &'static str,
    faults: &'static [&'static str],
    found_by: &'static [&'static str],
) -> Bug {
    Bug { name, what, faults, found_by }
}

const ONCE: &str = "every command took effect at most once, as it was asked for";
const TOLD: &str = "answers say what the log says";
const ANSWERS: &str = "every answer is one that is documented, repetitions alike";
const NOT_REFUSED: &str = "what was refused had to be refused";
const NEVER_NEGATIVE: &str = "no stock is below zero in any prefix of the log";
const READ: &str = "every body that was read is a state that there was";
const NEW: &str = "no read is older than the position it asked for";
const SERVED: &str = "what is served is what the log adds up to";
const REDIS: &str = "a body in Redis is what the log adds up to";
const TOPIC: &str = "every event is in the topic, once, and nothing else";
const TOPIC_ORDER: &str = "each partition of the topic is in the log's order";

/// The checks of everything that follows from the views.
const VIEWS: &[&str] = &[
    READ,
    NEW,
    "the view of products is the fold of the log",
    "the view of stock is the fold of the log",
    "the view of orders is the fold of the log",
    "the audit is what the staff did",
    "the replica's products are, too",
    "the replica's stock is, too",
    "the replica's orders are, too",
    "the replica's audit is, too",
    "no event is parked, no record of the topic is strange",
    SERVED,
    REDIS,
];

const BUGS: [Bug; 16] = [
    bug(NO_BUG, "no bug: nothing may be found", &["kill -9 publisher", "kill -9 a session"], &[]),
    bug(
        "answer-before-commit",
        "a lost commit is acknowledged",
        &["kill -9 a session of postgres-log", "kill -9 postgres-log", "link to log cut"],
        &[
            "no acknowledged command is lost",
            // Asked for once more, it is done at another place, and positions that were told are others' then.
            TOLD,
            ANSWERS,
            "who asked after an answer stands behind it in the log",
        ],
    ),
    bug("key-ignored", "an idempotency key is not looked at", &[], &[ONCE, TOLD, ANSWERS]),
    bug("stock-unchecked", "orders are taken without stock", &[], &[NEVER_NEGATIVE]),
    bug("refusal-invented", "an order is refused though there is stock", &[], &[NOT_REFUSED]),
    bug(
        "effect-doubled",
        "a command's event is written twice",
        &[],
        &[ONCE, TOLD, NEVER_NEGATIVE, "every event fits what was before it"],
    ),
    bug(
        "position-skipped",
        "a position of the log is left out",
        &[],
        &[
            "positions are 1 to the head, without gaps",
            "a reader that followed saw each event once, in order",
            ONCE,
        ],
    ),
    bug(
        "refused-but-done",
        "a command that was done is refused",
        &[],
        &["what was refused has no effect", NOT_REFUSED],
    ),
    bug("event-skipped", "a projector leaves an event out", &[], VIEWS),
    bug(
        "checkpoint-apart",
        "a checkpoint is committed before its rows",
        &["kill -9 projector", "session of postgres-views"],
        VIEWS,
    ),
    bug("stale-cache", "changes do not reach a query service's memory", &[], &[NEW, READ, SERVED]),
    bug("stale-redis", "a change does not reach its body in Redis", &[], &[REDIS, NEW, READ, SERVED]),
    bug("wait-left-out", "a read does not wait for its position", &["pause projector"], &[NEW]),
    bug("publisher-skips", "the publisher leaves events out", &[], &[TOPIC]),
    bug(
        "publisher-repeats",
        "a publisher that takes over repeats events",
        &["kill -9 publisher"],
        &[TOPIC, TOPIC_ORDER],
    ),
    bug("order-swapped", "the publisher swaps events", &[], &[TOPIC_ORDER]),
];

/// Makes a run for each bug, and prints which were found; whether all were. It ends when the time for all is over, with
/// those that were tried by then.
///
/// # Errors
/// [`ChaosError`] when a run could not be made.
#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
pub(crate) async fn find_all(
    options: &Options,
    names: &[String],
    stopped: &CancellationToken,
) -> Result<bool, ChaosError> {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["bug", "what it does", "seconds", "found by"]);
    let wanted: Vec<&Bug> =
        BUGS.iter().filter(|bug| names.is_empty() || names.iter().any(|name| name == bug.name)).collect();
    let (mut found, mut as_expected) = (0, 0);
    let all_began = Instant::now();
    let over = stopped.child_token();
    let timer = over.clone();
    tokio::spawn(async move {
        tokio::time::sleep(ALL_WITHIN).await;
        timer.cancel();
    });
    for bug in &wanted {
        let mut environment = options.environment.clone();
        environment.push((SWITCH.to_owned(), bug.name.to_owned()));
        let options = Options {
            time: if bug.faults.is_empty() { LOAD } else { STRIKE },
            shoppers: SHOPPERS,
            rate: RATE,
            // A name that no fault has: no fault strikes.
            only: if bug.faults.is_empty() {
                vec!["-".repeat(9)]
            } else {
                bug.faults.iter().map(|&it| it.to_owned()).collect()
            },
            environment,
            least: Least { faults: 0, ..Least::something(1) },
            enough: bug.found_by,
            ..options.clone()
        };
        let began = Instant::now();
        // A busy machine may be too slow to bring a cluster up in time.
        let mut done = run::run(&options, &over).await;
        if let Err(error) = &done
            && !over.is_cancelled()
        {
            tracing::warn!(%error, "a run could not be made, trying once more");
            done = run::run(&options, &over).await;
        }
        let done = match done {
            Err(_) if over.is_cancelled() && !stopped.is_cancelled() => {
                tracing::error!(bug = bug.name, "the time for all bugs is over, the rest was not tried");
                break;
            }
            done => done?,
        };
        let broken: Vec<_> = done.report.checks.iter().filter(|check| check.mismatched > 0).collect();
        let clean = bug.name == NO_BUG;
        let its = broken.iter().find(|check| bug.found_by.contains(&check.name));
        found += usize::from(its.is_some());
        as_expected += usize::from(if clean { broken.is_empty() } else { its.is_some() });
        let words = |check: &Check| format!("{} ({} of {})", check.name, check.mismatched, check.compared);
        let by = match (its, broken.first()) {
            (Some(check), _) => words(check),
            (None, Some(check)) if !clean => format!("nothing; something else: {}", words(check)),
            (None, Some(check)) => words(check),
            (None, None) => "nothing".to_owned(),
        };
        tracing::info!(bug = bug.name, by, others = broken.len().saturating_sub(1), "found by");
        if its.is_none() {
            for check in broken {
                tracing::warn!(check = check.name, examples = ?check.examples, "not what was planted");
            }
        }
        table.add_row(vec![
            Cell::new(bug.name),
            Cell::new(bug.what),
            Cell::new(format!("{:.0}", began.elapsed().as_secs_f64())),
            Cell::new(by),
        ]);
    }
    let bugs = wanted.iter().filter(|bug| bug.name != NO_BUG).count();
    println!("{table}\nfound {found} of {bugs} in {:.0} s", all_began.elapsed().as_secs_f64());
    Ok(as_expected == wanted.len())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// All code of this program but this file's.
    fn code(folder: &Path) -> String {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let own = Path::new(file!()).file_name();
        let text = |path: std::path::PathBuf| {
            if path.is_dir() { code(&path) } else { std::fs::read_to_string(path).unwrap() }
        };
        entries.filter(|path| path.file_name() != own).map(text).collect()
    }

    #[test]
    fn bugs_are_found_by_checks_that_there_are() {
        let code = code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        for bug in &BUGS {
            assert_eq!(bug.found_by.is_empty(), bug.name == NO_BUG, "{}", bug.name);
            for check in bug.found_by {
                assert!(code.contains(&format!("\"{check}\"")), "{}: there is no check {check:?}", bug.name);
            }
        }
    }
}
