//! actix-web: each event is encoded once, and all clients share its bytes in a streaming body. Each
//! event is an item of that body.

use super::{HEARTBEAT, Options, Publisher, encode, encode_token, listen, publisher::Clients};
use crate::payload::{NO_TIME, Payload};
use actix_web::{
    App, HttpResponse, HttpServer,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    web,
};
use bytes::Bytes;
use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
};
use tokio::sync::{broadcast, mpsc::unbounded_channel};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{BroadcastStream, UnboundedReceiverStream},
};

pub(super) fn run(options: Options) -> io::Result<()> {
    let (sender, _) = broadcast::channel::<Bytes>(options.retain);
    let (command_sender, commands) = unbounded_channel();
    super::read_commands(move |command| _ = command_sender.send(command));
    let clients = Clients::default();
    let publisher = Arc::new(Mutex::new(Some((Publisher::new(clients.clone(), options.size), commands))));
    let factory = move || {
        // The publisher runs in the worker's thread, like that of the other contestants.
        if let Some((publisher, commands)) = publisher.lock().ok().and_then(|mut publisher| publisher.take()) {
            let sender = sender.clone();
            actix_web::rt::spawn(async move {
                // Without clients, sending fails, and nothing is lost.
                publisher.run(commands, async |id, data: &str| _ = sender.send(encode(id, data))).await;
                std::process::exit(0);
            });
        }
        let (sender, clients, size, heartbeats) = (sender.clone(), clients.clone(), options.size, options.heartbeats);
        let fan_out = move || {
            let events = BroadcastStream::new(sender.subscribe()).filter_map(Result::ok);
            std::future::ready(respond(Box::pin(events), heartbeats))
        };
        let tokens = move || {
            let tokens = UnboundedReceiverStream::new(clients.join()).map(|token| encode_token(&token));
            std::future::ready(respond(Box::pin(tokens), heartbeats))
        };
        let firehose = move || {
            let mut payload = Payload::new(size);
            let events = tokio_stream::iter(0..).map(move |number| encode_token(payload.of(number, NO_TIME)));
            std::future::ready(respond(Box::pin(events), heartbeats))
        };
        App::new()
            .route("/fan-out", web::get().to(fan_out))
            .route("/tokens", web::get().to(tokens))
            .route("/firehose", web::get().to(firehose))
    };
    actix_web::rt::System::new().block_on(async {
        let server = HttpServer::new(factory).workers(1).max_connections(100_000).listen(listen()?)?;
        server.run().await
    })
}

fn respond(bytes: Pin<Box<dyn Stream<Item = Bytes>>>, heartbeats: bool) -> HttpResponse {
    let bytes = if heartbeats {
        let ticks = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        Box::pin(bytes.timeout_repeating(ticks).map(|bytes| bytes.unwrap_or(Bytes::from_static(b":\n"))))
    } else {
        bytes
    };
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .streaming(bytes.map(Ok::<_, Infallible>))
}
