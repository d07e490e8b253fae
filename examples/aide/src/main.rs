//! An event stream in the OpenAPI 3.2 document of [aide](https://docs.rs/aide): the names and the
//! schemas of its events, the header `Last-Event-ID`, and the responses 204 and 400.
//!
//! ```console
//! $ cargo run -p example-aide                # http://127.0.0.1:3000
//! $ cargo run -p example-aide 127.0.0.1:0    # any free port
//! ```
//!
//! Copy the function [`event_stream`] to describe your own streams. The handlers do not change.

use aide::{
    axum::{ApiRouter, routing::ApiMethodDocs},
    generate::in_context,
    openapi::{Info, MediaType, OpenApi, Operation},
    operation::{ParamLocation, add_parameters, parameters_from_schema},
    transform::TransformOperation,
};
use axum::{Json, routing::get};
use schemars::{JsonSchema, json_schema};
use serde::Serialize;
use serde_json::json;
use std::{any::type_name, env, process::ExitCode, time::Duration};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tower_sse::{BoxError, Event, JsonError, LastEventId, SseLayer, SseStream, StopReconnecting};

/// Describes a handler whose events are made by [`Event::tagged`] from values of the enum `T`.
///
/// The enum has the attribute `#[serde(tag = "event", content = "data")]`. So the schema of each
/// variant has the fields of an event. Only `data` differs: on the wire, it is JSON in a text.
///
/// # Panics
///
/// If `T` does not have this attribute.
fn event_stream<T: JsonSchema>() -> Operation {
    let mut operation = Operation::default();
    let mut events = in_context(|context| {
        let header = json_schema!({ "properties": { "Last-Event-ID": { "type": "string" } } });
        let parameters = parameters_from_schema(context, header, ParamLocation::Header);
        add_parameters(context, &mut operation, parameters);
        T::json_schema(&mut context.schema).to_value()
    });
    let attribute = format!("{} needs #[serde(tag = \"event\", content = \"data\")]", type_name::<T>());
    for event in events["oneOf"].as_array_mut().expect(&attribute) {
        let fields = event["properties"].as_object_mut().filter(|fields| fields.contains_key("event"));
        let fields = fields.expect(&attribute);
        let content = fields.remove("data").unwrap_or(json!({ "type": "null" }));
        let data = json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": content });
        fields.extend([("data".to_owned(), data), ("id".to_owned(), json!({ "type": "string" }))]);
        event["required"] = json!(["event", "data"]);
    }
    // aide models OpenAPI 3.1, which has no `itemSchema`, but it writes all extensions.
    let stream = MediaType { extensions: [("itemSchema".to_owned(), events)].into(), ..MediaType::default() };
    let _ = TransformOperation::new(&mut operation)
        .response_with::<200, String, _>(|mut response| {
            response.inner().content = [("text/event-stream".to_owned(), stream)].into();
            response.description("A stream of events")
        })
        .response_with::<204, (), _>(|response| response.description("The client has the whole stream"))
        .response_with::<400, String, _>(|response| response.description("The header `Last-Event-ID` is not valid"));
    operation
}

/// The steps of a deployment.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "event", content = "data", rename_all = "kebab-case")]
enum Step {
    /// The deployment waits for another one.
    Queued,
    /// A node runs the new release.
    NodeUpdated { node: String, restarts: Option<u32> },
    /// All nodes run the new release.
    Deployed(Release),
}

/// A version of the software.
#[derive(Serialize, JsonSchema)]
struct Release {
    version: String,
}

fn steps() -> [Step; 4] {
    [
        Step::Queued,
        Step::NodeUpdated { node: "a".into(), restarts: None },
        Step::NodeUpdated { node: "b".into(), restarts: Some(2) },
        Step::Deployed(Release { version: "1.4.0".into() }),
    ]
}

/// Streams the steps. A client that reconnects continues after the last step that it received.
async fn deployment(
    last: LastEventId,
) -> axum::response::Result<SseStream<impl Stream<Item = Result<Event, JsonError>>>> {
    let seen = last.parse::<usize>()?.unwrap_or(0);
    let mut steps = steps().into_iter().zip(1_u32..).skip(seen).peekable();
    if steps.peek().is_none() {
        return Err(StopReconnecting.into());
    }
    let events = tokio_stream::iter(steps).map(|(step, n)| Ok(Event::tagged(&step)?.id(n)));
    Ok(SseStream::new(events.throttle(Duration::from_millis(500))))
}

#[tokio::main]
async fn main() -> ExitCode {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    if let Err(error) = run(&address).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str) -> Result<(), BoxError> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    let address = listener.local_addr()?;
    println!("Read the document and the stream:");
    println!("  curl http://{address}/openapi.json");
    println!("  curl -N http://{address}/deployment");

    let info = Info { title: "Deployments".into(), version: "1.0.0".into(), ..Info::default() };
    let mut api = OpenApi { info, ..OpenApi::default() };
    let summary = Some("Streams the steps of a deployment".into());
    let docs = ApiMethodDocs::new("get", Operation { summary, ..event_stream::<Step>() });
    let app =
        ApiRouter::new().route("/deployment", get(deployment)).api_route_docs("/deployment", docs).finish_api(&mut api);
    let mut document = serde_json::to_value(&api)?;
    document["openapi"] = "3.2.0".into();
    let app = app.route("/openapi.json", get(async || Json(document))).layer(SseLayer::new());
    Ok(tower_sse::serve(listener, app).await?)
}
