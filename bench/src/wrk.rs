//! Closed-loop throughput with `wrk`: as many requests as 64 connections can have answered.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use uuid::Uuid;

use crate::error::BenchError;
use crate::process;

/// Connections of every throughput figure.
pub(crate) const CONNECTIONS: usize = 64;

/// Threads of wrk: one for each core of the machine that the figures are stated for.
const THREADS: usize = 2;

const GET: &str = include_str!("../wrk/get.lua");
const ORDERS: &str = include_str!("../wrk/orders.lua");
const DONE: &str = include_str!("../wrk/done.lua");

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    /// GET the paths of a file in turn.
    Get,
    /// POST the orders of a file in turn.
    Orders,
}

/// The result of one run.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Run {
    /// Answers.
    pub(crate) requests: u64,
    micros: u64,
    p50: u64,
    p99: u64,
    max: u64,
    status: u64,
    socket: u64,
}

impl Run {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / (self.micros as f64 / 1e6)
    }

    /// The latency that 99 of 100 did not exceed, in milliseconds.
    pub(crate) fn p99(&self) -> f64 {
        self.p99 as f64 / 1e3
    }

    /// Latencies as a text.
    pub(crate) fn describe(&self) -> String {
        let millis = |micros: u64| micros as f64 / 1e3;
        format!(
            "p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
            millis(self.p50),
            self.p99(),
            millis(self.max)
        )
    }
}

/// wrk with its scripts.
#[derive(Debug, Clone)]
pub(crate) struct Wrk {
    folder: PathBuf,
}

impl Wrk {
    /// Writes the scripts into `folder`.
    pub(crate) fn new(folder: &Path) -> Result<Self, BenchError> {
        for (script, text) in [(Script::Get, GET), (Script::Orders, ORDERS)] {
            let path = script_path(folder, script);
            fs::write(&path, format!("{text}\n{DONE}"))
                .map_err(BenchError::io(format!("writing {}", path.display())))?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Runs a script for so many seconds. Any answer that is no success, and any broken connection, is an error:
    /// refusals are quick, so a rate with refusals in it says nothing.
    pub(crate) async fn run(
        &self,
        script: Script,
        address: SocketAddr,
        lines: &Path,
        token: Option<&str>,
        seconds: u64,
    ) -> Result<Run, BenchError> {
        let mut command = Command::new("wrk");
        command
            .arg(format!("-c{CONNECTIONS}"))
            .arg(format!("-t{THREADS}"))
            .arg(format!("-d{seconds}s"))
            .args(["--timeout", "10s", "--latency", "-s"])
            .arg(script_path(&self.folder, script))
            .arg(format!("http://{address}"))
            .env("TIDEMARK_BENCH_FILE", lines)
            .env("TIDEMARK_BENCH_RUN", format!("{:08x}", Uuid::now_v7().as_u128() as u32));
        if let Some(token) = token {
            command.env("TIDEMARK_BENCH_TOKEN", token);
        }
        let printed = process::output(command).await?;
        let result = printed.lines().find_map(|line| line.strip_prefix("RESULT "));
        let result = result.ok_or_else(|| BenchError::Wrong(format!("wrk told no result:\n{printed}")))?;
        let run: Run = serde_json::from_str(result).map_err(BenchError::json("wrk's result"))?;
        if run.status > 0 || run.socket > 0 || run.requests == 0 {
            return Err(BenchError::Wrong(format!(
                "of {} requests, {} were answered with an error status and {} broke off or timed out",
                run.requests, run.status, run.socket
            )));
        }
        Ok(run)
    }
}

fn script_path(folder: &Path, script: Script) -> PathBuf {
    folder.join(match script {
        Script::Get => "get.lua",
        Script::Orders => "orders.lua",
    })
}
