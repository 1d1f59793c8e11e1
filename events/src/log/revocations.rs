//! Sessions that were ended before their access tokens expired, as every process that checks tokens follows them.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::LogError;
use super::wake::ANSWERS_WITHIN;
use crate::listener::Subscription;
use crate::silence::in_time;

/// The channel on which they are announced.
pub const CHANNEL: &str = "tidemark_revocations";

/// How often they are asked for without an announcement: within a second everybody knows, even while notifications are
/// lost.
const POLL: Duration = Duration::from_millis(500);

/// How far back each question looks behind the newest answer. Rows become visible when they are committed, not when
/// they are made.
const OVERLAP: Duration = Duration::from_secs(15);

/// How often all of them are asked for.
const ALL_EVERY: Duration = Duration::from_secs(60);

/// Follows ended sessions until `stop`, over lost connections, and hands them to `learn`, some more than once, each
/// with the time until which its tokens may still look good. `heard`: on [`CHANNEL`]. The first time it hands over all
/// that there are, also if that is none.
pub async fn follow(
    database: PgConnectOptions,
    mut heard: Subscription,
    stop: CancellationToken,
    mut learn: impl FnMut(Vec<(Uuid, DateTime<Utc>)>) + Send,
) {
    let database = database.application_name("tidemark revocations");
    let connection = || PgPoolOptions::new().max_connections(1).connect_lazy_with(database.clone());
    let mut pool = connection();
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = follow_on(&pool, &mut heard, &mut learn) => ended,
        };
        let Err(error) = ended;
        tracing::warn!(%error, "cannot follow ended sessions, trying again");
        // The one it had may be waiting for a server that will not say a word.
        pool = connection();
        tokio::time::timeout(POLL, stop.cancelled()).await.ok();
    }
    tokio::time::timeout(ANSWERS_WITHIN, pool.close()).await.ok();
}

async fn follow_on(
    pool: &PgPool,
    heard: &mut Subscription,
    learn: &mut impl FnMut(Vec<(Uuid, DateTime<Utc>)>),
) -> Result<Infallible, LogError> {
    let mut newest = DateTime::<Utc>::MIN_UTC;
    let mut all_at = Instant::now();
    loop {
        let since = if newest == DateTime::<Utc>::MIN_UTC || all_at.elapsed() >= ALL_EVERY {
            all_at = Instant::now();
            DateTime::<Utc>::UNIX_EPOCH
        } else {
            newest - OVERLAP
        };
        let asked = sqlx::query_as(
            "SELECT session_id, revoked_at, until FROM accounts.revocations \
             WHERE revoked_at > $1 AND until > clock_timestamp()",
        )
        .bind(since)
        .fetch_all(pool);
        let rows: Vec<(Uuid, DateTime<Utc>, DateTime<Utc>)> = in_time(ANSWERS_WITHIN, asked).await?;
        newest = rows.iter().map(|(_, at, _)| *at).max().unwrap_or(DateTime::<Utc>::UNIX_EPOCH).max(newest);
        if since == DateTime::UNIX_EPOCH || !rows.is_empty() {
            learn(rows.into_iter().map(|(id, _, until)| (id, until)).collect());
        }
        heard.next(POLL).await;
    }
}
