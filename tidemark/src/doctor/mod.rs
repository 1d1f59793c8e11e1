//! `tidemark doctor --deploy`: what of a configuration should not meet the open internet.
//!
//! It reads the same environment variables as the processes do, asks the PostgreSQL of the log and Redis how they are
//! set up, and changes nothing. [`checks`] is the list.

mod checks;
mod servers;

use std::collections::BTreeMap;
use std::path::Path;

use clap::CommandFactory;
use comfy_table::{ContentArrangement, Table};
use rustix::process::{Resource, getrlimit, getuid};
use url::Url;

use crate::config::Cli;
use crate::{Failure, tell};
use servers::{Postgres, Redis};

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deployment {
    /// Environment variables that are set.
    env: BTreeMap<String, String>,
    /// The variables that there are.
    known: Vec<String>,
    /// Whether this is root.
    is_root: bool,
    /// How many files a process may have open.
    open_files: Option<u64>,
    /// Whether the program is built for finding faults, not for work.
    is_debug_build: bool,
    /// Why strangers' clients would refuse the certificate, if they would.
    distrusted: Option<String>,
    /// The database of the log, or why it did not answer.
    postgres: Option<Result<Postgres, String>>,
    /// Redis, or why it did not answer.
    redis: Option<Result<Redis, String>>,
}

impl Deployment {
    fn get(&self, variable: &str) -> Option<&str> {
        self.env.get(variable).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether it is several processes: else `tidemark up`.
    fn is_cluster(&self) -> bool {
        self.get("TIDEMARK_LOG_URL").is_some()
    }
}

/// Something to be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    check: &'static checks::Check,
    told: String,
}

/// Prints what is to be mended. That there is something is a failure.
pub(crate) async fn run() -> Result<(), Failure> {
    let mut deployment = Deployment {
        // One that is no text is none of ours.
        env: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        known: variables(&Cli::command()),
        is_root: getuid().is_root(),
        open_files: getrlimit(Resource::Nofile).current,
        is_debug_build: cfg!(any(debug_assertions, feature = "planted")),
        ..Deployment::default()
    };
    readable(&deployment)?;
    deployment.distrusted = distrusted(&deployment);
    let log =
        deployment.get("TIDEMARK_LOG_URL").or_else(|| deployment.get("DATABASE_URL")).map(str::to_owned);
    if let Some(url) = log {
        deployment.postgres = Some(servers::ask_postgres(&url).await);
    }
    if let Some((_, url)) = checks::redis_named(&deployment).map(|(name, url)| (name, url.to_owned())) {
        deployment.redis = Some(servers::ask_redis(&url).await);
    }
    let findings = examine(&deployment);
    show(&findings)?;
    if findings.is_empty() { Ok(()) } else { Err(Failure::Findings(findings.len())) }
}

/// A configuration that a process would refuse is refused here in the same words.
fn readable(deployment: &Deployment) -> Result<(), Failure> {
    let processes: &[&str] = match (deployment.is_cluster(), deployment.get("TIDEMARK_VIEWS_URL")) {
        (false, _) => &["up"],
        (true, None) => &["command"],
        (true, Some(_)) => &["command", "projector", "query"],
    };
    processes.iter().try_for_each(|process| Cli::read_from(["tidemark", process]).map(drop))
}

fn distrusted(deployment: &Deployment) -> Option<String> {
    let certificate = Path::new(deployment.get("TIDEMARK_TLS_CERTIFICATE")?);
    let public = deployment.get("TIDEMARK_PUBLIC_URL").and_then(|url| Url::parse(url).ok());
    let host = public.as_ref().and_then(Url::host_str);
    tidemark_http::tls::distrust(certificate, host).unwrap_or_else(|error| Some(error.to_string()))
}

/// The environment variables of all settings.
fn variables(command: &clap::Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|setting| setting.get_env());
    let own = own.map(|name| name.to_string_lossy().into_owned());
    own.chain(command.get_subcommands().flat_map(variables)).collect()
}

fn examine(deployment: &Deployment) -> Vec<Finding> {
    let found = checks::ALL
        .iter()
        .flat_map(|check| (check.find)(deployment).into_iter().map(move |told| Finding { check, told }));
    found.collect()
}

fn show(findings: &[Finding]) -> Result<(), Failure> {
    if !findings.is_empty() {
        let mut table = Table::new();
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["id", "what", "finding", "what to do"]);
        for Finding { check, told } in findings {
            table.add_row([check.id, check.what, told, check.remedy]);
        }
        tell(&table.to_string())?;
    }
    tell(&format!("{} checks", checks::ALL.len()))
}
