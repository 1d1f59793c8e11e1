//! `scripts/setup` for somebody who is not root: it installs nothing, and says the one line to type.
//!
//! What is there is a PATH of the test's own, so it does not matter what this machine has; but for three programs that
//! the script looks for in their usual places, too. For root it is not run: that would change the machine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

/// The user and the group that own nothing.
const NOBODY: u32 = 65_534;

/// What the script may be called with.
const ALL: &[&str] = &["", "test", "cluster", "bench"];

/// What runs the cluster.
const CLUSTER: &[&str] = &["test", "cluster", "bench"];

/// What the script asks for, in its order.
struct Package {
    /// The programs that tell that it is there.
    programs: &'static [&'static str],
    debian: &'static str,
    brew: &'static str,
    /// Which calls need it.
    calls: &'static [&'static str],
}

const fn package(
    programs: &'static [&'static str],
    debian: &'static str,
    brew: &'static str,
    calls: &'static [&'static str],
) -> Package {
    Package { programs, debian, brew, calls }
}

const PACKAGES: &[Package] = &[
    package(&["cc", "make"], "build-essential", "gcc", ALL),
    package(&["pkg-config"], "pkg-config", "pkgconf", ALL),
    package(&["pkg-config"], "libssl-dev", "openssl@3", ALL),
    package(&["pkg-config"], "zlib1g-dev", "zlib", ALL),
    package(&["postgres"], "postgresql", "postgresql@17", ALL),
    package(&["java"], "default-jre-headless", "openjdk", CLUSTER),
    package(&["mvn"], "maven", "maven", CLUSTER),
    package(&["redis-server"], "redis-server", "redis", CLUSTER),
    package(&["pgbouncer"], "pgbouncer", "pgbouncer", CLUSTER),
    package(&["nginx"], "nginx-light", "nginx", CLUSTER),
    package(&["curl"], "curl", "curl", CLUSTER),
    package(&["openssl"], "openssl", "openssl@3", CLUSTER),
    package(&["python3"], "python3-venv", "python", &["test"]),
    package(&["chromium"], "chromium", "chromium", &["test"]),
    package(&["pgrep"], "procps", "procps", &["test"]),
    package(&["wrk"], "wrk", "wrk", &["bench"]),
];

/// Every program that a package brings.
fn programs() -> Vec<&'static str> {
    let mut programs: Vec<_> = PACKAGES.iter().flat_map(|package| package.programs).copied().collect();
    programs.dedup();
    programs
}

/// Whether the script finds a program on this machine, whatever PATH is.
fn is_elsewhere(program: &str) -> bool {
    let server_in = |folder: &str, begin: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(begin));
        named.any(|entry| entry.path().join("bin/postgres").exists())
    };
    match program {
        "postgres" => {
            server_in("/usr/lib/postgresql", "")
                || server_in("/opt/homebrew/opt", "postgresql")
                || server_in("/usr/local/opt", "postgresql")
        }
        "pgbouncer" | "nginx" => Path::new("/usr/sbin").join(program).exists(),
        _ => false,
    }
}

/// What a call must ask for where these programs are not in PATH.
fn wanted(call: &str, missing: &[&str]) -> Vec<&'static Package> {
    let is_missing = |program: &&str| missing.contains(program) && !is_elsewhere(program);
    let is_wanted =
        |package: &&Package| package.calls.contains(&call) && package.programs.iter().any(is_missing);
    PACKAGES.iter().filter(is_wanted).collect()
}

/// Each once: what is two packages for one system may be one for another.
fn names(packages: &[&Package], name: fn(&Package) -> &'static str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for package in packages {
        if !names.contains(&name(package)) {
            names.push(name(package));
        }
    }
    names.join(" ")
}

/// What somebody on Debian is told: the exit code and the words.
fn on_debian(packages: &[&Package]) -> (i32, String) {
    if packages.is_empty() {
        return (0, String::new());
    }
    (1, format!("Missing. Type: sudo apt-get install {}\n", names(packages, |package| package.debian)))
}

/// A program of this machine's.
fn found(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|place| place.join(name)).find(|program| program.exists()).unwrap()
}

/// Somebody's machine: the script, and all that is in PATH.
struct Machine {
    folder: TempDir,
    /// While one test writes a program, another must not start one: it would have the file open for writing, too, and
    /// what is open for writing cannot be run.
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// A Linux with Rust and these programs, which do nothing and succeed.
    fn with(programs: &[&str]) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = Self { folder: tempfile::tempdir().unwrap(), _alone: alone };
        let script = machine.folder.path().join("setup");
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/setup"), &script).unwrap();
        // Nobody can read it there; the repository may lie where only its owner can.
        for path in [machine.folder.path(), script.as_path()] {
            set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        symlink(found("id"), machine.folder.path().join("id")).unwrap();
        machine.add("uname", "echo Linux");
        for program in ["cargo"].iter().chain(programs) {
            machine.add(program, "");
        }
        machine
    }

    /// The same with Debian's way to install things, and no use of it that would not be noticed.
    fn debian(programs: &[&str]) -> Self {
        let machine = Self::with(programs);
        for program in ["apt-get", "sudo"] {
            machine.add(program, "echo \"$0 $*\" >&2");
        }
        machine
    }

    /// Puts a program of a line there, in the place of the one that was.
    fn add(&self, name: &str, line: &str) {
        let path = self.folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    /// Runs the script as somebody who is not root; its exit code, and what it says.
    fn setup(&self, call: &str) -> (i32, String) {
        let folder = self.folder.path();
        let mut command = Command::new(found("bash"));
        command.arg(folder.join("setup")).args(call.split_whitespace());
        command.env_clear().env("PATH", folder).current_dir(folder);
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{call}");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn who_has_everything_is_told_nothing() {
    let machine = Machine::debian(&programs());
    for call in ALL {
        assert_eq!(machine.setup(call), (0, String::new()), "setup {call}");
    }
    for other in ["chromium-browser", "google-chrome"] {
        machine.remove("chromium");
        machine.add(other, "");
        assert_eq!(machine.setup("test"), (0, String::new()), "{other}");
        machine.remove(other);
        machine.add("chromium", "");
    }
}

#[test]
fn who_is_not_root_is_told_the_one_line_to_type_and_nothing_is_installed() {
    let machine = Machine::debian(&[]);
    for call in ALL {
        let (code, words) = machine.setup(call);
        assert_ne!(code, 0, "setup {call}");
        assert_eq!((code, words), on_debian(&wanted(call, &programs())), "setup {call}");
    }
}

#[test]
fn what_is_missing_is_named_and_nothing_else() {
    for missing in programs() {
        let others: Vec<&str> = programs().into_iter().filter(|program| *program != missing).collect();
        let machine = Machine::debian(&others);
        for call in ALL {
            let expected = on_debian(&wanted(call, &[missing]));
            assert_eq!(machine.setup(call), expected, "setup {call} without {missing}");
        }
    }
}

#[test]
fn libraries_are_asked_for_and_not_only_who_knows_of_them() {
    let machine = Machine::debian(&programs());
    let told = |packages: &str| (1, format!("Missing. Type: sudo apt-get install {packages}\n"));
    machine.add("pkg-config", "[ \"$*\" = '--exists openssl' ]");
    assert_eq!(machine.setup(""), told("zlib1g-dev"));
    machine.add("pkg-config", "[ \"$*\" = '--exists zlib' ]");
    assert_eq!(machine.setup(""), told("libssl-dev"));
    machine.add("pkg-config", "");
    // Debian's Python comes without what makes environments of it.
    machine.add("python3", "exit 1");
    assert_eq!(machine.setup("test"), told("python3-venv"));
    assert_eq!(machine.setup("cluster"), (0, String::new()));
}

#[test]
fn other_systems_are_told_the_same_in_their_own_words() {
    let machine = Machine::with(&[]);
    for call in ALL {
        let packages = names(&wanted(call, &programs()), |package| package.debian);
        let words =
            format!("Missing: {packages}. Install it with your system's packages, then run this again.\n");
        assert_eq!(machine.setup(call), (1, words), "setup {call}");
    }
    machine.add("brew", "echo \"$0 $*\" >&2");
    for (system, has_zlib) in [("Linux", false), ("Darwin", true)] {
        machine.add("uname", &format!("echo {system}"));
        for call in ALL {
            let mut packages = wanted(call, &programs());
            packages.retain(|package| !(has_zlib && package.brew == "zlib"));
            let packages = names(&packages, |package| package.brew);
            let words = format!("Missing. Type: brew install {packages}\n");
            assert_eq!(machine.setup(call), (1, words), "setup {call} on {system}");
        }
    }
}

#[test]
fn without_rust_nothing_else_is_asked_for() {
    let machine = Machine::debian(&[]);
    machine.remove("cargo");
    for call in ALL {
        let words = "Rust is missing: install it with rustup (rustup.rs), then run this again.\n".to_owned();
        assert_eq!(machine.setup(call), (1, words), "setup {call}");
    }
}
