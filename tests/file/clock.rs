//! Tests with paused time: the clock does not advance while a request waits for the file, and
//! advances while nothing happens.

use super::folder::{Folder, event};
use std::{
    future::Future,
    sync::mpsc,
    task::{Context, Waker},
    thread,
    time::Duration,
};
use tokio::{
    runtime,
    time::{Instant, sleep},
};
use tokio_stream::StreamExt;
use tower_sse::{
    Event,
    hub::{Hub, Outcome, Start},
};

#[tokio::test(start_paused = true)]
async fn paused_clock_does_not_advance_during_appends() {
    let folder = Folder::new();
    let begun = Instant::now();
    let hub = Hub::builder().file(folder.log()).connect().await.expect("the log opens");
    let topic = hub.topic("news");
    let mut news = topic.subscribe(Start::Latest).await.expect("it subscribes");
    for n in 0..20 {
        topic.publish(Event::display(n)).await.expect("it is published in time");
    }
    let mut received = 0;
    while received < 20 {
        received += event(&mut news).await.count();
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn paused_clock_advances_while_the_log_is_idle() {
    let folder = Folder::new();
    let hub = Hub::builder().file(folder.log()).connect().await.expect("the log opens");
    let ticks = tokio_stream::iter(0..60).throttle(Duration::from_secs(60)).map(Event::display);
    let begun = Instant::now();
    let recording = hub.topic("ticks").record(ticks).time_limit(Duration::from_secs(30 * 60 + 30)).start();
    assert_eq!(recording.outcome().await, Outcome::TimedOut);
    let elapsed = begun.elapsed().as_secs();
    assert!((30 * 60 + 30..31 * 60 + 30).contains(&elapsed), "{elapsed}");
    sleep(Duration::from_secs(60 * 60)).await;
    hub.topic("news").publish(Event::new("later")).await.expect("it is published in time");
}

/// The application polls the futures of two publishes once, and keeps them longer than the runtime.
#[test]
fn kept_publish_does_not_block_its_runtime() {
    let folder = Folder::new();
    let (ended, end) = mpsc::channel();
    let log = folder.log();
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let hub = runtime.block_on(async { Hub::builder().file(log).connect().await.expect("the log opens") });
        let topic = hub.topic("news");
        let mut publishes = [0, 1].map(|n| Box::pin(topic.publish(Event::display(n))));
        runtime.block_on(async {
            for publish in &mut publishes {
                // The commit may already have ended, although it takes longer than this poll.
                let _polled = publish.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
        });
        drop(runtime);
        ended.send(()).expect("the test waits");
    });
    end.recv_timeout(Duration::from_secs(30)).expect("the runtime ends");
}
