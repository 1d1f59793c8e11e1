//! Programs that are run, and how they end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::BenchError;

/// How much of what a program said is shown when it fails.
const SHOWN_BYTES: usize = 4_000;

/// Runs a program to its end and returns what it printed. It is killed when the future is dropped.
pub(crate) async fn output(command: Command) -> Result<String, BenchError> {
    let program = name(&command);
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(BenchError::io(format!("running {program}")))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let said = printed + &String::from_utf8_lossy(&output.stderr);
    let shown = said.floor_char_boundary(said.len().saturating_sub(SHOWN_BYTES));
    Err(BenchError::Program { program, status: output.status.to_string(), output: said[shown..].to_owned() })
}

/// The program's name, for messages.
pub(crate) fn name(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}

/// The end of a file, for messages.
pub(crate) fn end_of(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(SHOWN_BYTES as u64);
        file.seek(SeekFrom::Start(from))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&end).into_owned())
    };
    read().unwrap_or_else(|error| format!("({} cannot be read: {error})", path.display()))
}

/// Sends a signal, `TERM` or `INT` or `0`, to a process by its id; whether there is one.
pub(crate) fn signal(signal: &str, process: u32) -> bool {
    let sent = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(process.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    sent.is_ok_and(|status| status.success())
}

/// The resident memory of a process in bytes, `None` if there is no such process.
pub(crate) async fn resident_bytes(process: u32) -> Option<u64> {
    let mut command = Command::new("ps");
    command.args(["-o", "rss=", "-p"]).arg(process.to_string());
    let kibibytes: u64 = output(command).await.ok()?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
