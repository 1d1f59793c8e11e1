//! The page of the documentation in a real browser, under its Content-Security-Policy.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::harness::{Postgres, Shop, folder};

/// This machine's Chromium, which `scripts/setup test` installs.
fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|file| file.exists())
        .expect("there is no Chromium here: `make setup-test` gets one, or says how")
}

/// What a page has become after its scripts have run, and what they said meanwhile.
async fn visit(chromium: &PathBuf, url: &str) -> (String, String) {
    let profile = folder();
    let visited = tokio::process::Command::new(chromium)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let visited = tokio::time::timeout(Duration::from_secs(120), visited).await;
    let Output { stdout, stderr, .. } = visited.expect("Chromium ends within two minutes").unwrap();
    (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
}

/// What the page's console says, a line each.
fn console(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.contains(":CONSOLE")).collect()
}

#[tokio::test]
async fn the_documentation_works_in_a_browser_and_violates_no_policy() {
    let chromium = chromium();
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let shop = Shop::part("up", &url, &[("DATABASE_URL", &url)]).await;
    let (page, said) = visit(&chromium, &format!("{}/docs/", shop.base)).await;
    // It was drawn from the document: operations of every kind are there.
    for shown in ["/v1/products", "/v1/orders", "/v1/sessions", "opblock"] {
        assert!(page.contains(shown), "{shown} is not shown: {said}\n{page}");
    }
    assert_eq!(console(&said), Vec::<&str>::new());

    // A page that does violate its policy is heard of.
    let inline = "data:text/html,<meta http-equiv=Content-Security-Policy content=\"script-src 'self'\"><script>1</script>";
    let (_, said) = visit(&chromium, inline).await;
    assert!(console(&said).iter().any(|line| line.contains("Content Security Policy")), "{said}");
}
