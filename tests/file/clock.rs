//! Tests with paused time: the clock does not advance while a request waits for the file, and
//! advances while nothing happens.

use super::folder::{Folder, event};
use std::time::Duration;
use tokio::time::{Instant, sleep};
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
