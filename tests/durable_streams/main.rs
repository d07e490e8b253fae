//! Topics as Durable Streams: what a client of the protocol reads, without a network.
//! `tests/e2e/tests/durable_streams.rs` has the published clients and conformance tests.

mod caches;
mod events;
mod live;
mod losses;
mod nodes;
mod pages;
mod requests;
mod searches;
mod stress;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use std::task::Poll;
use support::polled::Polled;
use tower::ServiceExt;
use tower_sse::{
    Event,
    hub::{
        Hub, Topic,
        durable_streams::{DurableStreams, StreamBody},
    },
};

/// A response whose body was read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    fn next_offset(&self) -> String {
        self.header("stream-next-offset").expect("each success has the next offset").to_owned()
    }

    fn is_up_to_date(&self) -> bool {
        self.header("stream-up-to-date") == Some("true")
    }

    fn is_closed(&self) -> bool {
        self.header("stream-closed") == Some("true")
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Returns the status, the body, and whether the client is up to date and at the end.
    fn summary(&self) -> (u16, &str, bool, bool) {
        (self.status.as_u16(), self.text(), self.is_up_to_date(), self.is_closed())
    }
}

async fn respond(streams: &DurableStreams, request: Request<()>) -> Response<StreamBody> {
    streams.clone().oneshot(request).await.unwrap()
}

async fn request(streams: &DurableStreams, request: Request<()>) -> Answer {
    let (head, body) = respond(streams, request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, body }
}

async fn get(streams: &DurableStreams, uri: &str) -> Answer {
    request(streams, Request::get(uri).body(()).unwrap()).await
}

async fn head(streams: &DurableStreams, uri: &str) -> Answer {
    request(streams, Request::head(uri).body(()).unwrap()).await
}

/// Serves all topics of the hub.
fn all(hub: &Hub) -> DurableStreams {
    hub.durable_streams().readable(|_, _| true)
}

async fn publish(topic: &Topic, data: impl Into<String>) {
    topic.publish(Event::new(data.into())).await.unwrap();
}

async fn publish_all<T: ToString>(topic: &Topic, data: impl IntoIterator<Item = T>) {
    topic.publish_all(data.into_iter().map(|data| Event::new(data.to_string()))).await.unwrap();
}

/// Returns what an event stream has sent since the last call.
fn available(events: &mut Polled) -> String {
    let mut bytes = Vec::new();
    while let Poll::Ready(Some(chunk)) = events.poll() {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}
