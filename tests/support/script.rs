//! A body that plays a script: the test decides each chunk and its time.

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// One step of a [`Script`].
#[derive(Clone, Debug)]
pub enum Step {
    Chunk(Bytes),
    Trailers(HeaderMap),
    /// Is pending for a duration.
    Silence(Duration),
    Fail(&'static str),
    /// Is pending until the body is dropped.
    Hang,
}

impl Step {
    pub fn chunk(bytes: impl AsRef<[u8]>) -> Self {
        Self::Chunk(Bytes::copy_from_slice(bytes.as_ref()))
    }

    pub fn silence(seconds: u64) -> Self {
        Self::Silence(Duration::from_secs(seconds))
    }
}

/// A body that plays its steps and then ends.
///
/// Polling it again after its end or its error panics.
#[derive(Debug, Default)]
pub struct Script {
    steps: VecDeque<Step>,
    silence: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), ..Self::default() }
    }

    /// Creates a body whose chunks are all ready immediately.
    pub fn of_chunks<T: AsRef<[u8]>>(chunks: impl IntoIterator<Item = T>) -> Self {
        Self::new(chunks.into_iter().map(Step::chunk))
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn is_end_stream(&self) -> bool {
        self.ended || (self.steps.is_empty() && self.silence.is_none())
    }

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        assert!(!self.ended, "the body was polled after its end");
        loop {
            if let Some(silence) = &mut self.silence {
                ready!(silence.as_mut().poll(cx));
                self.silence = None;
            }
            return Poll::Ready(match self.steps.pop_front() {
                Some(Step::Chunk(bytes)) => Some(Ok(Frame::data(bytes))),
                Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Some(Step::Silence(length)) => {
                    self.silence = Some(Box::pin(sleep(length)));
                    continue;
                }
                Some(Step::Fail(error)) => {
                    self.ended = true;
                    Some(Err(io::Error::other(error)))
                }
                Some(Step::Hang) => {
                    self.steps.push_front(Step::Hang);
                    return Poll::Pending;
                }
                None => {
                    self.ended = true;
                    None
                }
            });
        }
    }
}
