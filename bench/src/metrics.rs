//! Histograms in Prometheus' text format, as the shop's `/metrics` tells them.

use std::collections::BTreeMap;

/// A histogram for each value of the label `name`: upper bounds with the number of observations up to them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Histograms {
    buckets: BTreeMap<String, Vec<(f64, u64)>>,
}

impl Histograms {
    /// The histograms of `metric` in a page of metrics. Those of several instances are added up.
    pub(crate) fn read(page: &str, metric: &str) -> Self {
        let mut histograms = Self::default();
        for line in page.lines() {
            let bucket = line.strip_prefix(metric).and_then(|rest| rest.strip_prefix("_bucket{"));
            let Some((labels, value)) = bucket.and_then(|rest| rest.rsplit_once("} ")) else { continue };
            let (Some(name), Some(bound)) = (label(labels, "name"), label(labels, "le")) else { continue };
            let (Ok(bound), Ok(count)) = (bound.replace("+Inf", "inf").parse::<f64>(), value.parse::<u64>())
            else {
                continue;
            };
            let buckets = histograms.buckets.entry(name.to_owned()).or_default();
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        for buckets in histograms.buckets.values_mut() {
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        }
        histograms
    }

    /// For each name, the upper bound of the bucket that holds the `quantile` of what was observed since `before`.
    pub(crate) fn quantile_since(&self, before: &Self, quantile: f64) -> Vec<(&str, f64)> {
        let since = |name: &str, bound: f64, count: u64| {
            let known =
                before.buckets.get(name).and_then(|buckets| buckets.iter().find(|(at, _)| *at == bound));
            count - known.map_or(0, |(_, count)| *count).min(count)
        };
        let of_name = |(name, buckets): (&'_ String, &'_ Vec<(f64, u64)>)| {
            let counts: Vec<(f64, u64)> =
                buckets.iter().map(|(bound, count)| (*bound, since(name, *bound, *count))).collect();
            let wanted = counts.last()?.1 as f64 * quantile;
            let found = counts.iter().find(|(_, count)| *count > 0 && *count as f64 >= wanted)?;
            Some(found.0)
        };
        self.buckets.iter().filter_map(|entry| Some((entry.0.as_str(), of_name(entry)?))).collect()
    }
}

/// The value of a label; values with quotes inside do not occur in what is looked for.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut parts = labels.split("\",").map(|part| part.trim_end_matches('"'));
    parts.find_map(|part| part.strip_prefix(name)?.strip_prefix("=\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(counts: [u64; 3]) -> String {
        let [a, b, c] = counts;
        format!(
            "# TYPE lag histogram\nlag_bucket{{name=\"orders\",instance=\"1\",le=\"0.05\"}} {a}\n\
             lag_bucket{{name=\"orders\",instance=\"1\",le=\"0.1\"}} {b}\n\
             lag_bucket{{name=\"orders\",instance=\"1\",le=\"+Inf\"}} {c}\nlag_sum{{name=\"orders\"}} 1.5\n"
        )
    }

    #[test]
    fn quantiles_are_of_what_was_observed_between_two_pages() {
        let before = Histograms::read(&page([0, 1_000, 1_000]), "lag");
        let after = Histograms::read(&page([99, 1_099, 1_100]), "lag");
        assert_eq!(after.quantile_since(&before, 0.99), [("orders", 0.05)]);
        assert_eq!(after.quantile_since(&before, 1.0), [("orders", f64::INFINITY)]);
        assert_eq!(after.quantile_since(&after, 0.99), []);
    }
}
