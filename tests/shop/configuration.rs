//! Wrong or missing settings: one line that names the variable and says what is expected, exit code 2, before the
//! address is taken, and never with a secret in it.

use std::net::TcpListener;

use crate::harness::{folder, tidemark};

const LOG: (&str, &str) = ("TIDEMARK_LOG_URL", "postgres://log:hunter2@127.0.0.1:1/log");
const VIEWS: (&str, &str) = ("TIDEMARK_VIEWS_URL", "postgres://views:hunter2@127.0.0.1:1/views");
/// Each with a value of its own that is out of its range, and the process that has it beside `up`.
const NUMBERS: [(&str, &str, &str, &str); 8] = [
    ("TIDEMARK_MAX_CONNECTIONS_OF_ADDRESS", "0", "1 to 1000000", "query"),
    ("TIDEMARK_MAX_CONNECTIONS", "0", "1 to 1000000", "command"),
    ("TIDEMARK_MAX_REQUESTS", "1000001", "1 to 1000000", "query"),
    ("TIDEMARK_QUEUE_COMMANDS", "0", "1 to 1000000", "command"),
    ("TIDEMARK_STATE_MIB", "0", "1 to 65536", "command"),
    ("TIDEMARK_CACHE_MIB", "65537", "0 to 65536", "query"),
    ("TIDEMARK_PROJECTOR_WORKERS", "9", "1 to 8", "projector"),
    ("TIDEMARK_REPLICA_LAG_MIB", "65537", "0 to 65536", "query"),
];

/// A subcommand, its settings, the variable that is wrong, and what is expected of it.
type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'a str, &'a str);

/// How `tidemark` ends with these settings, and what it says.
async fn told(arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = tidemark();
    for (name, _) in [LOG, VIEWS] {
        command.env_remove(name);
    }
    command.args(arguments).envs(settings.iter().copied());
    // It ends by itself; one that waits for a database would wait for ever.
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), command.output()).await;
    let output = ended.expect("it ends").unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn what_is_wrong_is_named_with_what_is_expected() {
    let folder = folder();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (dir, under_a_file) = (folder.path().to_str().unwrap(), file.join("data"));
    let data = ("TIDEMARK_DATA_DIR", dir);
    // Somebody else has the address: whoever tried to take it before all else is sound would complain about that.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listen = ("TIDEMARK_LISTEN", address.as_str());
    let no_directory = ("TIDEMARK_DATA_DIR", under_a_file.to_str().unwrap());
    let no_secret = ("TIDEMARK_TOKEN_SECRET", "hunter2");
    let no_brokers = ("TIDEMARK_KAFKA_BROKERS", "kafka.example");

    let mut cases: Vec<Case<'_>> = vec![
        ("command", vec![listen, data], "TIDEMARK_LOG_URL", "postgres://user:password@host/database"),
        ("projector", vec![listen, VIEWS], "TIDEMARK_LOG_URL", "postgres://user:password@host/database"),
        ("projector", vec![listen, LOG], "TIDEMARK_VIEWS_URL", "postgres://user:password@host/database"),
        ("query", vec![listen, LOG, data], "TIDEMARK_VIEWS_URL", "postgres://user:password@host/database"),
        ("rebuild stock", vec![LOG, data], "TIDEMARK_VIEWS_URL", "postgres://user:password@host/database"),
        ("rebuild stock", vec![VIEWS, data], "TIDEMARK_LOG_URL", "postgres://user:password@host/database"),
        ("up", vec![data, ("TIDEMARK_LISTEN", "nowhere")], "TIDEMARK_LISTEN", "like 127.0.0.1:8080"),
        ("up", vec![data, ("TIDEMARK_LISTEN", "127.0.0.1:65536")], "TIDEMARK_LISTEN", "like 127.0.0.1:8080"),
        ("query", vec![LOG, VIEWS, ("TIDEMARK_LISTEN", "")], "TIDEMARK_LISTEN", "like 127.0.0.1:8080"),
        ("up", vec![listen, no_directory], "TIDEMARK_DATA_DIR", "can write"),
        ("replay", vec![no_directory], "TIDEMARK_DATA_DIR", "there is no shop in"),
        ("rebuild stock", vec![data], "TIDEMARK_DATA_DIR", "there is no shop in"),
        ("keys rewrap", vec![data], "TIDEMARK_DATA_DIR", "there is no shop in"),
        ("projector", vec![listen, LOG, VIEWS, no_brokers], "TIDEMARK_KAFKA_BROKERS", "host:port"),
        ("command", vec![listen, LOG, data, no_brokers], "TIDEMARK_KAFKA_BROKERS", "host:port"),
        (
            "command",
            vec![listen, LOG, data, ("TIDEMARK_KAFKA_TOPIC", "no topic")],
            "TIDEMARK_KAFKA_TOPIC",
            "letters, digits",
        ),
        (
            "projector",
            vec![listen, LOG, VIEWS, ("TIDEMARK_KAFKA_GROUP", "")],
            "TIDEMARK_KAFKA_GROUP",
            "letters, digits",
        ),
        (
            "projector",
            vec![listen, LOG, VIEWS, ("TIDEMARK_PROJECTIONS", "orders,planets")],
            "TIDEMARK_PROJECTIONS",
            "there are products, stock, orders, audit",
        ),
        (
            "projector",
            vec![listen, LOG, VIEWS, ("TIDEMARK_SECURITY_EVENTS_RETENTION", "59m")],
            "TIDEMARK_SECURITY_EVENTS_RETENTION",
            "1h to 3650d",
        ),
        (
            "command",
            vec![listen, LOG, data, ("TIDEMARK_REFUSED_PASSWORDS", "/nowhere/passwords")],
            "TIDEMARK_REFUSED_PASSWORDS",
            "/nowhere/passwords cannot be read",
        ),
        ("token --role staff", vec![data, no_secret], "TIDEMARK_TOKEN_SECRET", "at least 32 bytes"),
        (
            "up",
            vec![listen, data, ("TIDEMARK_LIMITS", "books=1/s")],
            "TIDEMARK_LIMITS",
            "class=COUNT/UNIT:BURST",
        ),
        (
            "query",
            vec![listen, LOG, VIEWS, data, ("TIDEMARK_LIMITS", "")],
            "TIDEMARK_LIMITS",
            "one of reads, commands",
        ),
        (
            "command",
            vec![listen, LOG, data, ("TIDEMARK_TRUSTED_PROXIES", "10.0.0.0/33")],
            "TIDEMARK_TRUSTED_PROXIES",
            "networks like 10.0.0.0/8",
        ),
        (
            "command",
            vec![listen, LOG, data, ("TIDEMARK_LIMITS_REDIS_URL", "http://:hunter2@127.0.0.1")],
            "TIDEMARK_LIMITS_REDIS_URL",
            "redis://host:6379",
        ),
        (
            "up",
            vec![listen, data, ("TIDEMARK_ALLOWED_HOSTS", "*")],
            "TIDEMARK_ALLOWED_HOSTS",
            "names of hosts",
        ),
        ("up", vec![listen, data, ("TIDEMARK_CORS_ORIGINS", "*")], "TIDEMARK_CORS_ORIGINS", "exact origins"),
        (
            "up",
            vec![listen, data, ("TIDEMARK_PUBLIC_URL", "shop.example")],
            "TIDEMARK_PUBLIC_URL",
            "https://shop.example",
        ),
        ("up", vec![data, ("TIDEMARK_LOG", "loud=much")], "TIDEMARK_LOG", "level"),
        ("up", vec![data, ("TIDEMARK_LOG_FORMAT", "xml")], "TIDEMARK_LOG_FORMAT", "text or json"),
    ];
    for process in ["up", "command", "query"] {
        let all = vec![listen, LOG, VIEWS, data, no_secret];
        cases.push((process, all, "TIDEMARK_TOKEN_SECRET", "at least 32 bytes"));
    }
    for process in ["projector", "query"] {
        for url in ["http://:hunter2@127.0.0.1", "127.0.0.1:6379", ""] {
            let all = vec![listen, LOG, VIEWS, data, ("TIDEMARK_REDIS_URL", url)];
            cases.push((process, all, "TIDEMARK_REDIS_URL", "redis://host:6379"));
        }
    }
    for (process, name) in [
        ("up", "DATABASE_URL"),
        ("replay", "DATABASE_URL"),
        ("command", "TIDEMARK_LOG_URL"),
        ("projector", "TIDEMARK_VIEWS_URL"),
        ("query", "TIDEMARK_LOG_URL"),
        ("query", "TIDEMARK_VIEWS_URL"),
        ("query", "TIDEMARK_VIEWS_POOL_URL"),
        ("query", "TIDEMARK_REPLICA_URLS"),
        ("rebuild stock", "TIDEMARK_VIEWS_URL"),
    ] {
        for url in
            ["mysql://root:hunter2@127.0.0.1/x", "root:hunter2@127.0.0.1", "postgres://a:hunter2@b:port/x"]
        {
            let all = vec![listen, LOG, VIEWS, data, (name, url)];
            cases.push((process, all, name, "postgres://user:password@host/database"));
        }
    }
    for (name, beyond, expected, process) in NUMBERS {
        for value in [beyond, "-1", "many", "", "1.5"] {
            cases.push((process, vec![listen, LOG, VIEWS, data, (name, value)], name, expected));
        }
    }
    cases.push(("up", vec![listen, data, ("TIDEMARK_STATE_MIB", "0")], "TIDEMARK_STATE_MIB", "1 to 65536"));
    for (process, settings, variable, expected) in cases {
        let arguments: Vec<&str> = process.split(' ').collect();
        let (code, text) = told(&arguments, &settings).await;
        assert_eq!(code, Some(2), "{process} {settings:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{process} {settings:?}: {text}");
        assert!(
            text.contains(&format!("{variable} (--")) || text.contains(&format!("{variable}: ")),
            "{text}"
        );
        assert!(text.contains(expected), "{process} {settings:?}: {text}");
        assert!(!text.contains("hunter2"), "{process} {settings:?}: {text}");
    }
    // All is sound but the address.
    for process in ["up", "command", "projector", "query"] {
        let (code, text) = told(&[process], &[listen, LOG, VIEWS, data]).await;
        assert_eq!((code, text.lines().count()), (Some(2), 1), "{process}: {text}");
        assert!(text.contains("TIDEMARK_LISTEN (--listen)") && text.contains("a free address"), "{text}");
    }
}
