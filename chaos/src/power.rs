//! The power goes while commands are taken. What a kill cannot show: whether what was acknowledged had reached the disk.
//!
//! The log's PostgreSQL is on a disk in a file. The file is copied under load, with the server stopped meanwhile: the
//! copy holds what has come to the disk and nothing that the kernel still held back. A server is started on the copy, and
//! every command that was acknowledged before must be in its log. A server that does not wait for its disk must fail
//! this, or it shows nothing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::access::Signer;
use crate::check::{self, Check};
use crate::cluster::Cluster;
use crate::disk::{Disk, Kind};
use crate::drive::{Drive, Load};
use crate::error::ChaosError;
use crate::log;
use crate::run::{self, Options};

/// The disk's size in megabytes, and the member on it.
const MEGABYTES: u32 = 2_000;
const MEMBER: &str = "postgres-log";

/// How long commands are taken before each cut.
const BEFORE: Duration = Duration::from_secs(4);

/// How often the power goes.
const CUTS: usize = 3;

/// How long a server may take to recover, and how often it is looked.
const RECOVER_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long clients are given for their last answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// What was left after one cut.
struct Cut {
    at: Duration,
    /// The commands in the log; or why there is none.
    left: Result<HashSet<Uuid>, String>,
}

/// Cuts the power of a server that waits for its disk, and of one that does not.
///
/// # Errors
/// [`ChaosError`] when it could not be judged.
pub(crate) async fn run(options: &Options, stopped: &CancellationToken) -> Result<Vec<Check>, ChaosError> {
    let mut kept = Check::new("no acknowledged command is lost when the power goes");
    judge(&mut kept, options, true, stopped).await?;
    let mut lost = Check::new("");
    judge(&mut lost, options, false, stopped).await?;
    tracing::info!(lost = lost.mismatched, of = lost.compared, examples = ?lost.examples, "with fsync = off");
    let mut caught = Check::new("a server that does not wait for its disk is caught");
    caught.expect(lost.mismatched > 0, || "nothing was lost with fsync = off: this shows nothing".to_owned());
    Ok(vec![kept, caught])
}

/// One run, and what was lost in it.
async fn judge(
    check: &mut Check,
    options: &Options,
    waits: bool,
    stopped: &CancellationToken,
) -> Result<(), ChaosError> {
    let options = Options { disk: Kind::Image(MEGABYTES), ..options.clone() };
    let (_dir, (history, cuts)) = run::in_cluster(&options, stopped, async |cluster, _, disk| {
        cut(&options, cluster, disk, waits).await
    })
    .await?;
    for (number, cut) in cuts.iter().enumerate() {
        match &cut.left {
            Err(why) => check.expect(false, || format!("cut {number}: {why}")),
            Ok(left) => {
                for (intent, accepted) in history.accepted().filter(|(intent, _)| intent.done < cut.at) {
                    check.expect(left.contains(&intent.trace), || {
                        let (trace, position) = (intent.trace, accepted.position);
                        format!("cut {number}: {trace} at {position} was acknowledged and is lost")
                    });
                }
            }
        }
    }
    Ok(())
}

async fn cut(
    options: &Options,
    cluster: &Arc<Cluster>,
    disk: Option<&Arc<Disk>>,
    waits: bool,
) -> Result<(crate::history::History, Vec<Cut>), ChaosError> {
    let disk = disk.ok_or_else(|| ChaosError::Wrong("the log is on no disk of its own".to_owned()))?;
    if !waits {
        set_fsync_off(cluster).await?;
    }
    block_in_place(|| disk.settle())?;
    let began = Instant::now();
    let load = Load { seed: options.seed, shoppers: options.shoppers, rate: options.rate };
    let drive = Drive::begin(cluster.front(), Signer::new(&cluster.secret()?), load, began).await?;
    let mut cuts = Vec::new();
    for number in 0..CUTS {
        tokio::time::sleep(BEFORE).await;
        let image = cluster.dir().join(format!("cut-{number}.image"));
        cluster.pause(MEMBER);
        let at = began.elapsed();
        let copied = block_in_place(|| disk.copy(&image));
        let copying = began.elapsed() - at;
        cluster.go_on(MEMBER);
        copied?;
        let left = recover(cluster, disk, &image, &cluster.dir().join(format!("cut-{number}"))).await?;
        let commands = left.as_ref().map(HashSet::len);
        tracing::info!(number, waits, copying = copying.as_secs_f32(), ?commands, "the power was cut");
        fs::remove_file(&image).map_err(ChaosError::io("removing a copy"))?;
        cuts.push(Cut { at, left });
    }
    Ok((drive.end(ANSWERS_WITHIN).await?, cuts))
}

async fn set_fsync_off(cluster: &Cluster) -> Result<(), ChaosError> {
    let asked = "setting fsync";
    let mut connection =
        log::connect(cluster.port(MEMBER)?, "log").await.map_err(ChaosError::database(asked))?;
    for statement in ["ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"] {
        sqlx::query(statement).execute(&mut connection).await.map_err(ChaosError::database(asked))?;
    }
    Ok(())
}

/// Starts a server on a copy of the disk, and returns the traces of all commands in its log; or why it has none.
async fn recover(
    cluster: &Cluster,
    disk: &Disk,
    image: &Path,
    at: &Path,
) -> Result<Result<HashSet<Uuid>, String>, ChaosError> {
    let disk = block_in_place(|| disk.of_copy(image, at))?;
    // It names the server that still runs on the original. A machine that comes up again has no such process.
    fs::remove_file(disk.data().join("postmaster.pid")).ok();
    let port = run::free_ports(1)?;
    let said = at.with_extension("log");
    let mut server = serve(cluster, &disk.data(), port, &said)?;
    let traces = traces(&mut server, port).await;
    if let Some(pid) = server.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        kill_process(pid, Signal::QUIT).ok();
    }
    server.wait().await.map_err(ChaosError::io("ending a server"))?;
    block_in_place(|| disk.unmount());
    let told = |why: ChaosError| {
        let text = fs::read_to_string(&said).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(4).collect();
        format!("what was left cannot be recovered: {why}: {}", last.join(" / "))
    };
    Ok(traces.map_err(told))
}

/// Waits until a server has recovered, and reads its log.
async fn traces(server: &mut Child, port: u16) -> Result<HashSet<Uuid>, ChaosError> {
    let end = Instant::now() + RECOVER_WITHIN;
    let mut connection = loop {
        match log::connect(port, "log").await {
            Ok(connection) => break connection,
            Err(_) if Instant::now() < end && matches!(server.try_wait(), Ok(None)) => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => return Err(ChaosError::Database("recovering", error)),
        }
    };
    let (events, head) = log::read_all(&mut connection).await?;
    if let Some(broken) = check::log::order(&events, head).iter().find(|check| check.mismatched > 0) {
        return Err(ChaosError::Wrong(format!("{}: {:?}", broken.name, broken.examples)));
    }
    Ok(events.into_iter().map(|event| event.correlation).collect())
}

/// A server like the cluster's own, on another directory and port.
fn serve(cluster: &Cluster, data: &Path, port: u16, said: &Path) -> Result<Child, ChaosError> {
    let mut words = cluster.command_line(MEMBER).into_iter();
    let program =
        words.next().ok_or_else(|| ChaosError::Wrong("the log's PostgreSQL does not run".to_owned()))?;
    let (own, data) = (cluster.dir().join(MEMBER).display().to_string(), data.display().to_string());
    let mut arguments = Vec::new();
    while let Some(word) = words.next() {
        if word == "-p" {
            words.next();
            arguments.extend([word, port.to_string()]);
        } else {
            arguments.push(word.replace(&own, &data));
        }
    }
    let log = File::create(said).map_err(ChaosError::io("making a server's log"))?;
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--", &program])
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(ChaosError::io("making a server's log"))?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().map_err(ChaosError::io("starting a server on a copy"))
}
