//! Logs that take long to open.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use support::pass_on;
use tokio::time::{Instant, sleep, timeout};
use tower_sse::{
    BoxError,
    hub::{
        ErrorKind, Hub,
        backend::{Backend, MemoryBackend},
    },
};

/// A log that takes a minute to open.
struct Slow {
    log: MemoryBackend,
    opened: Result<(), &'static str>,
    /// The number of calls of `open`.
    opens: Arc<AtomicUsize>,
}

const OPENING: Duration = Duration::from_secs(60);

impl Slow {
    fn new(opened: Result<(), &'static str>) -> Self {
        Self { log: MemoryBackend::new(10), opened, opens: Arc::default() }
    }
}

impl Backend for Slow {
    pass_on!(log: bounds append append_if_unchanged read follow);

    async fn open(&self) -> Result<(), BoxError> {
        self.opens.fetch_add(1, Relaxed);
        sleep(OPENING).await;
        Ok(self.opened?)
    }
}

#[tokio::test(start_paused = true)]
async fn connect_waits_for_a_log_that_opens_slowly() {
    let slow = Slow::new(Ok(()));
    let opens = slow.opens.clone();
    let begin = Instant::now();
    let hub = Hub::builder().backend(slow).connect().await.expect("it waits");
    assert_eq!((begin.elapsed(), opens.load(Relaxed)), (OPENING, 1));
    hub.topic("t").publish(tower_sse::Event::new("1")).await.expect("the log is open");
}

#[tokio::test(start_paused = true)]
async fn connect_returns_the_error_of_opening() {
    let error = Hub::builder().backend(Slow::new(Err("a page is damaged"))).connect().await.expect_err("it fails");
    assert_eq!(error.kind(), ErrorKind::Backend);
    assert_eq!(std::error::Error::source(&error).map(ToString::to_string).as_deref(), Some("a page is damaged"));
}

#[tokio::test(start_paused = true)]
async fn caller_can_limit_the_time_of_opening() {
    let connecting = Hub::builder().backend(Slow::new(Ok(()))).connect();
    assert!(timeout(OPENING / 2, connecting).await.is_err());
}
