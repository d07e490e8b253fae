//! The number of bytes of evicted events that a stalled client keeps in memory.

use crate::request;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::Response,
    routing::get,
};
use http_body_util::BodyExt;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use support::server::serve;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tower::ServiceBuilder;
use tower_sse::{
    Event, SseStream,
    hub::{Error, Hub, Start, Subscription},
};

#[derive(Clone, Copy, Debug)]
enum Server {
    Hyper,
    Serve,
}

impl Server {
    /// The number of bytes of earlier frames that the server keeps. For hyper, this is the default
    /// of `max_buf_size` on HTTP/1.
    fn buffer(self) -> usize {
        match self {
            Self::Hyper => 408 * 1024,
            Self::Serve => 256 * 1024,
        }
    }
}

/// The maximum length of a frame that has more than one event.
const FRAME: usize = 16 * 1024;

#[tokio::test]
async fn stalled_client_keeps_one_large_event_beside_the_buffer() {
    check(Server::Hyper, 3 << 20).await;
    check(Server::Serve, 3 << 20).await;
}

#[tokio::test]
async fn stalled_client_keeps_one_small_frame_beside_the_buffer() {
    check(Server::Hyper, 64).await;
    check(Server::Serve, 64).await;
}

/// Stalls a client, evicts everything that it was sent, and checks what is still in memory.
async fn check(server: Server, event_length: usize) {
    let events = async |State(hub): State<Hub>| -> Result<SseStream<Subscription>, Error> {
        Ok(SseStream::new(hub.topic("news").subscribe(Start::Latest).await?))
    };
    // The topic retains what is published between two polls of the body, so that the client does
    // not lag before it stalls.
    let burst = (4 * FRAME / event_length).max(1);
    let hub = Hub::builder().max_events(burst).build();
    let topic = hub.topic("news");
    let app = Router::new().route("/events", get(events)).with_state(hub.clone());
    // Clones of the frames that the server has taken. A clone that nothing else shares any more is
    // a frame whose memory would be free by now.
    let frames = Arc::<Mutex<Vec<Bytes>>>::default();
    let taken = frames.clone();
    let remember = move |response: Response| {
        let taken = taken.clone();
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                taken.lock().unwrap().extend(frame.data_ref().cloned());
                frame
            }))
        })
    };
    let service = ServiceBuilder::new().map_response(remember).service(app);
    let mut hyper = None;
    let address = match server {
        Server::Hyper => hyper.insert(serve(service).await).address,
        Server::Serve => {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(tower_sse::serve(listener, service).into_future());
            address
        }
    };
    let client = request(address, "/events").await;
    while topic.subscribers() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let count = || frames.lock().unwrap().len();
    let publish = async |events| {
        for _ in 0..events {
            topic.publish(Event::new("x".repeat(event_length))).await.unwrap();
        }
    };
    let stall = async {
        let mut unchanged = 0;
        while unchanged < 50 {
            let before = count();
            publish(burst).await;
            sleep(Duration::from_millis(2)).await;
            unchanged = if count() == before { unchanged + 1 } else { 0 };
        }
    };
    timeout(Duration::from_secs(30), stall).await.expect("the client stalls");
    publish(burst).await;

    let frames = frames.lock().unwrap();
    let kept: usize = frames.iter().filter(|frame| !frame.is_unique()).map(Bytes::len).sum();
    let passed: usize = frames.iter().map(Bytes::len).sum();
    println!("{server:?} keeps {kept} of the {passed} bytes of {} frames", frames.len());
    assert!(kept > 0, "the client does not stall");
    assert!(kept < server.buffer() + FRAME.max(event_length + 1024), "{kept} of {passed} bytes");
    drop(client);
}
