//! What a run of these tests leaves behind: the words of every process that was started, and every secret that was used.
//! `scripts/logs-check` looks for the ones in the others when all tests are done; tests look for their own.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;
use tokio::process::{Child, Command};

/// Shorter texts are found by chance.
const LEAST: usize = 12;

/// How much of a long secret's beginning and end is looked for: it may have been cut.
const PART: usize = 20;

/// Members of requests and answers that hold secrets.
const MEMBERS: [&str; 9] = [
    "password",
    "current_password",
    "token",
    "access_token",
    "refresh_token",
    "recovery_code",
    "recovery_codes",
    "secret",
    "url",
];

/// The folder of this run. The one of the run before is gone.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shop");
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(folder.join("logs")).unwrap();
    folder
});

static SECRETS: LazyLock<Mutex<(HashSet<String>, File)>> = LazyLock::new(|| {
    let file = File::options().create(true).append(true).open(patterns()).unwrap();
    Mutex::new((HashSet::new(), file))
});

/// The file with what must stand in no log, a line each.
pub(crate) fn patterns() -> PathBuf {
    FOLDER.join("secrets")
}

/// Writes down a secret that a test uses.
pub(crate) fn secret(text: &str) {
    if text.len() < LEAST || text.contains(['\n', '\r']) {
        return;
    }
    let mut secrets = SECRETS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if secrets.0.insert(text.to_owned()) {
        // A token without a signature has none: an empty line would be found everywhere.
        let lines: String = forms(text).into_iter().map(|form| form + "\n").collect();
        secrets.1.write_all(lines.as_bytes()).unwrap();
    }
}

/// How a secret may look in a log: whole, cut, in base64 and in hexadecimal.
fn forms(text: &str) -> Vec<String> {
    // Of a token, what says who and what it is for is no secret, its signature is.
    let is_token = text.starts_with("ey") && text.matches('.').count() == 2;
    let text = if is_token { text.rsplit('.').next().unwrap_or_default() } else { text };
    let letters: Vec<char> = text.chars().collect();
    let mut forms = vec![text.to_owned(), hex(text.as_bytes())];
    if letters.len() > PART {
        forms.push(letters[..PART].iter().collect());
        forms.push(letters[letters.len() - PART..].iter().collect());
    }
    forms.push(STANDARD_NO_PAD.encode(text));
    forms.push(URL_SAFE_NO_PAD.encode(text));
    forms.retain(|form| form.len() >= LEAST);
    forms
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes down the secrets in a request or an answer.
pub(crate) fn secrets_in(value: &Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if MEMBERS.contains(&name.as_str()) => secret(text),
                    Value::Array(texts) if MEMBERS.contains(&name.as_str()) => {
                        texts.iter().filter_map(Value::as_str).for_each(secret);
                    }
                    other => secrets_in(other),
                }
            }
        }
        Value::Array(members) => members.iter().for_each(secrets_in),
        _ => {}
    }
}

/// A file for what a process says.
pub(crate) fn words(name: &str) -> (PathBuf, File) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = FOLDER.join("logs").join(format!("{number:04}-{name}.log"));
    let file = File::create(&path).unwrap();
    (path, file)
}

/// Files under `places` in which one of the patterns in a file stands, in whatever case, and what was found first.
pub(crate) async fn found(patterns: &Path, places: &[PathBuf]) -> Vec<String> {
    let grep = async |flags: &[&str]| {
        let mut grep = Command::new("grep");
        grep.env("LC_ALL", "C").args(["-r", "-a", "-i", "-F"]).args(flags).arg("-f").arg(patterns);
        // Files may go away while they are read; anything else that is wrong is told by an exit code above 1.
        let output = grep.arg("--").args(places).output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let gone = told.lines().all(|line| line.ends_with("No such file or directory"));
        assert!(output.status.code().is_some_and(|code| code <= 1 || gone), "{told}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let files = grep(&["-l"]).await;
    if files.is_empty() {
        return Vec::new();
    }
    let what = grep(&["-o", "-m", "1"]).await;
    files.lines().chain(what.lines().take(20)).map(str::to_owned).collect()
}

/// A program whose words are kept.
pub(crate) struct Program {
    command: Command,
    name: String,
}

impl Program {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.kill_on_drop(true);
        Self { command, name: String::new() }
    }

    pub(crate) fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        if self.name.is_empty() {
            self.name = argument.as_ref().to_string_lossy().replace(['/', ' '], "-");
        }
        self.command.arg(argument);
        self
    }

    pub(crate) fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        for argument in arguments {
            self.arg(argument);
        }
        self
    }

    pub(crate) fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn envs(
        &mut self,
        variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        self.command.envs(variables);
        self
    }

    pub(crate) fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.command.env_remove(name);
        self
    }

    /// Starts it.
    pub(crate) fn spawn(&mut self) -> std::io::Result<Child> {
        self.spawn_with_words().map(|(child, _)| child)
    }

    /// Starts it, and says where its words are.
    pub(crate) fn spawn_with_words(&mut self) -> std::io::Result<(Child, PathBuf)> {
        let (path, file) = words(&self.name);
        Ok((self.command.stderr(file).spawn()?, path))
    }

    /// Runs it until it ends, or for so long, and says where all that it said is.
    pub(crate) async fn run_for(&mut self, time: Duration) -> [PathBuf; 2] {
        let ((said, stdout), (complained, stderr)) = (words(&self.name), words(&self.name));
        let mut child = self.command.stdout(stdout).stderr(stderr).spawn().unwrap();
        if tokio::time::timeout(time, child.wait()).await.is_err() {
            child.kill().await.unwrap();
        }
        [said, complained]
    }

    /// Waits until it has ended.
    pub(crate) async fn output(&mut self) -> std::io::Result<Output> {
        let output = self.command.stderr(Stdio::piped()).output().await?;
        words(&self.name).1.write_all(&output.stderr)?;
        Ok(output)
    }
}
