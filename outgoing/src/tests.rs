//! Forms of URLs that lead inside, against listeners that count who connects.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Counts connections and answers each with the same text.
struct Listener {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Listener {
    async fn start(answer: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener_v6 = TcpListener::bind(("::1", port)).await.ok();
        let (connections, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer.into()));
        for listener in [Some(listener), listener_v6].into_iter().flatten() {
            let (connections, answer) = (Arc::clone(&connections), Arc::clone(&answer));
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::SeqCst);
                    let answer = Arc::clone(&answer);
                    tokio::spawn(async move {
                        let mut request = [0; 4096];
                        let _read = stream.read(&mut request).await;
                        stream.write_all(&answer).await.ok();
                        // The other side closes; a hanging answer has no end.
                        let _read = stream.read(&mut request).await;
                    });
                }
            });
        }
        Self { port, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Everything but addresses is allowed.
fn lax() -> Policy {
    Policy { plain: true, ports: Vec::new(), ..Policy::default() }
}

/// Names as an attacker may publish them.
#[derive(Default)]
struct Published(AtomicUsize);

impl Names for Published {
    fn look_up(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let asked = self.0.fetch_add(1, Ordering::SeqCst);
        let text = match name.trim_end_matches('.') {
            "metadata.google.internal" | "instance-data" => "169.254.169.254",
            "one-of-many.example" => "1.1.1.1 127.0.0.1",
            "six.example" => "::1",
            "mapped.example" => "::ffff:127.0.0.1",
            "nat64.example" => "64:ff9b::7f00:1",
            "6to4.example" => "2002:7f00:1::",
            "any.example" => "0.0.0.0",
            "cgnat.example" => "100.64.0.1",
            // First a public address, then an inner one.
            "rebinding.example" if asked == 0 => "192.0.2.1",
            _ => "127.0.0.1",
        };
        let addresses = text.split(' ').map(|address| address.parse().unwrap()).collect();
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

async fn post(client: &Outgoing, url: &str) -> Result<Response<Bytes>, OutgoingError> {
    client.post(url, HeaderMap::new(), Bytes::from_static(b"{}")).await
}

#[tokio::test]
async fn no_form_of_a_url_leads_inside() {
    let listener = Listener::start(OK).await;
    let port = listener.port;
    let hosts = [
        // Spellings of loopback.
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "127.000.000.001",
        "0177.0.0.1",
        "0177.0.0.01",
        "0x7f.0.0.1",
        "0x7f.1",
        "0x7F.0x0.0x0.0x1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "127.0.0.2",
        "127.255.255.254",
        "127.127.127.127",
        "%31%32%37.0.0.1",
        "127%2e0%2e0%2e1",
        "１２７.０.０.１",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        // Any address.
        "0.0.0.0",
        "0",
        "0x0",
        "00000000",
        // IPv6.
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[0000::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[fe80::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[fec0::1]",
        "[100::1]",
        // Other networks.
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "0251.0376.0251.0376",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "192.0.0.192",
        "192.0.2.1",
        // Names.
        "localhost",
        "LOCALHOST",
        "localhost.",
        "ｌｏｃａｌｈｏｓｔ",
        "metadata.google.internal",
        "instance-data",
        "spoofed.example",
        "spoofed.example.",
        "one-of-many.example",
        "six.example",
        "mapped.example",
        "nat64.example",
        "6to4.example",
        "any.example",
        "cgnat.example",
        "127.0.0.1.nip.example",
        "rebinding.example",
        // Somebody before the host.
        "example.com@127.0.0.1",
        "user:password@127.0.0.1",
        "example.com%40127.0.0.1",
        "127.0.0.1#@example.com",
        "127.0.0.1?@example.com",
        "example.com\\@127.0.0.1",
        "127.0.0.1\\@example.com",
    ];
    let mut tried = 0;
    for (client, what) in [
        (Outgoing::with_names(lax(), Published::default()).unwrap(), "published names"),
        (Outgoing::new(lax()).unwrap(), "the system's names"),
    ] {
        for host in hosts {
            if what == "the system's names"
                && (host.contains("example") || host.contains("inter") || host.contains("instance"))
            {
                continue;
            }
            // The port stands where it belongs to the host.
            let authority = match host.find(['#', '?']) {
                Some(end) => format!("{}:{port}{}", &host[..end], &host[end..]),
                None => format!("{host}:{port}"),
            };
            for scheme in ["http", "https"] {
                let url = format!("{scheme}://{authority}/hook");
                let refused = post(&client, &url).await;
                // Not every system knows every spelling of its own name.
                let unknown = host == "localhost." && matches!(refused, Err(OutgoingError::Failed(_)));
                assert!(
                    unknown || matches!(refused, Err(OutgoingError::Refused(_))),
                    "{what}: {url}: {refused:?}"
                );
                tried += 1;
            }
        }
    }
    for url in [
        "",
        "/hook",
        "//127.0.0.1/hook",
        "http:",
        "http://",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:11211/_stats",
        "dict://127.0.0.1:11211/",
        "data:text/plain,x",
        "unix:/run/docker.sock",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://exa mple.com/",
        "ht\ntp://127.0.0.1/",
        "http://127.0.0.1\t/",
        "http://example.com\r\nHost: 127.0.0.1/",
        "http+unix://%2frun%2fdocker.sock/",
        "jar:http://127.0.0.1!/",
    ] {
        let refused = post(&Outgoing::new(lax()).unwrap(), url).await;
        assert!(matches!(refused, Err(OutgoingError::Refused(_))), "{url}: {refused:?}");
        tried += 1;
    }
    assert!(tried >= 200, "{tried}");
    assert_eq!(listener.connections(), 0, "somebody got inside");
}

#[tokio::test]
async fn a_name_that_turns_inwards_later_is_refused_then() {
    let listener = Listener::start(OK).await;
    let policy = Policy {
        allowed: vec!["192.0.2.0/24".parse().unwrap()],
        within: Duration::from_millis(300),
        ..lax()
    };
    let client = Outgoing::with_names(policy, Published::default()).unwrap();
    let url = format!("http://rebinding.example:{}/", listener.port);
    // At first it is an address that is allowed, where nobody answers.
    let first = post(&client, &url).await;
    assert!(matches!(first, Err(OutgoingError::TooSlow | OutgoingError::Failed(_))), "{first:?}");
    assert!(matches!(post(&client, &url).await, Err(OutgoingError::Refused(Refusal::Address))));
    assert_eq!(listener.connections(), 0);
}

fn inside() -> Policy {
    Policy { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..lax() }
}

#[tokio::test]
async fn what_is_allowed_is_reached() {
    let listener = Listener::start(OK).await;
    for host in ["127.0.0.1", "spoofed.example"] {
        let client = Outgoing::with_names(inside(), Published::default()).unwrap();
        let answer = post(&client, &format!("http://{host}:{}/hook?a=b", listener.port)).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.body().as_ref()), (200, b"ok".as_slice()));
    }
    assert_eq!(listener.connections(), 2);
}

#[tokio::test]
async fn only_https_and_the_ports_of_the_policy_are_asked() {
    let policy = Policy { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Policy::default() };
    let client = Outgoing::new(policy).unwrap();
    assert_eq!(client.check("http://127.0.0.1/"), Err(Refusal::Scheme));
    assert_eq!(client.check("https://127.0.0.1:6379/"), Err(Refusal::Port(6379)));
    assert_eq!(client.check("https://u@127.0.0.1/"), Err(Refusal::Credentials));
    assert_eq!(client.check("https://127.0.0.1/"), Ok(()));
    assert_eq!(client.check("https://10.0.0.1/"), Err(Refusal::Address));
    assert_eq!(client.check("https://example.com:8443/hook"), Ok(()));
}

#[tokio::test]
async fn redirects_are_answers() {
    let inner = Listener::start(OK).await;
    let outer = Listener::start(format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:{}/\r\ncontent-length: 0\r\n\r\n",
        inner.port
    ))
    .await;
    let client = Outgoing::new(inside()).unwrap();
    let answer = post(&client, &format!("http://127.0.0.1:{}/", outer.port)).await.unwrap();
    assert_eq!((answer.status().as_u16(), outer.connections(), inner.connections()), (307, 1, 0));
}

#[tokio::test]
async fn long_and_slow_answers_are_cut_off() {
    let most = 1_000;
    let policy = Policy { most_bytes: most, within: Duration::from_millis(500), ..inside() };
    let client = Outgoing::new(policy).unwrap();
    let head = "HTTP/1.1 200 OK\r\n";
    let declared = Listener::start(format!("{head}content-length: 100000000\r\n\r\n")).await;
    let chunked = Listener::start(format!(
        "{head}transfer-encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n",
        "x".repeat(1001)
    ))
    .await;
    for listener in [&declared, &chunked] {
        let cut = post(&client, &format!("http://127.0.0.1:{}/", listener.port)).await;
        assert!(matches!(cut, Err(OutgoingError::TooLarge(1_000))), "{cut:?}");
    }
    let whole = Listener::start(format!("{head}content-length: {most}\r\n\r\n{}", "x".repeat(most))).await;
    assert!(post(&client, &format!("http://127.0.0.1:{}/", whole.port)).await.is_ok());
    for text in ["", head, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx"] {
        let silent = Listener::start(text).await;
        let begun = std::time::Instant::now();
        let slow = post(&client, &format!("http://127.0.0.1:{}/", silent.port)).await;
        assert!(matches!(slow, Err(OutgoingError::TooSlow)), "{slow:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

/// A server that speaks TLS with what openssl has made, and counts the requests that come through.
struct Secure {
    port: u16,
    requests: Arc<AtomicUsize>,
}

/// Certificates that openssl makes: authorities, and what they vouch for.
struct Papers(tempfile::TempDir);

impl Papers {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output =
            std::process::Command::new("openssl").current_dir(self.0.path()).args(arguments).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn authority(&self, name: &str) {
        let (key, certificate, subject) =
            (format!("{name}.key"), format!("{name}.crt"), format!("/CN={name}"));
        let key_of = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", &key];
        let of = ["-subj", &subject, "-addext", "keyUsage=critical,keyCertSign", "-out", &certificate];
        self.openssl(&[&["req", "-x509", "-days", "2"], &key_of[..], &of].concat());
    }

    /// A certificate for a name, by an authority, for so many days from now.
    fn certificate(
        &self,
        authority: &str,
        name: &str,
        days: &str,
    ) -> (std::path::PathBuf, std::path::PathBuf) {
        let file = |end: &str| format!("{authority}-{name}-{days}.{end}");
        let (key, request, certificate, extensions) = (file("key"), file("csr"), file("crt"), file("ext"));
        std::fs::write(self.path(&extensions), format!("subjectAltName=DNS:{name}\n")).unwrap();
        let key_of = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", &key];
        self.openssl(&[&["req"], &key_of[..], &["-subj", "/CN=hook", "-out", &request]].concat());
        let (by, by_key) = (format!("{authority}.crt"), format!("{authority}.key"));
        let by = ["-CA", &by, "-CAkey", &by_key, "-CAcreateserial", "-days", days, "-extfile", &extensions];
        self.openssl(&[&["x509", "-req", "-in", &request], &by[..], &["-out", &certificate]].concat());
        (self.path(&certificate), self.path(&key))
    }
}

impl Secure {
    async fn start((certificate, key): (std::path::PathBuf, std::path::PathBuf)) -> Self {
        use tokio_rustls::rustls::crypto::aws_lc_rs;
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut request = [0; 4096];
                    if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                    stream.write_all(OK.as_bytes()).await.ok();
                    stream.shutdown().await.ok();
                });
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_server_must_show_a_certificate_of_its_name_by_somebody_who_is_trusted() {
    let papers = Papers(tempfile::tempdir().unwrap());
    papers.authority("trusted");
    papers.authority("stranger");
    let trusted =
        reqwest::Certificate::from_pem(&std::fs::read(papers.path("trusted.crt")).unwrap()).unwrap();
    let policy = || Arc::new(Policy { plain: false, within: Duration::from_secs(10), ..inside() });
    let client = || {
        let policy = policy();
        let builder = builder(&policy, Published::default()).tls_certs_merge([trusted.clone()]);
        Outgoing::of(builder, policy).unwrap()
    };
    let good = Secure::start(papers.certificate("trusted", "hook.example", "2")).await;
    let url = format!("https://hook.example:{}/", good.port);
    let answer = post(&client(), &url).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.body().as_ref(), good.requests()),
        (200, b"ok".as_slice(), 1)
    );
    // Whom the system does not trust, nobody does without being told.
    let untold = Outgoing::with_names(Policy::clone(&policy()), Published::default()).unwrap();
    let refused = post(&untold, &url).await;
    assert!(matches!(refused, Err(OutgoingError::Failed(_))), "{refused:?}");
    assert_eq!(good.requests(), 1);
    for (authority, name, days, why) in [
        ("stranger", "hook.example", "2", "nobody trusts who vouches for it"),
        ("trusted", "other.example", "2", "it is another's"),
        ("trusted", "hook.example", "-1", "it has expired"),
    ] {
        let server = Secure::start(papers.certificate(authority, name, days)).await;
        let refused = post(&client(), &format!("https://hook.example:{}/", server.port)).await;
        let Err(OutgoingError::Failed(error)) = refused else { panic!("{why}: {refused:?}") };
        // It was the certificate, and nothing was sent.
        let mut told = String::new();
        let mut source: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(cause) = source {
            told += &format!("{cause}; ");
            source = cause.source();
        }
        assert!(told.contains("certificate"), "{why}: {told}");
        assert_eq!(server.requests(), 0, "{why}");
    }
    // Who speaks no TLS gets nothing, either.
    let plain = Listener::start(OK).await;
    let refused = post(&client(), &format!("https://hook.example:{}/", plain.port)).await;
    assert!(matches!(refused, Err(OutgoingError::Failed(_))), "{refused:?}");
}
