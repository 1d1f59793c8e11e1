//! Keeps a runner for every instance that is to be fed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tidemark_events::listener::Subscription;
use tidemark_events::log::{Log, Pace};
use tidemark_kafka::KafkaConfig;
use tidemark_views::PARTITIONS;
use tidemark_views::instance::{self, Instance, State};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::projection::{Projection, Retention, all, find};
use crate::worker::Target;
use crate::{ProjectorError, runner};

/// The channel that says that instances have come, gone or switched.
pub const INSTANCES: &str = "tidemark_instances";

/// How often the instances are looked at without being told.
const POLL: Duration = Duration::from_secs(1);

/// How many looks lie between two prunings of the changes, and of rows that are not for ever.
const PRUNE_EVERY: u32 = 30;

/// Rows that are removed by one statement, and statements of one pruning: together as much as half a minute brings at
/// three thousand log-ins a second.
const PRUNE_ROWS: i64 = 5_000;
const PRUNE_STATEMENTS: usize = 20;

/// Bounds of the projectors.
#[derive(Debug, Clone, Copy)]
pub struct ProjectorConfig {
    /// Workers of each projection, 1 to 8: partitions of keys that are fed side by side.
    pub workers: i16,
    /// The most events of one batch.
    pub batch_events: usize,
    /// The longest time from the reading of one batch to that of the next: under load, fewer and larger batches cost
    /// much less. It is taken in the measure in which the log is busy; a batch that comes
    /// after a quiet time does not wait at all.
    pub longest_pause: Duration,
    /// How long rows stay that are not for ever.
    pub retention: Retention,
}

impl Default for ProjectorConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            batch_events: 5_000,
            longest_pause: Duration::from_millis(50),
            retention: Retention::default(),
        }
    }
}

/// Events a second from which on the longest pause is taken.
const BUSY: f64 = 20_000.0;

impl ProjectorConfig {
    /// How long to wait before the next batch, when the log has grown by `events` in `elapsed`.
    pub(crate) fn pause(&self, events: i64, elapsed: Duration) -> Duration {
        Pace { longest: self.longest_pause, busy: BUSY }.step(events, elapsed)
    }
}

/// Where events come from and where rows go.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The log.
    pub log: Log,
    /// Where live events come from instead, if the log is published to Kafka. What is not there comes from the log.
    pub kafka: Option<KafkaConfig>,
    /// The views' database, directly: sessions hold locks.
    pub views: PgConnectOptions,
    /// What is heard there on [`INSTANCES`].
    pub instances: Subscription,
    /// Bounds.
    pub config: ProjectorConfig,
    /// Only these projections; empty: all.
    pub only: Vec<String>,
}

impl Feed {
    fn feeds(&self, instance: &Instance) -> bool {
        instance.state != State::Building && (self.only.is_empty() || self.only.contains(&instance.name))
    }
}

/// Feeds every live and every former instance.
#[derive(Debug)]
pub struct Supervisor;

type Runners = HashMap<(String, i32), (CancellationToken, JoinHandle<()>)>;

impl Supervisor {
    /// Starts feeding, until `stop`; the batches in hand are finished.
    #[must_use]
    pub fn spawn(feed: Feed, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(feed.views.clone());
            let mut instances = feed.instances.clone();
            let mut runners = Runners::new();
            while !stop.is_cancelled() {
                let watched = tokio::select! {
                    () = stop.cancelled() => break,
                    watched = watch(&pool, &feed, &mut instances, &mut runners) => watched,
                };
                let Err(error) = watched;
                tracing::warn!(%error, "cannot look after the projections, trying again");
                tokio::time::timeout(POLL, stop.cancelled()).await.ok();
            }
            for (stop, _) in runners.values() {
                stop.cancel();
            }
            for (_, (_, task)) in runners {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a projection ended badly");
                }
            }
            pool.close().await;
        })
    }
}

async fn watch(
    pool: &PgPool,
    feed: &Feed,
    heard: &mut Subscription,
    runners: &mut Runners,
) -> Result<Infallible, ProjectorError> {
    let mut looks: u32 = 0;
    loop {
        let mut connection = pool.acquire().await?;
        tidemark_views::feed::ensure_incarnation(&mut connection).await?;
        for projection in all() {
            ensure_live(&mut connection, *projection).await?;
        }
        let instances = instance::all(&mut connection).await?;
        adjust(&instances, feed, runners);
        if looks.is_multiple_of(PRUNE_EVERY) {
            tidemark_views::feed::prune(&mut connection).await?;
            for instance in instances.iter().filter(|instance| feed.feeds(instance)) {
                prune(&mut connection, instance, feed.config.retention).await?;
            }
        }
        looks = looks.wrapping_add(1);
        drop(connection);
        heard.next(POLL).await;
    }
}

/// Starts what is to be fed and is not, and stops what is fed and is gone.
fn adjust(instances: &[Instance], feed: &Feed, runners: &mut Runners) {
    let fed = |instance: &&Instance| feed.feeds(instance);
    runners.retain(|(name, number), (stop, _)| {
        let stays = instances.iter().filter(fed).any(|i| i.name == *name && i.instance == *number);
        if !stays {
            stop.cancel();
        }
        stays
    });
    for instance in instances.iter().filter(fed) {
        let key = (instance.name.clone(), instance.instance);
        if runners.get(&key).is_some_and(|(_, task)| !task.is_finished()) {
            continue;
        }
        match target_of(instance, feed.config.retention) {
            Ok(target) => {
                let stop = CancellationToken::new();
                let run = runner::run(feed.clone(), target, stop.clone());
                runners.insert(key, (stop, tokio::spawn(run)));
            }
            Err(error) => tracing::error!(%error, "an instance is not fed: rebuild it with this program"),
        }
    }
}

/// Removes rows that are behind the retention, in short statements, and no more than a bound at once.
async fn prune(
    connection: &mut PgConnection,
    instance: &Instance,
    retention: Retention,
) -> Result<(), ProjectorError> {
    let Ok(target) = target_of(instance, retention) else { return Ok(()) };
    let Some(statement) = target.projection.prune(instance.instance) else { return Ok(()) };
    for _ in 0..PRUNE_STATEMENTS {
        let removed = sqlx::query(sqlx::AssertSqlSafe(statement.as_str()))
            .bind(retention.seconds())
            .bind(PRUNE_ROWS)
            .execute(&mut *connection)
            .await?
            .rows_affected();
        metrics::counter!("tidemark_projection_pruned_total", "name" => target.projection.name())
            .increment(removed);
        if removed < PRUNE_ROWS.unsigned_abs() {
            break;
        }
    }
    Ok(())
}

/// The projection that feeds an instance.
///
/// # Errors
/// [`ProjectorError::UnknownFold`].
pub(crate) fn target_of(instance: &Instance, retention: Retention) -> Result<Target, ProjectorError> {
    match find(&instance.name) {
        Ok(projection) if projection.fold_version() == instance.fold_version => {
            Ok(Target { projection, instance: instance.instance, retention })
        }
        _ => Err(ProjectorError::UnknownFold {
            name: instance.name.clone(),
            instance: instance.instance,
            fold_version: instance.fold_version,
        }),
    }
}

/// Makes the first instance of a projection, live and empty, if it has none.
///
/// # Errors
/// The database's.
pub async fn ensure_live(
    connection: &mut PgConnection,
    projection: &dyn Projection,
) -> Result<(), ProjectorError> {
    let known = sqlx::query("SELECT 1 FROM views.projections WHERE name = $1 LIMIT 1")
        .bind(projection.name())
        .fetch_optional(&mut *connection)
        .await?;
    if known.is_some() {
        return Ok(());
    }
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))")
        .bind(projection.name())
        .execute(&mut *transaction)
        .await?;
    let made = create(&mut transaction, projection, 1, State::Live).await?;
    if made {
        for statement in projection.index(1) {
            transaction.execute(sqlx::query(sqlx::AssertSqlSafe(statement))).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}

/// Makes an instance: its row, its tables, its checkpoints at the beginning. `false` if it is there already.
pub(crate) async fn create(
    connection: &mut PgConnection,
    projection: &dyn Projection,
    instance: i32,
    state: State,
) -> Result<bool, ProjectorError> {
    let inserted = sqlx::query(
        "INSERT INTO views.projections (name, instance, fold_version, state) VALUES ($1, $2, $3, $4) \
         ON CONFLICT DO NOTHING",
    )
    .bind(projection.name())
    .bind(instance)
    .bind(projection.fold_version())
    .bind(state.as_str())
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    for statement in projection.create(instance) {
        connection.execute(sqlx::query(sqlx::AssertSqlSafe(statement))).await?;
    }
    sqlx::query(
        "INSERT INTO views.checkpoints (name, instance, partition, epoch, position) \
         SELECT $1, $2, p, 1, 0 FROM generate_series(0, $3) p",
    )
    .bind(projection.name())
    .bind(instance)
    .bind(i32::from(PARTITIONS) - 1)
    .execute(&mut *connection)
    .await?;
    sqlx::query("SELECT pg_notify($1, '')").bind(INSTANCES).execute(&mut *connection).await?;
    Ok(true)
}
