//! axum's `Sse`, with a tokio `broadcast` channel; alone, and under the layer of tower-sse.

use super::{Commands, Options, Publisher, publisher::Clients};
use crate::{
    contestant::Contestant,
    payload::{NO_TIME, Payload},
};
use axum::{
    Router,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
    serve::ListenerExt,
};
use std::{convert::Infallible, io, sync::Arc};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{BroadcastStream, UnboundedReceiverStream},
};
use tower_sse::SseLayer;

pub(super) async fn run(listener: TcpListener, options: &Options, commands: Commands) -> io::Result<()> {
    let has_layer = options.contestant == Contestant::Layer;
    let (sender, _) = broadcast::channel::<(u64, Arc<str>)>(options.retain);
    let (clients, size) = (Clients::default(), options.size);
    let fan_out = {
        let sender = sender.clone();
        async move || {
            // A client that is too slow misses events, which is a fault.
            let events = BroadcastStream::new(sender.subscribe()).filter_map(Result::ok);
            respond(events.map(|(id, data)| Event::default().id(id.to_string()).data(data)), has_layer)
        }
    };
    let tokens = {
        let clients = clients.clone();
        async move || {
            let tokens = UnboundedReceiverStream::new(clients.join());
            respond(tokens.map(|token| Event::default().data(token)), has_layer)
        }
    };
    let firehose = async move || {
        let mut payload = Payload::new(size);
        let data = tokio_stream::iter(0..).map(move |number| Event::default().data(payload.of(number, NO_TIME)));
        respond(data, has_layer)
    };
    let mut app =
        Router::new().route("/fan-out", get(fan_out)).route("/tokens", get(tokens)).route("/firehose", get(firehose));
    if has_layer {
        app = app.layer(SseLayer::new());
    }
    // Without clients, sending fails, and nothing is lost.
    let publish = async |id, data: &str| _ = sender.send((id, data.into()));
    serve(listener, app, Publisher::new(clients, size).run(commands, publish)).await
}

/// The heartbeats come from axum or from the layer.
fn respond(events: impl Stream<Item = Event> + Send + 'static, has_layer: bool) -> Response {
    let response = Sse::new(events.map(Ok::<_, Infallible>));
    if has_layer { response.into_response() } else { response.keep_alive(KeepAlive::default()).into_response() }
}

/// Serves until the publisher ends.
pub(super) async fn serve(listener: TcpListener, app: Router, publisher: impl Future<Output = ()>) -> io::Result<()> {
    let listener = listener.tap_io(|socket| socket.set_nodelay(true).expect("the socket is connected"));
    let server = axum::serve(listener, app).into_future();
    tokio::select! {
        result = server => result,
        () = publisher => Ok(()),
    }
}
