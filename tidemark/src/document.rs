//! The API's document: what the routes say of themselves, and what is the same for all of them.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use tidemark_http::{Role, problem};
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidemark",
        description = "An event-sourced commerce backend. Commands answer with `Tidemark-Position`; a read that sends it back as `Tidemark-After` sees what the command wrote."
    ),
    tags(
        (name = "catalog", description = "What is offered, and at which price"),
        (name = "inventory", description = "How many units there are"),
        (name = "orders", description = "Who bought what, and how far it has come"),
        (name = "accounts", description = "Who somebody is"),
        (name = "sessions", description = "Logging in and out"),
        (name = "log", description = "Everything that happened"),
        (name = "audit", description = "Who did what from where"),
    )
)]
struct Api;

/// The document of the whole API. It is the same in every process, whichever of the routes that one serves: clients
/// see one shop, and ask whom they reach.
pub(crate) fn document() -> Value {
    let mut document = Api::openapi();
    document.merge(tidemark_command::document());
    document.merge(tidemark_query::document());
    let mut token = Http::new(HttpAuthScheme::Bearer);
    token.bearer_format = Some("JWT".to_owned());
    document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(token));
    let mut document = serde_json::to_value(document).expect("a document can be written as JSON");
    let schemas = document["components"]["schemas"].clone();
    each_operation(&mut document, |operation| {
        add_refusals(operation);
        let of_accounts = operation["tags"][0] == "accounts";
        let with_fields = parameters(operation).any(|parameter| parameter["name"] == "fields");
        for (name, member) in operation {
            match (name.as_str(), member) {
                ("requestBody", body) => describe_body(body),
                ("parameters", Value::Array(parameters)) => {
                    parameters.iter_mut().for_each(|parameter| describe_parameter(parameter, of_accounts))
                }
                ("responses", Value::Object(responses)) => {
                    for (status, response) in responses {
                        describe_response(status, response);
                        let schema = response.pointer_mut("/content/application~1json/schema");
                        if with_fields && let Some(schema) = schema {
                            let part = part_of(schema, &schemas);
                            *schema = json!({ "anyOf": [schema, part] });
                        }
                    }
                }
                _ => {}
            }
        }
    });
    document
}

fn each_operation(document: &mut Value, mut describe: impl FnMut(&mut Map<String, Value>)) {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    for item in paths.into_iter().flat_map(Map::values_mut).filter_map(Value::as_object_mut) {
        for operation in item.values_mut().filter_map(Value::as_object_mut) {
            describe(operation);
        }
    }
}

fn parameters(operation: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    operation.get("parameters").and_then(Value::as_array).into_iter().flatten()
}

/// What is left of a resource, or of each one of a page, when only some fields are asked for.
fn part_of(schema: &Value, schemas: &Value) -> Value {
    let name = schema["$ref"].as_str().and_then(|whole| whole.rsplit('/').next()).unwrap_or_default();
    let mut part = schemas[name].clone();
    match part.pointer_mut("/properties/items/items") {
        Some(item) => *item = part_of(item, schemas),
        None => {
            part["required"] = json!([]);
            part["additionalProperties"] = false.into();
        }
    }
    part
}

/// A body that may be left out is not therefore `null`.
fn describe_body(body: &mut Value) {
    let contents = body.get_mut("content").and_then(Value::as_object_mut);
    for schema in
        contents.into_iter().flat_map(Map::values_mut).filter_map(|content| content.get_mut("schema"))
    {
        let forms = schema.get("oneOf").and_then(Value::as_array);
        if let Some(form) = forms.and_then(|forms| forms.iter().find(|form| form["type"] != "null")).cloned()
        {
            *schema = form;
        }
    }
}

/// Headers and parameters that mean the same wherever they occur, as a JSON Schema says it.
fn meaning(name: &str, of_accounts: bool) -> Option<Value> {
    // What is left empty in a query counts as left out.
    const PLAIN: &str = r"^[^\x00-\x1f\x7f-\x9f]*$";
    Some(match name {
        "Idempotency-Key" => {
            json!({ "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-~]+$" })
        }
        "If-Match" => json!({
            "type": "string", "pattern": r#"^(\*|"[0-9]{1,18}(-[!#-~]{0,40})?")$"#, "examples": ["\"3\"", "*"]
        }),
        "If-None-Match" => json!({ "type": "string" }),
        "Tidemark-After" => json!({
            "type": "string", "pattern": "^([0-9]{1,9}-)?[0-9]{1,18}$", "examples": ["1-42"]
        }),
        "after" => json!({
            "type": "string", "pattern": "^(([0-9]{1,9}-)?[0-9]{1,18})?$", "examples": ["1-42"]
        }),
        "limit" => json!({ "type": "integer", "minimum": 1, "maximum": 100, "default": 20 }),
        "cursor" => json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]*$" }),
        "from" => json!({ "type": "integer", "format": "int64", "minimum": 1 }),
        "to" => json!({ "type": "integer", "format": "int64", "minimum": 0 }),
        "fields" | "q" | "department" | "type" | "category" | "actor" | "email" => {
            json!({ "type": "string", "pattern": PLAIN })
        }
        "sort" => json!({ "type": "string", "enum": ["", "name", "-name", "price", "-price", "newest"] }),
        "status" if of_accounts => one_of(tidemark_query::accounts::STATUSES),
        "role" => one_of(&Role::names()),
        "kind" => one_of(tidemark_events::audit::SECURITY_KINDS),
        "since" | "until" => json!({
            "anyOf": [{ "type": "string", "format": "date-time" }, { "type": "string", "maxLength": 0 }]
        }),
        "status" => one_of(tidemark_query::orders::STATUSES),
        "customer_id" | "stream" | "resource" | "account_id" => {
            json!({ "anyOf": [{ "type": "string", "format": "uuid" }, { "type": "string", "maxLength": 0 }] })
        }
        _ => return None,
    })
}

/// One of some words, or left out.
fn one_of(words: &[&str]) -> Value {
    let words: Vec<&str> = [""].iter().chain(words).copied().collect();
    json!({ "type": "string", "enum": words })
}

fn describe_parameter(parameter: &mut Value, of_accounts: bool) {
    let name = parameter.get("name").and_then(Value::as_str);
    let meant = name.and_then(|name| meaning(name, of_accounts));
    match meant {
        Some(schema) => parameter["schema"] = schema,
        // What may be left out is not therefore `null`: a header or a query cannot say that.
        None => {
            if let Some(kinds) = parameter.pointer_mut("/schema/type").filter(|kinds| kinds.is_array()) {
                let kind =
                    kinds.as_array().and_then(|kinds| kinds.iter().find(|kind| **kind != "null")).cloned();
                *kinds = kind.unwrap_or_default();
            }
        }
    }
}

/// What stands before every route refuses requests, too.
fn add_refusals(operation: &mut Map<String, Value>) {
    let mut kinds = vec![&problem::MISDIRECTED, &problem::RATE_LIMITED, &problem::OVERLOADED];
    if operation.contains_key("requestBody") {
        kinds.push(&problem::TOO_SLOW);
    }
    let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { return };
    for kind in kinds {
        let schema = json!({ "$ref": "#/components/schemas/Problem" });
        let content = json!({ "application/problem+json": { "schema": schema } });
        let refusal = json!({ "description": kind.title, "content": content });
        responses.entry(kind.status.to_string()).or_insert(refusal);
    }
}

fn describe_response(status: &str, response: &mut Value) {
    let status: Option<StatusCode> = status.parse().ok();
    if response.get("description").is_none() {
        response["description"] =
            status.and_then(|status| status.canonical_reason()).unwrap_or("Answer").into();
    }
    // Every refusal is a problem (RFC 9457).
    if status.is_some_and(|status| status.as_u16() >= 400)
        && let Some(content) = response.get_mut("content").and_then(Value::as_object_mut)
        && let Some(problem) = content.remove("application/json")
    {
        content.insert("application/problem+json".to_owned(), problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_a_problem_and_every_answer_is_described() {
        let mut document = document();
        let mut answers = 0;
        each_operation(&mut document, |operation| {
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(response["description"].is_string(), "{status}: {response}");
                if status.as_str() >= "400" {
                    let kinds: Vec<_> = response["content"].as_object().unwrap().keys().collect();
                    assert_eq!(kinds, ["application/problem+json"], "{response}");
                }
                answers += 1;
            }
        });
        assert!(answers > 100, "{answers}");
    }

    #[test]
    fn no_parameter_is_null() {
        let mut document = document();
        each_operation(&mut document, |operation| {
            for parameter in parameters(operation) {
                assert!(!parameter["schema"].to_string().contains("null"), "{parameter}");
            }
        });
    }
}
