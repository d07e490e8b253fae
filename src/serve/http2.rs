//! A connection of HTTP/2.

use super::{
    Server,
    connection::Peer,
    io::Rewound,
    service::{Address, App, Call, with_connect_info},
};
use axum_core::body::Body as RequestBody;
use bytes::Bytes;
use http::Request;
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    future::poll_fn,
    pin::{Pin, pin},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Serves a connection of HTTP/2 until it is closed. `front` was read from the connection before.
pub(super) fn serve<I, S, A>(
    server: &Server,
    peer: Peer<I, S, A>,
    front: Bytes,
) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: App,
    A: Address,
{
    let Peer { io, service, address } = peer;
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let request = with_connect_info(request, &address, RequestBody::new);
        Call::new(service.clone(), request)
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.enable_connect_protocol();
    let connection = builder.serve_connection(TokioIo::new(Rewound { io, front }), service);
    let shutdown = server.shutdown.clone();
    Box::pin(async move {
        let mut connection = pin!(connection);
        let mut shutdown = pin!(shutdown.cancelled_owned());
        let mut is_shutting_down = false;
        poll_fn(|cx| {
            if !is_shutting_down && shutdown.as_mut().poll(cx).is_ready() {
                is_shutting_down = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx).map(|_| ())
        })
        .await;
    })
}
