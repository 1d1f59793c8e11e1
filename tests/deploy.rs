//! The cluster in containers is the cluster of `make cluster`: Dockerfile and docker-compose.yml against scripts/cluster,
//! the files in deploy/ and what the program says of its settings. Nothing here needs Docker.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};

type Names = BTreeSet<String>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn file(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn compose() -> Value {
    serde_yaml_ng::from_str(&file("docker-compose.yml")).unwrap()
}

fn services(compose: &Value) -> &Map<String, Value> {
    compose["services"].as_object().unwrap()
}

/// A list of texts, or nothing.
fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
}

/// A service's command with its entrypoint, as one text.
fn command(service: &Value) -> String {
    [texts(&service["entrypoint"]), texts(&service["command"])].concat().join(" ")
}

/// The part of a service's name before its number.
fn kind(name: &str) -> &str {
    name.rsplit_once('-').filter(|(_, number)| number.parse::<u8>().is_ok()).map_or(name, |(kind, _)| kind)
}

/// Everything that stands between two marks.
fn between<'a>(text: &'a str, begin: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| rest.split_once(end).map(|(found, _)| found))
}

/// A shell function of scripts/cluster.
fn function(name: &str) -> String {
    let script = file("scripts/cluster");
    let begin = format!("\n{name}() {{");
    between(&script, &begin, "\n}").next().unwrap_or_else(|| panic!("no function {name}")).to_owned()
}

/// Names in the form of environment variables that a separator follows.
fn variables(text: &str, separator: char) -> Names {
    text.split(separator)
        .filter_map(|before| before.rsplit([' ', '\n', '[']).next())
        .filter(|name| name.starts_with("TIDEMARK_"))
        .map(str::to_owned)
        .collect()
}

/// The variables that a subcommand knows.
fn known(subcommand: &str) -> Names {
    let output = Command::new(env!("CARGO_BIN_EXE_tidemark")).args([subcommand, "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    between(&help, "[env: ", "]").map(|env| env.split('=').next().unwrap().to_owned()).collect()
}

/// The names that a template leaves open, and those that a text fills in with sed.
fn open_names(template: &str) -> Names {
    let is_name = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let lines = template.lines().filter(|line| !line.starts_with(['#', ';']));
    lines.flat_map(|line| line.split('@')).filter(is_name).map(str::to_owned).collect()
}

fn filled_names(text: &str) -> Names {
    between(text, "s|@", "@|").map(str::to_owned).collect()
}

/// Fills a template in as a service's command does.
fn filled(template: &str, command: &str) -> String {
    between(command, "\"s|@", "\"").fold(template.to_owned(), |text, step| {
        let (name, value) = step.split_once("@|").unwrap();
        text.replace(&format!("@{name}@"), value.trim_end_matches('g').trim_end_matches('|'))
    })
}

/// An image or a stage of the Dockerfile, with the instructions in it.
fn stages() -> BTreeMap<String, (String, Vec<(String, String)>)> {
    let text = file("Dockerfile").replace("\\\n", " ");
    let mut stages = BTreeMap::<String, (String, Vec<(String, String)>)>::new();
    let mut current = String::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (instruction, rest) = line.split_once(' ').unwrap();
        if instruction == "FROM" {
            let (image, name) = rest.split_once(" AS ").unwrap();
            name.clone_into(&mut current);
            stages.insert(current.clone(), (image.to_owned(), Vec::new()));
        } else {
            stages.get_mut(&current).unwrap().1.push((instruction.to_owned(), rest.trim().to_owned()));
        }
    }
    stages
}

fn instruction<'a>(stage: &'a (String, Vec<(String, String)>), name: &str) -> Option<&'a str> {
    stage.1.iter().rfind(|(found, _)| found == name).map(|(_, rest)| rest.as_str())
}

/// The version in an image's name; one that says a version is pinned.
fn version(image: &str) -> &str {
    let (_, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{image} has no version"));
    assert!(
        tag.starts_with(|first: char| first.is_ascii_digit()) && tag.contains('.'),
        "{image} is not pinned"
    );
    tag
}

fn of_workspace(key: &str) -> String {
    let text = file("Cargo.toml");
    between(&text, &format!("\n{key} = \""), "\"").next().unwrap().to_owned()
}

#[test]
fn the_members_are_those_of_the_local_cluster() {
    let output = Command::new(root().join("scripts/cluster")).arg("members").output().unwrap();
    assert!(output.status.success());
    let members: Names = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let compose = compose();
    assert_eq!(services(&compose).keys().cloned().collect::<Names>(), members);
    for (name, service) in services(&compose) {
        let waited_for = service["depends_on"].as_object().into_iter().flat_map(Map::keys);
        assert!(waited_for.clone().all(|other| members.contains(other)), "{name} waits for a member");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
    }
    // The query service refuses schemas that nobody has brought up to date.
    for name in ["command-1", "projector-1"] {
        assert_eq!(compose["services"]["query-1"]["depends_on"][name]["condition"], "service_healthy");
    }
}

#[test]
fn images_are_pinned_and_hold_what_is_used_here() {
    let stages = stages();
    assert!(stages.len() > 2, "what builds is not in what runs");
    for (image, _) in stages.values() {
        version(image);
    }
    let rust = version(&stages["build"].0);
    assert!(rust.starts_with(&format!("{}-", of_workspace("rust-version"))), "{rust}");
    let system = |name: &str| stages[name].0.split(':').nth(1).unwrap().split('.').next().unwrap().to_owned();
    assert!(rust.ends_with("bookworm") && system("tidemark") == "12", "the libraries are those of the build");
    let compose = compose();
    for (name, service) in services(&compose) {
        let (image, build) = (service["image"].as_str().unwrap(), &service["build"]);
        let tag = version(image);
        if !build.is_null() {
            assert_eq!(tag, of_workspace("version"), "{name}");
            let target = build["target"].as_str().unwrap();
            assert!(stages.contains_key(target) && build["context"] == ".", "{name}");
        }
    }
    let kafka = file("scripts/kafka-jars");
    let kafka = between(&kafka, "version=", "\n").next().unwrap();
    assert_eq!(version(compose["services"]["kafka"]["image"].as_str().unwrap()), kafka);
}

#[test]
fn nobody_is_root_and_everybody_has_a_health_check() {
    let stages = stages();
    for name in ["tidemark", "pgbouncer"] {
        let user = instruction(&stages[name], "USER").unwrap();
        assert!(user != "root" && user != "0", "{name} runs as {user}");
        assert!(instruction(&stages[name], "HEALTHCHECK").unwrap().contains(" CMD ["), "{name}");
    }
    let asked = instruction(&stages["tidemark"], "HEALTHCHECK").unwrap();
    assert!(asked.contains("GET /readyz") && asked.contains("/dev/tcp/127.0.0.1/8080"), "{asked}");
    for (name, service) in services(&compose()) {
        match service["build"]["target"].as_str() {
            Some(_) => assert!(service["user"].is_null(), "{name} runs as its image says"),
            None => {
                let check = texts(&service["healthcheck"]["test"]);
                assert!(check.first() == Some(&"CMD") && check.len() > 1, "{name}: {check:?}");
                assert!(service["healthcheck"]["timeout"].is_string(), "{name}");
                // These images never run as root, or give it up once they own their directories.
                let by_itself = ["postgres-log", "postgres-views", "kafka"].contains(&name.as_str());
                assert!(by_itself || service["user"].as_str().is_some_and(|user| user != "root"), "{name}");
            }
        }
    }
}

#[test]
fn the_services_are_told_what_those_of_the_local_cluster_are_told() {
    let told = variables(&function("service"), '=');
    assert!(told.len() > 7, "{told:?}");
    let compose = compose();
    for (name, service) in services(&compose) {
        let environment = service["environment"].as_object();
        let names: Names = environment.into_iter().flat_map(Map::keys).cloned().collect();
        let subcommand = kind(name);
        if !["command", "projector", "query"].contains(&subcommand) {
            assert!(names.iter().all(|name| !name.starts_with("TIDEMARK_")), "{name}");
            continue;
        }
        assert_eq!(texts(&service["command"]), [subcommand]);
        let known = known(subcommand);
        assert_eq!(names.difference(&known).collect::<Vec<_>>(), [] as [&String; 0], "{name} knows no such");
        // Where there is a secret, no key is read from the data directory.
        let expected: Names =
            told.intersection(&known).filter(|name| *name != "TIDEMARK_DATA_DIR").cloned().collect();
        assert_eq!(names, expected, "{name}");
        for (variable, value) in environment.unwrap() {
            let value = value.as_str().unwrap();
            match variable.as_str() {
                "TIDEMARK_LISTEN" => assert!(value.ends_with(&format!(":{}", texts(&service["expose"])[0]))),
                secret @ ("TIDEMARK_TOKEN_SECRET" | "TIDEMARK_MASTER_KEY") => {
                    assert!(value.starts_with(&format!("${{{secret}:?")), "{value}");
                }
                "TIDEMARK_MAIL_DIR" => assert!(value.starts_with("/tmp/"), "{value}"),
                "TIDEMARK_PUBLIC_URL" => {
                    let port = value.rsplit(':').next().unwrap();
                    let published = texts(&compose["services"]["nginx"]["ports"]);
                    assert!(
                        published.iter().any(|mapping| mapping.contains(&format!(":{port}:"))),
                        "{value}"
                    );
                }
                "TIDEMARK_TRUSTED_PROXIES" => {
                    let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
                    assert!(value.split(',').all(|network| private.contains(&network)), "{value}");
                }
                _ => reaches(&compose, name, variable, value),
            }
        }
    }
    for name in ["TIDEMARK_LOG_URL", "TIDEMARK_VIEWS_URL", "TIDEMARK_VIEWS_POOL_URL", "TIDEMARK_REPLICA_URLS"]
    {
        let service = function("service");
        let begin = format!("{name}=");
        let local = between(&service, &begin, " \\").next().unwrap();
        let here = compose["services"]["query-1"]["environment"][name].as_str().unwrap();
        assert_eq!(here.rsplit('/').next(), local.rsplit('/').next(), "{name} is the same database");
        let host = local.split("$(port ").nth(1).unwrap().split(')').next().unwrap();
        assert!(here.contains(&format!("@{host}:")), "{name}: {here} and not {host}");
    }
}

/// A URL or an address leads to a member that listens there.
fn reaches(compose: &Value, name: &str, variable: &str, value: &str) {
    let authority = value.split("://").last().unwrap().split('/').next().unwrap();
    let address = authority.rsplit('@').next().unwrap();
    let (host, port) = address.split_once(':').unwrap();
    let member = &compose["services"][host];
    assert!(texts(&member["expose"]).contains(&port), "{name}: {variable} leads to {address}");
}

#[test]
fn files_and_volumes_are_there_and_used() {
    let compose = compose();
    let mut used = Names::new();
    for (name, service) in services(&compose) {
        let everything = format!("{} {}", command(service), service["build"]);
        for mount in texts(&service["volumes"]) {
            if mount.starts_with("${TIDEMARK_TLS_DIR:?") {
                continue;
            }
            let (source, rest) = mount.split_once(':').unwrap();
            if let Some(path) = source.strip_prefix("./") {
                assert!(root().join(path).is_file(), "{name} mounts {path}");
                let (target, mode) = rest.split_once(':').unwrap();
                assert_eq!(mode, "ro", "{name}: {path}");
                assert!(everything.contains(target), "{name} does not use {target}");
            } else {
                used.insert(source.to_owned());
            }
        }
    }
    assert_eq!(compose["volumes"].as_object().unwrap().keys().cloned().collect::<Names>(), used);
    let dockerfile = file("Dockerfile");
    for path in between(&dockerfile, "COPY --from=build ", " ") {
        let made = ["release/tidemark", "scripts/sbom"].map(|by| format!("{by} {path}"));
        assert!(made.iter().any(|made| dockerfile.contains(made)), "{path} is built");
    }
    let checked = Command::new("sh").arg("-n").arg(root().join("deploy/replica.sh")).status().unwrap();
    assert!(checked.success());
}

#[test]
fn only_nginx_is_reached_from_outside_where_the_local_cluster_is() {
    for (name, service) in services(&compose()) {
        let ports = texts(&service["ports"]);
        if name == "nginx" {
            assert_eq!(ports, ["127.0.0.1:8080:8080", "127.0.0.1:8081:8081"]);
        } else {
            assert!(ports.is_empty() && !texts(&service["expose"]).is_empty(), "{name}");
        }
    }
    assert!(file("scripts/cluster").contains("|| echo 8080)}"), "the local cluster's first port");
}

#[test]
fn templates_are_filled_in_by_both() {
    let compose = compose();
    for (name, path) in [
        ("kafka", "deploy/kafka.properties.in"),
        ("pgbouncer", "deploy/pgbouncer.ini.in"),
        ("nginx", "deploy/nginx.conf.in"),
    ] {
        let (template, command, function) = (file(path), command(&compose["services"][name]), function(name));
        let open = open_names(&template);
        assert!(open.len() > 2, "{path}: {open:?}");
        assert_eq!(filled_names(&command), open, "{name} in containers");
        assert_eq!(filled_names(&function), open, "{name} of the local cluster");
        assert!(command.contains(path.trim_start_matches("deploy/")) && function.contains(path), "{name}");
        let filled = filled(&template, &command);
        assert_eq!(open_names(&filled), Names::new(), "{name}");
        // Whoever it is told of is there, and listens there.
        match name {
            "nginx" => {
                for address in between(&filled, "server ", " max_fails=1 fail_timeout=1s;") {
                    reaches(&compose, name, "server", address);
                }
                for member in ["command-1", "command-2", "query-1", "query-2"] {
                    assert!(filled.contains(&format!("server {member}:")), "{member}");
                }
                assert!(filled.contains("listen 8080;") && filled.contains("listen 8081 ssl"), "{filled}");
            }
            "pgbouncer" => {
                for (host, port) in
                    between(&filled, "host=", " dbname").map(|at| at.split_once(" port=").unwrap())
                {
                    reaches(&compose, name, "host", &format!("{host}:{port}"));
                }
                assert!(filled.contains("pool_mode = transaction") && filled.contains("listen_port = 6432"));
            }
            _ => {
                let listens = "listeners=PLAINTEXT://kafka:9092,CONTROLLER://kafka:9093";
                assert!(filled.contains(listens) && filled.contains("voters=1@kafka:9093"), "{filled}");
                for setting in ["-Xmx512m", "-XX:+UseSerialGC"] {
                    let here = compose["services"][name]["environment"].to_string();
                    assert!(function.contains(setting) && here.contains(setting), "{setting}");
                }
            }
        }
    }
}

#[test]
fn settings_that_are_no_templates_are_the_same_files() {
    let compose = compose();
    for name in ["postgres-log", "postgres-views", "postgres-replica"] {
        let service = &compose["services"][name];
        assert!(
            texts(&service["volumes"]).iter().any(|mount| mount.starts_with("./deploy/postgresql.conf:"))
        );
        let settings: Vec<&str> =
            texts(&service["command"]).into_iter().filter(|argument| *argument != "-c").collect();
        let names: Vec<&str> = settings.iter().map(|setting| setting.split('=').next().unwrap()).collect();
        assert_eq!(
            names,
            ["config_file", "hba_file", "listen_addresses", "unix_socket_directories"],
            "{name}"
        );
        assert_eq!(settings[0], "config_file=/etc/tidemark/postgresql.conf");
    }
    assert!(function("postgres").contains("deploy/postgresql.conf"));
    for setting in ["-R", "-X stream", "-c fast", "-S replica_1", "application_name=replica_1"] {
        assert!(function("postgres_replica").contains(setting), "{setting}");
        assert!(file("deploy/replica.sh").contains(setting), "{setting}");
    }
    let redis = command(&compose["services"]["redis"]);
    assert_eq!(redis, "redis-server /etc/tidemark/redis.conf --port 6379 --bind 0.0.0.0 --protected-mode no");
    assert!(function("redis").contains("deploy/redis.conf"));
    let settings = file("deploy/redis.conf");
    assert!(
        settings.contains("\nmaxmemory 256mb\n") && settings.contains("\nmaxmemory-policy volatile-lru\n")
    );
}

#[test]
fn every_crate_has_the_lints_of_the_workspace_and_none_may_be_unsafe() {
    let workspace = file("Cargo.toml");
    assert!(workspace.contains("unsafe_code = \"forbid\""));
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: Vec<String> = serde_json::from_str(members).unwrap();
    assert!(members.len() >= 10, "{members:?}");
    for member in members {
        let manifest = file(&format!("{member}/Cargo.toml"));
        assert!(
            manifest.contains("[lints]\nworkspace = true\n"),
            "{member}: [lints] workspace = true is missing"
        );
    }
}
