//! The checker is tested, too: bugs that a test build of the services holds are switched on one at a time, and each must
//! be found. A checker that was never seen to fail proves nothing.

use std::time::{Duration, Instant};

use comfy_table::{Cell, Table, presets};
use tokio_util::sync::CancellationToken;

use crate::error::ChaosError;
use crate::report::Least;
use crate::run::{self, Options};

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

/// A bug, and the faults that bring it to light; many need none.
struct Bug {
    name: &'static str,
    what: &'static str,
    faults: &'static [&'static str],
}

const fn bug(name: &'static str, what: &'static str, faults: &'static [&'static str]) -> Bug {
    Bug { name, what, faults }
}

const BUGS: [Bug; 16] = [
    bug("none", "no bug: nothing may be found", &["kill -9 publisher", "kill -9 a session"]),
    bug(
        "answer-before-commit",
        "a lost commit is acknowledged",
        &["kill -9 a session of postgres-log", "kill -9 postgres-log", "link to log cut"],
    ),
    bug("key-ignored", "an idempotency key is not looked at", &[]),
    bug("stock-unchecked", "orders are taken without stock", &[]),
    bug("refusal-invented", "an order is refused though there is stock", &[]),
    bug("effect-doubled", "a command's event is written twice", &[]),
    bug("position-skipped", "a position of the log is left out", &[]),
    bug("refused-but-done", "a command that was done is refused", &[]),
    bug("event-skipped", "a projector leaves an event out", &[]),
    bug(
        "checkpoint-apart",
        "a checkpoint is committed before its rows",
        &["kill -9 projector", "session of postgres-views"],
    ),
    bug("stale-cache", "changes do not reach a query service's memory", &[]),
    bug("stale-redis", "a change does not reach its body in Redis", &[]),
    bug("wait-left-out", "a read does not wait for its position", &["pause projector"]),
    bug("publisher-skips", "the publisher leaves events out", &[]),
    bug("publisher-repeats", "a publisher that takes over repeats events", &["kill -9 publisher"]),
    bug("order-swapped", "the publisher swaps events", &[]),
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
            least: Least { commands: 1, faults: 0, bounds: false, patience: 1 },
            to_the_first: true,
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
        let clean = bug.name == "none";
        found += usize::from(!clean && !broken.is_empty());
        as_expected += usize::from(clean == broken.is_empty());
        let by = match broken.first() {
            Some(check) => format!("{} ({} of {})", check.name, check.mismatched, check.compared),
            None => "nothing".to_owned(),
        };
        tracing::info!(bug = bug.name, by, others = broken.len().saturating_sub(1), "found by");
        if clean {
            for check in broken {
                tracing::warn!(check = check.name, examples = ?check.examples, "found without a bug");
            }
        }
        table.add_row(vec![
            Cell::new(bug.name),
            Cell::new(bug.what),
            Cell::new(format!("{:.0}", began.elapsed().as_secs_f64())),
            Cell::new(by),
        ]);
    }
    let bugs = wanted.iter().filter(|bug| bug.name != "none").count();
    println!("{table}\nfound {found} of {bugs} in {:.0} s", all_began.elapsed().as_secs_f64());
    Ok(as_expected == wanted.len())
}
