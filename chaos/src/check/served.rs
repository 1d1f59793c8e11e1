//! Bodies: what each query service answers is what the log adds up to.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::access::{Actor, Signer};
use crate::check::Check;
use crate::cluster::Cluster;
use crate::error::ChaosError;
use crate::fold::Fold;

/// Orders that are asked for; of products all are.
const ORDERS: usize = 300;

/// How long one answer may take, how long in all anything may be asked for again, and how long all of it may take.
const ASK_WITHIN: Duration = Duration::from_secs(5);
const AGAIN_WITHIN: Duration = Duration::from_secs(30);
const ALL_WITHIN: Duration = Duration::from_secs(180);

/// Until when is asked: again, and at all.
#[derive(Debug, Clone, Copy)]
struct Until {
    again: Instant,
    all: Instant,
}

/// Asks every query service for a sample.
///
/// # Errors
/// [`ChaosError`] when nobody could be asked.
pub(crate) async fn bodies(
    cluster: &Cluster,
    signer: &Signer,
    fold: &Fold,
    seed: u64,
    head: (i32, i64),
) -> Result<Check, ChaosError> {
    let mut check = Check::new("what is served is what the log adds up to");
    let http = reqwest::Client::builder()
        .timeout(ASK_WITHIN)
        .build()
        .map_err(|error| ChaosError::Wrong(format!("the HTTP client: {error}")))?;
    let staff = signer.bearer(Actor::staff(uuid::Uuid::from_u128(1)))?;
    let now = Instant::now();
    let until = Until { again: now + AGAIN_WITHIN, all: now + ALL_WITHIN };
    let wanted = sample(fold, seed);
    for member in cluster.like("query-") {
        let base = format!("http://127.0.0.1:{}", cluster.port(&member)?);
        let ask = async |path: &str, after: Option<&str>| {
            ask(&http, &format!("{base}{path}"), &staff, after, until.again).await
        };
        if let Err(why) = compare(&mut check, &member, &wanted, head, until, ask).await {
            check.expect(false, || format!("{member} was not asked for all: {why}"));
        }
    }
    Ok(check)
}

/// What is asked for, and what must be the answer.
fn sample(fold: &Fold, seed: u64) -> Vec<(String, Value)> {
    let mut wanted = Vec::new();
    for (id, product) in &fold.products {
        let stock = fold.stocks.get(id).and_then(|states| states.last()).copied().unwrap_or_default();
        if let Some(state) = product.states.last() {
            wanted.push((format!("/v1/products/{id}"), state.body(*id, stock.available())));
        }
        if stock.version > 0 {
            wanted.push((format!("/v1/products/{id}/stock"), stock.body(*id)));
        }
    }
    let mut random = fastrand::Rng::with_seed(seed);
    for (id, order) in random.choose_multiple(fold.orders.iter(), ORDERS) {
        if let Some(state) = order.states.last() {
            wanted.push((format!("/v1/orders/{id}"), order.body(*id, state)));
        }
    }
    wanted
}

/// Compares one service's answers. `Err`: why it was not asked for all of them. A service whose views never come to the
/// log's end would take its time with each.
async fn compare(
    check: &mut Check,
    member: &str,
    wanted: &[(String, Value)],
    (epoch, position): (i32, i64),
    until: Until,
    ask: impl AsyncFn(&str, Option<&str>) -> Result<Value, String>,
) -> Result<(), &'static str> {
    let newest = format!("{epoch}-{position}");
    for (path, expected) in wanted {
        // Once as it comes, perhaps from memory, and once as new as the log.
        for after in [None, Some(newest.as_str())] {
            if Instant::now() > until.all {
                return Err("the time for all questions is over");
            }
            let found = ask(path, after).await;
            check.expect(found.as_ref() == Ok(expected), || {
                let found = found.as_ref().map_or_else(String::clone, Value::to_string);
                format!("{member} {path} (after {after:?}): {found}, the log says {expected}")
            });
            if found.is_err() && Instant::now() > until.again {
                return Err("it has no answers, and the time to ask again is over");
            }
        }
    }
    Ok(())
}

async fn ask(
    http: &reqwest::Client,
    url: &str,
    token: &str,
    after: Option<&str>,
    end: Instant,
) -> Result<Value, String> {
    loop {
        let mut request = http.get(url).header("authorization", token);
        if let Some(after) = after {
            request = request.header("tidemark-after", after);
        }
        let answered = async {
            let response = request.send().await.map_err(|error| error.to_string())?;
            let status = response.status().as_u16();
            let text = response.text().await.map_err(|error| error.to_string())?;
            Ok::<_, String>((status, text))
        };
        match answered.await {
            Ok((200, text)) => return serde_json::from_str(&text).map_err(|error| error.to_string()),
            Ok((503, _)) | Err(_) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(100)).await
            }
            Ok((status, text)) => return Err(format!("{status} {text}")),
            Err(text) => return Err(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_without_answers_is_not_asked_for_all() {
        let wanted: Vec<_> = (0..1_000).map(|number| (format!("/v1/orders/{number}"), Value::Null)).collect();
        let asked = std::cell::Cell::new(0);
        let silent = async |_: &str, _: Option<&str>| {
            asked.set(asked.get() + 1);
            Err("503".to_owned())
        };
        let mut check = Check::new("test");
        let now = Instant::now();
        let until = Until { again: now, all: now + Duration::from_secs(60) };
        assert!(compare(&mut check, "query-1", &wanted, (1, 9), until, silent).await.is_err());
        assert_eq!((asked.get(), check.mismatched), (1, 1));
    }

    #[tokio::test]
    async fn a_slow_service_is_asked_until_the_time_is_over() {
        let wanted: Vec<_> = (0..1_000).map(|number| (format!("/v1/orders/{number}"), Value::Null)).collect();
        let slow = async |_: &str, _: Option<&str>| {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(Value::Null)
        };
        let mut check = Check::new("test");
        let end = Instant::now() + Duration::from_millis(200);
        let until = Until { again: end, all: end };
        assert!(compare(&mut check, "query-1", &wanted, (1, 9), until, slow).await.is_err());
        assert!((1..100).contains(&check.compared) && check.mismatched == 0, "{check:?}");
    }
}
