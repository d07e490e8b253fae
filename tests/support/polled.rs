//! A body that a test polls by hand.

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use std::{error::Error, task::Poll, time::Duration};
use tokio::time::advance;
use tokio_test::task::{Spawn, spawn};

type AnyBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A body without trailers that a test polls by hand. It records whether it was woken.
#[derive(Debug)]
pub struct Polled(Spawn<AnyBody>);

impl Polled {
    pub fn new<B>(response: Response<B>) -> Self
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        Self(spawn(response.into_body().map_err(Into::into).boxed_unsync()))
    }

    pub fn poll(&mut self) -> Poll<Option<Result<Bytes, String>>> {
        self.0.enter(|cx, body| body.poll_frame(cx)).map(|frame| {
            let data = |frame: Frame<Bytes>| frame.into_data().expect("data");
            frame.map(|frame| frame.map(data).map_err(|error| error.to_string()))
        })
    }

    pub fn is_woken(&self) -> bool {
        self.0.is_woken()
    }

    pub fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    #[track_caller]
    pub fn assert_data(&mut self, expected: impl AsRef<[u8]>) {
        assert_eq!(self.poll(), Poll::Ready(Some(Ok(Bytes::copy_from_slice(expected.as_ref())))));
    }

    #[track_caller]
    pub fn assert_pending(&mut self) {
        assert_eq!(self.poll(), Poll::Pending);
    }

    #[track_caller]
    pub fn assert_end(&mut self) {
        assert_eq!(self.poll(), Poll::Ready(None));
    }

    /// Reads the rest of the body, and panics if it is not ready.
    ///
    /// Stops at `None` or at `is_end_stream`, like hyper.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        while !self.is_end_stream() {
            match self.poll() {
                Poll::Ready(Some(Ok(data))) => rest.extend_from_slice(&data),
                Poll::Ready(None) => break,
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&rest)),
            }
        }
        String::from_utf8(rest).expect("UTF-8")
    }

    /// Reads the next frame while paused time advances, for at most 300 milliseconds.
    pub async fn poll_in_time(&mut self) -> Poll<Option<Result<Bytes, String>>> {
        for _ in 0..300 {
            match self.poll() {
                Poll::Pending => advance(Duration::from_millis(1)).await,
                ready => return ready,
            }
        }
        Poll::Pending
    }

    pub fn into_body(self) -> AnyBody {
        self.0.into_inner()
    }
}
