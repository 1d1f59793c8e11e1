//! `tidemark doctor --deploy` on real servers.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{Postgres, SECRET, Shop, folder, tidemark};

async fn doctor(settings: &[(&str, &str)]) -> Output {
    let data = folder();
    let mut command = tidemark();
    command.args(["doctor", "--deploy"]).env("TIDEMARK_DATA_DIR", data.path()).envs(settings.iter().copied());
    tokio::time::timeout(std::time::Duration::from_secs(60), command.output()).await.unwrap().unwrap()
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong_and_says_no_secret() {
    let shop = Shop::open().await;
    let told =
        doctor(&[("DATABASE_URL", &shop.url), ("TIDEMARK_LOG", "debug"), ("TIDEMARK_LISTEN", "0.0.0.0:1")])
            .await;
    let table = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(1), "{table}");
    // The tests' secret says what it is, their role may do everything, and nobody archives their log.
    for id in ["S01", "S09", "M01", "H01", "H05", "H13", "O01", "P07", "P11", "P13"] {
        assert!(table.contains(&format!("| {id} ")), "{id}: {table}");
    }
    for id in ["P01", "P02", "P03", "P04", "D01", "R01"] {
        assert!(!table.contains(&format!("| {id} ")), "{id}: {table}");
    }
    assert!(!table.contains(SECRET) && !String::from_utf8_lossy(&told.stderr).contains(SECRET), "{table}");
}

#[tokio::test]
async fn the_doctor_refuses_what_no_process_would_start_with() {
    for (settings, variable) in [
        ([("DATABASE_URL", "mysql://a:hidden@b/c"), ("TIDEMARK_LISTEN", "127.0.0.1:1")], "DATABASE_URL"),
        ([("TIDEMARK_MAX_REQUESTS", "many"), ("TIDEMARK_LISTEN", "127.0.0.1:1")], "TIDEMARK_MAX_REQUESTS"),
        (
            [("TIDEMARK_LOG_URL", "postgres://a@127.0.0.1:1/b"), ("TIDEMARK_VIEWS_URL", "x")],
            "TIDEMARK_VIEWS_URL",
        ),
    ] {
        let told = doctor(&settings).await;
        let text = String::from_utf8(told.stderr).unwrap();
        assert_eq!(told.status.code(), Some(2), "{text}");
        assert!(text.contains(variable) && !text.contains("hidden"), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_a_finding() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let redis = format!("redis://127.0.0.1:{}", crate::harness::free_port());
    let settings = [
        ("TIDEMARK_LOG_URL", "postgres://a@127.0.0.1:1/b"),
        ("TIDEMARK_VIEWS_URL", &url),
        ("TIDEMARK_REDIS_URL", &redis),
    ];
    let told = doctor(&settings).await;
    let table = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(1), "{table}");
    for id in ["P01", "R01"] {
        assert!(table.contains(&format!("| {id} ")), "{id}: {table}");
    }
}

/// Runs openssl in a folder.
fn openssl(folder: &Path, arguments: &str) {
    let made = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
    assert!(made.status.success(), "{arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

#[tokio::test]
async fn a_certificate_that_strangers_would_refuse_is_a_finding() {
    const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for authority in ["known", "other"] {
        let request = format!("req -x509 {KEY} -days 99 -subj /CN={authority}");
        openssl(folder.path(), &format!("{request} -keyout {authority}.key -out {authority}.crt"));
    }
    openssl(folder.path(), &format!("req {KEY} -subj /CN=shop -keyout shop.key -out shop.csr"));
    std::fs::write(path("names"), "subjectAltName=DNS:shop.example.org\nbasicConstraints=CA:FALSE\n")
        .unwrap();
    for (name, days) in [("months", 90), ("days", 9)] {
        let signed = "x509 -req -in shop.csr -CA known.crt -CAkey known.key -CAcreateserial -extfile names";
        openssl(folder.path(), &format!("{signed} -days {days} -out {name}.crt"));
    }
    let found = async |certificate: &str, authority: &str, more: &[(&str, &str)]| {
        let (certificate, key, authority) = (path(certificate), path("shop.key"), path(authority));
        let mut settings = vec![
            ("TIDEMARK_TLS_CERTIFICATE", certificate.as_str()),
            ("TIDEMARK_TLS_KEY", &key),
            ("SSL_CERT_FILE", &authority),
        ];
        settings.extend(more);
        let told = doctor(&settings).await;
        let table = String::from_utf8(told.stdout).unwrap();
        assert!(table.contains(" checks\n"), "{}", String::from_utf8_lossy(&told.stderr));
        table.contains("| H16 ").then_some(table)
    };
    let at = |url| [("TIDEMARK_PUBLIC_URL", url)];
    assert_eq!(found("months.crt", "known.crt", &[]).await, None);
    assert_eq!(found("months.crt", "known.crt", &at("https://shop.example.org:8443")).await, None);
    let table = found("months.crt", "known.crt", &at("https://www.example.org")).await.unwrap();
    assert!(table.contains("www.example.org"), "{table}");
    let table = found("months.crt", "other.crt", &[]).await.unwrap();
    assert!(table.contains("UnknownIssuer"), "{table}");
    let table = found("days.crt", "known.crt", &[]).await.unwrap();
    assert!(table.contains("within"), "{table}");
    // Between a proxy and the shop it is nobody else's business.
    assert_eq!(found("days.crt", "other.crt", &[("TIDEMARK_TRUSTED_PROXIES", "127.0.0.1")]).await, None);
}
