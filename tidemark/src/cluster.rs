//! The private PostgreSQL: made and started under the data directory, reachable through a Unix socket only.
//!
//! It runs as a child in a process group of its own, so that Ctrl-C in the terminal reaches this program alone, which
//! ends its own work first. After a kill -9 of this program the server may still be running: it is then taken over.

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _, PermissionsExt};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::process::{Child, Command};

/// The longest path of a Unix socket, less PostgreSQL's file name in the directory.
const MAX_SOCKET_DIR: usize = 107 - "/.s.PGSQL.5432".len();

/// How long recovery after a crash may take.
const START_WITHIN: Duration = Duration::from_secs(120);

/// How long a fast shutdown may take before an immediate one, which recovers at the next start.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Segments of the write-ahead log that are made with the cluster: as many as `max_wal_size` lets there be.
const WAL_SEGMENTS: usize = 64;

/// The size of one, as `initdb` chooses it.
const WAL_SEGMENT_BYTES: usize = 16 * 1024 * 1024;

/// How often it is looked whether it has started.
const LOOK_AGAIN: Duration = Duration::from_millis(30);

const USER: &str = "tidemark";

/// The server that this process is in charge of, for an end without [`Cluster::stop`].
static IN_CHARGE_OF: OnceLock<Pid> = OnceLock::new();

/// Tells the private server, if there is one, to end by itself: for whoever cannot wait for it.
pub(crate) fn tell_to_stop() {
    if let Some(pid) = IN_CHARGE_OF.get() {
        rustix::process::kill_process(*pid, Signal::INT).ok();
    }
}

/// What can go wrong with it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// There is no PostgreSQL on this machine.
    #[error(
        "PostgreSQL's server programs were not found. Install them (Debian: apt-get install postgresql; macOS: brew install postgresql@17), or name a running server with DATABASE_URL"
    )]
    NotInstalled,
    /// The data are of a release that is not on this machine.
    #[error(
        "TIDEMARK_DATA_DIR (--data-dir): the data are of PostgreSQL {wanted}, installed is {found}. Install {wanted} beside it (Debian: apt-get install postgresql-{wanted}), or dump them there and restore them here"
    )]
    WrongRelease {
        /// Of the data.
        wanted: u32,
        /// The newest that is installed.
        found: u32,
    },
    /// Another `tidemark up` runs on the same directory.
    #[error(
        "TIDEMARK_DATA_DIR (--data-dir): another tidemark is running on {}; a directory of its own is expected",
        .0.display()
    )]
    InUse(PathBuf),
    /// The directory cannot be written.
    #[error(
        "TIDEMARK_DATA_DIR (--data-dir): cannot write {}: {error}; a directory that this user can write is expected",
        path.display()
    )]
    Unwritable {
        /// What cannot be made or written.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// As root there must be somebody else to run it.
    #[error("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")]
    NobodyToRunIt,
    /// The user that runs it cannot reach the directory.
    #[error(
        "TIDEMARK_DATA_DIR (--data-dir): {} cannot be reached by user {user}, who runs PostgreSQL when this program runs as root; a directory that everybody can pass through is expected",
        path.display()
    )]
    OutOfReach {
        /// The directory.
        path: PathBuf,
        /// Who runs the server.
        user: String,
    },
    /// `initdb` failed.
    #[error("initdb failed: {0}")]
    Init(String),
    /// The server ended or did not answer in time.
    #[error("PostgreSQL did not start; its log is {}", .0.display())]
    Start(PathBuf),
    /// Files or processes.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// Its database could not be made.
    #[error("the private PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
}

impl ClusterError {
    /// Whether somebody has to change a setting or the machine, and trying again is of no use before.
    pub(crate) fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::NotInstalled
                | Self::WrongRelease { .. }
                | Self::InUse(_)
                | Self::Unwritable { .. }
                | Self::NobodyToRunIt
                | Self::OutOfReach { .. }
        )
    }
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ClusterError {
    let what = what.into();
    move |error| ClusterError::Io(what, error)
}

/// Who runs the server, when this program runs as root.
#[derive(Debug, Clone)]
struct Runner {
    name: String,
    uid: u32,
    gid: u32,
}

/// A running private PostgreSQL.
#[derive(Debug)]
pub(crate) struct Cluster {
    data: PathBuf,
    sockets: PathBuf,
    /// `None` when somebody else started it.
    server: Option<Server>,
    /// Held as long as this process is in charge of it.
    lock: Option<File>,
}

/// Whoever goes without [`Cluster::stop`], because it was told to end while it began, tells it to end by itself.
impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            // It may have ended already.
            rustix::process::kill_process(pid, Signal::INT).ok();
        }
    }
}

#[derive(Debug)]
enum Server {
    Started(Child),
    TakenOver(Pid),
}

/// Whether users other than the owner can get into a directory and all above it, or that does not matter because
/// this program is not root.
pub(crate) fn others_can_reach(path: &Path) -> bool {
    const OTHERS_MAY_PASS: u32 = 0o001;
    !rustix::process::geteuid().is_root()
        || path.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|meta| meta.mode() & OTHERS_MAY_PASS != 0))
}

impl Cluster {
    /// Starts it, or takes over one that runs. Who is not `exclusive` uses one that another process is in charge of.
    pub(crate) async fn start(data_dir: &Path, exclusive: bool) -> Result<Self, ClusterError> {
        let runner = runner()?;
        if let Some(runner) = &runner
            && !others_can_reach(data_dir)
        {
            return Err(ClusterError::OutOfReach { path: data_dir.to_owned(), user: runner.name.clone() });
        }
        let sockets = socket_dir(data_dir, runner.as_ref())?;
        let mut cluster = Self { data: data_dir.join("postgres"), sockets, server: None, lock: None };
        let log = data_dir.join("postgres.log");
        let until = Instant::now() + START_WITHIN;
        // Who was in charge may be about to end, and its server with it: then there is one to be started.
        while Instant::now() < until {
            if cluster.lock.is_none() {
                cluster.lock = try_lock(&data_dir.join("lock"))?;
            }
            match (cluster.lock.is_some(), cluster.running()) {
                (false, _) if exclusive => return Err(ClusterError::InUse(data_dir.to_owned())),
                (true, None) => {
                    let bin = find_programs(&cluster.data)?;
                    cluster.init(&bin, runner.as_ref()).await?;
                    let child = cluster.launch(&bin, &log, runner.as_ref())?;
                    cluster.server = Some(Server::Started(child));
                    cluster.take_charge();
                    if let Err(error) = cluster.wait(&log, until).await {
                        // One whose recovery takes longer goes on with it, and is taken over by the next start.
                        cluster.server = None;
                        return Err(error);
                    }
                    cluster.make_database().await?;
                    return Ok(cluster);
                }
                (in_charge, running) if cluster.answers().await => {
                    if let Some(pid) = running.filter(|_| in_charge) {
                        tracing::info!(
                            pid = pid.as_raw_nonzero().get(),
                            "taking over the private PostgreSQL that runs still"
                        );
                        cluster.server = Some(Server::TakenOver(pid));
                        cluster.take_charge();
                        cluster.make_database().await?;
                    }
                    return Ok(cluster);
                }
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
        Err(ClusterError::Start(log))
    }

    /// Whether there are the files of one under a data directory.
    pub(crate) fn is_in(data_dir: &Path) -> bool {
        data_dir.join("postgres").join("PG_VERSION").exists()
    }

    fn take_charge(&self) {
        if let Some(pid) = self.pid() {
            IN_CHARGE_OF.set(pid).ok();
        }
    }

    /// How to connect to its database.
    pub(crate) fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new().socket(&self.sockets).username(USER).database(USER)
    }

    /// The server, if this process is in charge of it and has not seen it end.
    fn pid(&self) -> Option<Pid> {
        match self.server.as_ref()? {
            Server::TakenOver(pid) => Some(*pid),
            Server::Started(child) => Pid::from_raw(i32::try_from(child.id()?).ok()?),
        }
    }

    /// Stops it, if this process is in charge of it.
    pub(crate) async fn stop(mut self) -> Result<(), ClusterError> {
        let Some(pid) = self.pid() else { return Ok(()) };
        for (signal, within) in [(Signal::INT, STOP_WITHIN), (Signal::QUIT, Duration::from_secs(5))] {
            // It may have ended by itself.
            rustix::process::kill_process(pid, signal).ok();
            let until = Instant::now() + within;
            while Instant::now() < until {
                let ended = match &mut self.server {
                    Some(Server::Started(child)) => child.try_wait().is_ok_and(|status| status.is_some()),
                    _ => rustix::process::test_kill_process(pid).is_err(),
                };
                if ended {
                    self.server = None;
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tracing::warn!("the private PostgreSQL takes long to stop");
        }
        self.server = None;
        Ok(())
    }

    /// Makes its files once: beside their place, then renamed, so that a crash leaves nothing half made.
    async fn init(&self, bin: &Path, runner: Option<&Runner>) -> Result<(), ClusterError> {
        if self.data.join("PG_VERSION").exists() {
            return Ok(());
        }
        let draft = self.data.with_extension("new");
        if draft.exists() {
            fs::remove_dir_all(&draft).map_err(io(format!("cannot remove {}", draft.display())))?;
        }
        fs::create_dir(&draft).map_err(io(format!("cannot make {}", draft.display())))?;
        hand_over(&draft, runner)?;
        let mut command = program(&bin.join("initdb"), runner);
        command
            .args(["-U", USER, "-E", "UTF8", "--locale=C", "-A", "trust", "--data-checksums", "-D"])
            .arg(&draft);
        let output = command.kill_on_drop(true).output().await.map_err(io("cannot run initdb"))?;
        if !output.status.success() {
            return Err(ClusterError::Init(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let (wal, owner) = (draft.join("pg_wal"), runner.map(|runner| (runner.uid, runner.gid)));
        let made = tokio::task::spawn_blocking(move || make_wal_segments(&wal, owner)).await;
        made.map_err(|error| std::io::Error::other(error.to_string()))
            .and_then(|made| made)
            .map_err(io("cannot make segments of the write-ahead log"))?;
        fs::rename(&draft, &self.data).map_err(io(format!("cannot make {}", self.data.display())))
    }

    fn launch(&self, bin: &Path, log: &Path, runner: Option<&Runner>) -> Result<Child, ClusterError> {
        let cannot_log = || io(format!("cannot write {}", log.display()));
        let output = File::options().create(true).append(true).open(log).map_err(cannot_log())?;
        let errors = output.try_clone().map_err(cannot_log())?;
        let mut command = program(&bin.join("postgres"), runner);
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.sockets);
        for setting in SETTINGS {
            command.arg("-c").arg(setting);
        }
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        command.spawn().map_err(io("cannot run postgres"))
    }

    /// Whether it takes connections.
    async fn answers(&self) -> bool {
        match self.options().database("postgres").connect().await {
            Ok(connection) => {
                connection.close().await.ok();
                true
            }
            Err(_) => false,
        }
    }

    /// Waits until the one that was started here takes connections.
    async fn wait(&mut self, log: &Path, until: Instant) -> Result<(), ClusterError> {
        while Instant::now() < until {
            if self.answers().await {
                return Ok(());
            }
            if let Some(Server::Started(child)) = &mut self.server
                && child.try_wait().is_ok_and(|status| status.is_some())
            {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(ClusterError::Start(log.to_owned()))
    }

    async fn make_database(&self) -> Result<(), ClusterError> {
        let mut connection = self.options().database("postgres").connect().await?;
        let known = sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1")
            .bind(USER)
            .fetch_optional(&mut connection)
            .await?;
        if known.is_none() {
            connection.execute("CREATE DATABASE tidemark").await?;
        }
        connection.close().await?;
        Ok(())
    }

    /// The server that runs on these files already, by its pid file.
    fn running(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
        // Another process may have got the number of one that died, also another PostgreSQL: each works in its directory.
        let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let name = fs::read_to_string(process.join("comm")).ok();
        let is_postgres = name.is_none_or(|name| name.trim() == "postgres")
            && fs::read_link(process.join("cwd")).ok().is_none_or(|dir| dir == self.data);
        (is_postgres && rustix::process::test_kill_process(pid).is_ok()).then_some(pid)
    }
}

/// What differs from PostgreSQL's defaults; durability does not.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "max_connections=200",
    "shared_buffers=256MB",
    "wal_buffers=16MB",
    "max_wal_size=1GB",
    "min_wal_size=1GB",
    "checkpoint_timeout=15min",
    "checkpoint_completion_target=0.9",
    // What is written goes to the disk bit by bit: a checkpoint that has all of it to sync makes commits wait.
    "backend_flush_after=256kB",
    "bgwriter_flush_after=256kB",
    "bgwriter_delay=20ms",
    "bgwriter_lru_maxpages=1000",
    "effective_io_concurrency=64",
    "random_page_cost=1.1",
    "work_mem=16MB",
    "maintenance_work_mem=128MB",
    "jit=off",
    "autovacuum_naptime=20s",
    "log_min_duration_statement=1s",
    // What is bound may be a password's hash, and a batch of rows is megabytes.
    "log_parameter_max_length=0",
    "log_checkpoints=off",
];

/// Makes the write-ahead log's next segments, which PostgreSQL takes into use as it takes recycled ones. It would make
/// each when a commit needs it, and that commit would wait for tens of milliseconds
/// (`docs/decisions/0003-wal-segments-made-ahead.md`). `initdb` leaves the first.
fn make_wal_segments(wal: &Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    let zeros = vec![0; WAL_SEGMENT_BYTES];
    for segment in 2..=WAL_SEGMENTS {
        let path = wal.join(format!("0000000100000000{segment:08X}"));
        let mut file = File::options().create_new(true).write(true).mode(0o600).open(&path)?;
        file.write_all(&zeros)?;
        file.sync_all()?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(&path, Some(user), Some(group))?;
        }
    }
    Ok(())
}

fn try_lock(path: &Path) -> Result<Option<File>, ClusterError> {
    let cannot = |error| ClusterError::Unwritable { path: path.to_owned(), error };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

/// The directory of the socket: under the data directory, unless its path is too long for one.
fn socket_dir(data_dir: &Path, runner: Option<&Runner>) -> Result<PathBuf, ClusterError> {
    let near = data_dir.join("run");
    let dir = if near.as_os_str().len() <= MAX_SOCKET_DIR {
        near
    } else {
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data_dir.as_os_str().as_encoded_bytes());
        let name: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        std::env::temp_dir().join(format!("tidemark-{name}"))
    };
    fs::create_dir_all(&dir).map_err(io(format!("cannot make {}", dir.display())))?;
    hand_over(&dir, runner)?;
    Ok(dir)
}

/// Gives a directory to whoever runs the server, and to nobody else.
fn hand_over(dir: &Path, runner: Option<&Runner>) -> Result<(), ClusterError> {
    let cannot = || io(format!("cannot hand over {}", dir.display()));
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(cannot())?;
    if let Some(runner) = runner {
        std::os::unix::fs::chown(dir, Some(runner.uid), Some(runner.gid)).map_err(cannot())?;
    }
    Ok(())
}

fn program(path: &Path, runner: Option<&Runner>) -> Command {
    let mut command = std::process::Command::new(path);
    // A server must not keep a directory alive that it cannot even enter.
    command.current_dir("/").env("LC_ALL", "C");
    if let Some(runner) = runner {
        command.uid(runner.uid).gid(runner.gid);
    }
    command.into()
}

/// Who runs the server: nobody in particular, unless this program is root.
fn runner() -> Result<Option<Runner>, ClusterError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(io("cannot read /etc/passwd"))?;
    let find = |wanted: &str| {
        users.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let (name, uid, gid) =
                (*fields.first()?, fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
            (name == wanted).then(|| Runner { name: name.to_owned(), uid, gid })
        })
    };
    find("postgres").or_else(|| find("nobody")).map(Some).ok_or(ClusterError::NobodyToRunIt)
}

/// The directory of PostgreSQL's server programs: of the release that the data are of, or, where there are none yet, the
/// newest.
fn find_programs(data: &Path) -> Result<PathBuf, ClusterError> {
    let complete = |dir: &Path| dir.join("postgres").exists() && dir.join("initdb").exists();
    // 0 where the path does not say which release it is.
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (root, suffix) in
        [("/usr/lib/postgresql", "bin"), ("/opt/homebrew/opt", "bin"), ("/usr/local/opt", "bin")]
    {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let version = name.strip_prefix("postgresql@").unwrap_or(&name).parse().unwrap_or(0);
            if root.ends_with("opt") && !name.starts_with("postgresql") {
                continue;
            }
            found.push((version, entry.path().join(suffix)));
        }
    }
    found.sort_by(|one, other| other.cmp(one));
    let on_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).map(|dir| (0, dir)).collect::<Vec<_>>())
        .unwrap_or_default();
    found.extend(on_path);
    found.retain(|(_, dir)| complete(dir));
    let of_data: Option<u32> =
        fs::read_to_string(data.join("PG_VERSION")).ok().and_then(|text| text.trim().parse().ok());
    choose(&found, of_data)
}

/// One whose release is known and right, else one whose release is not known; without data, the first.
fn choose(found: &[(u32, PathBuf)], of_data: Option<u32>) -> Result<PathBuf, ClusterError> {
    let newest = found.first().ok_or(ClusterError::NotInstalled)?;
    let Some(wanted) = of_data else { return Ok(newest.1.clone()) };
    let of = |version: u32| found.iter().find(move |(found, _)| *found == version);
    match of(wanted).or_else(|| of(0)) {
        Some((_, dir)) => Ok(dir.clone()),
        None => Err(ClusterError::WrongRelease { wanted, found: newest.0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_those_of_the_data() {
        let found = |versions: &[u32]| -> Vec<(u32, PathBuf)> {
            versions.iter().map(|version| (*version, PathBuf::from(version.to_string()))).collect()
        };
        let chosen = |versions: &[u32], of_data| {
            choose(&found(versions), of_data).map(|dir| dir.to_string_lossy().into_owned())
        };
        assert_eq!(chosen(&[17, 15], None).unwrap(), "17");
        assert_eq!(chosen(&[17, 15], Some(15)).unwrap(), "15");
        assert_eq!(chosen(&[17, 0], Some(15)).unwrap(), "0");
        assert!(matches!(chosen(&[17], Some(15)), Err(ClusterError::WrongRelease { wanted: 15, found: 17 })));
        assert!(matches!(chosen(&[], None), Err(ClusterError::NotInstalled)));
    }
}
