//! Commands: what was acknowledged is there, once and as it was asked for; what was refused is not; and nothing else.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::check::Check;
use crate::fold::{self, Fold};
use crate::history::{Accepted, Ask, End, History, Intent};
use crate::log::Event;

/// The events of each command: the log keeps the trace of the request with each.
fn by_trace(events: &[Event]) -> HashMap<Uuid, Vec<&Event>> {
    let mut groups: HashMap<Uuid, Vec<&Event>> = HashMap::new();
    for event in events {
        groups.entry(event.correlation).or_default().push(event);
    }
    groups
}

/// Lost, doubled, wrong, or never asked for.
pub(crate) fn effects(history: &History, events: &[Event]) -> Vec<Check> {
    let mut groups = by_trace(events);
    let mut lost = Check::new("no acknowledged command is lost");
    let mut once = Check::new("every command took effect at most once, as it was asked for");
    let mut told = Check::new("answers say what the log says");
    let mut refused = Check::new("what was refused has no effect");
    for intent in &history.intents {
        let group = groups.remove(&intent.trace).unwrap_or_default();
        let say = |why: &str| format!("{} {}: {why}", intent.ask.name(), intent.trace);
        match &intent.end {
            End::Accepted(accepted) => {
                lost.expect(!group.is_empty(), || {
                    say(&format!("acknowledged at {}, not in the log", accepted.position))
                });
                if !group.is_empty() {
                    let why = shape(intent, &group);
                    once.expect(why.is_none(), || say(&why.unwrap_or_default()));
                    let why = answer(intent, accepted, &group);
                    told.expect(why.is_none(), || say(&why.unwrap_or_default()));
                }
            }
            End::Refused { status, kind, .. } => {
                refused.expect(group.is_empty(), || say(&format!("refused with {status} {kind}, and done")));
            }
            End::Unknown { .. } => {
                let why = if group.is_empty() { None } else { shape(intent, &group) };
                once.expect(why.is_none(), || say(&why.unwrap_or_default()));
            }
        }
    }
    let mut asked = Check::new("nothing is in the log that nobody asked for");
    let strange = groups.values().map(|group| format!("{} at {}", group[0].kind, group[0].position));
    asked.expect_none(events.len() as u64, strange);
    vec![lost, once, told, refused, asked]
}

/// Why a command's events are not those of one effect of what was asked.
fn shape(intent: &Intent, group: &[&Event]) -> Option<String> {
    let kinds: Vec<&str> = group.iter().map(|event| event.kind.as_str()).collect();
    let payloads: Vec<Value> =
        group.iter().map(|event| serde_json::from_str(&event.payload).unwrap_or_default()).collect();
    if !group.windows(2).all(|pair| pair[1].position == pair[0].position + 1) {
        return Some(format!(
            "its events are apart: {:?}",
            group.iter().map(|event| event.position).collect::<Vec<_>>()
        ));
    }
    let label = intent.actor.label();
    if let Some(other) = group.iter().find(|event| event.actor != label) {
        return Some(format!("done by {}, asked for by {label}", other.actor));
    }
    let count = |kind: &str| kinds.iter().filter(|known| **known == kind).count();
    let only = |kind: &str| (kinds != [kind]).then(|| format!("{kind} is expected, there is {kinds:?}"));
    let first = payloads.first()?;
    match &intent.ask {
        Ask::Create { sku, price, .. } => {
            let made = (count("ProductCreated"), count("SkuClaimed"), kinds.len()) == (1, 1, 2);
            let created = payloads.iter().find(|payload| payload["price"].is_object());
            let right = created.is_some_and(|it| it["sku"] == **sku && it["price"]["amount"] == *price);
            (!made || !right).then(|| format!("one product {sku} at {price} is expected, there is {kinds:?}"))
        }
        Ask::Publish { product } => only("ProductPublished").or_else(|| at_stream(group, *product)),
        Ask::Price { product, price } => {
            only("PriceChanged").or_else(|| at_stream(group, *product)).or_else(|| {
                (first["price"]["amount"] != *price).then(|| format!("{price} is expected: {first}"))
            })
        }
        Ask::Receive { product, quantity } => only("StockReceived").or_else(|| {
            let right = first["product_id"] == product.to_string() && first["quantity"] == *quantity;
            (!right).then(|| format!("{quantity} of {product} are expected: {first}"))
        }),
        Ask::Place { lines } => placed(intent, lines, &kinds, &payloads),
        Ask::Cancel { order } => moved(*order, "OrderCancelled", "StockReleased", group, &kinds, &payloads),
        Ask::Ship { order } => moved(*order, "OrderShipped", "StockShipped", group, &kinds, &payloads),
        Ask::Deliver { order } => only("OrderDelivered").or_else(|| at_stream(group, *order)),
    }
}

fn at_stream(group: &[&Event], stream: Uuid) -> Option<String> {
    let other = group.first().filter(|event| event.stream != stream)?;
    Some(format!("stream {stream} is expected, it is {}", other.stream))
}

fn placed(intent: &Intent, lines: &[(Uuid, i64)], kinds: &[&str], payloads: &[Value]) -> Option<String> {
    let orders: Vec<&Value> = payloads.iter().filter(|payload| payload["lines"].is_array()).collect();
    let [order] = orders[..] else { return Some(format!("one order is expected, there is {kinds:?}")) };
    let pairs = |lines: &[Value]| {
        let mut pairs: Vec<(String, i64)> = lines
            .iter()
            .map(|line| {
                (line["product_id"].as_str().unwrap_or("").to_owned(), line["quantity"].as_i64().unwrap_or(0))
            })
            .collect();
        pairs.sort();
        pairs
    };
    let mut wanted: Vec<(String, i64)> =
        lines.iter().map(|(product, quantity)| (product.to_string(), *quantity)).collect();
    wanted.sort();
    let reserved: Vec<Value> =
        payloads.iter().filter(|payload| payload["order_id"].is_string()).cloned().collect();
    let right = order["customer_id"] == intent.actor.subject.to_string()
        && pairs(order["lines"].as_array().map_or(&[], Vec::as_slice)) == wanted
        && pairs(&reserved) == wanted
        && kinds.iter().filter(|kind| **kind == "StockReserved").count() == lines.len()
        && kinds.len() == lines.len() + 1;
    (!right).then(|| format!("{wanted:?} are expected, ordered {order}, reserved {reserved:?}"))
}

fn moved(
    order: Uuid,
    kind: &str,
    stock: &str,
    group: &[&Event],
    kinds: &[&str],
    payloads: &[Value],
) -> Option<String> {
    let of_order = group.iter().filter(|event| event.kind == kind && event.stream == order).count();
    let of_stock = kinds.iter().filter(|known| **known == stock).count();
    let mut products: Vec<&str> =
        payloads.iter().filter_map(|payload| payload["product_id"].as_str()).collect();
    products.sort_unstable();
    products.dedup();
    let right = of_order == 1 && of_stock >= 1 && of_stock == products.len() && kinds.len() == 1 + of_stock;
    (!right).then(|| format!("one {kind} with a {stock} a line is expected, there is {kinds:?}"))
}

/// Why an answer is not what the log says.
fn answer(intent: &Intent, accepted: &Accepted, group: &[&Event]) -> Option<String> {
    let last = group.iter().map(|event| event.position).max()?;
    if last != accepted.position {
        return Some(format!("position {} was answered, the log has {last}", accepted.position));
    }
    // The stream that the version is of: the stock's for what came in, else the product's or the order's.
    let of = match &intent.ask {
        Ask::Receive { .. } => group.first()?,
        _ => group.iter().find(|event| event.stream == accepted.id)?,
    };
    let (version, status) = (of.version, accepted.status.as_str());
    let expected = match &intent.ask {
        Ask::Create { .. } => "draft",
        Ask::Publish { .. } | Ask::Price { .. } | Ask::Receive { .. } => "published",
        Ask::Place { .. } => "placed",
        Ask::Cancel { .. } => "cancelled",
        Ask::Ship { .. } => "shipped",
        Ask::Deliver { .. } => "delivered",
    };
    let drafts = matches!(intent.ask, Ask::Receive { .. } | Ask::Price { .. }) && status == "draft";
    (version != accepted.version || (status != expected && !drafts)).then(|| {
        let answered = accepted.version;
        format!(
            "{status} with version {answered} was answered, {expected} with version {version} is in the log"
        )
    })
}

/// Whoever asked after an answer was there stands behind it in the log.
pub(crate) fn real_time(history: &History) -> Check {
    let mut check = Check::new("who asked after an answer stands behind it in the log");
    let mut begun: Vec<(Duration, i64, Uuid)> =
        history.accepted().map(|(intent, accepted)| (intent.sent, accepted.position, intent.trace)).collect();
    let mut ended: Vec<(Duration, i64)> =
        history.accepted().map(|(intent, accepted)| (intent.done, accepted.position)).collect();
    begun.sort_unstable();
    ended.sort_unstable();
    let mut ended = ended.into_iter().peekable();
    let mut newest = 0;
    for (sent, position, trace) in begun {
        while let Some((_, before)) = ended.next_if(|(done, _)| *done < sent) {
            newest = newest.max(before);
        }
        check.expect(position > newest, || {
            format!("{trace} is at {position}, and was sent after {newest} was answered")
        });
    }
    check
}

/// A refusal had its reason: there was a moment between question and answer at which a line could not be served.
pub(crate) fn refusals(history: &History, fold: &Fold, head: i64) -> Check {
    let mut check = Check::new("what was refused had to be refused");
    let mut answers: Vec<(Duration, i64)> =
        history.accepted().map(|(intent, accepted)| (intent.done, accepted.position)).collect();
    answers.sort_unstable();
    // The newest position that was answered up to each moment.
    let mut newest = 0;
    for (_, position) in &mut answers {
        newest = newest.max(*position);
        *position = newest;
    }
    let mut asked: Vec<(Duration, i64)> =
        history.accepted().map(|(intent, accepted)| (intent.sent, accepted.position)).collect();
    asked.sort_unstable();
    // The oldest position of those that were asked for from each moment on.
    let mut oldest = head;
    for (_, position) in asked.iter_mut().rev() {
        oldest = oldest.min(*position);
        *position = oldest;
    }
    for intent in &history.intents {
        let End::Refused { status, kind, detail } = &intent.end else { continue };
        let from = answers
            .partition_point(|(done, _)| *done < intent.sent)
            .checked_sub(1)
            .map_or(0, |at| answers[at].1);
        let to = asked.get(asked.partition_point(|(sent, _)| *sent <= intent.done)).map_or(head, |at| at.1);
        let due = match &intent.ask {
            Ask::Place { lines } if kind == "/problems/out-of-stock" => {
                lines.iter().any(|(product, quantity)| {
                    let states = fold.stocks.get(product).map_or(&[][..], Vec::as_slice);
                    let before = fold::at(states, from, |stock| stock.position);
                    let between = states.iter().filter(|stock| (from..=to).contains(&stock.position));
                    before.is_none()
                        || before.into_iter().chain(between).any(|stock| stock.available() < *quantity)
                })
            }
            _ => false,
        };
        check.expect(due, || {
            format!("{} {} was refused with {status} {kind}: {detail}", intent.ask.name(), intent.trace)
        });
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Actor;
    use crate::log::event;
    use serde_json::json;

    fn received(position: i64, version: i64, trace: u128) -> Event {
        let payload = json!({ "product_id": Uuid::from_u128(7), "quantity": 2 });
        Event {
            correlation: Uuid::from_u128(trace),
            ..event(position, 70, version, "StockReceived", payload)
        }
    }

    fn intent(trace: u128, at: u64, position: i64) -> Intent {
        let accepted = Accepted {
            id: Uuid::from_u128(7),
            status: "published".to_owned(),
            version: position,
            epoch: 1,
            position,
        };
        Intent {
            trace: Uuid::from_u128(trace),
            actor: Actor::staff(Uuid::from_u128(1)),
            ask: Ask::Receive { product: Uuid::from_u128(7), quantity: 2 },
            sent: Duration::from_millis(at),
            done: Duration::from_millis(at + 5),
            attempts: 1,
            end: End::Accepted(accepted),
        }
    }

    fn failed(intents: Vec<Intent>, events: &[Event]) -> Vec<&'static str> {
        let history = History { intents, ..History::default() };
        // A check that had nothing to look at is not at fault here.
        effects(&history, events)
            .iter()
            .filter(|check| check.mismatched > 0)
            .map(|check| check.name)
            .collect()
    }

    #[test]
    fn what_is_lost_doubled_or_strange_is_seen() {
        let (one, two) = (received(1, 1, 100), received(2, 2, 200));
        assert!(failed(vec![intent(100, 0, 1), intent(200, 10, 2)], &[one.clone(), two.clone()]).is_empty());
        assert_eq!(
            failed(vec![intent(100, 0, 1), intent(200, 10, 2)], std::slice::from_ref(&one)),
            ["no acknowledged command is lost"]
        );
        let again = received(2, 2, 100);
        let doubled = failed(vec![intent(100, 0, 1)], &[one.clone(), again]);
        assert!(doubled.contains(&"every command took effect at most once, as it was asked for"));
        assert_eq!(
            failed(vec![intent(100, 0, 1)], &[one.clone(), two]),
            ["nothing is in the log that nobody asked for"]
        );
        let refused = End::Refused { status: 409, kind: String::new(), detail: String::new() };
        assert_eq!(
            failed(vec![Intent { end: refused, ..intent(100, 0, 1) }], std::slice::from_ref(&one)),
            ["what was refused has no effect"]
        );
        let unknown = End::Unknown { last: String::new() };
        assert!(failed(vec![Intent { end: unknown.clone(), ..intent(100, 0, 1) }], &[one]).is_empty());
        assert!(failed(vec![Intent { end: unknown, ..intent(100, 0, 1) }], &[]).is_empty());
    }

    #[test]
    fn an_order_that_contradicts_time_is_seen() {
        let history = |intents| History { intents, ..History::default() };
        assert!(real_time(&history(vec![intent(1, 0, 1), intent(2, 10, 2)])).holds());
        assert!(real_time(&history(vec![intent(1, 0, 2), intent(2, 3, 1)])).holds(), "at the same time");
        assert!(!real_time(&history(vec![intent(1, 0, 2), intent(2, 10, 1)])).holds());
    }

    #[test]
    fn a_refusal_without_reason_is_seen() {
        let fold = Fold::of(&[received(1, 1, 100)]);
        let place = |quantity| Intent {
            ask: Ask::Place { lines: vec![(Uuid::from_u128(7), quantity)] },
            end: End::Refused {
                status: 409,
                kind: "/problems/out-of-stock".to_owned(),
                detail: String::new(),
            },
            ..intent(2, 10, 0)
        };
        let check = |quantity| {
            refusals(
                &History { intents: vec![intent(100, 0, 1), place(quantity)], ..History::default() },
                &fold,
                1,
            )
        };
        assert!(check(3).holds());
        assert!(!check(2).holds());
    }
}
