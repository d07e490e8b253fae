//! A middleware that records the requests of a browser.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, Version},
    middleware::Next,
    response::Response,
};

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

/// The recorded requests: `middleware::from_fn_with_state(requests, requests::record)`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests(Arc<Mutex<Vec<RecordedRequest>>>);

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct RecordedRequest {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) version: Version,
}

impl Requests {
    /// Returns the requests to this path, in order.
    pub(crate) fn to(&self, path: &str) -> Vec<RecordedRequest> {
        let requests = self.0.lock().expect("no holder panics");
        requests.iter().filter(|request| request.path == path).cloned().collect()
    }

    /// Returns the number of requests to this path.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.to(path).len()
    }
}

impl RecordedRequest {
    /// Returns the bytes of the `Last-Event-ID` header.
    pub(crate) fn last_event_id(&self) -> Option<&[u8]> {
        self.headers.get("last-event-id").map(|value| value.as_bytes())
    }
}

/// Records a request.
pub(crate) async fn record(State(requests): State<Requests>, request: Request, next: Next) -> Response {
    requests.0.lock().expect("no holder panics").push(RecordedRequest {
        at: Instant::now(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        headers: request.headers().clone(),
        version: request.version(),
    });
    next.run(request).await
}
