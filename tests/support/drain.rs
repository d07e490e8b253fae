//! What benchmarks do with a stream and with a body, polled by hand.

use bytes::Bytes;
use futures_util::Stream;
use http_body::Body;
use std::{
    fmt::Debug,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

/// Each item is ready only when it is asked for a second time: the pace of a stream that is waited for.
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

pub fn alone<S>(stream: S) -> Alone<S> {
    Alone { stream: Box::pin(stream), is_ready: true }
}

/// Polls a body until it is dry, and answers how many bytes it had.
pub fn drain<B: Body<Data = Bytes, Error: Debug>>(body: B) -> usize {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    let mut bytes = 0;
    loop {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(frame)) => {
                bytes += black_box(frame).expect("it does not fail").data_ref().map_or(0, Bytes::len);
            }
            Poll::Ready(None) => return bytes,
            Poll::Pending => {}
        }
    }
}
