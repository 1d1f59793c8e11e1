//! What stands before the shop: the real nginx, with `deploy/nginx.conf.in` as `scripts/cluster` fills it in. Behind it are
//! services of the test's own, which write down what reaches them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Whoever stands behind nginx.
const SERVICES: [&str; 4] = ["command-1", "command-2", "query-1", "query-2"];

/// The most that a body may have: `client_max_body_size`.
const MOST_BYTES: usize = 1024 * 1024;

/// Requests of one address at the same time: `limit_conn`.
const AT_ONCE: usize = 1_000;

/// How long anything may take.
const WITHIN: Duration = Duration::from_secs(30);

/// A service ends the connection when it has read the first request for such a path, and answers the next one.
const ENDED: &str = "/v1/ended/";

/// A service begins an answer, and ends it when it is told to.
const EVENTS: &str = "/v1/events";

/// A request that has reached a service.
#[derive(Debug, Clone)]
struct Asked {
    service: &'static str,
    method: String,
    path: String,
    head: String,
    /// How many bytes its body had.
    body: usize,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    headers.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// What all services know.
#[derive(Default)]
struct Book {
    asked: Mutex<Vec<Asked>>,
    /// An answer to [`EVENTS`] comes to its end.
    end: Notify,
}

impl Book {
    /// Writes a request down. How often it was asked for before, by any of the services.
    fn note(&self, asked: Asked) -> usize {
        let mut all = self.asked.lock().unwrap();
        let is_same = |before: &&Asked| (&before.method, &before.path) == (&asked.method, &asked.path);
        let times = all.iter().filter(is_same).count();
        all.push(asked);
        times
    }
}

/// Reads a request: its head, and how many bytes its body has. Nothing when the connection ends before.
async fn read(stream: &mut TcpStream) -> Option<(String, usize)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut body = vec![0; header(&head, "content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body.len()))
}

/// Answers what comes on a connection.
async fn serve(mut stream: TcpStream, service: &'static str, book: Arc<Book>) {
    while let Some((head, body)) = read(&mut stream).await {
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let asked = Asked { service, method: method.clone(), path: path.clone(), head, body };
        let times = book.note(asked);
        if path.starts_with(ENDED) && times == 0 {
            return;
        }
        let written = if path == EVENTS {
            let begin = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nfirst\n\r\n";
            stream.write_all(begin.as_bytes()).await.unwrap();
            book.end.notified().await;
            stream.write_all(b"5\r\nlast\n\r\n0\r\n\r\n").await
        } else {
            let text = if method == "HEAD" { "" } else { service };
            let length = service.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{text}");
            stream.write_all(answer.as_bytes()).await
        };
        if written.is_err() {
            return;
        }
    }
}

/// Takes connections until it is aborted.
async fn accept(listener: TcpListener, service: &'static str, book: Arc<Book>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, service, Arc::clone(&book)));
    }
}

/// Two ports that nobody has.
fn free_ports() -> [u16; 2] {
    let listen = |_| std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    [(), ()].map(listen).map(|listener| listener.local_addr().unwrap().port())
}

/// A certificate and its key, made as `scripts/cluster` makes them.
fn certificate(certificate: &Path, key: &Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout"])
        .arg(key)
        .arg("-out")
        .arg(certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// nginx, before the services. It ends when this is dropped.
struct Front {
    folder: TempDir,
    nginx: Child,
    port: u16,
    tls_port: u16,
    client: reqwest::Client,
    book: Arc<Book>,
    accepting: BTreeMap<&'static str, JoinHandle<()>>,
}

impl Drop for Front {
    fn drop(&mut self) {
        // Its first process ends the others; killed, it would leave them.
        let pid = i32::try_from(self.nginx.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), Ok(None)) = (pid, self.nginx.try_wait()) {
            kill_process(pid, Signal::TERM).ok();
        }
        self.nginx.wait().ok();
    }
}

impl Front {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Its workers are not root.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| folder.path().join(name);
        certificate(&path("tls.crt"), &path("tls.key"));
        let book = Arc::<Book>::default();
        let mut accepting = BTreeMap::new();
        let (mut command_servers, mut query_servers) = (String::new(), String::new());
        for service in SERVICES {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let servers =
                if service.starts_with("command-") { &mut command_servers } else { &mut query_servers };
            servers.push_str(&format!("server {} max_fails=0; ", listener.local_addr().unwrap()));
            accepting.insert(service, tokio::spawn(accept(listener, service, Arc::clone(&book))));
        }
        let [port, tls_port] = free_ports();
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nginx.conf.in");
        let settings = [
            ("@RUN@", folder.path().display().to_string()),
            ("@LISTEN@", format!("127.0.0.1:{port}")),
            ("@LISTEN_TLS@", format!("127.0.0.1:{tls_port}")),
            ("@COMMAND_SERVERS@", command_servers),
            ("@QUERY_SERVERS@", query_servers),
        ]
        .into_iter()
        .fold(std::fs::read_to_string(template).unwrap(), |text, (name, value)| text.replace(name, &value));
        std::fs::write(path("nginx.conf"), settings).unwrap();
        let nginx = Self::program()
            .arg("-c")
            .arg(path("nginx.conf"))
            .arg("-p")
            .arg(folder.path())
            .arg("-e")
            .arg(path("nginx.log"))
            .args(["-g", "daemon off;"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let client = reqwest::Client::builder().timeout(WITHIN).build().unwrap();
        let mut front = Self { folder, nginx, port, tls_port, client, book, accepting };
        let end = Instant::now() + WITHIN;
        for port in [port, tls_port] {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
                let runs = front.nginx.try_wait().unwrap().is_none();
                let said = std::fs::read_to_string(front.path("nginx.log")).unwrap_or_default();
                assert!(runs && Instant::now() < end, "nginx does not come up: {said}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        front
    }

    /// Where `scripts/cluster` looks for it.
    fn program() -> Command {
        let beside = Path::new("/usr/sbin/nginx");
        Command::new(if beside.exists() { beside } else { Path::new("nginx") })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("http://127.0.0.1:{}{path}", self.port))
    }

    /// An answer's status and body.
    async fn ask(&self, method: Method, path: &str) -> (u16, String) {
        let response = self.request(method, path).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Connects from an address of the loopback network.
    async fn connect(&self, from: Ipv4Addr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect((Ipv4Addr::LOCALHOST, self.port).into()).await.unwrap()
    }

    /// Sends bytes as they are, and returns the answer's first line.
    async fn raw(&self, from: Ipv4Addr, request: &[u8]) -> String {
        let (mut answers, mut requests) = self.connect(from).await.into_split();
        let mut answer = Vec::new();
        // What is refused need not be taken to its end, and what was said before a connection is cut off counts.
        let (_, read) = tokio::join!(
            requests.write_all(request),
            tokio::time::timeout(WITHIN, answers.read_to_end(&mut answer))
        );
        assert!(read.is_ok(), "the connection stays open");
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    }

    /// The requests for a path that have reached a service.
    fn asked(&self, path: &str) -> Vec<Asked> {
        let all = self.book.asked.lock().unwrap();
        all.iter().filter(|asked| asked.path == path).cloned().collect()
    }

    /// A service takes no connections any more.
    async fn end(&mut self, service: &str) {
        let accepting = self.accepting.remove(service).unwrap();
        accepting.abort();
        accepting.await.ok();
    }
}

#[tokio::test]
async fn http_2_is_spoken_over_tls() {
    let front = Front::open().await;
    let (certificate, url) =
        (front.path("tls.crt"), format!("https://127.0.0.1:{}/v1/orders", front.tls_port));
    let curl = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("curl");
        command.args(["-sS", "--max-time", "30", "-w", " %{http_version} %{http_code}", "--cacert"]);
        let output = command.arg(&certificate).args(arguments).arg(&url).output().await.unwrap();
        let (said, complained) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {complained}");
        String::from_utf8(said).unwrap()
    };
    let read = curl(&["--http2"]).await;
    assert!(read.starts_with("query-") && read.ends_with(" 2 200"), "{read}");
    let written = curl(&["--http2", "--data", "{}"]).await;
    assert!(written.starts_with("command-") && written.ends_with(" 2 200"), "{written}");
    // Who does not speak it need not.
    let read = curl(&["--http1.1"]).await;
    assert!(read.starts_with("query-") && read.ends_with(" 1.1 200"), "{read}");
    let asked = front.asked("/v1/orders");
    assert_eq!(asked.len(), 3);
    for asked in asked {
        assert_eq!(asked.header("x-forwarded-proto"), Some("https"), "{asked:?}");
    }
}

#[tokio::test]
async fn reads_and_commands_go_to_their_services_who_are_told_by_nginx_alone_who_asks() {
    let front = Front::open().await;
    let methods = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    for (number, method) in methods.into_iter().enumerate() {
        let path = format!("/v1/products/{number}");
        let request = front.request(method.clone(), &path);
        let request = request.header("x-forwarded-for", "203.0.113.9").header("forwarded", "for=203.0.113.9");
        let answer = request.header("x-forwarded-proto", "https").send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{method}");
        let all = front.asked(&path);
        let [asked] = &all[..] else { panic!("{method}: {all:?}") };
        let kind = if [Method::GET, Method::HEAD].contains(&method) { "query-" } else { "command-" };
        assert!(asked.service.starts_with(kind) && asked.method == method.as_str(), "{asked:?}");
        assert_eq!(asked.header("x-forwarded-for"), Some("127.0.0.1"), "{asked:?}");
        assert_eq!(asked.header("x-forwarded-proto"), Some("http"), "{asked:?}");
        assert_eq!(asked.header("forwarded"), None, "{asked:?}");
        assert_eq!(asked.header("host"), Some(&*format!("127.0.0.1:{}", front.port)), "{asked:?}");
    }
    // What processes count is told at their own addresses.
    assert_eq!(front.ask(Method::GET, "/metrics").await.0, 404);
    assert!(front.asked("/metrics").is_empty());
}

#[tokio::test]
async fn a_command_whose_answer_is_lost_is_sent_once_and_a_read_is_asked_again_elsewhere() {
    let front = Front::open().await;
    // On connections that have just been made, and on such that were kept.
    for round in 0..3 {
        let path = format!("{ENDED}{round}");
        let command = front.request(Method::POST, &path).header("idempotency-key", "one").body("{}");
        assert_eq!(command.send().await.unwrap().status().as_u16(), 502);
        assert_eq!(front.asked(&path).len(), 1, "it may have been done");
        let (status, text) = front.ask(Method::GET, &path).await;
        let asked = front.asked(&path);
        let [command, first, second] = &asked[..] else { panic!("{asked:?}") };
        assert!(command.service.starts_with("command-"), "{asked:?}");
        assert!([first, second].iter().all(|read| read.service.starts_with("query-")), "{asked:?}");
        assert_ne!(first.service, second.service);
        assert_eq!((status, text.as_str()), (200, second.service));
        for _ in 0..4 {
            assert_eq!(front.ask(Method::GET, "/v1/products").await.0, 200);
            assert_eq!(front.ask(Method::POST, "/v1/products").await.0, 200);
        }
    }
}

#[tokio::test]
async fn who_does_not_run_is_passed_by() {
    let mut front = Front::open().await;
    for service in ["command-1", "query-1"] {
        front.end(service).await;
    }
    for number in 0..8 {
        let path = format!("/v1/products/{number}");
        assert_eq!(front.ask(Method::POST, &path).await, (200, "command-2".to_owned()));
        assert_eq!(front.ask(Method::GET, &path).await, (200, "query-2".to_owned()));
        assert_eq!(front.asked(&path).len(), 2, "each of them once");
    }
}

#[tokio::test]
async fn the_log_comes_while_it_is_being_written() {
    let front = Front::open().await;
    let begun = front.request(Method::GET, EVENTS).send();
    let mut log = tokio::time::timeout(WITHIN, begun).await.unwrap().unwrap();
    assert_eq!(log.status().as_u16(), 200);
    // The service does not go on before it is told to, below.
    let first = tokio::time::timeout(WITHIN, log.chunk()).await.unwrap().unwrap().unwrap();
    assert_eq!(&first[..], b"first\n");
    front.book.end.notify_one();
    let mut rest = Vec::new();
    while let Some(part) = log.chunk().await.unwrap() {
        rest.extend_from_slice(&part);
    }
    assert_eq!(&rest[..], b"last\n");
}

#[tokio::test]
async fn a_body_that_is_too_large_reaches_nobody() {
    let front = Front::open().await;
    let large = front.request(Method::POST, "/v1/large").body(vec![b'x'; MOST_BYTES]).send().await.unwrap();
    assert_eq!(large.status().as_u16(), 200);
    assert_eq!(front.asked("/v1/large").iter().map(|asked| asked.body).collect::<Vec<_>>(), [MOST_BYTES]);
    let (body, length) = ("x".repeat(MOST_BYTES + 1), MOST_BYTES + 1);
    for rest in [
        format!("content-length: {length}\r\n\r\n{body}"),
        format!("transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
    ] {
        let request = format!("POST /v1/too-large HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n{rest}");
        let answer = front.raw(Ipv4Addr::LOCALHOST, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    assert!(front.asked("/v1/too-large").is_empty());
}

#[tokio::test]
async fn an_address_has_a_thousand_requests_at_a_time_and_others_go_on() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let front = Front::open().await;
    let (many, other) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let mut held = Vec::with_capacity(AT_ONCE);
    for _ in 0..AT_ONCE {
        let mut stream = front.connect(many).await;
        // Its body never comes, so no service is asked, and nginx waits for ten seconds.
        let head = b"POST /v1/held HTTP/1.1\r\nhost: shop\r\ncontent-length: 1\r\n\r\n";
        stream.write_all(head).await.unwrap();
        held.push(stream);
    }
    let read = b"GET /v1/products HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";
    let until = async |status: &str| {
        let end = Instant::now() + Duration::from_secs(8);
        loop {
            let answer = front.raw(many, read).await;
            if answer.starts_with(&format!("HTTP/1.1 {status} ")) {
                return;
            }
            assert!(Instant::now() < end, "{status} is expected: {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    until("503").await;
    assert!(front.raw(other, read).await.starts_with("HTTP/1.1 200 "), "somebody else");
    drop(held.pop());
    until("200").await;
    assert!(front.asked("/v1/held").is_empty());
}
