//! The members of a cluster: started, killed, paused and watched over, as an operator's supervisor would.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::error::ChaosError;

/// How long all members may take to come up, the first time.
const START_WITHIN: Duration = Duration::from_secs(180);

/// How long an orderly end may take.
const STOP_WITHIN: Duration = Duration::from_secs(120);

/// How long launching one member may take; it need not be ready then.
const LAUNCH_WITHIN: Duration = Duration::from_secs(30);

/// How often the supervisor looks whether everybody runs.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A PostgreSQL or nginx that was killed may refuse to start while what it left behind is still ending.
const FORGIVEN_FOR: Duration = Duration::from_secs(20);

/// How long a process that was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// How much of a member's log is shown.
const SHOWN_BYTES: u64 = 2_000;

/// Where a cluster is, and what it is made of.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Holds everything it writes.
    pub(crate) dir: PathBuf,
    /// `scripts/cluster`.
    pub(crate) script: PathBuf,
    /// The program of its services.
    pub(crate) program: PathBuf,
    /// The first of its ports.
    pub(crate) first_port: u16,
    /// More of its environment.
    pub(crate) environment: Vec<(String, String)>,
}

/// A cluster that runs.
#[derive(Debug)]
pub(crate) struct Cluster {
    settings: Settings,
    members: Vec<String>,
    watched: Mutex<BTreeMap<String, Watched>>,
    /// Nobody is launched any more.
    over: CancellationToken,
}

/// What the supervisor knows of a member.
#[derive(Debug, Default)]
struct Watched {
    /// Kept from running, on purpose.
    away: bool,
    /// When it was killed last.
    killed: Option<Instant>,
    /// It is being launched.
    launching: bool,
    /// Ends that nobody asked for, with what it said last.
    ended_by_itself: Vec<String>,
}

impl Cluster {
    /// Starts all members and waits until they are ready.
    ///
    /// # Errors
    /// [`ChaosError::Script`] with what the script said.
    pub(crate) async fn start(settings: Settings) -> Result<Arc<Self>, ChaosError> {
        script(&settings, &["start", &settings.program.to_string_lossy()], START_WITHIN).await?;
        let printed = script(&settings, &["members"], LAUNCH_WITHIN).await?;
        let members: Vec<String> = printed.split_whitespace().map(str::to_owned).collect();
        let watched = members.iter().map(|member| (member.clone(), Watched::default())).collect();
        Ok(Arc::new(Self { settings, members, watched: Mutex::new(watched), over: CancellationToken::new() }))
    }

    /// Ends all members in order.
    ///
    /// # Errors
    /// [`ChaosError::Script`].
    pub(crate) async fn stop(&self) -> Result<(), ChaosError> {
        self.over.cancel();
        // Whoever holds the lock has not seen that it is over, and may still pause or launch somebody.
        drop(self.lock());
        let end = Instant::now() + LAUNCH_WITHIN;
        while self.is_launching() && Instant::now() < end {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // Who is paused cannot end in order.
        for member in &self.members {
            self.go_on(member);
        }
        script(&self.settings, &["stop"], STOP_WITHIN).await.map(drop)
    }

    /// Ends what a start that failed has left.
    ///
    /// # Errors
    /// [`ChaosError::Script`].
    pub(crate) async fn stop_whatever_runs(settings: &Settings) -> Result<(), ChaosError> {
        script(settings, &["stop"], STOP_WITHIN).await.map(drop)
    }

    /// The members' names.
    pub(crate) fn members(&self) -> &[String] {
        &self.members
    }

    /// Whether there is a member of that name.
    pub(crate) fn has(&self, member: &str) -> bool {
        self.members.iter().any(|name| name == member)
    }

    /// Members whose names begin so.
    pub(crate) fn like(&self, beginning: &str) -> Vec<String> {
        self.members.iter().filter(|name| name.starts_with(beginning)).cloned().collect()
    }

    /// The directory that holds everything of it.
    pub(crate) fn dir(&self) -> &Path {
        &self.settings.dir
    }

    /// A member's program and its arguments; nothing if it does not run.
    pub(crate) fn command_line(&self, member: &str) -> Vec<String> {
        self.process(member).map(command_line).unwrap_or_default()
    }

    /// A member may end for a reason of ours, without being killed.
    pub(crate) fn forgive(&self, member: &str) {
        self.watch(member, |watched| watched.killed = Some(Instant::now()));
    }

    /// The port a member listens on.
    ///
    /// # Errors
    /// [`ChaosError::Io`] when it has none.
    pub(crate) fn port(&self, member: &str) -> Result<u16, ChaosError> {
        let path = self.settings.dir.join(format!("{member}.port"));
        let text =
            fs::read_to_string(&path).map_err(ChaosError::io(format!("reading {}", path.display())))?;
        text.trim().parse().map_err(|_| ChaosError::Wrong(format!("{} holds no port", path.display())))
    }

    /// Where clients go: nginx.
    pub(crate) fn front(&self) -> String {
        format!("http://127.0.0.1:{}", self.settings.first_port)
    }

    /// The secret that tokens are signed with.
    ///
    /// # Errors
    /// [`ChaosError::Io`].
    pub(crate) fn secret(&self) -> Result<String, ChaosError> {
        self.line("secret")
    }

    /// The key that the keys of personal data are wrapped with.
    ///
    /// # Errors
    /// [`ChaosError::Io`].
    pub(crate) fn master_key(&self) -> Result<String, ChaosError> {
        self.line("master.key")
    }

    fn line(&self, file: &str) -> Result<String, ChaosError> {
        let path = self.settings.dir.join(file);
        let text =
            fs::read_to_string(&path).map_err(ChaosError::io(format!("reading {}", path.display())))?;
        Ok(text.trim().to_owned())
    }

    /// A member's process, if it runs.
    pub(crate) fn process(&self, member: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.settings.dir.join(format!("{member}.pid"))).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
        runs(pid).then_some(pid)
    }

    /// Kills a member as a crash would; the supervisor launches it again at once. Whether it ran.
    pub(crate) async fn kill(&self, member: &str) -> bool {
        self.watch(member, |watched| watched.killed = Some(Instant::now()));
        let Some(pid) = self.process(member) else { return false };
        end(pid).await;
        true
    }

    /// Kills a member with all processes below it. Whether it ran.
    pub(crate) async fn kill_tree(&self, member: &str) -> bool {
        let tree = self.process(member).map(tree_of).unwrap_or_default();
        let killed = self.kill(member).await;
        for pid in tree {
            end(pid).await;
        }
        killed
    }

    /// Kills one process below a member, such as one session of a PostgreSQL; which of those whose command line fits.
    /// Whether there was one.
    pub(crate) async fn kill_below(&self, member: &str, fits: &str, choice: usize) -> bool {
        let Some(pid) = self.process(member) else { return false };
        let below: Vec<Pid> =
            tree_of(pid).into_iter().filter(|pid| command_line(*pid).join(" ").contains(fits)).collect();
        let Some(pid) = below.get(choice % below.len().max(1)) else { return false };
        end(*pid).await;
        true
    }

    /// Kills a member and keeps it away until [`Cluster::let_back`]. Whether it ran.
    pub(crate) async fn keep_away(&self, member: &str) -> bool {
        self.watch(member, |watched| watched.away = true);
        self.kill(member).await
    }

    /// Lets the supervisor launch a member again.
    pub(crate) fn let_back(&self, member: &str) {
        self.watch(member, |watched| watched.away = false);
    }

    /// Stops a member and all processes below it from running, without their knowing; nobody once the cluster is being
    /// stopped, when nobody would let it go on. Whether it ran.
    pub(crate) fn pause(&self, member: &str) -> bool {
        let _watched = self.lock();
        !self.is_over() && self.signal_tree(member, Signal::STOP)
    }

    /// Lets a paused member run again.
    pub(crate) fn go_on(&self, member: &str) {
        self.signal_tree(member, Signal::CONT);
    }

    /// Whether it is being stopped, or was.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    fn signal_tree(&self, member: &str, signal: Signal) -> bool {
        let Some(pid) = self.process(member) else { return false };
        for pid in std::iter::once(pid).chain(tree_of(pid)) {
            kill_process(pid, signal).ok();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, member: &str, change: impl FnOnce(&mut Watched)) {
        let mut all = self.lock();
        if let Some(watched) = all.get_mut(member) {
            change(watched);
        }
    }

    /// Launches whoever has ended, at once, until the cluster is stopped.
    pub(crate) async fn supervise(self: Arc<Self>) {
        while !self.over.is_cancelled() {
            for member in &self.members {
                if self.process(member).is_none() && self.begin_launch(member) {
                    let (cluster, member) = (Arc::clone(&self), member.clone());
                    tokio::spawn(async move { cluster.launch(&member).await });
                }
            }
            tokio::time::timeout(LOOK_EVERY, self.over.cancelled()).await.ok();
        }
    }

    fn is_launching(&self) -> bool {
        self.lock().values().any(|watched| watched.launching)
    }

    /// Whether a member that does not run is to be launched now. Notes an end that nobody asked for.
    fn begin_launch(&self, member: &str) -> bool {
        let mut all = self.lock();
        let Some(watched) = all.get_mut(member) else { return false };
        if watched.away || watched.launching || self.over.is_cancelled() {
            return false;
        }
        let left_behind = member.starts_with("postgres") || member == "nginx";
        let forgiven = watched.killed.is_some_and(|at| left_behind && at.elapsed() < FORGIVEN_FOR);
        if watched.killed.take_if(|_| !forgiven).is_none() && !forgiven {
            watched.ended_by_itself.push(self.last_words(member));
        }
        watched.launching = true;
        true
    }

    async fn launch(&self, member: &str) {
        let program = self.settings.program.to_string_lossy();
        if let Err(error) = script(&self.settings, &["launch", member, &program], LAUNCH_WITHIN).await {
            tracing::warn!(member, %error, "cannot launch a member, trying again");
            self.watch(member, |watched| watched.killed = watched.killed.or_else(|| Some(Instant::now())));
        }
        self.watch(member, |watched| watched.launching = false);
    }

    /// The end of a member's log.
    pub(crate) fn last_words(&self, member: &str) -> String {
        let read = || {
            use std::io::{Read, Seek, SeekFrom};
            let mut file = fs::File::open(self.settings.dir.join(format!("{member}.log")))?;
            let from = file.metadata()?.len().saturating_sub(SHOWN_BYTES);
            file.seek(SeekFrom::Start(from))?;
            let mut end = Vec::new();
            file.read_to_end(&mut end)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&end).into_owned())
        };
        let text = read().unwrap_or_else(|error| format!("(no log: {error})"));
        text.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
    }

    /// Members that ended without anybody having killed them, with what they said.
    pub(crate) fn ended_by_themselves(&self) -> Vec<(String, String)> {
        let all = self.lock();
        let ends = |(member, watched): (&String, &Watched)| {
            watched.ended_by_itself.iter().map(|said| (member.clone(), said.clone())).collect::<Vec<_>>()
        };
        all.iter().flat_map(ends).collect()
    }
}

/// Runs the cluster's script and returns what it printed.
async fn script(settings: &Settings, arguments: &[&str], within: Duration) -> Result<String, ChaosError> {
    let mut command = Command::new(&settings.script);
    command
        .args(arguments)
        .env("TIDEMARK_CLUSTER_DIR", &settings.dir)
        .env("TIDEMARK_CLUSTER_PORT", settings.first_port.to_string())
        // All load comes from one address.
        .env("TIDEMARK_LIMITS", "reads=10000000/s,commands=10000000/s")
        .envs(settings.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        // Out of reach of Ctrl-C: a member that it has started and not yet noted would be left running.
        .process_group(0)
        .kill_on_drop(true);
    let output = tokio::time::timeout(within, command.output())
        .await
        .map_err(|_| ChaosError::TooLong(format!("scripts/cluster {} took too long", arguments.join(" "))))?
        .map_err(ChaosError::io(format!("running {}", settings.script.display())))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(ChaosError::Script { command: arguments.join(" "), said })
}

/// State and parent of a process, from `/proc`.
fn status_of(pid: i32) -> Option<(char, i32)> {
    status(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn status(stat: &str) -> Option<(char, i32)> {
    // The name stands in parentheses and may hold anything.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// Whether a process, or what is left of it, still holds what it had open: its first thread may be dead while another
/// one is still ending, and only with the last of them are its sockets closed.
fn runs(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).into_iter().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok())
        .filter_map(|stat| status(&stat))
        .any(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Kills a process and waits until it is gone.
async fn end(pid: Pid) {
    kill_process(pid, Signal::KILL).ok();
    let until = Instant::now() + GONE_WITHIN;
    while runs(pid) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn command_line(pid: Pid) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    words.filter(|word| !word.is_empty()).collect()
}

/// All processes below one.
fn tree_of(root: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten();
    let parents: Vec<(i32, i32)> = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| Some((pid, status_of(pid)?.1)))
        .collect();
    let mut tree = vec![root.as_raw_nonzero().get()];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(parents.iter().filter(|(_, above)| *above == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    tree.into_iter().skip(1).filter_map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_runs_until_the_last_of_its_threads_has_ended() {
        let program = "import ctypes, threading, time\n\
            threading.Thread(target=time.sleep, args=(60,)).start()\n\
            ctypes.CDLL(None).pthread_exit(None)";
        let mut child = std::process::Command::new("python3").args(["-c", program]).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let until = Instant::now() + Duration::from_secs(10);
        while status_of(pid.as_raw_nonzero().get()).unwrap().0 != 'Z' {
            assert!(Instant::now() < until, "its first thread did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(runs(pid), "another thread is there, with all that is open");
        child.kill().unwrap();
        while runs(pid) {
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.wait().unwrap();
    }
}
