//! The measurements, and the order in which they are made.

mod append;
mod import;
mod lag;
mod logins;
mod memory;
mod orders;
mod overload;
mod processes;
mod reads;
mod rebuild;
pub(crate) mod replay;
mod search;
mod slow;
mod stream;

use std::path::PathBuf;

use clap::ValueEnum;
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::error::BenchError;
use crate::report::Report;
use crate::scratch::Scratch;
use crate::seed::{self, Seeded};
use crate::shop::{self, Shop};
use crate::wrk::Wrk;

/// The database of the shop on a server that was given; made anew by every run.
const SHOP_DATABASE: &str = "tidemark_bench_shop";

/// The database of baselines, on the shop's server.
const BASELINE_DATABASE: &str = "tidemark_bench_baseline";

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Figure {
    /// One product, one order, the first page of products, against a bare handler
    Reads,
    /// Search with filters, cold keys, 500 a second
    Search,
    /// Orders placed, against pgbench's single rows; the same for one SKU
    Orders,
    /// Orders at three times the peak rate: how many are done, and how soon all is as before
    Overload,
    /// Reads beside 10,000 connections that send a byte a second
    Slow,
    /// Reads beside 200 log-ins a second
    Logins,
    /// Orders at half the peak rate: their latency, and how far views are behind
    Lag,
    /// Batches of three events at the log's interface, against pgbench's 200 rows a statement
    Append,
    /// All baskets of the data set (needs --data)
    Import,
    /// Memory of the shop, after the import if there is one
    Memory,
    /// The orders view built anew
    Rebuild,
    /// The whole log as NDJSON over HTTP
    Replay,
    /// The whole log to Kafka, and the orders view from there
    Stream,
    /// The shop as many processes, against the one process
    Processes,
}

/// What needs a shop with products.
const ON_PRODUCTS: [Figure; 8] = [
    Figure::Reads,
    Figure::Search,
    Figure::Orders,
    Figure::Overload,
    Figure::Slow,
    Figure::Logins,
    Figure::Lag,
    Figure::Processes,
];

/// What needs a log of many events: the imported one if there is the data set, else what the others left.
const WHOLE_LOG: [Figure; 4] = [Figure::Memory, Figure::Rebuild, Figure::Replay, Figure::Stream];

/// What a run was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Seconds of each measurement of each round.
    pub(crate) seconds: u64,
    /// Rounds.
    pub(crate) rounds: u64,
    /// Only these; all if empty.
    pub(crate) only: Vec<Figure>,
    /// Folder of the data set.
    pub(crate) data: Option<PathBuf>,
    /// The program to measure.
    pub(crate) program: Option<PathBuf>,
    /// A server to use instead of the shop's private one.
    pub(crate) database_url: Option<String>,
}

impl Settings {
    fn wants(&self, figure: Figure) -> bool {
        self.only.is_empty() || self.only.contains(&figure)
    }

    fn wants_any(&self, figures: &[Figure]) -> bool {
        figures.iter().any(|figure| self.wants(*figure))
    }
}

/// A shop that is filled, and what measures it.
struct Stage<'a> {
    settings: &'a Settings,
    scratch: &'a Scratch,
    shop: &'a Shop,
    seeded: &'a Seeded,
    cluster: &'a Cluster,
    wrk: Wrk,
}

/// Everything that was asked for. A figure that fails is told as failed and the others go on.
pub(crate) async fn all(settings: &Settings) -> Result<Report, BenchError> {
    if settings.data.is_none() && settings.only.contains(&Figure::Import) {
        return Err(BenchError::Wrong("the import needs --data DIR, the folder of the data set".to_owned()));
    }
    let scratch = Scratch::new()?;
    let program = shop::program(settings.program.clone()).await?;
    let mut report = Report::begin();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    report.conditions.push(format!(
        "Rounds: {}, of {} s, on {cores} cores that client, service and database share{}",
        settings.rounds,
        settings.seconds,
        if cfg!(debug_assertions) { "; A DEBUG BUILD, its figures say nothing" } else { "" }
    ));

    let imports = settings.data.is_some();
    let filled = [Figure::Append].into_iter().chain(ON_PRODUCTS).collect::<Vec<_>>();
    if settings.wants_any(&filled) || (!imports && settings.wants_any(&WHOLE_LOG)) {
        let folder = scratch.folder("filled")?;
        let shop = Shop::start(&program, &folder, database(settings).await?).await?;
        report.conditions.push(shop.cluster()?.durability().await?);
        on_filled_shop(settings, &scratch, &shop, imports, &mut report).await?;
        tell_if_broken(&report, &shop);
    }
    if let (Some(data), true) =
        (&settings.data, settings.wants(Figure::Import) || settings.wants_any(&WHOLE_LOG))
    {
        let folder = scratch.folder("imported")?;
        let shop = Shop::start(&program, &folder, database(settings).await?).await?;
        if report.conditions.len() == 1 {
            report.conditions.push(shop.cluster()?.durability().await?);
        }
        let staff = shop.token("staff", Uuid::now_v7()).await?;
        report.add("import", import::import(&shop, &staff, data).await);
        on_whole_log(settings, &scratch, &shop, &staff, "after the import", &mut report).await;
        tell_if_broken(&report, &shop);
    }
    Ok(report)
}

async fn on_filled_shop(
    settings: &Settings,
    scratch: &Scratch,
    shop: &Shop,
    imports: bool,
    report: &mut Report,
) -> Result<(), BenchError> {
    let cluster = shop.cluster()?;
    if settings.wants(Figure::Append) {
        report.add("append", append::append(settings, scratch, &cluster).await);
    }
    if !settings.wants_any(&ON_PRODUCTS) && (imports || !settings.wants_any(&WHOLE_LOG)) {
        return Ok(());
    }
    let seeded = seed::seed(shop, settings.data.as_deref()).await?;
    let wrk = Wrk::new(scratch.path())?;
    let stage = Stage { settings, scratch, shop, seeded: &seeded, cluster: &cluster, wrk };
    if settings.wants(Figure::Reads) {
        report.add("reads", reads::reads(&stage).await);
    }
    if settings.wants(Figure::Search) {
        report.add("search", search::search(&stage).await);
    }
    let mut peak = None;
    if settings.wants(Figure::Orders) {
        let orders = orders::orders(&stage).await;
        peak = orders.as_ref().ok().map(|(_, peak)| *peak);
        report.add("orders", orders.map(|(rows, _)| rows));
    }
    if settings.wants(Figure::Lag) {
        report.add("lag", lag::lag(&stage, peak).await);
    }
    if settings.wants(Figure::Overload) {
        report.add("overload", overload::overload(&stage).await);
    }
    if settings.wants(Figure::Slow) {
        report.add("slow", slow::slow(&stage).await);
    }
    if settings.wants(Figure::Logins) {
        report.add("logins", logins::logins(&stage).await);
    }
    if settings.wants(Figure::Processes) {
        report.add("processes", processes::processes(&stage).await);
    }
    if !imports {
        on_whole_log(settings, scratch, shop, &seeded.staff, "without an import", report).await;
    }
    Ok(())
}

async fn on_whole_log(
    settings: &Settings,
    scratch: &Scratch,
    shop: &Shop,
    staff: &str,
    when: &str,
    report: &mut Report,
) {
    if settings.wants(Figure::Memory) {
        report.add("memory", memory::memory(shop, when).await);
    }
    if settings.wants(Figure::Rebuild) {
        report.add("rebuild", rebuild::rebuild(settings, shop, staff).await);
    }
    if settings.wants(Figure::Replay) {
        report.add("replay", replay::replay(settings, shop, staff).await);
    }
    if settings.wants(Figure::Stream) {
        report.add("stream", stream::stream(scratch, shop, staff).await);
    }
}

/// The URL for a shop on a server that was given: of an empty database there.
async fn database(settings: &Settings) -> Result<Option<String>, BenchError> {
    let Some(url) = &settings.database_url else { return Ok(None) };
    let cluster = Cluster::at(url)?;
    cluster.create(SHOP_DATABASE).await?;
    Ok(Some(cluster.database(SHOP_DATABASE)))
}

fn tell_if_broken(report: &Report, shop: &Shop) {
    if !report.complete() {
        eprintln!("what the shop said last:\n{}", shop.last_words());
    }
}
