//! Programs in the background, as long as somebody holds them.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::{Call, Connection};
use crate::error::BenchError;
use crate::process;

/// A program in the background, killed when dropped.
#[derive(Debug)]
pub(crate) struct Background(Child);

impl Background {
    /// Starts it, with what it says in a file.
    pub(crate) fn start(mut command: Command, said: &Path) -> Result<Self, BenchError> {
        let file = fs::File::create(said).map_err(BenchError::io(format!("making {}", said.display())))?;
        let too = file.try_clone().map_err(BenchError::io("a second handle of a file"))?;
        command.stdin(Stdio::null()).stdout(file).stderr(too).process_group(0);
        let child =
            command.spawn().map_err(BenchError::io(format!("starting {}", process::name(&command))))?;
        Ok(Self(child))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Waits until a service is ready.
pub(crate) async fn wait_for(address: SocketAddr, within: Duration) -> Result<(), BenchError> {
    let end = Instant::now() + within;
    loop {
        if let Ok(mut connection) = Connection::open(address).await
            && connection.send(&Call::get("/readyz")).await.is_ok()
        {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(BenchError::Wrong(format!("nobody answered on {address}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
