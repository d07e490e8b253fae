//! Streams and bodies that a benchmark polls by hand.

use bytes::Bytes;
use futures_util::Stream;
use http_body::Body;
use std::{
    fmt::Debug,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

/// A stream that is pending once before each item, like a stream whose items arrive one by one.
#[derive(Debug)]
pub struct Alone<S> {
    stream: Pin<Box<S>>,
    is_ready: bool,
}

impl<S: Stream> Stream for Alone<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.is_ready = !self.is_ready;
        if self.is_ready { self.stream.as_mut().poll_next(cx) } else { Poll::Pending }
    }
}

/// Makes a stream pending once before each item.
pub fn alone<S>(stream: S) -> Alone<S> {
    Alone { stream: Box::pin(stream), is_ready: true }
}

/// Polls a body to its end, and returns the number of its bytes.
pub fn drain<B: Body<Data = Bytes, Error: Debug>>(body: B) -> usize {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    let mut bytes = 0;
    loop {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(frame)) => {
                bytes += black_box(frame).expect("the body does not fail").data_ref().map_or(0, Bytes::len);
            }
            Poll::Ready(None) => return bytes,
            Poll::Pending => {}
        }
    }
}
