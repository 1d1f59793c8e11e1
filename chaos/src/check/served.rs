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

/// How long one answer may take, and how long in all anything may be asked for again.
const ASK_WITHIN: Duration = Duration::from_secs(5);
const AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// Asks every query service for a sample.
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
    let mut random = fastrand::Rng::with_seed(seed);
    let orders = random.choose_multiple(fold.orders.iter(), ORDERS);
    let end = Instant::now() + AGAIN_WITHIN;
    for member in cluster.like("query-") {
        let base = format!("http://127.0.0.1:{}", cluster.port(&member)?);
        let mut asked = Vec::new();
        for (id, product) in &fold.products {
            let stock = fold.stocks.get(id).and_then(|states| states.last()).copied().unwrap_or_default();
            if let Some(state) = product.states.last() {
                asked.push((format!("/v1/products/{id}"), state.body(*id, stock.available())));
            }
            if stock.version > 0 {
                asked.push((format!("/v1/products/{id}/stock"), stock.body(*id)));
            }
        }
        for (id, order) in &orders {
            if let Some(state) = order.states.last() {
                asked.push((format!("/v1/orders/{id}"), order.body(**id, state)));
            }
        }
        for (path, expected) in asked {
            // Once as it comes, perhaps from memory, and once as new as the log.
            for after in [None, Some(format!("{}-{}", head.0, head.1))] {
                let found = ask(&http, &format!("{base}{path}"), &staff, after.as_deref(), end).await;
                check.expect(found.as_ref() == Ok(&expected), || {
                    let found = found.map_or_else(|text| text, |body| body.to_string());
                    format!("{member} {path} (after {after:?}): {found}, the log says {expected}")
                });
            }
        }
    }
    Ok(check)
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
