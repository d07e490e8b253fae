//! Graceful shutdown while an HTTP/2 client does not answer (a stopped process, whose kernel
//! acknowledges all bytes), or reads slowly.

use crate::{
    common::{Driver, Running, driven, event_stream},
    raw_http2::{ACK, DATA, END_STREAM, PING, PREFACE, SETTINGS, WINDOW_UPDATE, Wire, frame, request},
};
use axum::{Router, routing::get};
use std::{io, net::SocketAddr, time::Duration};
use support::{client::within, listener::Memory};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpSocket,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_sse::serve::serve;

const LARGE: usize = 200_000;
/// The time for the answer of a client, and the time until it closes its side.
const LIMIT: Duration = Duration::from_secs(2);

/// A client that sends only what the test sends.
struct Client {
    wire: Wire<DuplexStream>,
    shutdown: CancellationToken,
    server: JoinHandle<io::Result<()>>,
    drivers: mpsc::UnboundedReceiver<Driver>,
}

impl Client {
    async fn new(first: &[u8]) -> Self {
        let (sender, drivers) = mpsc::unbounded_channel();
        let live = async move || {
            let (driver, body) = driven();
            sender.send(driver).unwrap();
            event_stream(body)
        };
        let app = Router::new().route("/live", get(live)).route("/large", get(async || "x".repeat(LARGE)));
        let (connections, listener) = mpsc::unbounded_channel();
        let (io, accepted) = duplex(1 << 20);
        connections.send(accepted).unwrap();
        let shutdown = CancellationToken::new();
        let server = serve(Memory(listener), app).with_graceful_shutdown(shutdown.clone());
        let server = tokio::spawn(server.into_future());
        let mut wire = Wire { io };
        wire.send(first).await;
        assert_eq!(wire.next().await.unwrap().kind, SETTINGS);
        Self { wire, shutdown, server, drivers }
    }

    /// Waits until the server returns, and returns the time that this takes.
    async fn returned(self) -> Duration {
        let begin = Instant::now();
        // Without a timer, paused time would stand still.
        timeout(Duration::from_secs(60), self.server).await.expect("the server to return").unwrap().unwrap();
        begin.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_closes_silent_connections_without_streams() {
    let settings = frame(SETTINGS, 0, 0, &[]);
    for first in [&[][..], &settings, &settings[..5], &[&settings, &request(1, "/live")[..12]].concat()] {
        let client = Client::new(&[PREFACE, first].concat()).await;
        sleep(Duration::from_secs(60)).await;
        assert!(!client.server.is_finished());
        client.shutdown.cancel();
        let time = client.returned().await;
        assert!(time <= LIMIT, "{time:?} after {first:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_closes_silent_connection_after_its_streams() {
    let mut client = Client::new(&[PREFACE, &request(1, "/live")].concat()).await;
    let driver = client.drivers.recv().await.unwrap();
    client.shutdown.cancel();
    sleep(Duration::from_secs(60)).await;
    driver.send("data: one\n\n");
    assert_eq!(client.wire.next_of(DATA).await.payload, b"data: one\n\n");
    // The server still accepts requests, because the client may not have read the GOAWAY.
    client.wire.send(&request(3, "/live")).await;
    let second = client.drivers.recv().await.unwrap();
    drop(driver);
    sleep(Duration::from_secs(60)).await;
    assert!(!client.server.is_finished());
    drop(second);
    let time = client.returned().await;
    assert!(time <= LIMIT, "{time:?}");
}

/// The limit counts from the last byte of the client.
#[tokio::test(start_paused = true)]
async fn shutdown_waits_one_second_after_last_byte_of_client() {
    let mut client = Client::new(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    client.shutdown.cancel();
    client.wire.next_of(PING).await;
    sleep(Duration::from_millis(100)).await;
    client.wire.send(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 16, 0])).await;
    let time = client.returned().await;
    assert!(time <= LIMIT, "{time:?}");
}

/// The response does not fit into the window of the client. Its stream has ended for hyper, and h2
/// has the rest of the response.
#[tokio::test(start_paused = true)]
async fn slow_client_gets_whole_response_at_shutdown() {
    for is_in_pieces in [false, true] {
        let mut client = Client::new(&[PREFACE, &request(1, "/large")].concat()).await;
        client.shutdown.cancel();
        let windows: Vec<_> = [0, 1].map(|stream| frame(WINDOW_UPDATE, 0, stream, &[0, 16, 0, 0])).concat();
        if is_in_pieces {
            for byte in windows {
                client.wire.send(&[byte]).await;
                sleep(Duration::from_millis(900)).await;
            }
        } else {
            sleep(Duration::from_secs(60)).await;
            client.wire.send(&windows).await;
        }
        let (mut received, mut is_complete) = (0, false);
        while let Some(frame) = client.wire.next().await {
            if frame.kind == DATA {
                received += frame.payload.len();
                is_complete = frame.flags & END_STREAM != 0;
            }
        }
        assert!(is_complete && received == LARGE, "{received} bytes");
        assert!(client.returned().await <= LIMIT);
    }
}

/// The client has answered, and the server waits until the client closes. Half a frame of the client
/// does not end this wait.
#[tokio::test(start_paused = true)]
async fn half_frame_does_not_cut_end_of_connection() {
    let mut client = Client::new(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    client.shutdown.cancel();
    let ping = client.wire.next_of(PING).await.payload;
    client.wire.send(&[&frame(PING, ACK, 0, &ping), &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 16, 0])[..6]].concat()).await;
    for _ in 0..5 {
        sleep(Duration::from_millis(900)).await;
        assert!(!client.server.is_finished());
        client.wire.send(&[0]).await;
    }
    let time = client.returned().await;
    assert!(time <= LIMIT, "{time:?}");
}

/// A client that reads 4 KiB in 80 ms, opens its window again after each read, and has a small
/// buffer in its kernel. Returns the number of bytes of the response, and whether they are all.
async fn read_slowly(address: SocketAddr, acknowledges_ping: bool, requested: mpsc::Sender<()>) -> (usize, bool) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut io = within("a connection", socket.connect(address)).await.unwrap();
    // INITIAL_WINDOW_SIZE, and the window of the connection.
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 16, 0, 0]);
    let window = frame(WINDOW_UPDATE, 0, 0, &[0, 16, 0, 0]);
    io.write_all(&[PREFACE, &settings, &window, &request(1, "/large")].concat()).await.unwrap();
    let windows = [0, 1].map(|stream| frame(WINDOW_UPDATE, 0, stream, &[0, 0, 16, 0])).concat();
    let (mut unread, mut received, mut is_complete) = (Vec::new(), 0, false);
    loop {
        let mut bytes = [0; 4096];
        let length = match within("bytes of the server", io.read(&mut bytes)).await {
            Ok(0) | Err(_) => return (received, is_complete),
            Ok(length) => length,
        };
        unread.extend(&bytes[..length]);
        while let [a, b, c, kind, flags, ..] = unread[..] {
            let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
            if unread.len() < end {
                break;
            }
            let payload: Vec<u8> = unread.drain(..end).skip(9).collect();
            if kind == DATA {
                requested.try_send(()).ok();
                received += payload.len();
                is_complete = flags & END_STREAM != 0;
            } else if kind == PING && flags & ACK == 0 && acknowledges_ping {
                io.write_all(&frame(PING, ACK, 0, &payload)).await.ok();
            }
        }
        io.write_all(&windows).await.ok();
        sleep(Duration::from_millis(80)).await;
    }
}

/// The server must not close the connection while the kernel still has a part of the response. The
/// next WINDOW_UPDATE would then reset the connection.
#[tokio::test]
async fn slow_tcp_client_gets_whole_response_at_shutdown() {
    for acknowledges_ping in [false, true] {
        let server = Running::new(Router::new().route("/large", get(async || "x".repeat(LARGE)))).await;
        let (requested, mut request) = mpsc::channel(1);
        let client = tokio::spawn(read_slowly(server.address, acknowledges_ping, requested));
        request.recv().await.expect("a part of the response");
        server.shut_down();
        let (received, is_complete) = within("the response", client).await.unwrap();
        assert!(is_complete && received == LARGE, "{received} bytes, acknowledges: {acknowledges_ping}");
        server.returned().await;
    }
}
