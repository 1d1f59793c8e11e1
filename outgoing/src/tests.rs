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
