//! The parts of the shop as processes, and what is the same in all of them.

use std::collections::BTreeSet;
use std::path::Path;

use crate::harness::{Postgres, Shop};

#[tokio::test]
async fn every_process_has_the_document_of_the_whole_api() {
    let postgres = Postgres::shared().await;
    let (log, views) = (postgres.database().await, postgres.database().await);
    let with_views = [("TIDEMARK_VIEWS_URL", views.as_str())];
    let parts = [
        Shop::part("projector", &log, &with_views).await,
        Shop::part("command", &log, &[]).await,
        Shop::part("query", &log, &with_views).await,
        Shop::on(&postgres.database().await).await,
    ];
    let whole = parts[3].get("/openapi.json", None, &[]).await;
    let paths = &whole.body["paths"];
    assert!(paths["/v1/orders"]["post"].is_object() && paths["/v1/orders"]["get"].is_object());
    assert!(whole.body["components"]["securitySchemes"]["token"].is_object());
    for part in &parts {
        assert_eq!(part.get("/openapi.json", None, &[]).await.text, whole.text);
        assert!(part.get("/docs/", None, &[]).await.text.contains("swagger"));
    }
    // What they count is told to operators.
    let told = told();
    for part in &parts {
        let metrics = part.get("/metrics", None, &[]).await.text;
        let counted: Vec<&str> = between(&metrics, "# TYPE ", " ").collect();
        assert!(counted.contains(&"tidemark_http_requests_total"), "{counted:?}");
        assert!(counted.iter().all(|name| told.contains(*name)), "{counted:?}");
    }
    // Only the document is everywhere, not the routes.
    let [projector, command, query, _] = &parts;
    assert_eq!(projector.get("/v1/products", None, &[]).await.status, 404);
    assert_eq!(command.get("/v1/products", None, &[]).await.status, 405);
    assert_eq!(query.get("/v1/products", None, &[]).await.status, 200);
    assert_eq!(query.post("/v1/products", serde_json::json!({})).await.status, 405);
}

/// Everything that stands between two marks.
fn between<'a>(text: &'a str, begin: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| rest.split_once(end).map(|(found, _)| found))
}

/// The metrics in docs/operations.md.
fn told() -> BTreeSet<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md"));
    let text = text.unwrap();
    let names = between(&text, "`tidemark_", "`").map(|name| name.split('{').next().unwrap());
    names.map(|name| format!("tidemark_{name}")).collect()
}

/// The metrics in a folder's sources.
fn counted(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            counted(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for kind in ["counter", "gauge", "histogram"] {
                let made = format!("metrics::{kind}!(");
                names
                    .extend(text.split(&made).skip(1).map(|rest| rest.split('"').nth(1).unwrap().to_owned()));
            }
        }
    }
}

#[test]
fn every_metric_is_told_to_operators() {
    let mut names = BTreeSet::new();
    for part in ["events", "views", "kafka", "http", "command", "projector", "query", "tidemark"] {
        counted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(part).join("src"), &mut names);
    }
    assert!(names.len() > 20, "{names:?}");
    assert_eq!(names, told());
}
