//! Reads during the run: each answer is a state that there was, and none from before the position that was asked for.

use serde_json::Value;
use uuid::Uuid;

use crate::check::Check;
use crate::drive::client::PAGE;
use crate::fold::{self, Fold, Order, Stock};
use crate::history::{History, Read, Target};

/// Compares all reads with the states of the log.
pub(crate) fn reads(history: &History, fold: &Fold) -> Vec<Check> {
    let mut existed = Check::new("every body that was read is a state that there was");
    let mut own = Check::new("no read is older than the position it asked for");
    for read in &history.reads {
        let after = read.after.unwrap_or(0);
        let found = look(read, fold);
        let say = |why: &str| {
            format!("{:?} after {after}: {why}: {}", read.target, String::from_utf8_lossy(&read.body))
        };
        match found {
            Ok(None) => existed.expect(true, String::new),
            Ok(Some(why)) => existed.expect(false, || say(&why)),
            Err(()) => {}
        }
        if read.after.is_some() {
            own.expect(found_is_new(read, fold, after), || say("it is older"));
        }
    }
    vec![existed, own]
}

/// Why a body is no state that there was; `Err` where there is no body to look at.
fn look(read: &Read, fold: &Fold) -> Result<Option<String>, ()> {
    if read.status == 404 {
        return Err(());
    }
    let Ok(body) = serde_json::from_slice::<Value>(&read.body) else {
        return Ok(Some("not JSON".to_owned()));
    };
    let wrong = match &read.target {
        Target::Product(id) => product(*id, &body, stock_version(read), fold),
        Target::Stock(id) => stock(*id, &body, fold),
        Target::Order(id) => order(*id, &body, fold),
        Target::Orders(customer) => items(&body).iter().find_map(|item| {
            let owner = item["customer_id"] == customer.to_string();
            if owner { order(id_of(item)?, item, fold) } else { Some("somebody else's order".to_owned()) }
        }),
        Target::Products => items(&body).iter().find_map(|item| product(id_of(item)?, item, None, fold)),
    };
    Ok(wrong)
}

fn items(body: &Value) -> &[Value] {
    body["items"].as_array().map_or(&[], Vec::as_slice)
}

fn id_of(item: &Value) -> Option<Uuid> {
    item["id"].as_str()?.parse().ok()
}

/// A product's entity tag names the versions of the product and of its stock.
fn stock_version(read: &Read) -> Option<i64> {
    read.etag.as_deref()?.trim_matches('"').split('-').nth(1)?.parse().ok()
}

fn by_version<T>(states: &[T], version: i64) -> Option<&T> {
    states.get(usize::try_from(version).ok()?.checked_sub(1)?)
}

fn product(id: Uuid, body: &Value, stock_version: Option<i64>, fold: &Fold) -> Option<String> {
    let states = fold.products.get(&id).map(|product| product.states.as_slice());
    let state = states.and_then(|states| by_version(states, body["version"].as_i64()?));
    let Some(state) = state else { return Some("the log knows no such version".to_owned()) };
    let available = body["available"].as_i64().unwrap_or(i64::MIN);
    let stocks = fold.stocks.get(&id).map_or(&[][..], Vec::as_slice);
    let there_was = match stock_version {
        Some(0) => available == 0,
        Some(version) => by_version(stocks, version).is_some_and(|stock| stock.available() == available),
        None => available == 0 || stocks.iter().any(|stock| stock.available() == available),
    };
    (*body != state.body(id, available) || !there_was)
        .then(|| format!("the log says {} for version {}", state.body(id, available), state.version))
}

fn stock(id: Uuid, body: &Value, fold: &Fold) -> Option<String> {
    let states = fold.stocks.get(&id).map_or(&[][..], Vec::as_slice);
    let state = body["version"].as_i64().and_then(|version| by_version(states, version));
    let expected = state.map(|state| state.body(id));
    (expected.as_ref() != Some(body)).then(|| format!("the log says {expected:?}"))
}

fn order(id: Uuid, body: &Value, fold: &Fold) -> Option<String> {
    let expected = fold.orders.get(&id).and_then(|order| {
        let state = by_version(&order.states, body["version"].as_i64()?)?;
        Some(order.body(id, state))
    });
    (expected.as_ref() != Some(body)).then(|| format!("the log says {expected:?}"))
}

/// Whether an answer is at least as new as the log was at a position.
fn found_is_new(read: &Read, fold: &Fold, after: i64) -> bool {
    let body: Value = serde_json::from_slice(&read.body).unwrap_or_default();
    let product_then = |id: &Uuid| {
        let states = &fold.products.get(id)?.states;
        Some(fold::at(states, after, |state| state.position)?.version)
    };
    let stock_then = |id: &Uuid| {
        let states = fold.stocks.get(id)?;
        Some(fold::at(states, after, |state| state.position)?.version)
    };
    let version = |body: &Value| if read.status == 200 { body["version"].as_i64() } else { None };
    match &read.target {
        Target::Product(id) => version(&body) >= product_then(id) && stock_version(read) >= stock_then(id),
        Target::Stock(id) => version(&body) >= stock_then(id),
        Target::Order(id) => {
            let then = fold.orders.get(id).and_then(|order| version_at(order, after));
            version(&body) >= then
        }
        Target::Orders(customer) => {
            let listed = items(&body);
            // What is older than the last of a full page stands on the next one.
            let last = if listed.len() < PAGE { None } else { listed.last().and_then(id_of) };
            fold.orders
                .iter()
                .filter(|(id, order)| order.customer == *customer && last.is_none_or(|last| **id >= last))
                .all(|(id, order)| {
                    let found = listed.iter().find(|item| id_of(item) == Some(*id));
                    found.and_then(|item| item["version"].as_i64()) >= version_at(order, after)
                })
        }
        Target::Products => {
            let listed = items(&body);
            let place = |id: Uuid| Some(fold.products.get(&id)?.created_position);
            let last = if listed.len() < PAGE { None } else { listed.last().and_then(id_of).and_then(place) };
            let on_page = fold.products.iter().rev().filter(|(_, product)| {
                let published = fold::at(&product.states, after, |state| state.position)
                    .is_some_and(|state| state.status == "published");
                published && last.is_none_or(|last| product.created_position >= last)
            });
            on_page.into_iter().all(|(id, _)| {
                let found = listed.iter().find(|item| id_of(item) == Some(*id));
                let new_stock = || {
                    let available = found.and_then(|item| item["available"].as_i64());
                    let states = fold.stocks.get(id).map_or(&[][..], Vec::as_slice);
                    let from =
                        stock_then(id).and_then(|version| usize::try_from(version - 1).ok()).unwrap_or(0);
                    let since = states.get(from..).unwrap_or_default();
                    available.is_some_and(|units| {
                        (stock_then(id).is_none() && units == 0)
                            || since.iter().map(Stock::available).any(|it| it == units)
                    })
                };
                found.and_then(|item| item["version"].as_i64()) >= product_then(id) && new_stock()
            })
        }
    }
}

fn version_at(order: &Order, position: i64) -> Option<i64> {
    Some(fold::at(&order.states, position, |state| state.position)?.version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::received;

    fn fold() -> Fold {
        let product = Uuid::from_u128(7);
        Fold::of(&[received(1, 1, product, 5), received(2, 2, product, 4)])
    }

    fn failed(after: Option<i64>, version: i64, received: i64) -> Vec<&'static str> {
        let id = Uuid::from_u128(7);
        let stock = Stock { version, received, ..Stock::default() };
        let read = Read {
            target: Target::Stock(id),
            after,
            status: 200,
            etag: None,
            body: stock.body(id).to_string().into(),
        };
        let history = History { reads: vec![read], ..History::default() };
        let checks = reads(&history, &fold());
        checks.iter().filter(|check| check.mismatched > 0).map(|check| check.name).collect()
    }

    #[test]
    fn old_and_strange_bodies_are_seen() {
        assert!(failed(None, 1, 5).is_empty(), "without a position anything that was will do");
        assert!(failed(Some(2), 2, 9).is_empty());
        assert_eq!(failed(Some(2), 1, 5), ["no read is older than the position it asked for"]);
        assert_eq!(failed(Some(1), 2, 8), ["every body that was read is a state that there was"]);
    }
}
