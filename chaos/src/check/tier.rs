//! Redis: a body that is there is what the log adds up to.

use std::time::{Duration, Instant};

use redis::AsyncCommands;
use serde_json::Value;
use uuid::Uuid;

use crate::check::Check;
use crate::error::ChaosError;
use crate::fold::Fold;

/// Names the bodies that belong together.
const POINTER: &str = "tidemark:generation";

/// Bodies that are asked for at once.
const AT_ONCE: usize = 200;

/// How long bodies may take to know the last changes.
const WITHIN: Duration = Duration::from_secs(20);

/// Compares all bodies that are there; those that are behind are looked at again for a while.
///
/// # Errors
/// [`ChaosError::Redis`].
pub(crate) async fn bodies(port: u16, fold: &Fold) -> Result<Check, ChaosError> {
    let mut check = Check::new("a body in Redis is what the log adds up to");
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let end = Instant::now() + WITHIN;
    loop {
        let (compared, wrong) = compare(&mut connection, fold).await?;
        if (wrong.is_empty() && compared > 0) || Instant::now() > end {
            check.expect_none(compared, wrong);
            return Ok(check);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn compare(
    connection: &mut redis::aio::MultiplexedConnection,
    fold: &Fold,
) -> Result<(u64, Vec<String>), ChaosError> {
    let pointer: Option<String> = connection.get(POINTER).await?;
    let Some(generation) = pointer.as_deref().and_then(|text| text.split(' ').next()) else {
        return Ok((0, Vec::new()));
    };
    let products = fold.products.iter().filter_map(|(id, product)| {
        let stock = fold.stocks.get(id).and_then(|states| states.last()).copied().unwrap_or_default();
        Some(("product", *id, product.states.last()?.body(*id, stock.available())))
    });
    let orders = fold
        .orders
        .iter()
        .filter_map(|(id, order)| Some(("order", *id, order.body(*id, order.states.last()?))));
    let expected: Vec<(&str, Uuid, Value)> = products.chain(orders).collect();
    let (mut compared, mut wrong) = (0, Vec::new());
    for portion in expected.chunks(AT_ONCE) {
        let keys: Vec<String> =
            portion.iter().map(|(kind, id, _)| format!("tidemark:{generation}:{kind}:{id}")).collect();
        let found: Vec<Option<Vec<u8>>> = connection.mget(&keys).await?;
        for ((key, (_, _, body)), found) in keys.iter().zip(portion).zip(found) {
            let Some(found) = found else { continue };
            compared += 1;
            // Number, owner, tag and whether events are parked stand before the body.
            let json = found.splitn(5, |byte| *byte == b' ').nth(4).unwrap_or_default();
            if serde_json::from_slice::<Value>(json).ok().as_ref() != Some(body) {
                wrong.push(format!("{key} is {}, the log says {body}", String::from_utf8_lossy(&found)));
            }
        }
    }
    Ok((compared, wrong))
}
