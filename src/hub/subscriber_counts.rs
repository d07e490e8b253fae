use super::{core::Core, count_watch::CountWatch};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio_stream::Stream;

/// A stream of the number of subscribers of a topic in this process.
/// [`Topic::subscriber_counts`](super::Topic::subscriber_counts) creates it.
///
/// The first item is the current number. Each further item is a later number that differs from the
/// item before. A slow consumer gets the newest number and misses the numbers in between. The
/// stream ends when the hub is [shut down](super::Hub::shutdown).
///
/// The stream does not count as a subscriber, and does not create the topic. Like a subscription,
/// the stream keeps its hub alive.
#[must_use = "a stream yields numbers only if it is polled"]
pub struct SubscriberCounts {
    core: Arc<Core>,
    topic: Arc<str>,
    watch: Arc<CountWatch>,
    key: u64,
    /// The last number of subscribers that this stream has yielded. `None` before the first item.
    seen: Option<usize>,
}

impl SubscriberCounts {
    pub(super) fn new(core: &Arc<Core>, topic: &Arc<str>) -> Self {
        let (watch, key) = core.watch_count(topic);
        Self { core: core.clone(), topic: topic.clone(), watch, key, seen: None }
    }
}

impl Stream for SubscriberCounts {
    type Item = usize;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        let count = ready!(self.watch.poll(self.seen, self.key, cx.waker()));
        self.seen = count;
        Poll::Ready(count)
    }
}

impl Drop for SubscriberCounts {
    fn drop(&mut self) {
        self.core.unwatch_count(&self.topic, &self.watch, self.key);
    }
}

impl fmt::Debug for SubscriberCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriberCounts").field("topic", &self.topic).field("seen", &self.seen).finish_non_exhaustive()
    }
}
