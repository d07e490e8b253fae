//! A server for the conformance tests, which write to the streams that they read: the write side of
//! the protocol over a hub. It creates, appends, closes and deletes. It has no producers, forks,
//! sequence numbers, times to live, and no subscriptions.

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
        header::{CONTENT_TYPE, LOCATION, X_CONTENT_TYPE_OPTIONS},
    },
    response::{IntoResponse, Response},
    routing::put,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tower_http::cors::{Any, CorsLayer};
use tower_sse::{
    Event,
    hub::{
        Hub,
        durable_streams::{Content, DurableStreams},
    },
};

const NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
const CLOSED: HeaderName = HeaderName::from_static("stream-closed");

/// A stream that was created and not deleted.
#[derive(Clone)]
struct Stream {
    content_type: HeaderValue,
    is_closed: bool,
}

impl Stream {
    fn is_json(&self) -> bool {
        essence(&self.content_type) == "application/json"
    }
}

#[derive(Clone)]
struct Writer {
    hub: Hub,
    streams: Streams,
    reader: DurableStreams,
    /// Writes of all streams are one after the other.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Default)]
struct Streams(Arc<Mutex<HashMap<String, Stream>>>);

impl Streams {
    fn get(&self, topic: &str) -> Option<Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    fn set(&self, topic: &str, stream: Option<Stream>) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stream {
            Some(stream) => streams.insert(topic.to_owned(), stream),
            None => streams.remove(topic),
        };
    }
}

/// Returns an application whose reads are those of the hub.
pub fn app(hub: &Hub, settings: impl FnOnce(DurableStreams) -> DurableStreams) -> Router {
    let streams = Streams::default();
    let (readable, existing, types) = (streams.clone(), streams.clone(), streams.clone());
    let reader = hub
        .durable_streams()
        .readable(move |topic, _| readable.get(topic).is_some())
        .existing(move |topic| existing.get(topic).is_some())
        .content(move |topic| match types.get(topic) {
            Some(stream) if stream.is_json() => Content::json().content_type(stream.content_type),
            Some(stream) => Content::base64().content_type(stream.content_type),
            None => Content::base64(),
        });
    let writer = Writer { hub: hub.clone(), streams, reader: settings(reader), turn: Arc::default() };
    let reader = writer.reader.clone();
    let write = put(create).post(append).delete(delete).with_state(writer);
    Router::new().route("/v1/stream/{*name}", write.fallback_service(reader)).layer(DefaultBodyLimit::disable()).layer(
        CorsLayer::new().allow_origin(Any).allow_methods(Any).allow_headers(Any).expose_headers([NEXT_OFFSET, CLOSED]),
    )
}

fn topic(uri: &Uri) -> &str {
    uri.path().trim_start_matches('/')
}

fn essence(content_type: &HeaderValue) -> String {
    let text = content_type.to_str().unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_closing(headers: &HeaderMap) -> bool {
    headers.get(CLOSED).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

async fn create(State(writer): State<Writer>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let _turn = writer.turn.lock().await;
    let content_type = headers.get(CONTENT_TYPE).cloned();
    let content_type = content_type.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let stream = Stream { content_type, is_closed: is_closing(&headers) };
    let status = match writer.streams.get(topic(&uri)) {
        None => StatusCode::CREATED,
        Some(there)
            if essence(&there.content_type) == essence(&stream.content_type) && there.is_closed == stream.is_closed =>
        {
            StatusCode::OK
        }
        Some(_) => return StatusCode::CONFLICT.into_response(),
    };
    if status == StatusCode::CREATED {
        let events = match events(&stream, &body) {
            Ok(events) => events,
            Err(status) => return status.into_response(),
        };
        writer.streams.set(topic(&uri), Some(stream.clone()));
        writer.publish(topic(&uri), events, stream.is_closed).await;
    }
    let mut response = writer.state(&uri, status).await;
    response.headers_mut().insert(CONTENT_TYPE, stream.content_type);
    let location = format!("http://{}{}", headers["host"].to_str().unwrap_or_default(), uri.path());
    response.headers_mut().insert(LOCATION, location.parse().expect("a URL"));
    response
}

async fn append(State(writer): State<Writer>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let _turn = writer.turn.lock().await;
    let Some(mut stream) = writer.streams.get(topic(&uri)) else { return StatusCode::NOT_FOUND.into_response() };
    let is_closing = is_closing(&headers);
    if body.is_empty() && !is_closing {
        return StatusCode::BAD_REQUEST.into_response();
    }
    if stream.is_closed {
        let status = if body.is_empty() { StatusCode::NO_CONTENT } else { StatusCode::CONFLICT };
        return writer.state(&uri, status).await;
    }
    let mut new = Vec::new();
    if !body.is_empty() {
        match headers.get(CONTENT_TYPE) {
            None => return StatusCode::BAD_REQUEST.into_response(),
            Some(other) if essence(other) != essence(&stream.content_type) => {
                return StatusCode::CONFLICT.into_response();
            }
            Some(_) => {}
        }
        match events(&stream, &body) {
            Ok(events) if events.is_empty() => return StatusCode::BAD_REQUEST.into_response(),
            Ok(events) => new = events,
            Err(status) => return status.into_response(),
        }
    }
    stream.is_closed = is_closing;
    writer.streams.set(topic(&uri), Some(stream));
    writer.publish(topic(&uri), new, is_closing).await;
    writer.state(&uri, StatusCode::NO_CONTENT).await
}

async fn delete(State(writer): State<Writer>, uri: Uri) -> Response {
    let _turn = writer.turn.lock().await;
    if writer.streams.get(topic(&uri)).is_none() {
        return StatusCode::NOT_FOUND.into_response();
    }
    writer.streams.set(topic(&uri), None);
    writer.hub.topic(topic(&uri)).remove().await.expect("a hub in memory has no errors here");
    StatusCode::NO_CONTENT.into_response()
}

impl Writer {
    async fn publish(&self, topic: &str, events: Vec<Event>, is_last: bool) {
        let topic = self.hub.topic(topic);
        topic.publish_all(events).await.expect("the topic is open");
        if is_last {
            topic.finish().await.expect("a hub in memory has no errors here");
        }
    }

    /// Returns a response with the end of the stream, as `HEAD` returns it.
    async fn state(&self, uri: &Uri, status: StatusCode) -> Response {
        let head = Request::builder().method(Method::HEAD).uri(uri).body(()).expect("the URI of a request");
        let head =
            tower_service::Service::call(&mut self.reader.clone(), head).await.unwrap_or_else(|never| match never {});
        let mut response = status.into_response();
        for name in [NEXT_OFFSET, CLOSED, X_CONTENT_TYPE_OPTIONS] {
            if let Some(value) = head.headers().get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        response
    }
}

/// Returns the events of a body: base64 of the bytes, or the JSON values of an array.
fn events(stream: &Stream, body: &Bytes) -> Result<Vec<Event>, StatusCode> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    if !stream.is_json() {
        return Ok(vec![Event::new(STANDARD.encode(body))]);
    }
    let values = match serde_json::from_slice(body).map_err(|_| StatusCode::BAD_REQUEST)? {
        Value::Array(values) => values,
        value => vec![value],
    };
    Ok(values.into_iter().map(Event::display).collect())
}
