//! Stands on the way to a server and breaks it: cuts connections, delays what passes, holds it back, or loses the
//! answers of what the server has done.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::ChaosError;

/// What it does to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Lets it pass.
    Fair,
    /// Ends all connections, and each new one.
    Cut,
    /// Lets it pass later.
    Slow(Duration),
    /// Holds it back; later all of it passes.
    Held,
    /// Lets requests pass, and ends a connection where an answer comes.
    Answerless,
}

/// A link to one server.
#[derive(Debug)]
pub(crate) struct Link {
    port: u16,
    weather: watch::Sender<Weather>,
    accepting: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Link {
    /// Listens on a port of its own and passes on to the one that a file says, whenever somebody connects: the server
    /// may not be there yet.
    ///
    /// # Errors
    /// [`ChaosError::Io`] when no port is to be had.
    pub(crate) async fn to(server: PathBuf) -> Result<Self, ChaosError> {
        let what = || ChaosError::io("opening a link");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(what())?;
        let port = listener.local_addr().map_err(what())?.port();
        let (weather, forecast) = watch::channel(Weather::Fair);
        let accepting = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => drop(tokio::spawn(pass(client, server.clone(), forecast.clone()))),
                    // No descriptors, say: it may pass.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        Ok(Self { port, weather, accepting })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes what it does.
    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn pass(mut client: TcpStream, server: PathBuf, mut forecast: watch::Receiver<Weather>) {
    if *forecast.borrow() == Weather::Cut {
        return;
    }
    let port = std::fs::read_to_string(server).ok().and_then(|text| text.trim().parse::<u16>().ok());
    let Some(port) = port else { return };
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (mut asked, mut told) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            changed = forecast.changed() => {
                if changed.is_err() || *forecast.borrow() == Weather::Cut {
                    return;
                }
            }
            read = client.read(&mut asked) => {
                let Ok(read @ 1..) = read else { return };
                if !weathered(&mut forecast).await || server.write_all(&asked[..read]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut told) => {
                let Ok(read @ 1..) = read else { return };
                if *forecast.borrow() == Weather::Answerless
                    || !weathered(&mut forecast).await
                    || client.write_all(&told[..read]).await.is_err()
                {
                    return;
                }
            }
        }
    }
}

/// Waits as long as the weather asks for; `false` when the connection is to end.
async fn weathered(forecast: &mut watch::Receiver<Weather>) -> bool {
    loop {
        let weather = *forecast.borrow_and_update();
        match weather {
            Weather::Fair | Weather::Answerless => return true,
            Weather::Cut => return false,
            Weather::Slow(by) => {
                tokio::time::sleep(by).await;
                return true;
            }
            Weather::Held => {
                if forecast.changed().await.is_err() {
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = client.split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                });
            }
        });
        port
    }

    async fn said(stream: &mut TcpStream) -> Option<u8> {
        stream.write_all(b"x").await.ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        Some(byte[0])
    }

    #[tokio::test]
    async fn a_link_does_what_it_is_told() {
        let server = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(server.path(), echo().await.to_string()).unwrap();
        let link = Link::to(server.path().to_owned()).await.unwrap();
        let connect = || TcpStream::connect(("127.0.0.1", link.port()));
        let mut stream = connect().await.unwrap();
        assert_eq!(said(&mut stream).await, Some(b'x'));
        link.set(Weather::Held);
        let held = tokio::time::timeout(Duration::from_millis(100), said(&mut stream)).await;
        assert!(held.is_err(), "nothing passes");
        link.set(Weather::Fair);
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        link.set(Weather::Answerless);
        assert_eq!(said(&mut stream).await, None, "the answer is lost");
        link.set(Weather::Cut);
        assert_eq!(said(&mut connect().await.unwrap()).await, None);
        link.set(Weather::Fair);
        assert_eq!(said(&mut connect().await.unwrap()).await, Some(b'x'));
    }
}
