//! The products that the shop is filled with: real names, as many as the data set has.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::random::Random;

/// Products of the data set, and of every shop that figures are measured on.
pub(crate) const PRODUCTS: usize = 68_492;

/// Names for when the data set is not at hand; see the README beside it.
const SAMPLE: &str = include_str!("../sample/products.csv");

/// The currency of the data set's prices.
const CURRENCY: &str = "USD";

/// A product to be, as `POST /v1/products` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NewProduct {
    /// Unique.
    pub(crate) sku: String,
    /// Type, category and size.
    pub(crate) name: String,
    /// Brand.
    pub(crate) description: String,
    /// As in the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) department: Option<String>,
    /// What one costs.
    pub(crate) price: Price,
}

/// Minor units of a currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Price {
    /// Minor units.
    pub(crate) amount: i64,
    /// ISO 4217.
    pub(crate) currency: &'static str,
}

#[derive(Debug, Clone, Deserialize)]
struct Line {
    product_id: String,
    department: String,
    brand: String,
    product_category: String,
    product_type: String,
    package_size: String,
    unit_price_cents: i64,
}

impl Line {
    fn product(&self, sku: String) -> NewProduct {
        let parts = [&self.product_type, &self.product_category, &self.package_size];
        let mut name = parts.map(|part| part.trim()).into_iter().filter(|part| !part.is_empty()).fold(
            String::new(),
            |name, part| {
                if name.is_empty() { part.to_owned() } else { format!("{name}, {part}") }
            },
        );
        if name.is_empty() {
            name = format!("Product {}", self.product_id);
        }
        let department = self.department.trim();
        NewProduct {
            sku,
            name,
            description: format!("{} brand", self.brand.trim()),
            department: (!department.is_empty()).then(|| department.to_owned()),
            price: Price { amount: self.unit_price_cents, currency: CURRENCY },
        }
    }
}

/// The catalog: the data set's own if its folder is given, else made from the sample by giving each of its names
/// the sizes and about the prices of others.
pub(crate) fn products(data: Option<&Path>) -> Result<Vec<NewProduct>, BenchError> {
    match data {
        Some(folder) => {
            let path = folder.join("products.csv.gz");
            let file = File::open(&path).map_err(BenchError::io(format!("opening {}", path.display())))?;
            let lines = read(GzDecoder::new(file))?;
            Ok(lines.iter().map(|line| line.product(sku_of(&line.product_id))).collect())
        }
        None => {
            let sample = read(SAMPLE.as_bytes())?;
            let mut random = Random::new(1);
            let product = |number: usize| {
                let mut line = sample[number % sample.len()].clone();
                if number >= sample.len() {
                    line.package_size.clone_from(&random.of(&sample).package_size);
                    line.unit_price_cents += random.below(200) as i64;
                }
                line.product(format!("CJ-{number}"))
            };
            Ok((0..PRODUCTS).map(product).collect())
        }
    }
}

/// The SKU of a product of the data set.
pub(crate) fn sku_of(product_id: &str) -> String {
    format!("CJ-{product_id}")
}

fn read(table: impl Read) -> Result<Vec<Line>, BenchError> {
    csv::Reader::from_reader(table).deserialize().collect::<Result<_, _>>().map_err(BenchError::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_fills_a_whole_shop() {
        let products = products(None).unwrap();
        assert_eq!(products.len(), PRODUCTS);
        let skus: std::collections::HashSet<_> = products.iter().map(|product| &product.sku).collect();
        assert_eq!(skus.len(), PRODUCTS);
        let names: std::collections::HashSet<_> = products.iter().map(|product| &product.name).collect();
        assert!(names.len() > 10_000, "{}", names.len());
        for product in &products {
            assert!((1..=200).contains(&product.name.len()) && product.price.amount >= 0, "{product:?}");
        }
    }
}
