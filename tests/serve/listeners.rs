//! Listeners: TCP, Unix sockets, and those of other crates.

use crate::common::{Running, event_stream};
use axum::{
    Router,
    extract::{ConnectInfo, Request},
    routing::get,
    serve::{Listener, ListenerExt},
};
use http::Response;
use http_body_util::Full;
use std::{convert::Infallible, net::SocketAddr};
use support::{
    client::{Http2, Protocol, within},
    listener::Memory,
    script::Script,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use tower_sse::{ClientTimeout, serve::serve};

#[tokio::test]
async fn handler_gets_address_of_client() {
    let app = Router::new().route("/", get(async |ConnectInfo(address): ConnectInfo<SocketAddr>| address.to_string()));
    let server = Running::new(app).await;
    for protocol in Protocol::ALL {
        let answer = protocol.get(server.address, "/", &[]).await.complete().await;
        assert!(answer.text().starts_with("127.0.0.1:"), "{}", answer.text());
    }
}

#[tokio::test]
async fn sockets_get_client_timeout_unless_disabled() {
    use socket2::SockRef;
    use std::time::Duration;
    // The options are set after the listener has accepted the socket, so a handler looks at them.
    for (configure, expected) in [(0, Some(Duration::from_secs(30))), (1, Some(Duration::from_secs(7))), (2, None)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, mut sockets) = mpsc::unbounded_channel();
        let listener = listener.tap_io(move |socket| {
            sender.send(socket2::Socket::from(std::os::fd::AsFd::as_fd(socket).try_clone_to_owned().unwrap())).unwrap();
        });
        let address = Listener::local_addr(&listener).unwrap();
        let server = serve(listener, Router::new().route("/", get(async || "fine")));
        let server = match configure {
            0 => server,
            1 => server.client_timeout(ClientTimeout::after(Duration::from_secs(7))),
            _ => server.without_client_timeout(),
        };
        let running = tokio::spawn(server.into_future());
        Protocol::Http1.get(address, "/", &[]).await.complete().await;
        let socket = sockets.recv().await.unwrap();
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), expected);
        running.abort();
    }
}

#[cfg(unix)]
#[tokio::test]
async fn unix_socket_is_served() {
    let directory = std::env::temp_dir().join(format!("tower-sse-serve-{}", std::process::id()));
    let _not_there = std::fs::remove_file(&directory);
    let listener = tokio::net::UnixListener::bind(&directory).unwrap();
    let app = Router::new().route("/", get(async || event_stream(Script::of_chunks(["data: one\n\n"]))));
    let running = tokio::spawn(serve(listener, app).into_future());
    let mut socket = tokio::net::UnixStream::connect(&directory).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = String::new();
    within("the response", socket.read_to_string(&mut response)).await.unwrap();
    assert!(response.ends_with("data: one\n\n\r\n0\r\n\r\n"), "{response:?}");
    running.abort();
    std::fs::remove_file(&directory).unwrap();
}

#[tokio::test]
async fn any_tower_service_is_served_on_any_listener() {
    let (sender, connections) = mpsc::unbounded_channel();
    let service = tower::service_fn(async |request: Request| {
        let address = request.extensions().get::<ConnectInfo<&str>>().unwrap().0;
        Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from(address))))
    });
    let running = tokio::spawn(serve(Memory(connections), service).into_future());
    // A small pipe, so that every write is partial.
    let (mut client, server) = tokio::io::duplex(3);
    sender.send(server).unwrap();
    let exchange = async {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        response
    };
    let response = within("the response", exchange).await;
    assert!(response.ends_with("\r\n\r\nmemory"), "{response:?}");
    running.abort();
}

#[tokio::test]
async fn http_2_is_detected_byte_by_byte() {
    let app = Router::new().route("/", get(async || event_stream(Script::of_chunks(["data: one\n\n"]))));
    let server = Running::new(app).await;
    let answer = Http2::connect(server.address).await.get("/", &[]).await.complete().await;
    assert_eq!((answer.version, answer.text().as_str()), (http::Version::HTTP_2, "data: one\n\n"));

    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        socket.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut frame = [0; 9];
    within("the settings of the server", socket.read_exact(&mut frame)).await.unwrap();
    assert_eq!(frame[3], 4, "{frame:?}");

    // Similar to the preface, but of HTTP/1.
    let request = "PRI / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let response = crate::connections::exchange(server.address, request).await;
    assert!(response.starts_with("HTTP/1.1 405 "), "{response:?}");
}
