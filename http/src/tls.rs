//! TLS 1.2 and 1.3 by rustls, with a certificate that may change while the process runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, CertificateError, RootCertStore, ServerConfig};
use tokio_rustls::{Accept, TlsAcceptor};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// A certificate that ends sooner than this should have been followed by the next one: those who renew them
/// automatically do so weeks before (Let's Encrypt: at two thirds of their time).
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The largest file that is read.
const MAX_FILE: u64 = 1024 * 1024;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of the certificate.
    #[error("{0}")]
    Certificate(String),
    /// The file of the key.
    #[error("{0}")]
    Key(String),
}

/// A certificate and its key, from files.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.current.certificate).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a chain of certificates and the key of its first one, both in PEM.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let files = Stamp::of(certificate, key);
        let certified = read(certificate, key, &provider)?;
        let current = Arc::new(Current {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            provider: Arc::clone(&provider),
            certified: RwLock::new((Arc::new(certified), files)),
        });
        let versions = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| TlsError::Key(error.to_string()))?;
        let mut config = versions
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), current })
    }

    /// Begins TLS on a connection.
    pub(crate) fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Accept<S> {
        self.acceptor.accept(stream)
    }

    /// Reads the files again whenever they change, until `stop`. What cannot be used leaves the certificate as it is.
    pub async fn follow(self, stop: CancellationToken) {
        while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
            let current = Arc::clone(&self.current);
            // Files may be on a disk that takes its time.
            if tokio::task::spawn_blocking(move || current.look()).await.is_err() {
                return;
            }
        }
    }
}

/// Why strangers' clients would refuse a certificate, or will within two weeks; `None` if they take it. They trust what
/// this machine trusts: on most, the authorities that browsers know. `SSL_CERT_FILE` and `SSL_CERT_DIR` name others. Of the
/// names that it is for, only `host` is looked for, and none without one.
///
/// # Errors
/// [`TlsError::Certificate`], when the file cannot be read.
pub fn distrust(certificate: &Path, host: Option<&str>) -> Result<Option<String>, TlsError> {
    let chain = chain(certificate)?;
    let Some((shown, others)) = chain.split_first() else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = match WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() {
        Ok(verifier) => verifier,
        Err(_) => {
            return Ok(Some("this machine trusts no authority at all: install ca-certificates".to_owned()));
        }
    };
    let Ok(name) = ServerName::try_from(host.unwrap_or("shop.invalid")) else {
        return Ok(Some(format!("{} is no name that a certificate can be for", host.unwrap_or_default())));
    };
    let now = UnixTime::now();
    let refused_at = |time| match verifier.verify_server_cert(shown, others, &name, &[], time).err()? {
        // The name is looked at when all else is well.
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) if host.is_none() => None,
        error => Some(error.to_string()),
    };
    Ok(refused_at(now).or_else(|| {
        let soon = Duration::from_secs(now.as_secs()) + ENDS_SOON;
        refused_at(UnixTime::since_unix_epoch(soon)).map(|error| format!("within two weeks: {error}"))
    }))
}

/// When the files were written, and how long they are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp([Option<(SystemTime, u64)>; 2]);

impl Stamp {
    fn of(certificate: &Path, key: &Path) -> Self {
        Self([certificate, key].map(|path| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.modified().ok()?, file.len()))
        }))
    }
}

/// The certificate that is shown now.
struct Current {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    /// With the files that it was read from.
    certified: RwLock<(Arc<CertifiedKey>, Stamp)>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Current {
    fn look(&self) {
        let files = Stamp::of(&self.certificate, &self.key);
        if self.certified.read().unwrap_or_else(PoisonError::into_inner).1 == files {
            return;
        }
        let certificate = self.certificate.display();
        match read(&self.certificate, &self.key, &self.provider) {
            Ok(certified) => {
                let mut current = self.certified.write().unwrap_or_else(PoisonError::into_inner);
                *current = (Arc::new(certified), files);
                tracing::info!(%certificate, "the certificate has changed");
            }
            // Most likely one of the two files is new and the other one is yet to come: it is tried again.
            Err(error) => {
                tracing::warn!(%certificate, %error, "the files of TLS have changed and cannot be used")
            }
        }
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.certified.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current.0))
    }
}

fn file(path: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other("it is longer than a file of this kind may be"));
    }
    std::fs::read(path)
}

/// The chain of a PEM file, of one certificate at least.
fn chain(certificate: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let no_chain = |why: &dyn std::fmt::Display| {
        let path = certificate.display();
        TlsError::Certificate(format!("{path}: {why}; a PEM file with a chain of certificates is expected"))
    };
    let chain = file(certificate).map_err(|error| no_chain(&error))?;
    let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| no_chain(&error))?;
    if chain.is_empty() { Err(no_chain(&"there is no certificate in it")) } else { Ok(chain) }
}

fn read(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let no_key = |why: &dyn std::fmt::Display| {
        let path = key.display();
        TlsError::Key(format!("{path}: {why}; a PEM file with the certificate's private key is expected"))
    };
    let chain = chain(certificate)?;
    let key = file(key).map_err(|error| no_key(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| no_key(&error))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error: rustls::Error| no_key(&error))
}
