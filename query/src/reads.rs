//! Where the views are read: on replicas that are near enough, else on the primary.
//!
//! A replica lags. How far is measured by the positions in the write-ahead log, and one that is too far behind, or
//! does not answer, is left alone; a statement that would fail anywhere says nothing of the server. That alone promises
//! nothing to a single read; so every read says which number of the stream of changes ([`tidemark_views::feed`]) it must
//! see at least, and one that was answered by a replica which had not come so far is asked again on the primary.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, PgPool, Postgres, Row};
use tidemark_events::listener::Subscription;
use tidemark_events::silence::in_time;
use tidemark_http::problem::Problem;
use tidemark_views::body::number_of;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::QueryConfig;
use crate::feed::Standing;
use crate::{too_late, unavailable};

/// How often replicas are compared with the primary.
const COMPARE_EVERY: Duration = Duration::from_millis(200);

/// How long a question of the comparison may take.
const COMPARE_WITHIN: Duration = Duration::from_secs(1);

/// A server of the views.
#[derive(Debug)]
struct Server {
    pool: PgPool,
    /// Reached through a pooler in transaction mode: nothing outlives a transaction there, not even a statement's
    /// parsing, so each read is a transaction of its own with its settings.
    begin: Option<String>,
    /// After this, longer than it lets any statement run, a server is gone without a word.
    answers_within: Duration,
    name: String,
    reads: Figures,
}

#[derive(Debug)]
struct Replica {
    server: Server,
    /// Near enough to the primary, when they were last compared.
    is_near: AtomicBool,
    /// The newest change that it was seen to have.
    number: AtomicI64,
}

#[derive(Debug)]
struct Figures {
    answered: metrics::Counter,
    behind: metrics::Counter,
    failed: metrics::Counter,
}

/// How the views' servers are reached.
#[derive(Debug, Clone)]
pub struct Servers {
    /// The primary, directly: for LISTEN, and for reads where there is no pooler.
    pub primary: PgConnectOptions,
    /// What is heard there on [`tidemark_views::feed::CHANNEL`], if another part of the process listens there, too; else
    /// a session of its own does, while the primary is followed.
    pub changes: Option<Subscription>,
    /// The primary through a pooler in transaction mode, for reads.
    pub pooled: Option<PgConnectOptions>,
    /// Streaming replicas, directly or through a pooler.
    pub replicas: Vec<PgConnectOptions>,
}

/// All servers of the views.
#[derive(Debug)]
pub(crate) struct Reads {
    primary: Server,
    replicas: Vec<Replica>,
    next: AtomicUsize,
    lag_bytes: i64,
    searches: Semaphore,
    searches_within: Duration,
}

/// How a statement is planned where no pooler is between: through one, for its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planned {
    /// Once for each connection: whatever its values are, there is one good way. To plan the read of one body takes
    /// longer than to do it.
    Once,
    /// Each time. With some values another index is the right one, and a plan for all of them, which PostgreSQL takes
    /// after five times if it believes it to be as cheap, can be a hundred times slower.
    ForItsValues,
}

impl Server {
    fn new(options: &PgConnectOptions, name: String, pooled: bool, config: QueryConfig) -> Self {
        let limit = config.statement_within.as_millis();
        // The options come with every statement planned for its values; here each says for itself, see `Planned`.
        // A plan made while a table was small must not be one that reads it whole when it has grown.
        let settings = [
            ("default_transaction_read_only", "on"),
            ("jit", "off"),
            ("plan_cache_mode", "auto"),
            ("enable_seqscan", "off"),
        ];
        let reads = |outcome: &'static str| metrics::counter!("tidemark_view_reads_total", "server" => name.clone(), "outcome" => outcome);
        let reads = Figures { answered: reads("answered"), behind: reads("behind"), failed: reads("failed") };
        let answers_within = config.statement_within + Duration::from_secs(1);
        let pool = PgPoolOptions::new()
            .max_connections(config.connections)
            .acquire_timeout(config.statement_within)
            .test_before_acquire(false);
        if pooled {
            let begin =
                format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {limit}; SET LOCAL jit = off");
            let pool = pool.connect_lazy_with(options.clone().statement_cache_capacity(0));
            return Self { pool, begin: Some(begin), answers_within, name, reads };
        }
        let options = options
            .clone()
            .application_name("tidemark query")
            .options(settings)
            .options([("statement_timeout", limit.to_string())]);
        Self { pool: pool.connect_lazy_with(options), begin: None, answers_within, name, reads }
    }

    async fn rows(
        &self,
        sql: &str,
        planned: Planned,
        arguments: PgArguments,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let query = sqlx::query_with(AssertSqlSafe(sql), arguments);
        let rows = async {
            let mut connection = self.pool.acquire().await?;
            let answer = async {
                let Some(begin) = &self.begin else {
                    return query.persistent(planned == Planned::Once).fetch_all(&mut *connection).await;
                };
                let mut transaction = connection.begin_with(AssertSqlSafe(begin.as_str())).await?;
                let rows = query.persistent(false).fetch_all(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(rows)
            };
            let answered = in_time(self.answers_within, answer).await;
            close_if_lost(&answered, &mut connection);
            answered
        };
        rows.await.inspect_err(|_| self.reads.failed.increment(1))
    }

    /// One number; simple queries go through every pooler.
    async fn number(&self, sql: &'static str) -> Result<i64, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let asked = async { sqlx::raw_sql(sql).fetch_one(&mut *connection).await?.try_get(0) };
        let answered = in_time(COMPARE_WITHIN, asked).await;
        close_if_lost(&answered, &mut connection);
        answered
    }
}

impl Reads {
    pub(crate) fn new(servers: &Servers, config: QueryConfig) -> Self {
        let (primary, pooled) = match &servers.pooled {
            Some(pooled) => (pooled, true),
            None => (&servers.primary, false),
        };
        let replica = |(at, options): (usize, &PgConnectOptions)| Replica {
            server: Server::new(options, format!("replica-{}", at + 1), true, config),
            is_near: AtomicBool::new(false),
            number: AtomicI64::new(0),
        };
        Self {
            primary: Server::new(primary, "primary".to_owned(), pooled, config),
            replicas: servers.replicas.iter().enumerate().map(replica).collect(),
            next: AtomicUsize::new(0),
            lag_bytes: config.replica_lag_bytes,
            searches: Semaphore::new(config.searches as usize * (1 + servers.replicas.len())),
            searches_within: config.statement_within,
        }
    }

    /// A search reads hundreds of rows where a body is one. As many at once as there are connections only take the
    /// processors from each other, and every connection from the rest; so a few go at a time, in their order.
    ///
    /// # Errors
    /// 503 when that takes too long.
    pub(crate) async fn turn_to_search(&self) -> Result<SemaphorePermit<'_>, Problem> {
        let turn = tokio::time::timeout(self.searches_within, self.searches.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or_else(too_late)
    }

    /// The rows of a statement whose rows all have the column `number`, seen at `needed` or later.
    ///
    /// # Errors
    /// 503 when no server can answer, the statement fails by itself, or the views were thrown back.
    pub(crate) async fn rows(
        &self,
        standing: &Standing,
        needed: i64,
        sql: &str,
        planned: Planned,
        arguments: PgArguments,
    ) -> Result<(i64, Vec<PgRow>), Problem> {
        // Without the feed it is not known how far a replica must be.
        if standing.is_fresh()
            && let Some(replica) = self.near(needed)
            && let Some(found) = replica
                .rows(needed, sql, planned, arguments.clone())
                .await
                .map_err(|error| unavailable(&error))?
        {
            return Ok(found);
        }
        let seen = standing.seen();
        let error = match self.primary.rows(sql, planned, arguments.clone()).await {
            Ok(rows) => {
                let number = number_of(&rows).map_err(|error| unavailable(&error))?;
                seen.check(number)?;
                self.primary.reads.answered.increment(1);
                return Ok((number, rows));
            }
            Err(error) if fails_anywhere(&error) => return Err(unavailable(&error)),
            Err(error) => error,
        };
        // While the primary is away nothing changes; a replica that has all that is known says all there is to say.
        for replica in &self.replicas {
            let found = replica.rows(needed, sql, planned, arguments.clone()).await;
            if let Some(found) = found.map_err(|error| unavailable(&error))? {
                return Ok(found);
            }
        }
        Err(unavailable(&error))
    }

    /// A replica that is near, taken in turn, and is not known to be short of `needed`.
    fn near(&self, needed: i64) -> Option<&Replica> {
        let count = self.replicas.len();
        let first = if count > 1 { self.next.fetch_add(1, Ordering::Relaxed) } else { 0 };
        (0..count).map(|step| &self.replicas[(first + step) % count]).find(|replica| {
            let is_near = replica.is_near.load(Ordering::Acquire);
            if is_near && replica.number.load(Ordering::Acquire) < needed {
                replica.server.reads.behind.increment(1);
            }
            is_near && replica.number.load(Ordering::Acquire) >= needed
        })
    }

    /// Compares the replicas with the primary until `stop`.
    pub(crate) async fn compare(&self, stop: &CancellationToken) {
        const PRIMARY: &str = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";
        const REPLICA: &str = "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint";
        while !self.replicas.is_empty() && !stop.is_cancelled() {
            let primary = self.primary.number(PRIMARY).await;
            for replica in &self.replicas {
                let lag = match (&primary, replica.server.number(REPLICA).await) {
                    (Ok(primary), Ok(position)) => Some((primary - position).max(0)),
                    // Nothing to compare with: it is as near as it was.
                    (Err(_), Ok(_)) => continue,
                    (_, Err(error)) => {
                        replica.leave(&error);
                        continue;
                    }
                };
                if let Some(lag) = lag {
                    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
                    metrics::gauge!("tidemark_replica_lag_bytes", "server" => replica.server.name.clone())
                        .set(lag as f64);
                    replica.look(lag <= self.lag_bytes).await;
                }
            }
            tokio::time::timeout(COMPARE_EVERY, stop.cancelled()).await.ok();
        }
    }

    pub(crate) async fn close(&self) {
        self.primary.pool.close().await;
        for replica in &self.replicas {
            replica.server.pool.close().await;
        }
    }
}

impl Replica {
    /// `None` when it does not answer or has not come so far.
    ///
    /// # Errors
    /// The statement fails by itself.
    async fn rows(
        &self,
        needed: i64,
        sql: &str,
        planned: Planned,
        arguments: PgArguments,
    ) -> Result<Option<(i64, Vec<PgRow>)>, sqlx::Error> {
        let found = self.server.rows(sql, planned, arguments).await;
        let found = found.and_then(|rows| Ok((number_of(&rows)?, rows)));
        match found {
            Ok((number, rows)) => {
                self.number.fetch_max(number, Ordering::AcqRel);
                if number >= needed {
                    self.server.reads.answered.increment(1);
                    return Ok(Some((number, rows)));
                }
                self.server.reads.behind.increment(1);
                Ok(None)
            }
            Err(error) if fails_anywhere(&error) => Err(error),
            Err(error) => {
                self.leave(&error);
                Ok(None)
            }
        }
    }

    /// Takes down whether it is near, and its newest number.
    async fn look(&self, is_near: bool) {
        match self.server.number("SELECT number FROM views.head").await {
            // Not the greatest ever: after a fork numbers begin again.
            Ok(number) => self.number.store(number, Ordering::Release),
            Err(error) => return self.leave(&error),
        }
        if self.is_near.swap(is_near, Ordering::AcqRel) != is_near {
            tracing::info!(
                server = self.server.name,
                is_near,
                "a replica is read from only while it is near"
            );
        }
    }

    fn leave(&self, error: &sqlx::Error) {
        if self.is_near.swap(false, Ordering::AcqRel) {
            tracing::warn!(%error, server = self.server.name, "a replica does not answer, reading elsewhere");
        }
    }
}

/// A connection that is broken, or says nothing, does not go back to its pool, which would wait for it.
fn close_if_lost<T>(answered: &Result<T, sqlx::Error>, connection: &mut PoolConnection<Postgres>) {
    if matches!(answered, Err(sqlx::Error::Io(_))) {
        connection.close_on_drop();
    }
}

/// Whether another server would say the same of the statement. To ask there would only double its work, and to take the
/// server out of service for it would let one request do so to all of them.
fn fails_anywhere(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| is_of_the_statement(&code))
}

/// Codes that come from what was asked: values (22), bounds of the parser (54), the time it may take. Any other may be
/// the server's own: it is away, in recovery, its replay cancelled the read, or it is behind and has not the tables yet.
fn is_of_the_statement(code: &str) -> bool {
    const OUT_OF_TIME: &str = "57014";
    code == OUT_OF_TIME || code.starts_with("22") || code.starts_with("54")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_is_blamed_on_the_statement() {
        for own in ["22P02", "22003", "22021", "54000", "57014"] {
            assert!(is_of_the_statement(own), "{own}");
        }
        // Connections, resources, a stop, files; a replica's replay, its being one, and its being behind.
        let others = ["08006", "08P01", "28P01", "3D000", "53300", "57P01", "57P03", "58030", "XX001"];
        let of_replicas = ["40001", "40P01", "25006", "42P01", "42703"];
        for other in others.into_iter().chain(of_replicas) {
            assert!(!is_of_the_statement(other), "{other}");
        }
    }
}
