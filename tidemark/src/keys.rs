//! Keys outside databases: those that sign access tokens, and the master key of personal data. Made under the data
//! directory, or given from the environment.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tidemark_command::account::service::Sign;
use tidemark_http::access::{KeyError, PublicKey, generate_ed25519};
use tidemark_http::{Access, Issuer};
use tidemark_vault::MasterKeys;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::Failure;
use crate::config::TokenKeyOptions;
use crate::database::unwritable;

const FOLDER: &str = "keys";
/// What files of token keys begin and end with. The first one has nothing between.
const TOKEN_KEY: (&str, &str) = ("access-ed25519", ".pk8");
const MASTER_KEY: &str = "master.key";

/// A new key signs only after every process has had the time to learn of it.
const SIGNS_AFTER: Duration = Duration::from_secs(30);

/// How often the folder is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What verifies and signs tokens in a process.
pub(crate) struct TokenKeys {
    pub(crate) access: Access,
    pub(crate) sign: Sign,
    /// Where keys come and go, if they are no secret.
    folder: Option<(PathBuf, Arc<RwLock<Issuer>>)>,
}

/// One key that signs tokens.
struct TokenKey {
    path: PathBuf,
    made_at: SystemTime,
    pkcs8: Zeroizing<Vec<u8>>,
    public: PublicKey,
}

impl TokenKeys {
    /// Of a secret from the environment, or of the keys under the data directory; makes one if there is none.
    pub(crate) fn open(
        data_dir: impl FnOnce() -> Result<PathBuf, Failure>,
        options: &TokenKeyOptions,
    ) -> Result<Self, Failure> {
        if let Some(secret) = &options.token_secret {
            let access = Access::hs256(secret.as_bytes()).map_err(|error| wrong_secret(&error))?;
            let issuer = Issuer::hs256(secret.as_bytes()).map_err(|error| wrong_secret(&error))?;
            return Ok(Self {
                access,
                sign: Arc::new(move |actor, ttl| issuer.issue(actor, ttl)),
                folder: None,
            });
        }
        let folder = data_dir()?.join(FOLDER);
        let mut keys = read_all(&folder)?;
        if keys.is_empty() {
            let path = folder.join(format!("{}{}", TOKEN_KEY.0, TOKEN_KEY.1));
            let key = generate_ed25519().map_err(|error| Failure::Configuration(error.to_string()))?;
            make(&folder, &path, &key)?;
            keys = read_all(&folder)?;
        }
        let issuer = Arc::new(RwLock::new(signing(&keys)?));
        let access = Access::eddsa(&public(&keys));
        let current = Arc::clone(&issuer);
        let sign: Sign = Arc::new(move |actor, ttl| {
            let issuer = current.read().unwrap_or_else(PoisonError::into_inner).clone();
            issuer.issue(actor, ttl)
        });
        Ok(Self { access, sign, folder: Some((folder, issuer)) })
    }

    /// Takes in keys that come and go in the folder, until `stop`.
    pub(crate) fn watch(&self, stop: CancellationToken) -> Option<JoinHandle<()>> {
        let (folder, issuer) = self.folder.clone()?;
        let access = self.access.clone();
        Some(tokio::spawn(async move {
            let mut known = access.published();
            while tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await.is_err() {
                let keys = match read_all(&folder) {
                    Ok(keys) if !keys.is_empty() => keys,
                    Ok(_) => {
                        tracing::warn!(folder = %folder.display(), "there is no key of tokens any more, going on with those that are known");
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the keys of tokens cannot be read, going on with those that are known");
                        continue;
                    }
                };
                if let Ok(next) = signing(&keys) {
                    *issuer.write().unwrap_or_else(PoisonError::into_inner) = next;
                }
                let public = public(&keys);
                let published = Access::eddsa(&public).published();
                if published != known {
                    access.use_keys(&public);
                    known = published;
                    tracing::info!(keys = public.len(), "the keys of tokens have changed");
                }
            }
        }))
    }
}

/// What signs tokens; there must be a key.
pub(crate) fn issuer(
    data_dir: impl FnOnce() -> Result<PathBuf, Failure>,
    options: &TokenKeyOptions,
) -> Result<Issuer, Failure> {
    match &options.token_secret {
        Some(secret) => Issuer::hs256(secret.as_bytes()).map_err(|error| wrong_secret(&error)),
        None => {
            let folder = data_dir()?.join(FOLDER);
            let keys = read_all(&folder)?;
            if keys.is_empty() {
                return Err(Failure::Configuration(format!(
                    "TIDEMARK_DATA_DIR (--data-dir): there is no key of tokens in {}; `tidemark up` makes it; is \
                     --data-dir the same?",
                    folder.display()
                )));
            }
            signing(&keys)
        }
    }
}

/// Makes another key beside those there are. It signs after half a minute; the former go on verifying until their
/// files are removed.
pub(crate) fn rotate(data_dir: &Path) -> Result<(PathBuf, String), Failure> {
    let folder = data_dir.join(FOLDER);
    let key = generate_ed25519().map_err(|error| Failure::Configuration(error.to_string()))?;
    let id = PublicKey::of(&key).map_err(|error| Failure::Configuration(error.to_string()))?.id();
    let path = folder.join(format!("{}-{}{}", TOKEN_KEY.0, uuid::Uuid::now_v7().simple(), TOKEN_KEY.1));
    make(&folder, &path, &key)?;
    Ok((path, id))
}

/// The master keys of personal data: from the environment, or the file under the data directory, which is made if need
/// be.
pub(crate) fn master(
    given: Option<&str>,
    data_dir: impl FnOnce() -> Result<PathBuf, Failure>,
) -> Result<MasterKeys, Failure> {
    if let Some(text) = given {
        return MasterKeys::parse(text)
            .map_err(|error| Failure::Configuration(format!("TIDEMARK_MASTER_KEY: {error} is expected")));
    }
    let folder = data_dir()?.join(FOLDER);
    let path = folder.join(MASTER_KEY);
    if !path.exists() {
        let key = MasterKeys::generate().map_err(|error| Failure::Configuration(error.to_string()))?;
        make(&folder, &path, key.as_bytes())?;
    }
    let text = Zeroizing::new(fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?);
    MasterKeys::parse(&text).map_err(|error| {
        Failure::Configuration(format!(
            "TIDEMARK_DATA_DIR (--data-dir): {} holds no master key: {error} is expected",
            path.display()
        ))
    })
}

/// All keys of tokens, the oldest first.
fn read_all(folder: &Path) -> Result<Vec<TokenKey>, Failure> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(folder, &error)),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(folder, &error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !(name.starts_with(TOKEN_KEY.0) && name.ends_with(TOKEN_KEY.1)) {
            continue;
        }
        let pkcs8 = Zeroizing::new(fs::read(&path).map_err(|error| unreadable(&path, &error))?);
        let made_at = path.metadata().and_then(|data| data.modified());
        let made_at = made_at.map_err(|error| unreadable(&path, &error))?;
        let public = PublicKey::of(&pkcs8).map_err(|error| wrong_file(&path, &error))?;
        keys.push(TokenKey { path, made_at, pkcs8, public });
    }
    keys.sort_by(|a, b| (a.made_at, &a.path).cmp(&(b.made_at, &b.path)));
    Ok(keys)
}

fn public(keys: &[TokenKey]) -> Vec<PublicKey> {
    keys.iter().map(|key| key.public.clone()).collect()
}

/// The newest key that everybody knows of by now.
fn signing(keys: &[TokenKey]) -> Result<Issuer, Failure> {
    let settled = |key: &&TokenKey| key.made_at.elapsed().is_ok_and(|age| age >= SIGNS_AFTER);
    let key = keys.iter().rev().find(settled).or_else(|| keys.first());
    let key = key.ok_or_else(|| Failure::Configuration("there is no key of tokens".to_owned()))?;
    Issuer::eddsa(&key.pkcs8).map_err(|error| wrong_file(&key.path, &error))
}

/// Writes a key, whole or not at all. If another process makes the same file at the same time, one of the two stays.
fn make(folder: &Path, path: &Path, key: &[u8]) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    let draft = folder.join(format!(".{}.new", uuid::Uuid::now_v7().simple()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(key)?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = write();
    fs::remove_file(&draft).ok();
    written.map_err(|error| unwritable(path, &error))
}

fn wrong_secret(error: &KeyError) -> Failure {
    Failure::Configuration(format!("TIDEMARK_TOKEN_SECRET: {error}"))
}

fn wrong_file(path: &Path, error: &KeyError) -> Failure {
    Failure::Configuration(format!("TIDEMARK_DATA_DIR (--data-dir): {} is {error}", path.display()))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Configuration(format!(
        "TIDEMARK_DATA_DIR (--data-dir): cannot read the key {}: {error}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_begin_at_once_have_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        make(folder.path(), &path, b"first").unwrap();
        make(folder.path(), &path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft stays");
    }

    #[test]
    fn a_new_key_verifies_at_once_and_signs_later() {
        let data = tempfile::tempdir().unwrap();
        let options = TokenKeyOptions { token_secret: None };
        let keys = TokenKeys::open(|| Ok(data.path().to_owned()), &options).unwrap();
        let first = keys.access.published()["keys"][0]["kid"].clone();
        let (_, second) = rotate(data.path()).unwrap();
        let all = read_all(&data.path().join(FOLDER)).unwrap();
        assert_eq!(all.len(), 2);
        let actor = tidemark_http::Actor {
            subject: uuid::Uuid::nil(),
            role: tidemark_http::Role::Staff,
            session: None,
        };
        let kid = |keys: &[TokenKey]| {
            let token = signing(keys).unwrap().issue(&actor, LOOK_EVERY).unwrap();
            Access::eddsa(&public(keys)).verify(&token).unwrap();
            let first_only = Access::eddsa(&public(keys)[..1]);
            first_only.verify(&token).map_or(second.clone(), |_| first.as_str().unwrap().to_owned())
        };
        assert_eq!(kid(&all), first.as_str().unwrap(), "the new one is not settled");
        let long_ago = SystemTime::now() - SIGNS_AFTER * 2;
        let settled: Vec<TokenKey> = all
            .into_iter()
            .enumerate()
            .map(|(at, key)| TokenKey { made_at: long_ago + Duration::from_secs(at as u64), ..key })
            .collect();
        assert_eq!(kid(&settled), second);
    }
}
