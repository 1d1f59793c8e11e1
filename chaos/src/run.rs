//! One run: a cluster of its own, load, faults, recovery, and the checks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::access::Signer;
use crate::check::{self, Check};
use crate::cluster::{Cluster, Settings};
use crate::disk::{self, Disk};
use crate::drive::tail::{Seen, Tail};
use crate::drive::{Drive, Load};
use crate::error::ChaosError;
use crate::faults::{Arena, Links, Plan};
use crate::fold::Fold;
use crate::history::History;
use crate::log::{self, Event};
use crate::proxy::{Link, Weather};
use crate::report::{Least, Report};

/// Before the first fault.
const QUIET: Duration = Duration::from_secs(2);

/// How long all members may take to be ready after the last fault, and clients to get their last answers.
const RECOVER_WITHIN: Duration = Duration::from_secs(60);
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// How long views, replica and topic may take to come to the log's end.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(60);

/// How long all checks may take, and as long again as the run: it has so much more to look at.
const JUDGE_WITHIN: Duration = Duration::from_secs(300);

/// Ports of a cluster, one after the other.
const PORTS: u16 = 20;

/// How a run is to be.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) time: Duration,
    pub(crate) shoppers: usize,
    pub(crate) rate: f64,
    pub(crate) gone_for: Duration,
    /// Only faults whose names hold one of these.
    pub(crate) only: Vec<String>,
    pub(crate) script: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) environment: Vec<(String, String)>,
    /// Which disk the log's PostgreSQL is on.
    pub(crate) disk: disk::Kind,
    pub(crate) least: Least,
    /// Checks of which one that fails is enough, and later ones are left out.
    pub(crate) enough: &'static [&'static str],
}

/// A run's report, and the directory that holds everything of it.
pub(crate) struct Done {
    pub(crate) report: Report,
    pub(crate) dir: TempDir,
}

/// Makes a run. The cluster is stopped at its end, also when `stopped` ends it early.
///
/// # Errors
/// [`ChaosError`] when it could not be made, or not be judged.
pub(crate) async fn run(options: &Options, stopped: &CancellationToken) -> Result<Done, ChaosError> {
    let (dir, report) =
        in_cluster(options, stopped, async |cluster, links, disk| on(options, cluster, links, disk).await)
            .await?;
    Ok(Done { report, dir })
}

/// Does something with a cluster of its own, which is stopped afterwards, also when `stopped` ends it early. Returns the
/// directory that holds everything of it, too; after an error it is kept.
///
/// # Errors
/// [`ChaosError`] when there is no such cluster; what `work` returns.
pub(crate) async fn in_cluster<T>(
    options: &Options,
    stopped: &CancellationToken,
    work: impl AsyncFnOnce(&Arc<Cluster>, &Arc<Links>, Option<&Arc<Disk>>) -> Result<T, ChaosError>,
) -> Result<(TempDir, T), ChaosError> {
    let was_stopped = || ChaosError::Wrong("stopped".to_owned());
    if stopped.is_cancelled() {
        return Err(was_stopped());
    }
    let dir = tempfile::Builder::new()
        .prefix("tidemark-chaos-")
        .tempdir()
        .map_err(ChaosError::io("making a directory"))?;
    let first_port = free_ports(PORTS)?;
    let links = Arc::new(Links {
        log: Link::to(dir.path().join("postgres-log.port")).await?,
        views: Link::to(dir.path().join("postgres-views.port")).await?,
    });
    let mut environment = options.environment.clone();
    environment.push(("TIDEMARK_CLUSTER_LOG_LINK".to_owned(), links.log.port().to_string()));
    environment.push(("TIDEMARK_CLUSTER_VIEWS_LINK".to_owned(), links.views.port().to_string()));
    // Kafka is killed before what Java's second compiler makes of it would be worth its time.
    environment.push(("JDK_JAVA_OPTIONS".to_owned(), "-XX:TieredStopAtLevel=1".to_owned()));
    let settings = Settings {
        dir: dir.path().to_owned(),
        script: options.script.clone(),
        program: options.program.clone(),
        first_port,
        environment,
    };
    let disk = Disk::make(dir.path(), "postgres-log", options.disk)?.map(Arc::new);
    tracing::info!(dir = %dir.path().display(), first_port, "starting a cluster");
    let started = Cluster::start(settings.clone()).await;
    let cluster = match started {
        Ok(cluster) => cluster,
        Err(error) => {
            Cluster::stop_whatever_runs(&settings).await.ok();
            return Err(error);
        }
    };
    let done = tokio::select! {
        done = work(&cluster, &links, disk.as_ref()) => done,
        () = stopped.cancelled() => Err(was_stopped()),
    };
    // Services finish what is in hand before they end: the links must be there, and good.
    for link in [&links.log, &links.views] {
        link.set(Weather::Fair);
    }
    let ended = cluster.stop().await;
    drop(links);
    if let Some(disk) = disk {
        tokio::task::block_in_place(|| disk.unmount());
    }
    match done.and_then(|done| ended.map(|()| done)) {
        Ok(done) => Ok((dir, done)),
        Err(error) => {
            let kept = dir.keep();
            tracing::error!(dir = %kept.display(), "the run broke off, its directory is kept");
            Err(error)
        }
    }
}

/// A run on a cluster that has just been started.
async fn on(
    options: &Options,
    cluster: &Arc<Cluster>,
    links: &Arc<Links>,
    disk: Option<&Arc<Disk>>,
) -> Result<Report, ChaosError> {
    let began = Instant::now();
    let signer = Signer::new(&cluster.secret()?);
    let tail = Tail::begin(cluster.port("postgres-log")?);
    let load = Load { seed: options.seed, shoppers: options.shoppers, rate: options.rate };
    let drive = Drive::begin(cluster.front(), signer.clone(), load, began).await?;
    tokio::time::sleep(QUIET).await;
    tokio::spawn(Arc::clone(cluster).supervise());
    let stage = Arc::clone(&drive.stage);
    let arena = Arc::new(Arena::new(Arc::clone(cluster), Arc::clone(links), disk.cloned(), stage, began));
    let plan = Plan::new(options.seed, cluster, options.gone_for, &options.only);
    arena.strike(plan, options.time, options.least.commands).await;
    tracing::info!(accepted = drive.stage.accepted(), "the faults are over");
    let recovered = recovered(&arena).await;
    let history = drive.end(ANSWERS_WITHIN).await?;
    let lasted = began.elapsed();
    let seen = tail.end().await?;
    let mut checks = vec![recovered];
    let within = JUDGE_WITHIN + options.time;
    tokio::time::timeout(within, judge(options, cluster, &signer, &history, &seen, &mut checks))
        .await
        .map_err(|_| {
            ChaosError::TooLong(format!("the checks did not end within {} s", within.as_secs()))
        })??;
    let mut alone = Check::new("no process ended by itself");
    let ends = cluster.ended_by_themselves().into_iter().map(|(member, said)| format!("{member}: {said}"));
    alone.expect_none(cluster.members().len() as u64, ends);
    checks.push(alone);
    let (struck, due) = (arena.struck(), arena.due());
    Ok(Report { seed: options.seed, lasted, struck, due, history, checks, least: options.least })
}

/// All checks of what is left, from the log outwards.
async fn judge(
    options: &Options,
    cluster: &Arc<Cluster>,
    signer: &Signer,
    history: &History,
    seen: &Seen,
    checks: &mut Vec<Check>,
) -> Result<(), ChaosError> {
    let is_enough = |check: &Check| check.mismatched > 0 && options.enough.contains(&check.name);
    let enough = |checks: &[Check]| checks.iter().any(is_enough);
    let (events, head, epoch) = whole_log(cluster).await?;
    tracing::info!(events = events.len(), commands = history.intents.len(), "checking");
    let fold = Fold::of(&events);
    checks.extend(check::log::order(&events, head));
    checks.extend(check::log::followed(&events, seen));
    checks.extend(check::commands::effects(history, &events));
    checks.push(check::commands::real_time(history));
    checks.push(check::commands::refusals(history, &fold, head));
    checks.push(check::stock::fits(&fold, events.len()));
    checks.push(check::stock::never_negative(&fold));
    checks.extend(check::reads::reads(history, &fold));
    checks.push(answered(history));
    if enough(checks) {
        return Ok(());
    }
    checks.extend(topic(cluster, events, head).await?);
    if enough(checks) {
        return Ok(());
    }
    checks.extend(views(cluster, &fold, head).await?);
    if enough(checks) {
        return Ok(());
    }
    checks.push(check::served::bodies(cluster, signer, &fold, options.seed, (epoch, head)).await?);
    if cluster.has("redis") {
        checks.push(check::tier::bodies(cluster.port("redis")?, &fold).await?);
    }
    let (secret, master_key, token) = (cluster.secret()?, cluster.master_key()?, signer.beginning()?);
    let secrets = [("the tokens' secret", &*secret), ("the master key", &*master_key), ("a token", &*token)];
    checks.push(check::logs::say_no_secret(cluster.dir(), &secrets)?);
    Ok(())
}

/// Waits until all members are ready, and the end of every outage was seen.
async fn recovered(arena: &Arena) -> Check {
    let mut check = Check::new("every member has recovered by itself");
    let end = Instant::now() + RECOVER_WITHIN;
    for member in arena.cluster.members() {
        let mut ready = arena.ready(member).await;
        while !ready && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(100)).await;
            ready = arena.ready(member).await;
        }
        check.expect(ready, || format!("{member} is not ready: {}", arena.cluster.last_words(member)));
    }
    while arena.struck().iter().any(|fault| fault.back.is_none()) && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    check
}

/// Only documented answers, each 503 with Retry-After, repetitions answered alike.
fn answered(history: &History) -> Check {
    let mut check = Check::new("every answer is one that is documented, repetitions alike");
    check.expect_none(history.answers.values().sum(), history.wrong.iter().cloned());
    check
}

async fn whole_log(cluster: &Cluster) -> Result<(Vec<Event>, i64, i32), ChaosError> {
    let connected = log::connect(cluster.port("postgres-log")?, "log").await;
    let mut connection = connected.map_err(ChaosError::database("connecting to the log"))?;
    let (events, head) = log::read_all(&mut connection).await?;
    let epoch = sqlx::query_scalar("SELECT epoch FROM log.head").fetch_one(&mut connection).await;
    Ok((events, head, epoch.map_err(ChaosError::database("reading the log's head"))?))
}

async fn views(cluster: &Cluster, fold: &Fold, head: i64) -> Result<Vec<Check>, ChaosError> {
    let mut caught_up = Check::new("views and replica have come to the log's end");
    let mut checks = Vec::new();
    for (member, names) in [
        (
            "postgres-views",
            [
                "the view of products is the fold of the log",
                "the view of stock is the fold of the log",
                "the view of orders is the fold of the log",
                "the audit is what the staff did",
            ],
        ),
        (
            "postgres-replica",
            [
                "the replica's products are, too",
                "the replica's stock is, too",
                "the replica's orders are, too",
                "the replica's audit is, too",
            ],
        ),
    ] {
        if !cluster.has(member) {
            continue;
        }
        let connected = log::connect(cluster.port(member)?, "views").await;
        let mut connection = connected.map_err(ChaosError::database("connecting to the views"))?;
        let stands = wait_for(&mut connection, head).await?;
        caught_up.expect(stands >= head, || format!("{member} stands at {stands}, the log at {head}"));
        checks.extend(check::views::equal_fold(&mut connection, fold, names).await?);
        if member == "postgres-views" {
            checks.push(check::views::nothing_parked(&mut connection).await?);
        }
    }
    checks.push(caught_up);
    Ok(checks)
}

/// Where the last view stands, once all are at the head or the time is over.
async fn wait_for(connection: &mut PgConnection, head: i64) -> Result<i64, ChaosError> {
    let end = Instant::now() + CATCH_UP_WITHIN;
    loop {
        let standing = check::views::standing(connection).await?;
        let last = standing.values().map(|(_, position)| *position).min().unwrap_or(0);
        if last >= head || Instant::now() > end {
            return Ok(last);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn topic(cluster: &Cluster, events: Vec<Event>, head: i64) -> Result<Vec<Check>, ChaosError> {
    let port = cluster.port("kafka")?;
    let read = tokio::task::spawn_blocking(move || {
        let end = Instant::now() + CATCH_UP_WITHIN;
        loop {
            let records = check::topic::read(port)?;
            if check::topic::reaches(&records) >= head || Instant::now() > end {
                return Ok(check::topic::equal_log(&records, &events));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    read.await.map_err(|error| ChaosError::Wrong(format!("reading the topic ended badly: {error}")))?
}

/// The first of some ports, one after the other, that nobody listens on.
///
/// # Errors
/// [`ChaosError::Wrong`] when there are none.
pub(crate) fn free_ports(count: u16) -> Result<u16, ChaosError> {
    let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..200 {
        // Below the ports that the system gives to whoever connects.
        let first = fastrand::u16(10_000..32_000);
        if (first..first + count).all(free) {
            return Ok(first);
        }
    }
    Err(ChaosError::Wrong(format!("there are no {count} free ports one after the other")))
}
