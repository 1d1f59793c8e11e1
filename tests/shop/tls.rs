//! TLS, spoken by the process itself: versions, the certificate's way in and out, and what is wrong with files.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::harness::{Postgres, Shop, folder, free_port, tidemark, until};

/// Makes a certificate for localhost that says who it is.
fn certificate(folder: &Path, name: &str) {
    let file = |end: &str| folder.join(format!("{name}.{end}"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .arg("-keyout")
        .arg(file("key"))
        .arg("-out")
        .arg(file("crt"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// curl's exit code and all that it shows.
async fn curl(arguments: &[&str]) -> (i32, String) {
    let output = tokio::process::Command::new("curl")
        .args(["-si", "--max-time", "10"])
        .args(arguments)
        .output()
        .await
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn tls_is_spoken_and_a_new_certificate_needs_no_new_process() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["first", "second"] {
        certificate(folder.path(), name);
    }
    let put = |from: &str, end: &str| {
        let draft = path(&format!("draft.{end}"));
        std::fs::copy(path(&format!("{from}.{end}")), &draft).unwrap();
        std::fs::rename(draft, path(&format!("shop.{end}"))).unwrap();
    };
    for end in ["crt", "key"] {
        put("first", end);
    }
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let port = free_port();
    let _shop = tidemark()
        .args(["up", "--listen", &format!("127.0.0.1:{port}")])
        .env("DATABASE_URL", &url)
        .env("TIDEMARK_DATA_DIR", path(""))
        .env("TIDEMARK_TLS_CERTIFICATE", path("shop.crt"))
        .env("TIDEMARK_TLS_KEY", path("shop.key"))
        .spawn()
        .unwrap();
    let ready = format!("https://localhost:{port}/readyz");
    let (first, second) = (path("first.crt"), path("second.crt"));
    until("the shop opens", async || {
        let (_, said) = curl(&["--cacert", &first, &ready]).await;
        said.contains(" 200").then_some(())
    })
    .await;
    for version in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        let (code, said) = curl(&[version, &["--cacert", &first, &ready]].concat()).await;
        assert_eq!(code, 0, "{version:?}");
        assert!(
            said.contains("strict-transport-security: max-age=63072000; includeSubDomains; preload"),
            "{said}"
        );
    }
    // The newest version is taken where there is a choice, and older ones than 1.2 are not spoken.
    let handshake = async |version: &[&str]| {
        let mut client = tokio::process::Command::new("openssl");
        client.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-cipher", "ALL:@SECLEVEL=0"]);
        let output = client.args(version).stdin(std::process::Stdio::null()).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let chosen = handshake(&[]).await;
    assert!(chosen.contains("New, TLSv1.3"), "{chosen}");
    for old in ["-tls1", "-tls1_1"] {
        let refused = handshake(&[old]).await;
        assert!(refused.contains("New, (NONE)"), "{old}: {refused}");
    }
    assert_ne!(curl(&["--cacert", &second, &ready]).await.0, 0, "the other certificate is not shown");
    // Who speaks plain HTTP here gets no answer, and is led nowhere.
    let (code, said) = curl(&[&format!("http://localhost:{port}/v1/products")]).await;
    assert!(code != 0 && !said.contains("HTTP/1.1 3"), "{code} {said}");
    // Who opens a connection and says nothing keeps nobody waiting.
    let mut silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let begun = Instant::now();
    let cut_off = tokio::spawn(async move {
        silent.read_to_end(&mut Vec::new()).await.ok();
        begun.elapsed()
    });
    assert_eq!(curl(&["--cacert", &first, &ready]).await.0, 0);

    // Only one of the two files is there yet: the certificate stays.
    put("second", "crt");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(curl(&["--cacert", &first, &ready]).await.0, 0);
    put("second", "key");
    until("the new certificate is shown", async || {
        (curl(&["--cacert", &second, &ready]).await.0 == 0).then_some(())
    })
    .await;
    assert_ne!(curl(&["--cacert", &first, &ready]).await.0, 0);
    let cut_off = tokio::time::timeout(Duration::from_secs(60), cut_off).await.unwrap().unwrap();
    assert!((14..30).contains(&cut_off.as_secs()), "{cut_off:?}");
}

/// A certificate for localhost of an authority of its own.
fn of_authority(folder: &Path) {
    let run = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        let made = command.args(arguments).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    run(&["-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"]);
    let server = ["-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.crt"];
    let signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];
    run(&[&server[..], &signed, &["-addext", "subjectAltName=DNS:localhost"]].concat());
}

/// As servers on other machines are: they take nothing in the clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_and_redis_are_reached_over_tls() {
    let folder = folder();
    of_authority(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let postgres = Postgres::start().await;
    let name = postgres.database().await.rsplit_once('/').unwrap().1.to_owned();
    let port = postgres.speak_tls(&folder.path().join("server.crt"), &folder.path().join("server.key")).await;
    let server = format!("postgres://tidemark@localhost:{port}");
    let url = format!("{server}/{name}?sslmode=verify-full&sslrootcert={}", path("ca.crt"));
    let redis_port = free_port();
    let _redis = tokio::process::Command::new("redis-server")
        .args(["--port", "0", "--tls-port", &redis_port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--tls-auth-clients", "no", "--tls-ca-cert-file", &path("ca.crt")])
        .args(["--tls-cert-file", &path("server.crt"), "--tls-key-file", &path("server.key")])
        .args(["--dir", folder.path().to_str().unwrap(), "--maxmemory", "64mb"])
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (redis, authority) = (format!("rediss://localhost:{redis_port}"), path("ca.crt"));
    let settings = [
        ("TIDEMARK_VIEWS_URL", url.as_str()),
        ("TIDEMARK_REDIS_URL", redis.as_str()),
        ("SSL_CERT_FILE", authority.as_str()),
    ];
    let command = Shop::part("command", &url, &[]).await;
    let projector = Shop::part("projector", &url, &settings).await;
    let query = Shop::part("query", &url, &settings).await;
    let product = command.product("T", 5).await;
    let order = command.order(&product, 1, "one").await.unwrap();
    let after = [("Tidemark-After", order.header("tidemark-position"))];
    let shown = query.get(&format!("/v1/products/{product}"), None, &after).await;
    assert_eq!((shown.status, &shown.body["available"]), (200, &4.into()), "{}", shown.text);
    until("bodies are in Redis", async || {
        let figures = projector.get("/metrics", None, &[]).await.text;
        let put = figures.lines().find(|line| line.starts_with("tidemark_redis_bodies_total"))?;
        (!put.ends_with(" 0")).then_some(())
    })
    .await;

    // What a URL says and the server refuses is told, and not tried for ever.
    let wrong = format!("{server}/nowhere?sslmode=verify-full&sslrootcert={authority}");
    let told = tidemark().args(["replay"]).env("TIDEMARK_LOG_URL", &wrong).output().await.unwrap();
    let words = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(2), "{words}");
    assert!(words.contains("TIDEMARK_LOG_URL") && words.contains("nowhere"), "{words}");
    let clear = format!("{server}/{name}?sslmode=disable");
    let told = tidemark().args(["replay"]).env("TIDEMARK_LOG_URL", &clear).output().await.unwrap();
    assert_eq!(told.status.code(), Some(2), "{}", String::from_utf8_lossy(&told.stderr));
    let read = tidemark().args(["replay"]).env("TIDEMARK_LOG_URL", &url).output().await.unwrap();
    assert!(read.status.success() && !read.stdout.is_empty());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["one", "other"] {
        certificate(folder.path(), name);
    }
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    for (certificate, key, variable) in [
        ("missing", "one.key", "TIDEMARK_TLS_CERTIFICATE"),
        ("empty", "one.key", "TIDEMARK_TLS_CERTIFICATE"),
        ("broken", "one.key", "TIDEMARK_TLS_CERTIFICATE"),
        ("one.key", "one.key", "TIDEMARK_TLS_CERTIFICATE"),
        ("one.crt", "missing", "TIDEMARK_TLS_KEY"),
        ("one.crt", "empty", "TIDEMARK_TLS_KEY"),
        ("one.crt", "one.crt", "TIDEMARK_TLS_KEY"),
        ("one.crt", "other.key", "TIDEMARK_TLS_KEY"),
        ("one.crt", "", "TIDEMARK_TLS_KEY"),
        ("", "one.key", "TIDEMARK_TLS_CERTIFICATE"),
    ] {
        let mut command = tidemark();
        command.args(["up", "--listen", "127.0.0.1:1"]).env("TIDEMARK_DATA_DIR", path(""));
        for (variable, file) in [("TIDEMARK_TLS_CERTIFICATE", certificate), ("TIDEMARK_TLS_KEY", key)] {
            if !file.is_empty() {
                command.env(variable, path(file));
            }
        }
        let output = command.output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{certificate} {key}: {said}");
        assert!(said.contains(variable) && !said.contains("PRIVATE KEY"), "{certificate} {key}: {said}");
    }
}
