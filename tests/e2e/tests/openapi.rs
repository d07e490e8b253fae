//! An OpenAPI document is valid by the JSON Schema of OpenAPI 3.2, and the events on the wire are
//! valid by the document. The document is written by utoipa, or by the `aide` example.
//!
//! `@seriousme/openapi-schema-validator` checks the document, and `ajv` checks each event that
//! `eventsource-parser` reads.

use axum::{Json, Router, extract::State, response::IntoResponse, routing::get};
use e2e::{Client, Example, installed, request};
use serde::Serialize;
use serde_json::{Value, json};
use std::{fs, path::PathBuf, process::Command, time::Duration};
use tokio::net::TcpListener;
use tower_sse::{
    Event, JsonError, LastEventId, LastEventIdRejection, SseStream, StopReconnecting,
    hub::{self, Hub, Subscription},
    openapi::{SubscriptionEvents, TaggedEvents},
};
use utoipa::{OpenApi, ToSchema, openapi::OpenApiVersion};

const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Serialize, ToSchema)]
struct Point {
    x: i32,
}

macro_rules! message {
    ($Name:ident, $path:literal, $handler:ident $(, $representation:meta)?) => {
        #[derive(Serialize, ToSchema)]
        $(#[$representation])?
        #[serde(rename_all = "kebab-case")]
        enum $Name {
            Reset,
            PointMoved(Point),
            Said { text: String, to: Option<String> },
        }

        impl $Name {
            fn all() -> [Self; 3] {
                [Self::Reset, Self::PointMoved(Point { x: 1 }), Self::Said { text: "hi".into(), to: None }]
            }
        }

        #[utoipa::path(
            get,
            path = $path,
            params(LastEventId),
            responses(TaggedEvents<$Name>, StopReconnecting, LastEventIdRejection, JsonError)
        )]
        async fn $handler() -> impl IntoResponse {
            SseStream::tagged(tokio_stream::iter($Name::all()))
        }
    };
}

message!(External, "/external", external);
message!(Internal, "/internal", internal, serde(tag = "type"));
message!(Adjacent, "/adjacent", adjacent, serde(tag = "t", content = "c"));

#[utoipa::path(get, path = "/hub", params(LastEventId), responses(SubscriptionEvents<External>, hub::Error))]
async fn subscribe(State(hub): State<Hub>, last: LastEventId) -> Result<Subscription, hub::Error> {
    hub.subscribe(["messages"], last).await
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Messages", version = "1.0.0"),
    paths(external, internal, adjacent, subscribe),
    components(schemas(External, Internal, Adjacent))
)]
struct Api;

fn document() -> Value {
    let mut document = Api::openapi();
    document.openapi = OpenApiVersion::Version32;
    serde_json::to_value(&document).expect("it serializes")
}

/// Serves a document and the streams that it describes. Returns what the validators write.
async fn validate(document: Value) -> Vec<Value> {
    let hub = Hub::new();
    let messages = hub.topic("messages");
    for message in External::all() {
        messages.publish(Event::tagged(&message).expect("it serializes")).await.expect("there is room");
    }
    messages.finish().await.expect("it exists");
    let app = Router::new()
        .route("/openapi.json", get(async move || Json(document)))
        .route("/external", get(external))
        .route("/internal", get(internal))
        .route("/adjacent", get(adjacent))
        .route("/hub", get(subscribe))
        .with_state(hub);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move { tower_sse::serve(listener, app).await });
    run_validators(&[&url, "of-another-log"])
}

/// Runs the validators with these arguments: the URL of a server, and optionally the id that they
/// send as `Last-Event-ID`. Returns what the validators write.
fn run_validators(args: &[&str]) -> Vec<Value> {
    let modules = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("e2e-clients/node/node_modules");
    assert!(modules.exists(), "{} does not exist: run scripts/test, which installs it", modules.display());
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients/node/validate_openapi.cjs");
    assert!(fs::exists(&script).is_ok_and(|exists| exists));
    let mut command = Command::new(installed(&["node", "nodejs"], "nodejs"));
    let mut node = Client::start(command.env("NODE_PATH", modules).arg(script).args(args));
    let status = tokio::task::block_in_place(|| node.wait_for_exit(SOON));
    assert!(status.is_some_and(|status| status.success()), "{status:?}: {:?}", node.lines());
    node.lines().iter().map(|line| serde_json::from_str(line).expect("the script writes JSON")).collect()
}

/// Returns the line of a path with these responses.
fn head(path: &str, responses: &[&str]) -> Value {
    json!({ "path": path, "status": 200, "responses": responses, "parameters": ["Last-Event-ID"] })
}

/// Returns the line of a valid event.
fn event(path: &str, event: &str, data: &str) -> Value {
    json!({ "path": path, "event": event, "data": data, "wrong": [] })
}

#[tokio::test(flavor = "multi_thread")]
async fn document_and_events_are_valid() {
    let lines = validate(document()).await;
    let tagged = |path: &str, unit: &str| {
        [
            head(path, &["200", "204", "400", "500"]),
            event(path, "reset", unit),
            event(path, "point-moved", r#"{"x":1}"#),
            event(path, "said", r#"{"text":"hi","to":null}"#),
        ]
    };
    let mut expected = vec![json!({ "openapi": "3.2.0", "valid": true })];
    expected.extend(tagged("/adjacent", "null"));
    expected.extend(tagged("/external", "null"));
    let [_, reset, moved, said] = tagged("/hub", "null");
    expected.push(head("/hub", &["200", "204", "400", "410", "500", "503"]));
    let gap = r#"{"reason":"malformed","requested":"of-another-log","resumed":"…"}"#;
    expected.extend([event("/hub", "gap", gap), reset, moved, said]);
    expected.extend(tagged("/internal", "{}"));
    assert_eq!(lines.into_iter().map(with_id_of_any_log).collect::<Vec<_>>(), expected);
}

/// Replaces the id in the data of a gap.
fn with_id_of_any_log(mut line: Value) -> Value {
    if line["event"] == "gap" {
        let mut gap: Value = serde_json::from_str(line["data"].as_str().unwrap_or_default()).expect("it is JSON");
        assert!(gap["resumed"].is_string(), "{gap}");
        gap["resumed"] = "…".into();
        line["data"] = gap.to_string().into();
    }
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn document_and_events_of_aide_are_valid() {
    let server = Example::start("aide", &[]);
    let url = format!("http://{}", server.address());
    let path = "/deployment";
    let steps = [
        event(path, "queued", "null"),
        event(path, "node-updated", r#"{"node":"a","restarts":null}"#),
        event(path, "node-updated", r#"{"node":"b","restarts":2}"#),
        event(path, "deployed", r#"{"version":"1.4.0"}"#),
    ];
    let document = [json!({ "openapi": "3.2.0", "valid": true }), head(path, &["200", "204", "400"])];
    assert_eq!(run_validators(&[&url]), [&document[..], &steps].concat());
    assert_eq!(run_validators(&[&url, "2"]), [&document[..], &steps[2..]].concat());

    for (id, status) in [("4", 204), ("5", 204), ("of-another-log", 400)] {
        let get = format!("GET {path} HTTP/1.0\r\nLast-Event-ID: {id}\r\n\r\n");
        let response = request(server.address(), &get).await;
        assert!(response.starts_with(&format!("HTTP/1.0 {status} ")), "{id}: {response}");
        assert_eq!(response.contains("\r\ncontent-type: text/plain; charset=utf-8\r\n"), status == 400, "{response}");
    }
}

/// Shows that the validators notice faults.
#[tokio::test(flavor = "multi_thread")]
async fn faults_are_found() {
    let mut faulty = document();
    faulty["paths"]["/external"]["get"]["responses"]["200"]["content"]["text/event-stream"]["itemSchemas"] = json!({});
    faulty["components"]["schemas"]["Point"]["properties"]["x"] = json!({ "type": "string" });
    let lines = validate(faulty).await;
    assert_eq!(lines[0]["valid"], false);
    let wrong: Vec<_> =
        lines.iter().filter(|line| line["wrong"].as_array().is_some_and(|wrong| !wrong.is_empty())).collect();
    assert!(!wrong.is_empty() && wrong.iter().all(|line| line["event"] == "point-moved"), "{wrong:?}");
}
