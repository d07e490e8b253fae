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
use tokio::time::{sleep, timeout};
use tower::ServiceBuilder;
use tower_sse::{
    Event, SseStream,
    hub::{Error, Hub, Start, Subscription},
};

/// The default of hyper's `max_buf_size` on HTTP/1.
const HYPER: usize = 408 * 1024;
/// The maximum length of a frame that has more than one event.
const FRAME: usize = 16 * 1024;

#[tokio::test]
async fn stalled_client_keeps_one_large_event_beside_what_hyper_buffers() {
    check(3 << 20).await;
}

#[tokio::test]
async fn stalled_client_keeps_one_frame_of_small_events_beside_what_hyper_buffers() {
    check(64).await;
}

/// Stalls a client, evicts everything that it was sent, and checks what is still in memory.
async fn check(event_length: usize) {
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
    let server = serve(ServiceBuilder::new().map_response(remember).service(app)).await;
    let client = request(server.address, "/events").await;
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
    println!("the server keeps {kept} of the {passed} bytes of {} frames", frames.len());
    assert!(kept > 0, "the client does not stall");
    assert!(kept < HYPER + FRAME.max(event_length + 1024), "{kept} of {passed} bytes");
    drop(client);
}
