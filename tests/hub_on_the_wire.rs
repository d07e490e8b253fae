//! Subscriptions on real connections: clients that reconnect, clients that vanish, clients that do
//! not read.

use axum::{
    Router,
    extract::{Path, State},
    routing::get,
};
use futures_util::StreamExt;
use http::{StatusCode, header};
use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};
use support::{
    client::{Answer, Protocol, within},
    server,
    whatwg::{self, Message},
};
// In `over_serve`, this is the server of the crate.
use crate::server::{Server, serve};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};
use tower_sse::{
    Event, LastEventId, SseLayer, SseStream,
    hub::{Error, Hub, Start, Subscription},
};

async fn follow(
    State(hub): State<Hub>,
    Path(topic): Path<String>,
    last: LastEventId,
) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(hub.topic(topic).subscribe(last.or(Start::Earliest)).await?).retry(Duration::from_secs(1)))
}

async fn server(hub: &Hub) -> Server {
    server_with(hub, SseLayer::new()).await
}

async fn server_with(hub: &Hub, layer: SseLayer) -> Server {
    serve(Router::new().route("/{topic}", get(follow)).with_state(hub.clone()).layer(layer)).await
}

async fn publish(hub: &Hub, topic: &str, data: &str) {
    hub.topic(topic).publish(Event::new(data)).await.unwrap();
}

/// The data that a page listens to. The first cursor of a new client is for its browser only.
fn for_the_page(messages: Vec<Message>) -> Vec<String> {
    messages.into_iter().filter(|message| message.r#type != "hub-cursor").map(|message| message.data).collect()
}

async fn back(protocol: Protocol, address: SocketAddr, path: &str, last_event_id: &str) -> Answer {
    protocol.get(address, path, &[("last-event-id", last_event_id)]).await
}

#[tokio::test]
async fn client_resumes_after_every_reconnect() {
    for protocol in Protocol::ALL {
        let hub = Hub::new();
        let server = server(&hub).await;
        let mut got = Vec::new();
        let mut answer = protocol.get(server.address, "/news", &[]).await;
        for round in 0..10 {
            let (while_there, while_away) = (format!("there {round}"), format!("away {round}"));
            publish(&hub, "news", &while_there).await;
            answer.read_until(format!("{while_there}\n\n")).await;
            let source = whatwg::parse(answer.text().as_bytes());
            got.extend(for_the_page(source.messages));
            drop(answer);
            publish(&hub, "news", &while_away).await;
            answer = back(protocol, server.address, "/news", &source.last_event_id).await;
        }
        let mut expected: Vec<_> = (0..10).flat_map(|n| [format!("there {n}"), format!("away {n}")]).collect();
        expected.pop();
        assert_eq!(got, expected, "{protocol:?}");
    }
}

#[tokio::test]
async fn client_misses_nothing_with_max_lifetime() {
    const EVENTS: usize = 300;
    for protocol in Protocol::ALL {
        let hub = Hub::new();
        let server = server_with(&hub, SseLayer::new().max_lifetime(Duration::from_millis(100))).await;
        let publisher = tokio::spawn({
            let hub = hub.clone();
            async move {
                for n in 0..EVENTS {
                    publish(&hub, "news", &n.to_string()).await;
                    sleep(Duration::from_millis(2)).await;
                }
                hub.topic("news").finish().await.unwrap();
            }
        });
        let (mut got, mut last, mut streams) = (Vec::new(), String::new(), 0);
        loop {
            let answer = within("a stream that ends", back(protocol, server.address, "/news", &last)).await;
            let answer = answer.complete().await;
            if answer.status == StatusCode::NO_CONTENT {
                break;
            }
            let source = whatwg::parse(answer.text().as_bytes());
            got.extend(for_the_page(source.messages));
            last = source.last_event_id;
            streams += 1;
        }
        assert_eq!(got, (0..EVENTS).map(|n| n.to_string()).collect::<Vec<_>>(), "{protocol:?}");
        assert!(streams >= 3, "{streams} streams");
        publisher.await.unwrap();
    }
}

#[tokio::test]
async fn client_over_limit_is_rejected_until_another_leaves() {
    let hub = Hub::new();
    let server = server_with(&hub, SseLayer::new().max_streams(2)).await;
    let get = || Protocol::ALL[0].get(server.address, "/news", &[]);
    let (first, second) = (get().await, get().await);
    let refused = get().await.complete().await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers.contains_key(header::RETRY_AFTER));
    drop(first);
    eventually("its place is free", || hub.topic("news").subscribers() == 1).await;
    within("a place", async {
        // The subscriber is removed a moment after the subscription.
        while get().await.status != StatusCode::OK {}
    })
    .await;
    drop(second);
}

#[tokio::test]
async fn complete_client_of_finished_topic_gets_204() {
    let hub = Hub::new();
    let server = server(&hub).await;
    publish(&hub, "job", "50 %").await;
    for protocol in Protocol::ALL {
        let hub = Hub::clone(&hub);
        let mut answer = protocol.get(server.address, "/job", &[]).await;
        answer.read_until("50 %\n\n").await;
        if hub.topic("job").publish(Event::new("100 %")).await.is_ok() {
            hub.topic("job").finish().await.unwrap();
        }
        let answer = answer.complete().await;
        let source = whatwg::parse(answer.text().as_bytes());
        assert_eq!(for_the_page(source.messages), ["50 %", "100 %"]);
        let last = source.last_event_id;

        let away = back(protocol, server.address, "/job", &last).await.complete().await;
        assert_eq!((away.status, away.text()), (StatusCode::NO_CONTENT, String::new()), "{protocol:?}");
        assert!(!away.headers.contains_key(header::CONTENT_TYPE));
    }
}

#[tokio::test]
async fn hub_error_is_response_with_reason() {
    let hub = Hub::builder().max_topics(0).build();
    let server = server(&hub).await;
    let answer = Protocol::ALL[0].get(server.address, "/news", &[]).await.complete().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().contains("max_topics"), "{}", answer.text());
}

/// Waits until the condition is true.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    within(what, async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn subscribers_are_counted_exactly_when_connections_are_reset() {
    let hub = Hub::new();
    let server = server(&hub).await;
    let news = hub.topic("news");
    for _ in 0..3 {
        let mut connections = Vec::new();
        for _ in 0..50 {
            connections.push(request(server.address).await.unwrap());
        }
        eventually("all are there", || news.subscribers() == 50).await;
        for connection in connections.drain(25..) {
            // The connection is reset.
            connection.set_zero_linger().unwrap();
        }
        eventually("half of them are gone", || news.subscribers() == 25).await;
        drop(connections);
        eventually("all of them are gone", || news.subscribers() == 0).await;
    }
}

/// A client that sends a request and does not read.
async fn request(address: SocketAddr) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(b"GET /news HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n").await?;
    Ok(connection)
}

/// A client that does not read costs only the buffers of the kernel and of hyper.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_delay_no_publisher_or_client() {
    const EVENTS: usize = 5000;
    let data = "x".repeat(1024);
    let mut times = Vec::new();
    for stalled in [0, 50] {
        let hub = Hub::builder().max_events(100).build();
        let server = server(&hub).await;
        let mut connections = Vec::new();
        for _ in 0..stalled {
            connections.push(request(server.address).await.unwrap());
        }
        let mut pieces = Box::pin(Protocol::ALL[0].get(server.address, "/news", &[]).await.into_pieces());
        eventually("all are there", || hub.topic("news").subscribers() == stalled + 1).await;
        let begin = Instant::now();
        let mut text = Vec::new();
        let mut lines = 0;
        for n in 0..EVENTS {
            publish(&hub, "news", &format!("{n} {data}")).await;
            // In step with the reading client, so that it never lags. An event has three lines.
            while n % 50 == 49 && lines < 3 * n {
                let piece = within("the next piece", pieces.next()).await.unwrap().unwrap();
                lines += piece.iter().filter(|byte| **byte == b'\n').count();
                text.extend(piece);
            }
        }
        while !text.ends_with(format!("{} {data}\n\n", EVENTS - 1).as_bytes()) {
            text.extend(within("the rest", pieces.next()).await.unwrap().unwrap());
        }
        times.push(begin.elapsed());
        let messages = for_the_page(whatwg::parse(&text).messages);
        assert_eq!(messages.len(), EVENTS);
        assert!(messages.iter().enumerate().all(|(n, message)| message.starts_with(&format!("{n} "))));
        assert_eq!(hub.topic("news").subscribers(), stalled + 1, "nobody was thrown out");
        assert_eq!(hub.stats().events, 100);
    }
    println!("{EVENTS} events of 1 KiB to one client: {:?}; beside 50 that do not read: {:?}", times[0], times[1]);
    // The machine may be busier in the second run. A publisher that waits for the clients that do
    // not read never ends.
    assert!(times[1] < 10 * times[0] + Duration::from_secs(5), "{times:?}");
}
