//! hyper without a framework: each event is encoded once, and all clients share its bytes. A
//! firehose joins events to frames.

use super::{Commands, Fault, HEARTBEAT, Options, Publisher, encode, encode_token, publisher::Clients};
use crate::payload::{NO_TIME, Payload};
use bytes::{Bytes, BytesMut};
use http_body_util::StreamBody;
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io, pin::Pin};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{BroadcastStream, UnboundedReceiverStream},
};

/// The bytes of a frame of the firehose.
const FRAME: usize = 16 * 1024;

type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;
type Body = StreamBody<BoxStream<Result<Frame<Bytes>, Infallible>>>;

#[derive(Clone)]
struct App {
    sender: broadcast::Sender<Bytes>,
    clients: Clients,
    options: Options,
}

pub(super) async fn run(listener: TcpListener, options: &Options, commands: Commands) -> io::Result<()> {
    let (sender, _) = broadcast::channel(options.retain);
    let app = App { sender: sender.clone(), clients: Clients::default(), options: options.clone() };
    let mut held = None;
    let fault = options.fault;
    let publish = async |id, data: &str| {
        let event = encode(id, data);
        // Without clients, sending fails, and nothing is lost.
        let send = |event| _ = sender.send(event);
        match fault.filter(|_| id % 10 == 5) {
            Some(Fault::Lost) => return,
            Some(Fault::Reordered) => return held = Some(event),
            Some(Fault::Repeated) => send(event.clone()),
            None => (),
        }
        send(event);
        held.take().map(send);
    };
    let publisher = Publisher::new(app.clients.clone(), options.size).run(commands, publish);
    tokio::select! {
        result = accept(listener, app) => result,
        () = publisher => Ok(()),
    }
}

async fn accept(listener: TcpListener, app: App) -> io::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let app = app.clone();
        let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(app.respond(&request))));
        let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service);
        tokio::spawn(connection);
    }
}

impl App {
    fn respond(&self, request: &Request<Incoming>) -> Response<Body> {
        let bytes: BoxStream<Bytes> = match request.uri().path() {
            "/tokens" => Box::pin(UnboundedReceiverStream::new(self.clients.join()).map(|token| encode_token(&token))),
            "/firehose" => Box::pin(firehose(self.options.size)),
            _ => Box::pin(BroadcastStream::new(self.sender.subscribe()).filter_map(Result::ok)),
        };
        let body = StreamBody::new(Box::pin(self.with_heartbeats(bytes).map(|bytes| Ok(Frame::data(bytes)))) as _);
        Response::builder()
            .header(CONTENT_TYPE, "text/event-stream")
            .header(CACHE_CONTROL, "no-cache")
            .body(body)
            .expect("the headers are valid")
    }

    fn with_heartbeats(&self, bytes: BoxStream<Bytes>) -> BoxStream<Bytes> {
        if !self.options.heartbeats {
            return bytes;
        }
        let ticks = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        Box::pin(bytes.timeout_repeating(ticks).map(|bytes| bytes.unwrap_or(Bytes::from_static(b":\n"))))
    }
}

/// Returns frames of whole events.
fn firehose(size: usize) -> impl Stream<Item = Bytes> {
    let mut payload = Payload::new(size);
    let mut number = 0;
    tokio_stream::iter(std::iter::repeat_with(move || {
        let mut frame = BytesMut::with_capacity(FRAME + size + 10);
        while frame.len() < FRAME {
            frame.extend_from_slice(b"data: ");
            frame.extend_from_slice(payload.of(number, NO_TIME).as_bytes());
            frame.extend_from_slice(b"\n\n");
            number += 1;
        }
        frame.freeze()
    }))
}
