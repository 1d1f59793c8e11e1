//! Reads while 200 log-ins a second are offered: each costs a password's hash, and there are more than can be hashed.

use std::thread;

use axum::http::StatusCode;

use super::Stage;
use super::slow::read;
use crate::client::{Call, Connection};
use crate::error::BenchError;
use crate::load;
use crate::report::{Bound, Row};
use crate::stats::median;

/// Log-ins offered a second.
const RATE: f64 = 200.0;

/// Connections that they come on.
const CONNECTIONS: usize = 64;

/// The figure of reads beside log-ins.
pub(super) async fn logins(stage: &Stage<'_>) -> Result<Vec<Row>, BenchError> {
    eprintln!("reads beside log-ins");
    read(stage).await?;
    let (mut quiet, mut busy, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..stage.settings.rounds {
        quiet.push(read(stage).await?.percentile(99.0));
        let (address, total) = (stage.shop.address, (RATE * stage.settings.seconds as f64) as usize);
        // On a thread and a runtime of its own: it is not what is measured.
        let flood = thread::spawn(move || -> Result<Vec<StatusCode>, BenchError> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(BenchError::io("starting the runtime of log-ins"))?;
            let job = async |connection: &mut Connection, number: usize| {
                let body =
                    format!(r#"{{"email":"guess{number}@example.org","password":"a guess at a password"}}"#);
                connection.try_send(&Call::post("/v1/sessions", body)).await.map(|answer| answer.status)
            };
            let done = runtime.block_on(load::open(address, CONNECTIONS, RATE, total, job))?;
            Ok(done.into_iter().map(|(_, status)| status).collect())
        });
        let latencies = read(stage).await?;
        busy.push(latencies.percentile(99.0));
        let statuses = flood.join().map_err(|_| BenchError::Wrong("the log-ins broke off".to_owned()))??;
        let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
        let (compared, refused) = (count(StatusCode::UNAUTHORIZED), count(StatusCode::SERVICE_UNAVAILABLE));
        if compared + refused != statuses.len() {
            return Err(BenchError::Wrong(format!(
                "{} log-ins had another answer",
                statuses.len() - compared - refused
            )));
        }
        if compared == 0 {
            let offered = statuses.len();
            return Err(BenchError::Wrong(format!("of {offered} log-ins no password was compared")));
        }
        notes.push(format!(
            "{} log-ins offered, {compared} compared, {refused} told to come back later; {}",
            statuses.len(),
            latencies.describe()
        ));
    }
    let most = 2.0 * median(&quiet);
    let what = format!("reads, beside {RATE:.0} log-ins/s that are offered, p99");
    let mut row = Row::new("logins", what, "ms", busy).against("quiet", quiet).bound(Bound::Below(most));
    row.notes = notes;
    Ok(vec![row])
}
