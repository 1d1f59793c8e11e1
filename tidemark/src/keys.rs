//! The key that signs access tokens: made under the data directory, or a secret from the environment.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tidemark_http::access::generate_ed25519;
use tidemark_http::{Access, Issuer};

use crate::Failure;
use crate::config::TokenKeyOptions;
use crate::database::unwritable;

const FILE: &str = "keys/access-ed25519.pk8";

/// What verifies tokens; makes the key if there is none.
pub(crate) fn access(data_dir: &Path, options: &TokenKeyOptions) -> Result<Access, Failure> {
    match &options.token_secret {
        Some(secret) => of_secret(secret),
        None => in_directory(data_dir),
    }
}

/// What verifies tokens of a secret.
pub(crate) fn of_secret(secret: &str) -> Result<Access, Failure> {
    Access::hs256(secret.as_bytes()).map_err(|error| wrong_secret(&error))
}

/// What verifies tokens of the key under a directory; makes it if there is none.
pub(crate) fn in_directory(data_dir: &Path) -> Result<Access, Failure> {
    let key = load_or_make(data_dir)?;
    Access::eddsa(&key).map_err(|error| wrong_file(data_dir, &error))
}

/// What signs tokens; there must be a key.
pub(crate) fn issuer(data_dir: &Path, options: &TokenKeyOptions) -> Result<Issuer, Failure> {
    match &options.token_secret {
        Some(secret) => Issuer::hs256(secret.as_bytes()).map_err(|error| wrong_secret(&error)),
        None => {
            let path = data_dir.join(FILE);
            let key = fs::read(&path).map_err(|error| {
                let hint = "`tidemark up` makes it; is --data-dir the same?";
                Failure::Configuration(format!(
                    "TIDEMARK_DATA_DIR (--data-dir): cannot read the key {}: {error}. {hint}",
                    path.display()
                ))
            })?;
            Issuer::eddsa(&key).map_err(|error| wrong_file(data_dir, &error))
        }
    }
}

fn wrong_secret(error: &tidemark_http::access::KeyError) -> Failure {
    Failure::Configuration(format!("TIDEMARK_TOKEN_SECRET: {error}"))
}

fn wrong_file(data_dir: &Path, error: &tidemark_http::access::KeyError) -> Failure {
    let path = data_dir.join(FILE);
    Failure::Configuration(format!("TIDEMARK_DATA_DIR (--data-dir): {} is {error}", path.display()))
}

fn load_or_make(data_dir: &Path) -> Result<Vec<u8>, Failure> {
    let path = data_dir.join(FILE);
    match fs::read(&path) {
        Ok(key) => return Ok(key),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Failure::Configuration(format!(
                "TIDEMARK_DATA_DIR (--data-dir): cannot read the key {}: {error}",
                path.display()
            )));
        }
    }
    let directory = data_dir.join("keys");
    fs::create_dir_all(&directory).map_err(|error| unwritable(&directory, &error))?;
    let key = generate_ed25519().map_err(|error| Failure::Configuration(error.to_string()))?;
    // Whole or not at all: written beside it, then renamed.
    let draft = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(|error| unwritable(&draft, &error))?;
    file.write_all(&key).and_then(|()| file.sync_all()).map_err(|error| unwritable(&draft, &error))?;
    fs::rename(&draft, &path).map_err(|error| unwritable(&path, &error))?;
    Ok(key)
}
