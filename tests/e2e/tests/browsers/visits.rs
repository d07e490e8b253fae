//! What a server sees of its browser.

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

/// The requests to a server, as a middleware: `middleware::from_fn_with_state(visits, visits::keep)`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Visits(Arc<Mutex<Vec<Visit>>>);

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Visit {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) version: Version,
}

impl Visits {
    /// Those to this path, in order.
    pub(crate) fn to(&self, path: &str) -> Vec<Visit> {
        let visits = self.0.lock().expect("no holder panics");
        visits.iter().filter(|visit| visit.path == path).cloned().collect()
    }

    /// How many there were to this path.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.to(path).len()
    }
}

impl Visit {
    /// The bytes of `Last-Event-ID`.
    pub(crate) fn last_event_id(&self) -> Option<&[u8]> {
        self.headers.get("last-event-id").map(|value| value.as_bytes())
    }
}

pub(crate) async fn keep(State(visits): State<Visits>, request: Request, next: Next) -> Response {
    visits.0.lock().expect("no holder panics").push(Visit {
        at: Instant::now(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        headers: request.headers().clone(),
        version: request.version(),
    });
    next.run(request).await
}
