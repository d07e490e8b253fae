//! The events of the server.

use crate::recording::{Emitted, Seen, observed_in_real_time};
use axum::{Router, routing::get, serve::Listener};
use std::{
    future::pending,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tower_sse::serve;
use tracing::Level;

/// Accepts one connection.
struct Once(Option<TcpStream>);

impl Listener for Once {
    type Io = TcpStream;
    type Addr = ();

    async fn accept(&mut self) -> (TcpStream, ()) {
        match self.0.take() {
            Some(socket) => (socket, ()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn socket_without_client_timeout_is_logged_and_served() {
    observed_in_real_time(async |seen: Seen| {
        // No option of TCP can be set on a Unix socket.
        let (client, socket) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = TcpStream::from_std(OwnedFd::from(socket).into()).unwrap();
        let app = Router::new().route("/", get(async || "fine"));
        let server = tokio::spawn(serve(Once(Some(socket)), app).into_future());

        let mut client = tokio::net::UnixStream::from_std(client).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.ends_with("\r\n\r\nfine"), "{response}");
        let [Emitted { level: Level::WARN, in_span: None, fields }] = &seen.events()[..] else {
            panic!("{:?}", seen.events())
        };
        assert_eq!(fields["message"], "socket options not set");
        assert!(fields["error"].contains("not supported"), "{fields:?}");
        server.abort();
    });
}

#[test]
fn shutdown_timeout_logs_number_of_closed_connections() {
    observed_in_real_time(async |seen: Seen| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, mut requests) = mpsc::unbounded_channel();
        let endless = async move || {
            sender.send(()).unwrap();
            pending::<()>().await;
        };
        let shutdown = CancellationToken::new();
        let server = serve(listener, Router::new().route("/", get(endless))).with_graceful_shutdown(shutdown.clone());
        let server = tokio::spawn(server.shutdown_timeout(Duration::from_millis(50)).into_future());
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            clients.push(client);
            requests.recv().await.unwrap();
        }
        shutdown.cancel();
        server.await.unwrap().unwrap();
        let [Emitted { level: Level::WARN, in_span: None, fields }] = &seen.events()[..] else {
            panic!("{:?}", seen.events())
        };
        assert_eq!((&*fields["message"], &*fields["connections"]), ("shutdown timed out", "2"));
    });
}
