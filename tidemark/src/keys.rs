//! The key that signs access tokens: made under the data directory, or a secret from the environment.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tidemark_http::access::generate_ed25519;
use tidemark_http::{Access, Issuer};

use crate::Failure;
use crate::config::TokenKeyOptions;

const FILE: &str = "keys/access-ed25519.pk8";

/// What verifies tokens; makes the key if there is none.
pub(crate) fn access(data_dir: &Path, options: &TokenKeyOptions) -> Result<Access, Failure> {
    match &options.token_secret {
        Some(secret) => Access::hs256(secret.as_bytes()).map_err(|error| wrong_secret(&error)),
        None => {
            let key = load_or_make(data_dir)?;
            Access::eddsa(&key).map_err(|error| wrong_file(data_dir, &error))
        }
    }
}

/// What signs tokens; there must be a key.
pub(crate) fn issuer(data_dir: &Path, options: &TokenKeyOptions) -> Result<Issuer, Failure> {
    match &options.token_secret {
        Some(secret) => Issuer::hs256(secret.as_bytes()).map_err(|error| wrong_secret(&error)),
        None => {
            let path = data_dir.join(FILE);
            let key = fs::read(&path).map_err(|error| {
                let hint = "`tidemark up` makes it; is --data-dir the same?";
                Failure::Configuration(format!("cannot read the key {}: {error}. {hint}", path.display()))
            })?;
            Issuer::eddsa(&key).map_err(|error| wrong_file(data_dir, &error))
        }
    }
}

fn wrong_secret(error: &tidemark_http::access::KeyError) -> Failure {
    Failure::Configuration(format!("TIDEMARK_TOKEN_SECRET: {error}"))
}

fn wrong_file(data_dir: &Path, error: &tidemark_http::access::KeyError) -> Failure {
    Failure::Configuration(format!("{}: {error}", data_dir.join(FILE).display()))
}

fn load_or_make(data_dir: &Path) -> Result<Vec<u8>, Failure> {
    let path = data_dir.join(FILE);
    match fs::read(&path) {
        Ok(key) => return Ok(key),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::Io(format!("cannot read {}", path.display()), error)),
    }
    let directory = data_dir.join("keys");
    let cannot = |path: &Path| format!("cannot write {}", path.display());
    fs::create_dir_all(&directory).map_err(Failure::io(cannot(&directory)))?;
    let key = generate_ed25519().map_err(|error| Failure::Configuration(error.to_string()))?;
    // Whole or not at all: written beside it, then renamed.
    let draft = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(Failure::io(cannot(&draft)))?;
    file.write_all(&key).and_then(|()| file.sync_all()).map_err(Failure::io(cannot(&draft)))?;
    fs::rename(&draft, &path).map_err(Failure::io(cannot(&path)))?;
    Ok(key)
}
