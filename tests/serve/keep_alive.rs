//! Keep-alive pings over HTTP/2.

use crate::{
    common::{Driver, live},
    raw_http2::{ACK, DATA, GOAWAY, PING, PREFACE, SETTINGS, Wire, frame, request},
};
use std::time::Duration;
use support::{
    client::{Http2, within},
    listener::Memory,
};
use tokio::{
    io::{AsyncReadExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tower_sse::serve::serve;

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

/// Starts a server with pings, and returns a connection to it with one stream.
async fn connect(buffer: usize) -> (Wire<DuplexStream>, Driver) {
    connect_with(buffer, INTERVAL, TIMEOUT).await
}

async fn connect_with(buffer: usize, interval: Duration, timeout: Duration) -> (Wire<DuplexStream>, Driver) {
    let (mut drivers, app) = live();
    let (connections, listener) = mpsc::unbounded_channel();
    let (io, accepted) = duplex(buffer);
    connections.send(accepted).unwrap();
    tokio::spawn(async move {
        let _open = connections;
        serve(Memory(listener), app).http2_keep_alive(interval, timeout).await
    });
    let mut wire = Wire { io };
    wire.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &request(1, "/")].concat()).await;
    let driver = drivers.next().await;
    (wire, driver)
}

#[tokio::test(start_paused = true)]
async fn client_that_does_not_answer_ping_is_disconnected() {
    let (mut wire, driver) = connect(1 << 16).await;
    let begin = Instant::now();
    assert_eq!(wire.next_of(PING).await.flags, 0);
    assert_eq!(begin.elapsed().as_secs(), INTERVAL.as_secs());
    // Events that the server sends are no answer.
    driver.send("data: one\n\n");
    wire.next_of(DATA).await;
    wire.next_of(GOAWAY).await;
    timeout(HOUR, driver.body_dropped()).await.expect("the server to drop the body");
    while wire.next().await.is_some() {}
    let time = begin.elapsed();
    assert!((INTERVAL + TIMEOUT..INTERVAL + TIMEOUT + Duration::from_secs(2)).contains(&time), "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn client_that_answers_pings_is_not_disconnected() {
    let (mut wire, driver) = connect(1 << 16).await;
    for _ in 0..20 {
        let ping = wire.next_of(PING).await.payload;
        sleep(TIMEOUT - Duration::from_secs(1)).await;
        wire.send(&frame(PING, ACK, 0, &ping)).await;
    }
    driver.send("data: one\n\n");
    assert_eq!(wire.next_of(DATA).await.payload, b"data: one\n\n");
}

/// The GOAWAY does not fit into the buffers of a client that has stopped to read.
#[tokio::test(start_paused = true)]
async fn client_that_does_not_read_is_disconnected() {
    let (mut wire, driver) = connect(64).await;
    let (begin, limit) = (Instant::now(), INTERVAL + TIMEOUT + Duration::from_secs(2));
    driver.send(&"x".repeat(1000));
    sleep(limit).await;
    driver.body_dropped().await;
    // The server has closed the connection, so it writes nothing more.
    let mut received = Vec::new();
    wire.io.read_to_end(&mut received).await.unwrap();
    assert!(received.len() <= 64, "{} bytes", received.len());
    assert_eq!(begin.elapsed(), limit);
}

/// The ping is sent after 30 seconds, and waits behind the event.
#[tokio::test(start_paused = true)]
async fn client_that_reads_again_in_time_is_not_disconnected() {
    let (mut wire, driver) = connect(64).await;
    let event = "x".repeat(1000);
    for _ in 0..5 {
        driver.send(&event);
        sleep(INTERVAL + TIMEOUT - Duration::from_secs(1)).await;
        assert_eq!(wire.next_of(DATA).await.payload, event.as_bytes());
        let ping = wire.next_of(PING).await.payload;
        wire.send(&frame(PING, ACK, 0, &ping)).await;
    }
}

/// The pings wait behind the events, which the client reads byte by byte.
#[tokio::test(start_paused = true)]
async fn slow_client_that_answers_pings_is_not_disconnected() {
    let (mut wire, driver) = connect(64).await;
    // More than the client reads at a time, so bytes always wait for the client.
    (0..3).for_each(|_| driver.send(&"x".repeat(500)));
    let mut unread = Vec::new();
    for _ in 0..15_000 {
        sleep(Duration::from_millis(10)).await;
        unread.push(within("a byte", wire.io.read_u8()).await.unwrap());
        while let [a, b, c, kind, flags, ..] = unread[..] {
            let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
            if unread.len() < end {
                break;
            }
            let payload: Vec<u8> = unread.drain(..end).skip(9).collect();
            if kind == PING && flags == 0 {
                wire.send(&frame(PING, ACK, 0, &payload)).await;
            } else if kind == DATA {
                driver.send(&"x".repeat(500));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn very_long_times_are_allowed() {
    let (mut wire, driver) = connect_with(1 << 16, Duration::MAX, Duration::MAX).await;
    driver.send("data: one\n\n");
    wire.next_of(DATA).await;
}

/// hyper's client answers pings.
#[tokio::test]
async fn pings_over_tcp_detect_only_silent_clients() {
    let (mut drivers, app) = live();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = serve(listener, app).http2_keep_alive(Duration::from_millis(50), Duration::from_secs(5));
    let running = tokio::spawn(server.into_future());
    let mut answer = Http2::connect(address).await.get("/", &[]).await;
    let driver = drivers.next().await;
    driver.send("data: one\n\n");
    answer.read_until("data: one\n\n").await;

    let io = TcpStream::connect(address).await.unwrap();
    let mut silent = Wire { io };
    silent.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &request(1, "/")].concat()).await;
    drivers.next().await.body_dropped().await;
    within("the end", async { while silent.next().await.is_some() {} }).await;

    driver.send("data: two\n\n");
    answer.read_until("data: two\n\n").await;
    running.abort();
}
