//! The list of checks. Each looks at a [`Deployment`] and says what it has found, or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use url::Url;

use super::Deployment;
use super::servers::Postgres;
use crate::database::default_dir;

/// One thing that is looked at.
#[derive(Debug)]
pub(crate) struct Check {
    /// What it is called.
    pub(crate) id: &'static str,
    /// What it is about.
    pub(crate) what: &'static str,
    /// What to do about a finding.
    pub(crate) remedy: &'static str,
    /// What is found.
    pub(crate) find: fn(&Deployment) -> Vec<String>,
}

impl PartialEq for Check {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Check {}

/// Words that stand in secrets which nobody has changed.
const WELL_KNOWN: [&str; 12] = [
    "secret",
    "password",
    "passwort",
    "changeme",
    "change-me",
    "tidemark",
    "example",
    "default",
    "12345678",
    "qwerty",
    "letmein",
    "postgres",
];

/// Fewer letters than this are guessed.
const SHORT_PASSWORD: usize = 16;

/// What a key must be worth, in bits.
const STRONG: f64 = 128.0;

/// The oldest PostgreSQL that still gets its faults mended.
const OLDEST_POSTGRES: u32 = 150_000;

/// Files that a process needs besides its connections.
const OTHER_FILES: u64 = 256;

macro_rules! checks {
    ($( $id:literal $what:literal $find:expr => $remedy:literal; )+) => {
        /// All of them.
        pub(crate) static ALL: &[Check] = &[$( Check { id: $id, what: $what, remedy: $remedy, find: $find } ),+];
    };
}

checks! {
    "S01" "token secret" well_known_secret => "make one: openssl rand -hex 32";
    "S02" "token secret" weak_secret => "make one: openssl rand -hex 32";
    "S03" "token secret" repeated_secret => "make one: openssl rand -hex 32";
    "S04" "token secret" secret_used_twice => "give each its own";
    "S05" "token key" key_missing => "put the same key into the directory of every process, or set TIDEMARK_TOKEN_SECRET";
    "S06" "token key" key_for_others => "chmod 600 the key, chmod 700 its directory";
    "S09" "master key" well_known_master_key => "make one: openssl rand -base64 32, and wrap the keys anew: tidemark keys rewrap";
    "S10" "master key" master_key_used_twice => "give each its own";
    "S11" "master key" master_key_missing => "set TIDEMARK_MASTER_KEY alike for command and query, and keep a copy in two places";
    "S12" "master key" master_key_for_others => "chmod 600 the key, chmod 700 its directory";
    "S07" "data directory" directory_for_others => "chmod 755 or less";
    "S08" "settings" misspelt => "correct the name, or unset it";
    "H01" "TLS" no_tls => "set TIDEMARK_TLS_CERTIFICATE and TIDEMARK_TLS_KEY, or listen on loopback behind a proxy that has TLS";
    "H02" "TLS" half_tls => "set both";
    "H03" "TLS" unreadable_tls => "name files that this user can read";
    "H04" "TLS" tls_key_for_others => "chmod 600 the key";
    "H16" "TLS" distrusted => "a certificate of an authority that browsers know, with its whole chain, for the name in TIDEMARK_PUBLIC_URL, renewed in time (ACME)";
    "H05" "HSTS" no_public_url => "set TIDEMARK_PUBLIC_URL to the https address that clients use";
    "H06" "HSTS" plain_public_url => "use https: without it no Strict-Transport-Security is sent";
    "H15" "public URL" local_public_url => "the address that clients reach: mails name it";
    "H07" "hosts" any_host => "set TIDEMARK_ALLOWED_HOSTS to the names that clients use";
    "H08" "CORS" any_origin => "list the origins of your own pages";
    "H09" "CORS" plain_origin => "use https origins";
    "H10" "CORS" local_origin => "leave developers' origins out";
    "H11" "proxies" any_proxy => "list the addresses of your own proxies";
    "H12" "proxies" no_proxy => "set TIDEMARK_TRUSTED_PROXIES: else all clients share the proxy's address";
    "H13" "/metrics" open_metrics => "listen on loopback or a private address, behind a proxy that does not pass /metrics on";
    "H14" "/docs" open_docs => "listen on loopback or a private address, behind a proxy that does not pass /docs on, unless it is meant to be public";
    "L01" "rate limits" limits_off => "leave them on";
    "L02" "connections" more_than_files => "raise the limit of open files (ulimit -n), or lower TIDEMARK_MAX_CONNECTIONS";
    "L03" "connections" hardly_bounded => "TIDEMARK_MAX_CONNECTIONS to what the memory carries, 10,000 by default";
    "L04" "requests" requests_hardly_bounded => "TIDEMARK_MAX_REQUESTS to what can be worked on, 4,096 by default";
    "O01" "log" debug_log => "TIDEMARK_LOG=info: finer levels repeat what requests carry";
    "O02" "log" silent_log => "TIDEMARK_LOG=info or warn: what is refused and broken must be seen";
    "O03" "user" root => "run as a user of its own";
    "O04" "program" debug_build => "use a release build, without the feature planted";
    "D01" "database TLS" database_without_tls => "add ?sslmode=verify-full to the URL";
    "D02" "database TLS" database_unverified => "sslmode=verify-full, with sslrootcert";
    "D03" "database password" no_password => "give the role a password, or a certificate";
    "D04" "database password" weak_password => "16 random letters or more";
    "D05" "database password" reused_password => "give each role its own";
    "D06" "database role" shared_role => "a role for the log and another for the views";
    "D07" "database role" role_of_the_house => "a role for the shop alone";
    "P01" "PostgreSQL" postgres_silent => "see that it runs and that the URL is right";
    "P02" "durability" |it| setting(it, "fsync", |value| value != "on") => "fsync = on: else a power cut loses or breaks the log";
    "P03" "durability" |it| setting(it, "synchronous_commit", |value| value == "off") => "synchronous_commit = on: else acknowledged commands are lost in a crash";
    "P04" "durability" |it| setting(it, "full_page_writes", |value| value != "on") => "full_page_writes = on: else a power cut leaves torn pages";
    "P05" "durability" |it| setting(it, "data_checksums", |value| value != "on") => "pg_checksums --enable: else a disk's faults go unseen";
    "P06" "backups" |it| setting(it, "wal_level", |value| value == "minimal") => "wal_level = replica: else there are no replicas and no point in time to go back to";
    "P07" "backups" |it| setting(it, "archive_mode", |value| value == "off") => "archive the write-ahead log, or stream it elsewhere: else a lost disk is a lost log";
    "P08" "passwords" |it| setting(it, "password_encryption", |value| value != "scram-sha-256") => "password_encryption = scram-sha-256, and set the passwords anew";
    "P09" "version" old_postgres => "a version that still gets its faults mended";
    "P10" "log_statement" |it| setting(it, "log_statement", |value| value == "all" || value == "mod") => "log_statement = none or ddl: statements carry what customers entered";
    "P11" "role" superuser => "a role without SUPERUSER: ALTER ROLE … NOSUPERUSER";
    "P12" "role" maker_of_roles => "a role without CREATEROLE and CREATEDB";
    "P13" "role" may_change_events => "let another role own log.events, and grant this one SELECT and INSERT on it";
    "R01" "Redis" redis_silent => "see that it runs and that the URL is right";
    "R02" "Redis TLS" redis_without_tls => "rediss://, or a private network";
    "R03" "Redis password" redis_without_password => "requirepass or a user of its own, in the URL";
    "R04" "Redis memory" |it| redis_setting(it, "maxmemory", |value| value == "0") => "set maxmemory, as deploy/redis.conf does";
    "R05" "Redis memory" |it| redis_setting(it, "maxmemory-policy", |value| !value.contains("lru") && !value.contains("lfu")) => "maxmemory-policy volatile-lru";
    "M01" "mails" mails_in_files => "set TIDEMARK_SMTP_URL: else nobody gets a mail, and each stays in a file with its token";
    "M02" "mails" smtp_without_tls => "smtps://, or smtp://…?tls=required";
    "M03" "mails" smtp_without_password => "a user and a password in TIDEMARK_SMTP_URL";
    "M04" "mails" sender_of_nowhere => "TIDEMARK_MAIL_FROM to an address of your own domain";
    "A01" "passwords" no_refused_passwords => "name a list of common passwords (TIDEMARK_REFUSED_PASSWORDS), the 3,000 most common of 12 characters or more at least";
    "K01" "Kafka" kafka_without_tls => "keep it within a private network: the brokers are spoken to without TLS";
    "K02" "Kafka" one_broker => "name several brokers";
}

const SECRET: &str = "TIDEMARK_TOKEN_SECRET";

/// The databases, each with the variable that names it.
fn databases(it: &Deployment) -> Vec<(&'static str, Url)> {
    let names = [
        "DATABASE_URL",
        "TIDEMARK_LOG_URL",
        "TIDEMARK_VIEWS_URL",
        "TIDEMARK_VIEWS_POOL_URL",
        "TIDEMARK_REPLICA_URLS",
        "TIDEMARK_VAULT_URL",
    ];
    let urls = names.into_iter().filter_map(|name| Some((name, it.get(name)?)));
    urls.flat_map(|(name, urls)| urls.split(',').filter_map(move |url| Some((name, url.parse().ok()?))))
        .collect()
}

/// Whether what is sent there stays on this machine.
fn is_here(url: &Url) -> bool {
    let host = url.query_pairs().find(|(name, _)| name == "host").map(|(_, host)| host.into_owned());
    let host = host.or_else(|| url.host_str().map(str::to_owned)).unwrap_or_default();
    is_local(&host)
}

fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_socket = host.is_empty() || host.starts_with('/') || host.to_lowercase().starts_with("%2f");
    is_socket || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn listens_beyond(it: &Deployment) -> Option<&str> {
    let address = it.get("TIDEMARK_LISTEN")?;
    (!is_local(address.rsplit_once(':').map_or(address, |(host, _)| host))).then_some(address)
}

fn list<'a>(it: &'a Deployment, variable: &str) -> Vec<&'a str> {
    it.get(variable).map_or_else(Vec::new, |text| text.split(',').map(str::trim).collect())
}

fn is_well_known(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    WELL_KNOWN.into_iter().find(|word| text.contains(word))
}

/// Shannon's entropy of a text by its letters: no more than it is worth, and less for what was typed by hand.
fn bits(text: &str) -> f64 {
    let mut counts = BTreeMap::<char, f64>::new();
    for letter in text.chars() {
        *counts.entry(letter).or_default() += 1.0;
    }
    let length: f64 = counts.values().sum();
    counts.values().map(|count| -count * (count / length).log2()).sum()
}

fn one(told: Option<impl Into<String>>) -> Vec<String> {
    told.map(Into::into).into_iter().collect()
}

fn well_known_secret(it: &Deployment) -> Vec<String> {
    one(it.get(SECRET).and_then(is_well_known).map(|word| format!("{SECRET} contains {word:?}")))
}

fn weak_secret(it: &Deployment) -> Vec<String> {
    let worth = it.get(SECRET).map(bits).filter(|bits| *bits < STRONG);
    one(worth.map(|bits| format!("{SECRET} is worth {bits:.0} bits at most, {STRONG} are needed")))
}

fn repeated_secret(it: &Deployment) -> Vec<String> {
    let letters = it.get(SECRET).map(|secret| secret.chars().collect::<BTreeSet<_>>().len());
    one(letters
        .filter(|letters| *letters < 10)
        .map(|letters| format!("{SECRET} has {letters} different letters")))
}

fn secret_used_twice(it: &Deployment) -> Vec<String> {
    let Some(secret) = it.get(SECRET) else { return Vec::new() };
    let mut urls = databases(it);
    urls.extend(REDIS.iter().filter_map(|name| Some((*name, it.get(name)?.parse().ok()?))));
    let same = urls.into_iter().filter(|(_, url)| url.password() == Some(secret));
    same.map(|(name, _)| format!("{SECRET} is the password in {name}, too")).collect()
}

fn key_missing(it: &Deployment) -> Vec<String> {
    let missing = it.is_cluster() && it.get(SECRET).is_none() && !keys(it).exists();
    one(missing.then_some("there is no key: each process would make one of its own"))
}

fn keys(it: &Deployment) -> std::path::PathBuf {
    let given = it.get("TIDEMARK_DATA_DIR").map(std::path::PathBuf::from);
    given.or_else(|| default_dir().ok()).unwrap_or_default().join("keys")
}

const MASTER: &str = "TIDEMARK_MASTER_KEY";

/// The master keys: what is set, and else what the file holds.
fn master_keys(it: &Deployment) -> Vec<String> {
    let given = it.get(MASTER).map(str::to_owned);
    let text = given.or_else(|| std::fs::read_to_string(master_key_file(it)).ok()).unwrap_or_default();
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    parts.map(str::to_owned).collect()
}

fn master_key_file(it: &Deployment) -> std::path::PathBuf {
    keys(it).join("master.key")
}

/// Bytes that somebody has written down: in steps, or letters of a word.
fn is_made_up(key: &[u8]) -> bool {
    let steps: BTreeSet<u8> = key.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    // 32 random bytes have 30 different ones on average, and fewer than 20 of 31 steps never.
    steps.len() < 20 || key.iter().all(u8::is_ascii_graphic)
}

fn well_known_master_key(it: &Deployment) -> Vec<String> {
    let weak = |text: &String| STANDARD.decode(text).is_ok_and(|key| is_made_up(&key));
    let numbered = (1..).zip(master_keys(it));
    numbered.filter(|(_, key)| weak(key)).map(|(at, _)| format!("master key {at} is not random")).collect()
}

fn master_key_used_twice(it: &Deployment) -> Vec<String> {
    let keys = master_keys(it);
    let others =
        ["TIDEMARK_TOKEN_SECRET"].into_iter().filter_map(|name| Some((name, it.get(name)?.to_owned())));
    let passwords =
        databases(it).into_iter().filter_map(|(name, url)| Some((name, url.password()?.to_owned())));
    let same = others.chain(passwords).filter(|(_, secret)| keys.contains(secret));
    same.map(|(name, _)| format!("{MASTER} stands in {name}, too")).collect()
}

fn master_key_missing(it: &Deployment) -> Vec<String> {
    let missing = it.is_cluster() && it.get(MASTER).is_none() && !master_key_file(it).exists();
    one(missing.then_some("there is no master key: each process would make one of its own"))
}

fn master_key_for_others(it: &Deployment) -> Vec<String> {
    let file = master_key_file(it);
    let mode = mode(&file).filter(|mode| it.get(MASTER).is_none() && mode & 0o077 != 0);
    one(mode.map(|mode| format!("{} has mode {mode:o}", file.display())))
}

fn mode(path: &Path) -> Option<u32> {
    std::fs::metadata(path).ok().map(|found| found.permissions().mode() & 0o777)
}

fn key_for_others(it: &Deployment) -> Vec<String> {
    let files = std::fs::read_dir(keys(it)).into_iter().flatten().flatten().map(|file| file.path());
    let files = files.filter(|path| *path != master_key_file(it));
    let open = files.filter_map(|path| Some((mode(&path)?, path))).filter(|(mode, _)| mode & 0o077 != 0);
    open.map(|(mode, path)| format!("{} has mode {mode:o}", path.display())).collect()
}

fn directory_for_others(it: &Deployment) -> Vec<String> {
    let directory = it.get("TIDEMARK_DATA_DIR").map(Path::new);
    let mode = directory.and_then(mode).filter(|mode| mode & 0o022 != 0);
    one(mode.map(|mode| format!("TIDEMARK_DATA_DIR has mode {mode:o}: others can write there")))
}

fn misspelt(it: &Deployment) -> Vec<String> {
    // These are read before any subcommand is, or by the scripts.
    const OTHERS: [&str; 7] = [
        "TIDEMARK_LOG",
        "TIDEMARK_LOG_FORMAT",
        "TIDEMARK_CACHE",
        "TIDEMARK_CLUSTER_DIR",
        "TIDEMARK_CLUSTER_PORT",
        "TIDEMARK_TLS_DIR",
        "TIDEMARK_PLANTED",
    ];
    let ours = it.env.keys().filter(|name| name.starts_with("TIDEMARK_"));
    let unknown = ours.filter(|name| !it.known.contains(name) && !OTHERS.contains(&name.as_str()));
    unknown.map(|name| format!("nothing reads {name}")).collect()
}

fn has_tls(it: &Deployment) -> bool {
    it.get("TIDEMARK_TLS_CERTIFICATE").is_some() && it.get("TIDEMARK_TLS_KEY").is_some()
}

fn no_tls(it: &Deployment) -> Vec<String> {
    let told = |address| format!("{address} is reached without TLS");
    one(listens_beyond(it).filter(|_| !has_tls(it)).map(told))
}

fn half_tls(it: &Deployment) -> Vec<String> {
    let half = it.get("TIDEMARK_TLS_CERTIFICATE").is_some() != it.get("TIDEMARK_TLS_KEY").is_some();
    one(half.then_some("a certificate without a key, or a key without a certificate"))
}

fn unreadable_tls(it: &Deployment) -> Vec<String> {
    let named = ["TIDEMARK_TLS_CERTIFICATE", "TIDEMARK_TLS_KEY"].into_iter();
    let named = named.filter_map(|name| Some((name, it.get(name)?)));
    named.filter_map(|(name, path)| Some(format!("{name}: {}", std::fs::read(path).err()?))).collect()
}

fn tls_key_for_others(it: &Deployment) -> Vec<String> {
    let mode = it.get("TIDEMARK_TLS_KEY").and_then(|path| mode(Path::new(path)));
    one(mode.filter(|mode| mode & 0o077 != 0).map(|mode| format!("TIDEMARK_TLS_KEY has mode {mode:o}")))
}

/// Between a proxy and the shop they may trust each other as they like.
fn distrusted(it: &Deployment) -> Vec<String> {
    let told = it.distrusted.as_ref().filter(|_| it.get("TIDEMARK_TRUSTED_PROXIES").is_none());
    one(told.map(|why| format!("TIDEMARK_TLS_CERTIFICATE: {why}")))
}

fn no_public_url(it: &Deployment) -> Vec<String> {
    let missing = it.get("TIDEMARK_PUBLIC_URL").is_none() && !has_tls(it);
    one(missing.then_some("neither TLS nor TIDEMARK_PUBLIC_URL: nobody is told to come back with https"))
}

fn plain_public_url(it: &Deployment) -> Vec<String> {
    let plain = it.get("TIDEMARK_PUBLIC_URL").filter(|url| !url.starts_with("https://"));
    one(plain.map(|url| format!("TIDEMARK_PUBLIC_URL is {url}")))
}

fn local_public_url(it: &Deployment) -> Vec<String> {
    let url = it.get("TIDEMARK_PUBLIC_URL");
    let local = url.filter(|url| url.parse::<Url>().is_ok_and(|url| url.host_str().is_none_or(is_local)));
    one(local.map(|url| format!("TIDEMARK_PUBLIC_URL is {url}: nobody else can follow it")))
}

/// Whether it is meant for others than who runs it.
fn is_for_others(it: &Deployment) -> bool {
    listens_beyond(it).is_some() || it.get("TIDEMARK_PUBLIC_URL").is_some()
}

const SMTP: &str = "TIDEMARK_SMTP_URL";

fn smtp(it: &Deployment) -> Option<Url> {
    it.get(SMTP)?.parse().ok()
}

fn mails_in_files(it: &Deployment) -> Vec<String> {
    let in_files = it.get(SMTP).is_none() && is_for_others(it);
    one(in_files.then_some("mails are written to files"))
}

fn smtp_without_tls(it: &Deployment) -> Vec<String> {
    let plain = smtp(it).filter(|url| {
        let is_required = url.query_pairs().any(|(name, value)| name == "tls" && value == "required");
        url.scheme() == "smtp" && !is_required && !is_here(url)
    });
    one(plain.map(|_| format!("{SMTP} goes to another machine and does not insist on TLS")))
}

fn smtp_without_password(it: &Deployment) -> Vec<String> {
    let open = smtp(it).filter(|url| url.password().is_none() && !is_here(url));
    one(open.map(|_| format!("{SMTP} goes to another machine without a password")))
}

fn sender_of_nowhere(it: &Deployment) -> Vec<String> {
    let from = it.get("TIDEMARK_MAIL_FROM").unwrap_or("no-reply@localhost");
    let domain = from.rsplit_once('@').map_or("", |(_, domain)| domain.trim_end_matches('>'));
    let nowhere = it.get(SMTP).is_some() && (is_local(domain) || !domain.contains('.'));
    one(nowhere.then(|| format!("mails come from {from}")))
}

fn no_refused_passwords(it: &Deployment) -> Vec<String> {
    let guessed_alone = it.get("TIDEMARK_REFUSED_PASSWORDS").is_none();
    one(guessed_alone.then_some("only how hard a password is to guess is looked at, no list of common ones"))
}

fn any_host(it: &Deployment) -> Vec<String> {
    let hosts = list(it, "TIDEMARK_ALLOWED_HOSTS");
    let open = (hosts.is_empty() && is_for_others(it)) || hosts.contains(&"*");
    one(open.then_some("requests for any host are answered"))
}

fn origins(it: &Deployment, find: impl Fn(&str) -> bool) -> Vec<String> {
    let found = list(it, "TIDEMARK_CORS_ORIGINS").into_iter().filter(|origin| find(origin));
    found.map(|origin| format!("TIDEMARK_CORS_ORIGINS has {origin}")).collect()
}

fn any_origin(it: &Deployment) -> Vec<String> {
    origins(it, |origin| origin.contains('*') || origin == "null")
}

fn plain_origin(it: &Deployment) -> Vec<String> {
    origins(it, |origin| origin.starts_with("http://"))
}

fn local_origin(it: &Deployment) -> Vec<String> {
    origins(it, |origin| origin.parse::<Url>().is_ok_and(|url| url.host_str().is_some_and(is_local)))
}

fn any_proxy(it: &Deployment) -> Vec<String> {
    let all = list(it, "TIDEMARK_TRUSTED_PROXIES").into_iter().filter(|network| {
        *network == "*"
            || network.rsplit_once('/').is_some_and(|(_, bits)| bits.parse().is_ok_and(|bits: u8| bits < 8))
    });
    all.map(|network| format!("{network} is trusted: clients may say from where they come")).collect()
}

fn no_proxy(it: &Deployment) -> Vec<String> {
    let behind_one =
        it.get("TIDEMARK_PUBLIC_URL").is_some_and(|url| url.starts_with("https://")) && !has_tls(it);
    let missing = behind_one && it.get("TIDEMARK_TRUSTED_PROXIES").is_none();
    one(missing.then_some("somebody else has TLS for TIDEMARK_PUBLIC_URL, and is not trusted"))
}

fn open_metrics(it: &Deployment) -> Vec<String> {
    one(listens_beyond(it).map(|address| format!("{address} answers /metrics to everybody")))
}

fn open_docs(it: &Deployment) -> Vec<String> {
    one(listens_beyond(it).map(|address| format!("{address} answers /docs to everybody")))
}

fn limits_off(it: &Deployment) -> Vec<String> {
    let off = it
        .get("TIDEMARK_LIMITS")
        .filter(|limits| limits.split([',', '=', ':', ' ', ';']).any(|part| part == "off"));
    one(off.map(|limits| format!("TIDEMARK_LIMITS is {limits}")))
}

fn connections(it: &Deployment) -> u64 {
    it.get("TIDEMARK_MAX_CONNECTIONS").and_then(|count| count.parse().ok()).unwrap_or(10_000)
}

fn more_than_files(it: &Deployment) -> Vec<String> {
    let (connections, files) = (connections(it), it.open_files);
    let few = files.filter(|files| *files < connections + OTHER_FILES);
    one(few.map(|files| format!("{connections} connections, but {files} files may be open")))
}

fn hardly_bounded(it: &Deployment) -> Vec<String> {
    let many = Some(connections(it)).filter(|count| *count > 100_000);
    one(many.map(|count| format!("TIDEMARK_MAX_CONNECTIONS is {count}")))
}

fn requests_hardly_bounded(it: &Deployment) -> Vec<String> {
    let many = it
        .get("TIDEMARK_MAX_REQUESTS")
        .and_then(|count| count.parse().ok())
        .filter(|count: &u64| *count > 50_000);
    one(many.map(|count| format!("TIDEMARK_MAX_REQUESTS is {count}")))
}

fn log_levels(it: &Deployment) -> Vec<String> {
    let parts = it.get("TIDEMARK_LOG").unwrap_or_default().split(',');
    parts.map(|part| part.rsplit('=').next().unwrap_or_default().trim().to_lowercase()).collect()
}

fn debug_log(it: &Deployment) -> Vec<String> {
    let found = log_levels(it).into_iter().find(|level| level == "debug" || level == "trace");
    one(found.map(|level| format!("TIDEMARK_LOG asks for {level}")))
}

fn silent_log(it: &Deployment) -> Vec<String> {
    let levels = log_levels(it);
    let silent =
        it.get("TIDEMARK_LOG").filter(|_| levels.iter().all(|level| level == "off" || level == "error"));
    one(silent.map(|level| format!("TIDEMARK_LOG is {level}")))
}

fn root(it: &Deployment) -> Vec<String> {
    one(it.is_root.then_some("root runs this; so whoever breaks in is root"))
}

fn debug_build(it: &Deployment) -> Vec<String> {
    one(it.is_debug_build.then_some("this program is built for finding faults"))
}

fn ssl_mode(url: &Url) -> String {
    let mode = url.query_pairs().find(|(name, _)| name == "sslmode" || name == "ssl-mode");
    mode.map_or_else(|| "prefer".to_owned(), |(_, mode)| mode.to_lowercase())
}

fn elsewhere(it: &Deployment) -> impl Iterator<Item = (&'static str, Url)> {
    databases(it).into_iter().filter(|(_, url)| !is_here(url))
}

fn database_without_tls(it: &Deployment) -> Vec<String> {
    let plain =
        elsewhere(it).filter(|(_, url)| ["disable", "allow", "prefer"].contains(&ssl_mode(url).as_str()));
    plain
        .map(|(name, url)| format!("{name} goes to another machine with sslmode={}", ssl_mode(&url)))
        .collect()
}

fn database_unverified(it: &Deployment) -> Vec<String> {
    let unverified =
        elsewhere(it).filter(|(_, url)| ["require", "verify-ca"].contains(&ssl_mode(url).as_str()));
    unverified.map(|(name, _)| format!("{name}: whose certificate it is, is not looked at")).collect()
}

fn no_password(it: &Deployment) -> Vec<String> {
    let open = elsewhere(it).filter(|(_, url)| {
        url.password().is_none()
            && !url.query_pairs().any(|(name, _)| name == "password" || name == "sslcert")
    });
    open.map(|(name, _)| format!("{name} has no password")).collect()
}

fn weak_password(it: &Deployment) -> Vec<String> {
    let weak = databases(it).into_iter().filter(|(_, url)| {
        url.password().is_some_and(|password| {
            password.len() < SHORT_PASSWORD || is_well_known(password).is_some() || password == url.username()
        })
    });
    weak.map(|(name, _)| format!("the password in {name} is short or well known")).collect()
}

fn reused_password(it: &Deployment) -> Vec<String> {
    let mut seen = BTreeMap::<String, (&str, String)>::new();
    let mut told = Vec::new();
    for (name, url) in databases(it) {
        let Some(password) = url.password() else { continue };
        match seen.get(password) {
            Some((first, role)) if *role != url.username() => {
                told.push(format!("{first} and {name} have one password for two roles"));
            }
            Some(_) => {}
            None => drop(seen.insert(password.to_owned(), (name, url.username().to_owned()))),
        }
    }
    told
}

fn shared_role(it: &Deployment) -> Vec<String> {
    let urls = databases(it);
    let role = |wanted: &str| {
        urls.iter().find(|(name, _)| *name == wanted).map(|(_, url)| url.username().to_owned())
    };
    let (log, views) = (role("TIDEMARK_LOG_URL"), role("TIDEMARK_VIEWS_URL"));
    let shared = log.filter(|log| !log.is_empty() && Some(log) == views.as_ref());
    one(shared.map(|role| format!("{role} is the role of the log and of the views")))
}

fn role_of_the_house(it: &Deployment) -> Vec<String> {
    let found =
        databases(it).into_iter().filter(|(_, url)| ["postgres", "root", "admin"].contains(&url.username()));
    found.map(|(name, url)| format!("{name} has the role {}", url.username())).collect()
}

fn postgres(it: &Deployment) -> Option<&Postgres> {
    it.postgres.as_ref()?.as_ref().ok()
}

fn postgres_silent(it: &Deployment) -> Vec<String> {
    let silent = it.postgres.as_ref().and_then(|found| found.as_ref().err());
    one(silent.map(|error| format!("it cannot be asked how it is set up: {error}")))
}

fn setting(it: &Deployment, name: &str, is_wrong: fn(&str) -> bool) -> Vec<String> {
    let value = postgres(it).and_then(|found| found.settings.get(name)).filter(|value| is_wrong(value));
    one(value.map(|value| format!("{name} = {value}")))
}

fn old_postgres(it: &Deployment) -> Vec<String> {
    let version = postgres(it).and_then(|found| found.settings.get("server_version_num")?.parse().ok());
    let old = version.filter(|version: &u32| *version < OLDEST_POSTGRES);
    one(old.map(|version| format!("PostgreSQL {}", version / 10_000)))
}

fn superuser(it: &Deployment) -> Vec<String> {
    let found = postgres(it).filter(|found| found.is_superuser);
    one(found.map(|_| "the role of the log is a superuser"))
}

fn maker_of_roles(it: &Deployment) -> Vec<String> {
    let found = postgres(it).filter(|found| found.may_make_roles && !found.is_superuser);
    one(found.map(|_| "the role of the log may make roles or databases"))
}

fn may_change_events(it: &Deployment) -> Vec<String> {
    let found = postgres(it).filter(|found| !found.may_with_events.is_empty());
    one(found.map(|found| format!("the role of the log may {} events", found.may_with_events.join(", "))))
}

/// Where a Redis is named: that of bodies and limits, or, where the shop is one process, that of limits alone.
const REDIS: [&str; 2] = ["TIDEMARK_REDIS_URL", "TIDEMARK_LIMITS_REDIS_URL"];

/// The Redis that is examined, with the variable that names it.
pub(super) fn redis_named(it: &Deployment) -> Option<(&'static str, &str)> {
    REDIS.iter().find_map(|name| Some((*name, it.get(name)?)))
}

fn redis_url(it: &Deployment) -> Option<(&'static str, Url)> {
    redis_named(it).and_then(|(name, url)| Some((name, url.parse().ok()?)))
}

fn redis_silent(it: &Deployment) -> Vec<String> {
    let silent = it.redis.as_ref().and_then(|found| found.as_ref().err());
    one(silent.map(|error| format!("it cannot be asked how it is set up: {error}")))
}

fn redis_without_tls(it: &Deployment) -> Vec<String> {
    let plain = redis_url(it).filter(|(_, url)| url.scheme() == "redis" && !is_here(url));
    one(plain.map(|(name, _)| format!("{name} goes to another machine without TLS")))
}

fn redis_without_password(it: &Deployment) -> Vec<String> {
    let open = redis_url(it).filter(|(_, url)| url.password().is_none() && !is_here(url));
    one(open.map(|(name, _)| format!("{name} goes to another machine without a password")))
}

fn redis_setting(it: &Deployment, name: &str, is_wrong: fn(&str) -> bool) -> Vec<String> {
    let found = it.redis.as_ref().and_then(|found| found.as_ref().ok());
    let value = found.and_then(|found| found.settings.get(name)).filter(|value| is_wrong(value));
    one(value.map(|value| format!("{name} {value}")))
}

fn brokers(it: &Deployment) -> Vec<&str> {
    list(it, "TIDEMARK_KAFKA_BROKERS")
}

fn kafka_without_tls(it: &Deployment) -> Vec<String> {
    let far = brokers(it)
        .into_iter()
        .filter(|broker| !is_local(broker.rsplit_once(':').map_or(broker, |(host, _)| host)));
    far.map(|broker| format!("{broker} is another machine")).collect()
}

fn one_broker(it: &Deployment) -> Vec<String> {
    let single = brokers(it);
    let alone = single
        .first()
        .filter(|broker| single.len() == 1 && !kafka_without_tls(it).is_empty() && !broker.is_empty());
    one(alone.map(|broker| format!("{broker} alone: when it is away, nothing is published")))
}

#[cfg(test)]
mod tests {
    use super::super::examine;
    use super::super::servers::Redis;
    use super::*;

    const STRONG_SECRET: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    const PASSWORD: &str = "kqzvJ7wq2Xr9mTnB4c";
    const MASTER_KEY: &str = "b9Zk3o1n0rQ7bTGdPz1JtC2oKJ2xGm0c4fY8uE5sVqA=";

    fn settings(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// A cluster with nothing to be mended.
    fn sound() -> Deployment {
        let log = format!("postgres://log_role:{PASSWORD}a@db1.example.org/log?sslmode=verify-full");
        let views = format!("postgres://views_role:{PASSWORD}b@db2.example.org/views?sslmode=verify-full");
        let redis = format!("rediss://shop:{PASSWORD}c@redis.example.org");
        let smtp = format!("smtps://shop:{PASSWORD}d@mail.example.org");
        Deployment {
            env: settings(&[
                ("TIDEMARK_TOKEN_SECRET", STRONG_SECRET),
                ("TIDEMARK_MASTER_KEY", MASTER_KEY),
                ("TIDEMARK_SMTP_URL", &smtp),
                ("TIDEMARK_MAIL_FROM", "Shop <shop@example.org>"),
                ("TIDEMARK_REFUSED_PASSWORDS", "/etc/tidemark/passwords"),
                ("TIDEMARK_LOG_URL", &log),
                ("TIDEMARK_VIEWS_URL", &views),
                ("TIDEMARK_REDIS_URL", &redis),
                ("TIDEMARK_LISTEN", "127.0.0.1:8080"),
                ("TIDEMARK_PUBLIC_URL", "https://shop.example.org"),
                ("TIDEMARK_ALLOWED_HOSTS", "shop.example.org"),
                ("TIDEMARK_TRUSTED_PROXIES", "127.0.0.1"),
                ("TIDEMARK_CORS_ORIGINS", "https://www.example.org"),
                ("TIDEMARK_KAFKA_BROKERS", "127.0.0.1:9092"),
            ]),
            known: [
                "TOKEN_SECRET",
                "LOG_URL",
                "VIEWS_URL",
                "REDIS_URL",
                "LISTEN",
                "PUBLIC_URL",
                "ALLOWED_HOSTS",
                "TRUSTED_PROXIES",
                "CORS_ORIGINS",
                "KAFKA_BROKERS",
                "DATA_DIR",
                "TLS_CERTIFICATE",
                "TLS_KEY",
                "MAX_CONNECTIONS",
                "MAX_REQUESTS",
                "LIMITS",
                "REPLICA_URLS",
                "VIEWS_POOL_URL",
                "MASTER_KEY",
                "SMTP_URL",
                "MAIL_FROM",
                "REFUSED_PASSWORDS",
            ]
            .map(|name| format!("TIDEMARK_{name}"))
            .into(),
            open_files: Some(65_536),
            postgres: Some(Ok(Postgres {
                settings: settings(&[
                    ("fsync", "on"),
                    ("synchronous_commit", "on"),
                    ("full_page_writes", "on"),
                    ("data_checksums", "on"),
                    ("wal_level", "replica"),
                    ("archive_mode", "on"),
                    ("password_encryption", "scram-sha-256"),
                    ("server_version_num", "170004"),
                    ("log_statement", "none"),
                ]),
                ..Postgres::default()
            })),
            redis: Some(Ok(Redis {
                settings: settings(&[("maxmemory", "100000000"), ("maxmemory-policy", "volatile-lru")]),
            })),
            ..Deployment::default()
        }
    }

    fn with(changes: &[(&str, &str)]) -> Deployment {
        let mut deployment = sound();
        deployment.env.extend(settings(changes));
        deployment
    }

    fn with_postgres(name: &str, value: &str) -> Deployment {
        let mut deployment = sound();
        let Some(Ok(postgres)) = &mut deployment.postgres else { unreachable!() };
        postgres.settings.insert(name.to_owned(), value.to_owned());
        deployment
    }

    fn with_role(change: fn(&mut Postgres)) -> Deployment {
        let mut deployment = sound();
        let Some(Ok(postgres)) = &mut deployment.postgres else { unreachable!() };
        change(postgres);
        deployment
    }

    fn with_redis(name: &str, value: &str) -> Deployment {
        let mut deployment = sound();
        deployment.redis = Some(Ok(Redis { settings: settings(&[(name, value)]) }));
        deployment
    }

    fn found(deployment: &Deployment) -> BTreeSet<&'static str> {
        examine(deployment).iter().map(|finding| finding.check.id).collect()
    }

    #[test]
    fn a_sound_configuration_has_no_finding() {
        assert_eq!(examine(&sound()), []);
    }

    #[test]
    fn each_check_finds_what_it_is_there_for() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        std::fs::create_dir(&keys).unwrap();
        let key = keys.join("access-ed25519.pk8");
        std::fs::write(&key, "key").unwrap();
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
        };
        open(&key, 0o644);
        open(directory.path(), 0o777);
        let master = keys.join("master.key");
        std::fs::write(&master, MASTER_KEY).unwrap();
        open(&master, 0o640);
        let (data, key) = (directory.path().to_str().unwrap(), key.to_str().unwrap());
        let without_master = |changes: &[(&str, &str)]| {
            let mut deployment = with(changes);
            deployment.env.remove("TIDEMARK_MASTER_KEY");
            deployment
        };
        let counted = STANDARD.encode((0..32).collect::<Vec<u8>>());
        let a_word = STANDARD.encode("this-is-what-somebody-has-typed!");
        let two = format!("{MASTER_KEY},{counted}");
        let without_secret = |changes: &[(&str, &str)]| {
            let mut deployment = with(changes);
            deployment.env.remove("TIDEMARK_TOKEN_SECRET");
            deployment
        };
        let far = "postgres://log_role:kqzvJ7wq2Xr9mTnB4ca@db1.example.org/log";
        let shared = format!("postgres://other:{PASSWORD}a@db2.example.org/views?sslmode=verify-full");
        let as_secret =
            format!("postgres://log_role:{STRONG_SECRET}@db1.example.org/log?sslmode=verify-full");
        let cases = [
            (
                "S01",
                with(&[(
                    "TIDEMARK_TOKEN_SECRET",
                    "9f86d081884c7d659a2feaa0c55ad015-changeme-a3bf4f1b2b0b822cd15",
                )]),
            ),
            ("S02", with(&[("TIDEMARK_TOKEN_SECRET", "abcdefghijkabcdefghijkabcdefghijkab")])),
            ("S03", with(&[("TIDEMARK_TOKEN_SECRET", "abababababababababababababababababababab")])),
            ("S04", with(&[("TIDEMARK_LOG_URL", &as_secret)])),
            ("S05", without_secret(&[("TIDEMARK_DATA_DIR", "/nowhere")])),
            ("S06", without_secret(&[("TIDEMARK_DATA_DIR", data)])),
            ("S07", with(&[("TIDEMARK_DATA_DIR", data)])),
            ("S09", with(&[("TIDEMARK_MASTER_KEY", &counted)])),
            ("S09", with(&[("TIDEMARK_MASTER_KEY", &a_word)])),
            ("S09", with(&[("TIDEMARK_MASTER_KEY", &two)])),
            ("S10", with(&[("TIDEMARK_TOKEN_SECRET", MASTER_KEY)])),
            ("S11", without_master(&[("TIDEMARK_DATA_DIR", "/nowhere")])),
            ("S12", without_master(&[("TIDEMARK_DATA_DIR", data)])),
            ("S08", with(&[("TIDEMARK_ALOWED_HOSTS", "shop.example.org")])),
            ("H01", with(&[("TIDEMARK_LISTEN", "0.0.0.0:80")])),
            ("H02", with(&[("TIDEMARK_TLS_CERTIFICATE", key)])),
            ("H03", with(&[("TIDEMARK_TLS_CERTIFICATE", "/nowhere"), ("TIDEMARK_TLS_KEY", key)])),
            ("H04", with(&[("TIDEMARK_TLS_CERTIFICATE", key), ("TIDEMARK_TLS_KEY", key)])),
            (
                "H16",
                Deployment { distrusted: Some("no".to_owned()), ..with(&[("TIDEMARK_TRUSTED_PROXIES", "")]) },
            ),
            ("H05", with(&[("TIDEMARK_PUBLIC_URL", "")])),
            ("H06", with(&[("TIDEMARK_PUBLIC_URL", "http://shop.example.org")])),
            ("H15", with(&[("TIDEMARK_PUBLIC_URL", "https://localhost:8443")])),
            ("H15", with(&[("TIDEMARK_PUBLIC_URL", "http://127.0.0.1:8080")])),
            ("H07", with(&[("TIDEMARK_ALLOWED_HOSTS", "*")])),
            ("H07", with(&[("TIDEMARK_ALLOWED_HOSTS", "")])),
            ("H08", with(&[("TIDEMARK_CORS_ORIGINS", "*")])),
            ("H08", with(&[("TIDEMARK_CORS_ORIGINS", "https://a.example.org, null")])),
            ("H09", with(&[("TIDEMARK_CORS_ORIGINS", "http://www.example.org")])),
            ("H10", with(&[("TIDEMARK_CORS_ORIGINS", "https://localhost:3000")])),
            ("H11", with(&[("TIDEMARK_TRUSTED_PROXIES", "10.0.0.1, 0.0.0.0/0")])),
            ("H12", with(&[("TIDEMARK_TRUSTED_PROXIES", "")])),
            ("H13", with(&[("TIDEMARK_LISTEN", "[::]:8080")])),
            ("H14", with(&[("TIDEMARK_LISTEN", "192.0.2.1:8080")])),
            ("L01", with(&[("TIDEMARK_LIMITS", "reads=off")])),
            ("L02", with(&[("TIDEMARK_MAX_CONNECTIONS", "65536")])),
            ("L03", with(&[("TIDEMARK_MAX_CONNECTIONS", "500000")])),
            ("L04", with(&[("TIDEMARK_MAX_REQUESTS", "100000")])),
            ("O01", with(&[("TIDEMARK_LOG", "info,sqlx=debug")])),
            ("O02", with(&[("TIDEMARK_LOG", "off")])),
            ("O03", Deployment { is_root: true, ..sound() }),
            ("O04", Deployment { is_debug_build: true, ..sound() }),
            ("D01", with(&[("TIDEMARK_LOG_URL", far)])),
            ("D02", with(&[("TIDEMARK_LOG_URL", &format!("{far}?sslmode=require"))])),
            (
                "D03",
                with(&[("TIDEMARK_REPLICA_URLS", "postgres://r@db3.example.org/views?sslmode=verify-full")]),
            ),
            ("D04", with(&[("TIDEMARK_LOG_URL", "postgres://log_role:short@127.0.0.1/log")])),
            ("D05", with(&[("TIDEMARK_VIEWS_URL", &shared)])),
            ("D06", with(&[("TIDEMARK_VIEWS_URL", &shared.replace("other", "log_role"))])),
            ("D07", with(&[("TIDEMARK_VIEWS_URL", &shared.replace("other", "postgres"))])),
            ("P01", Deployment { postgres: Some(Err("refused".to_owned())), ..sound() }),
            ("P02", with_postgres("fsync", "off")),
            ("P03", with_postgres("synchronous_commit", "off")),
            ("P04", with_postgres("full_page_writes", "off")),
            ("P05", with_postgres("data_checksums", "off")),
            ("P06", with_postgres("wal_level", "minimal")),
            ("P07", with_postgres("archive_mode", "off")),
            ("P08", with_postgres("password_encryption", "md5")),
            ("P09", with_postgres("server_version_num", "130018")),
            ("P10", with_postgres("log_statement", "all")),
            ("P11", with_role(|role| role.is_superuser = true)),
            ("P12", with_role(|role| role.may_make_roles = true)),
            ("P13", with_role(|role| role.may_with_events = vec!["UPDATE".to_owned()])),
            ("R01", Deployment { redis: Some(Err("refused".to_owned())), ..sound() }),
            ("R02", with(&[("TIDEMARK_REDIS_URL", "redis://:kqzvJ7wq2Xr9mTnB4c@redis.example.org")])),
            ("R03", with(&[("TIDEMARK_REDIS_URL", "rediss://redis.example.org")])),
            ("R04", with_redis("maxmemory", "0")),
            ("R05", with_redis("maxmemory-policy", "noeviction")),
            ("D04", with(&[("TIDEMARK_VAULT_URL", "postgres://vault:short@127.0.0.1/vault")])),
            ("M01", with(&[("TIDEMARK_SMTP_URL", "")])),
            ("M02", with(&[("TIDEMARK_SMTP_URL", "smtp://shop:kqzvJ7wq2Xr9mTnB4cd@mail.example.org")])),
            (
                "M02",
                with(&[(
                    "TIDEMARK_SMTP_URL",
                    "smtp://shop:kqzvJ7wq2Xr9mTnB4cd@mail.example.org?tls=opportunistic",
                )]),
            ),
            ("M03", with(&[("TIDEMARK_SMTP_URL", "smtps://mail.example.org")])),
            ("M04", with(&[("TIDEMARK_MAIL_FROM", "")])),
            ("M04", with(&[("TIDEMARK_MAIL_FROM", "Shop <shop@intranet>")])),
            ("A01", with(&[("TIDEMARK_REFUSED_PASSWORDS", "")])),
            ("K01", with(&[("TIDEMARK_KAFKA_BROKERS", "127.0.0.1:9092,kafka.example.org:9092")])),
            ("K02", with(&[("TIDEMARK_KAFKA_BROKERS", "kafka.example.org:9092")])),
        ];
        for (id, deployment) in &cases {
            assert!(found(deployment).contains(id), "{id} is not found");
        }
        let tried: BTreeSet<&str> = cases.iter().map(|(id, _)| *id).collect();
        let all: BTreeSet<&str> = ALL.iter().map(|check| check.id).collect();
        assert_eq!(tried, all, "each check has its failing case");
        assert_eq!(all.len(), ALL.len(), "and an id of its own");
        assert!(ALL.len() >= 30);
    }

    #[test]
    fn what_stays_on_this_machine_is_told_from_what_does_not() {
        for here in [
            "postgres:///log",
            "postgres://a@localhost/b",
            "postgres://a@127.0.0.2/b",
            "postgres://a@[::1]/b",
            "postgres://a@%2Fvar%2Frun/b",
            "postgres://a@x/b?host=/run",
        ] {
            assert!(is_here(&here.parse().unwrap()), "{here}");
        }
        for there in [
            "postgres://a@db/b",
            "postgres://a@10.0.0.1/b",
            "postgres://a@[2001:db8::1]/b",
            "postgres://a@localhost.example.org/b",
        ] {
            assert!(!is_here(&there.parse().unwrap()), "{there}");
        }
    }
}
