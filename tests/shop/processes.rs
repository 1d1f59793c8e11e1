//! The parts of the shop as processes, and what is the same in all of them.

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
    // Only the document is everywhere, not the routes.
    let [projector, command, query, _] = &parts;
    assert_eq!(projector.get("/v1/products", None, &[]).await.status, 404);
    assert_eq!(command.get("/v1/products", None, &[]).await.status, 405);
    assert_eq!(query.get("/v1/products", None, &[]).await.status, 200);
    assert_eq!(query.post("/v1/products", serde_json::json!({})).await.status, 405);
}
