//! The API as its own document lists it: what tests walk that must not miss a route.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value;

use crate::harness::Shop;

/// One operation of the document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Operation {
    /// `GET`, `POST` …
    pub(crate) method: String,
    /// With its parameters in braces.
    pub(crate) path: String,
    /// Whether the document says that it takes a token.
    pub(crate) is_protected: bool,
}

impl Operation {
    /// `GET /v1/orders/{id}`.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub(crate) fn method(&self) -> Method {
        self.method.parse().unwrap()
    }

    /// Its path, with this in the place of every parameter.
    pub(crate) fn path_with(&self, value: &str) -> String {
        let segments = self.path.split('/').map(|part| if part.starts_with('{') { value } else { part });
        segments.collect::<Vec<_>>().join("/")
    }
}

/// Every operation of the running shop.
pub(crate) async fn operations(shop: &Shop) -> BTreeSet<Operation> {
    let document = shop.get("/openapi.json", None, &[]).await.body;
    let all = has_token(&document["security"]);
    let mut found = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if ["get", "put", "post", "delete", "patch", "head", "options", "trace"]
                .contains(&method.as_str())
            {
                let own = operation.get("security");
                found.insert(Operation {
                    method: method.to_uppercase(),
                    path: path.clone(),
                    is_protected: own.map_or(all, has_token),
                });
            }
        }
    }
    assert!(found.len() >= 18, "the document lists the API: {found:?}");
    found
}

/// Whether a token must be there: no alternative is empty.
fn has_token(security: &Value) -> bool {
    security.as_array().is_some_and(|ways| {
        !ways.is_empty() && ways.iter().all(|way| way.as_object().is_some_and(|way| !way.is_empty()))
    })
}
