//! The Prometheus registry: installed once, kept small between scrapes, rendered for `GET /metrics`.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// How often what histograms gather between scrapes is folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Seconds, from tens of microseconds to ten seconds.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Commands or events at once.
const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0];

/// Installs the registry for this process and keeps it small until `stop`.
///
/// # Errors
/// When a registry is installed already.
pub fn install(stop: CancellationToken) -> Result<PrometheusHandle, BuildError> {
    use metrics_exporter_prometheus::Matcher;

    let handle = PrometheusBuilder::new()
        .set_buckets(SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_commands".to_owned()), COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_events".to_owned()), COUNTS)?
        .install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        while tokio::time::timeout(UPKEEP, stop.cancelled()).await.is_err() {
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}
