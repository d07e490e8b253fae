//! tower-sse: a hub, and `SseStream` for streams of single clients.

use super::{Commands, Options, Publisher, publisher::Clients};
use crate::{
    contestant::Contestant,
    payload::{NO_TIME, Payload},
};
use axum::{Router, response::IntoResponse, routing::get, serve::ListenerExt};
use std::{
    future::IntoFuture,
    io,
    time::{Duration, Instant},
};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tower_sse::{
    Event, Heartbeat, LastEventId, SseStream,
    hub::{Error, Hub},
};

pub(super) async fn run(listener: TcpListener, options: &Options, commands: Commands) -> io::Result<()> {
    let hub = Hub::builder().max_events(options.retain).max_bytes(usize::MAX).build();
    let topic = hub.topic("load");
    let (clients, size) = (Clients::default(), options.size);
    let fan_out = {
        let topic = topic.clone();
        let linger = options.linger_ms.map(Duration::from_millis);
        let heartbeat = options.heartbeat.map(|seconds| Heartbeat::every(Duration::from_secs(seconds)));
        async move |last: LastEventId| {
            let subscription = topic.subscribe(last).await?;
            let stream = SseStream::new(match linger {
                Some(time) => subscription.linger(time),
                None => subscription,
            });
            Ok::<_, Error>(match heartbeat {
                Some(heartbeat) => stream.heartbeat(heartbeat).into_response(),
                None => stream.into_response(),
            })
        }
    };
    let tokens = {
        let clients = clients.clone();
        async move || SseStream::new(UnboundedReceiverStream::new(clients.join()).map(Event::new))
    };
    let firehose = async move || {
        let mut payload = Payload::new(size);
        SseStream::new(tokio_stream::iter(0..).map(move |number| Event::new(payload.of(number, NO_TIME))))
    };
    let app =
        Router::new().route("/fan-out", get(fan_out)).route("/tokens", get(tokens)).route("/firehose", get(firehose));

    let publish = async |_, data: &str| {
        let begin = options.timings.then(Instant::now);
        topic.publish(Event::new(data)).await.expect("a hub in memory never fails");
        if let Some(begin) = begin {
            eprintln!("publish:   {:.1?} in the publisher", begin.elapsed());
        }
    };
    let publisher = Publisher::new(clients, size).run(commands, publish);
    let shutdown = CancellationToken::new();
    let publisher = async {
        publisher.await;
        hub.shutdown();
        shutdown.cancel();
    };
    if options.contestant == Contestant::Serve {
        let server = tower_sse::serve(listener, app).with_graceful_shutdown(shutdown.clone());
        tokio::join!(server.into_future(), publisher).0
    } else {
        let listener = listener.tap_io(|socket| socket.set_nodelay(true).expect("the socket is connected"));
        let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        tokio::join!(server.into_future(), publisher).0
    }
}
