//! HTTP/2 clients that cancel many requests: attacks (CVE-2023-44487, "rapid reset"), proxies and
//! browsers.

use crate::{
    common::{driven, event_stream},
    raw_http2::{HEADERS, PREFACE, frame, request},
};
use axum::{Router, routing::get};
use std::{
    future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use support::{client::within, listener::Memory};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tower_sse::serve::{Serve, serve};

const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const ACK: u8 = 1;
/// CANCEL (RFC 9113, §7).
const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL)
}

/// Returns a request for `/` with `padding` more bytes of headers.
fn padded_request(stream: u32, padding: usize) -> Vec<u8> {
    // GET, http, /, the authority `a`, and a field `x` without compression (RFC 7541).
    let mut headers = vec![0x82, 0x86, 0x84, 0x01, 1, b'a', 0x00, 1, b'x', 0x7f];
    let length = padding + 127;
    let mut rest = length - 127;
    while rest >= 128 {
        headers.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    headers.push(rest as u8);
    headers.resize(headers.len() + length, b'x');
    frame(HEADERS, 5, stream, &headers)
}

fn short_request(stream: u32) -> Vec<u8> {
    frame(HEADERS, 5, stream, &[0x82, 0x86, 0x84, 0x01, 1, b'a'])
}

/// Reads until the server closes the connection.
async fn read_all(mut io: impl AsyncRead + Unpin) {
    let mut bytes = vec![0; 1 << 16];
    while io.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
}

/// The connection closes, although the attacker still sends. Up to then, about 400 handlers may
/// begin, and 200 more in each second.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn flood_of_cancelled_requests_closes_connection() {
    for (name, request) in [
        ("short", Box::new(short_request) as Box<dyn Fn(u32) -> Vec<u8>>),
        ("padded to 512 bytes", Box::new(|stream| padded_request(stream, 512))),
        ("padded to 4,000 bytes", Box::new(|stream| padded_request(stream, 4000))),
    ] {
        let started = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&started);
        let handler = async move || {
            counted.fetch_add(1, Ordering::Relaxed);
            future::pending::<()>().await;
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = tokio::spawn(serve(listener, Router::new().route("/", get(handler))).into_future());
        let (read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
        let reader = tokio::spawn(read_all(read));
        write.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
        let begin = Instant::now();
        let mut is_closed = false;
        for batch in 0..500 {
            let streams = (0..100).map(|number| 2 * (100 * batch + number) + 1);
            let bytes: Vec<u8> = streams.flat_map(|stream| [request(stream), cancel(stream)].concat()).collect();
            if write.write_all(&bytes).await.is_err() || reader.is_finished() {
                is_closed = true;
                break;
            }
        }
        let started = started.load(Ordering::Relaxed);
        assert!(is_closed, "{name}: the connection is open after 50,000 requests, {started} of which began");
        let limit = 600 + 200 * (begin.elapsed().as_secs() as usize + 1);
        assert!(started <= limit, "{name}: {started} handlers began");
        within("the end of the connection", reader).await.unwrap();
        running.abort();
    }
}

/// A client over a pipe, which sends frames and reads the frames of the server.
struct Client {
    io: DuplexStream,
    next_stream: u32,
}

impl Client {
    /// Connects to a server with a handler at `/hang` that never responds, and an event stream at
    /// `/live`.
    async fn new() -> Self {
        Self::with(|server| server).await
    }

    /// Connects to a server with the settings that `configure` makes.
    async fn with(configure: impl FnOnce(Serve<Memory, Router>) -> Serve<Memory, Router>) -> Self {
        let live = async || {
            let (driver, body) = driven();
            tokio::spawn(driver.body_dropped());
            event_stream(body)
        };
        let app = Router::new().route("/live", get(live)).route("/hang", get(future::pending::<()>));
        let (connections, listener) = mpsc::unbounded_channel();
        let (mut io, accepted) = duplex(1 << 20);
        connections.send(accepted).unwrap();
        tokio::spawn(configure(serve(Memory(listener), app)).into_future());
        io.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
        Self { io, next_stream: 1 }
    }

    /// Sends this number of requests, and returns the numbers of their streams.
    async fn request(&mut self, path: &str, number: u32) -> Vec<u32> {
        let streams: Vec<u32> = (0..number).map(|index| self.next_stream + 2 * index).collect();
        self.next_stream += 2 * number;
        let bytes: Vec<u8> = streams.iter().flat_map(|&stream| request(stream, path)).collect();
        self.io.write_all(&bytes).await.unwrap();
        streams
    }

    async fn cancel(&mut self, streams: &[u32]) {
        let bytes: Vec<u8> = streams.iter().flat_map(|&stream| cancel(stream)).collect();
        self.io.write_all(&bytes).await.unwrap();
    }

    /// Reads this number of frames of a type. Returns `false` if the connection ends before.
    async fn has_read(&mut self, kind: u8, flags: u8, number: u32) -> bool {
        let mut read = 0;
        while read < number {
            let mut header = [0; 9];
            if self.io.read_exact(&mut header).await.is_err() {
                return false;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
            if self.io.read_exact(&mut payload).await.is_err() {
                return false;
            }
            read += u32::from(header[3] == kind && header[4] & flags == flags);
        }
        true
    }

    /// Returns `true` if the server still answers. It has processed all frames before the first ping
    /// when it answers the second one.
    async fn is_open(&mut self) -> bool {
        for _ in 0..2 {
            let is_sent = self.io.write_all(&frame(PING, 0, 0, &[7; 8])).await.is_ok();
            let answered = timeout(Duration::from_secs(60), self.has_read(PING, ACK, 1));
            if !is_sent || !answered.await.expect("an answer") {
                return false;
            }
        }
        true
    }
}

/// The clients of a proxy, or the tabs of a browser, leave again and again.
#[tokio::test(start_paused = true)]
async fn cancelled_event_streams_do_not_close_connection() {
    let mut client = Client::new().await;
    for _ in 0..50 {
        let streams = client.request("/live", 100).await;
        assert!(client.has_read(HEADERS, 0, 100).await, "the connection is closed");
        client.cancel(&streams).await;
    }
    assert!(client.is_open().await);
}

/// A proxy gives up on a server that does not respond, and tries again.
#[tokio::test(start_paused = true)]
async fn proxy_may_cancel_200_requests_each_second() {
    let mut client = Client::new().await;
    for _ in 0..50 {
        let streams = client.request("/hang", 200).await;
        assert!(client.is_open().await);
        client.cancel(&streams).await;
        assert!(client.is_open().await);
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_400_cancelled_requests_close_connection() {
    let mut client = Client::new().await;
    for cancelled in [100, 200, 300, 400, 500] {
        let streams = client.request("/hang", 100).await;
        client.cancel(&streams).await;
        assert_eq!(client.is_open().await, cancelled <= 400, "after {cancelled} requests");
    }
}

/// The limit follows the number of requests that may be open, but is at least 100 per second.
#[tokio::test(start_paused = true)]
async fn limit_of_cancelled_requests_follows_open_requests() {
    for (max_streams, per_second) in [(None, 200), (Some(300), 300), (Some(10), 100)] {
        let mut client = Client::with(|server| match max_streams {
            Some(number) => server.max_concurrent_streams(number),
            None => server,
        })
        .await;
        assert!(client.is_open().await);
        // The hour without requests does not raise the limit.
        for (pause, allowed) in [(Duration::from_secs(3600), 2 * per_second), (Duration::from_secs(1), per_second)] {
            sleep(pause).await;
            // Few enough for the smallest limit of open requests.
            for cancelled in (10..=allowed).step_by(10) {
                let streams = client.request("/hang", 10).await;
                client.cancel(&streams).await;
                assert!(client.is_open().await, "{max_streams:?}: {cancelled} of {allowed}");
            }
        }
        let streams = client.request("/hang", 10).await;
        client.cancel(&streams).await;
        assert!(!client.is_open().await, "{max_streams:?}");
    }
}
