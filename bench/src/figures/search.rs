//! Search with filters at a fixed rate, every request another one, with words of real names.

use std::time::Duration;

use serde::Deserialize;

use super::Stage;
use crate::catalog::NewProduct;
use crate::client::Call;
use crate::error::BenchError;
use crate::load;
use crate::random::Random;
use crate::report::{Bound, Row};
use crate::stats::Latencies;

/// Searches a second.
const RATE: u64 = 500;

/// Connections that carry them; the latency counts from the intended time, also when all are busy.
const CONNECTIONS: usize = 64;

/// Orders of the found: half by relevance.
const SORTS: [&str; 6] = ["", "", "", "&sort=price", "&sort=-price", "&sort=newest"];

/// The least letters of a word to search for.
const WORD: usize = 3;

#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    name: String,
    description: Option<String>,
    price: ItemPrice,
}

#[derive(Debug, Deserialize)]
struct ItemPrice {
    amount: i64,
}

/// One search, and what must hold of every product it finds.
struct Search {
    path: String,
    words: Vec<String>,
    least: i64,
    most: i64,
}

/// The figure of searching.
pub(super) async fn search(stage: &Stage<'_>) -> Result<Vec<Row>, BenchError> {
    eprintln!("search");
    let total = (RATE * stage.settings.seconds) as usize;
    let (mut random, mut p99s, mut notes) = (Random::new(3), Vec::new(), Vec::new());
    for round in 0..stage.settings.rounds as usize {
        let searches: Vec<Search> =
            (0..total).map(|number| search_for(stage, round * total + number, &mut random)).collect();
        let job = async |connection: &mut crate::client::Connection, number: usize| {
            let search = &searches[number];
            let answer = connection.send(&Call::get(search.path.as_str())).await?;
            // Whether it is right is looked at afterwards, apart from the time that counts.
            Ok((number, answer.body))
        };
        let done = load::open(stage.shop.address, CONNECTIONS, RATE as f64, total, job).await?;
        let mut found = 0;
        for (_, (number, body)) in &done {
            let page: Page = serde_json::from_slice(body).map_err(BenchError::json("a page of products"))?;
            check(&searches[*number], &page)?;
            found += page.items.len();
        }
        let latencies = Latencies::new(done.iter().map(|(latency, _): &(Duration, _)| *latency).collect());
        p99s.push(latencies.percentile(99.0));
        notes.push(format!("{}; {:.1} products a page", latencies.describe(), found as f64 / total as f64));
    }
    let what = format!(
        "search with filters over {} products, cold keys, {RATE}/s, p99 from the intended time",
        stage.seeded.products.len()
    );
    let mut row = Row::new("search", what, "ms", p99s).bound(Bound::Below(20.0));
    row.notes = notes;
    Ok(vec![row])
}

/// A search that finds at least the product it was made from, with a range of prices that no other search has.
fn search_for(stage: &Stage<'_>, number: usize, random: &mut Random) -> Search {
    loop {
        let (_, product) = random.of(&stage.seeded.products);
        let words = words(product);
        if words.is_empty() {
            continue;
        }
        let first = random.below(words.len());
        let chosen = &words[first..(first + 1 + random.below(2)).min(words.len())];
        let least = product.price.amount.saturating_sub(random.below(200) as i64).max(0);
        // The number makes it unique.
        let most = product.price.amount + number as i64;
        let mut path = format!(
            "/v1/products?q={}&min_price={least}&max_price={most}&limit=20",
            encode(&chosen.join(" "))
        );
        if let (Some(department), 0) = (&product.department, random.below(2)) {
            path += &format!("&department={}", encode(department));
        }
        path += SORTS[random.below(SORTS.len())];
        return Search { path, words: chosen.iter().map(|word| word.to_lowercase()).collect(), least, most };
    }
}

/// Words of a name that are plain: every notion of a word agrees on them.
fn words(product: &NewProduct) -> Vec<&str> {
    let plain = |word: &&str| word.len() >= WORD && word.bytes().all(|byte| byte.is_ascii_alphabetic());
    product.name.split_whitespace().map(|word| word.trim_matches(',')).filter(plain).collect()
}

fn check(search: &Search, page: &Page) -> Result<(), BenchError> {
    let wrong = |why: String| Err(BenchError::Wrong(format!("{}: {why}", search.path)));
    if page.items.is_empty() {
        return wrong("nothing was found".to_owned());
    }
    for item in &page.items {
        let text = format!("{} {}", item.name, item.description.as_deref().unwrap_or("")).to_lowercase();
        if let Some(word) = search.words.iter().find(|word| !text.contains(*word)) {
            return wrong(format!("{:?} was found, without {word:?}", item.name));
        }
        if !(search.least..=search.most).contains(&item.price.amount) {
            return wrong(format!("{:?} was found, at {}", item.name, item.price.amount));
        }
    }
    Ok(())
}

/// Percent-encoding of everything but letters and digits.
fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encode("ELECT &PLUMBING"), "ELECT%20%26PLUMBING");
    }
}
