//! Guarantee: over any connection, a client receives the same bytes as from hyper.

use crate::common::event_stream;
use axum::{Router, routing::get};
use bytes::Bytes;
use http_body::Frame;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use proptest::{collection::vec, prelude::*};
use std::{
    collections::VecDeque,
    convert::Infallible,
    future, io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};
use tower_sse::serve::serve;

/// A step of a body.
#[derive(Clone, Debug)]
enum Step {
    Data(Vec<u8>),
    /// Is pending once, and wakes itself.
    Yield,
    Trailers,
}

/// A body that plays its steps. `hints_end` is set if it knows its end before it is polled again.
#[derive(Clone, Debug)]
struct Steps {
    steps: VecDeque<Step>,
    hints_end: bool,
}

impl http_body::Body for Steps {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(match self.steps.pop_front() {
            Some(Step::Data(data)) => Some(Ok(Frame::data(Bytes::from(data)))),
            Some(Step::Trailers) => Some(Ok(Frame::trailers(http::HeaderMap::new()))),
            Some(Step::Yield) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.hints_end && self.steps.is_empty()
    }
}

/// A connection that reads requests and accepts writes as scripted. Its client closes when the
/// server has shut down its side.
#[derive(Debug)]
struct Scripted {
    requests: VecDeque<u8>,
    reads: usize,
    /// The sizes of the writes that are accepted, in turn. A size of zero is pending once.
    writes: Vec<usize>,
    turn: usize,
    is_vectored: bool,
    written: Vec<u8>,
    is_shut_down: bool,
    done: Option<oneshot::Sender<Vec<u8>>>,
}

impl Scripted {
    fn accept(&mut self, cx: &mut Context<'_>, offered: usize) -> Poll<usize> {
        self.turn += 1;
        match self.writes[self.turn % self.writes.len()] {
            0 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            size => Poll::Ready(size.min(offered)),
        }
    }
}

impl AsyncRead for Scripted {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.requests.is_empty() {
            return if self.is_shut_down { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let length = self.reads.min(buffer.remaining()).min(self.requests.len());
        let bytes: Vec<u8> = self.requests.drain(..length).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.accept(cx, bytes.len()).map(|length| {
            self.written.extend_from_slice(&bytes[..length]);
            Ok(length)
        })
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let offered = if self.is_vectored { bytes.len() } else { slices.first().map_or(0, |slice| slice.len()) };
        self.accept(cx, offered).map(|length| {
            self.written.extend_from_slice(&bytes[..length]);
            Ok(length)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.is_vectored
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_shut_down = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            let _gone = done.send(std::mem::take(&mut self.written));
        }
    }
}

/// Accepts one connection.
struct Once(Mutex<Option<Scripted>>);

impl axum::serve::Listener for Once {
    type Io = Scripted;
    type Addr = ();

    async fn accept(&mut self) -> (Scripted, ()) {
        let scripted = self.0.get_mut().unwrap().take();
        match scripted {
            Some(scripted) => (scripted, ()),
            None => future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Case {
    bodies: Vec<Steps>,
    version: u8,
    reads: usize,
    writes: Vec<usize>,
    is_vectored: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let data = prop_oneof![4 => vec(any::<u8>(), 0..40), 1 => (1_usize..70_000).prop_map(|length| vec![b'x'; length])];
    let step = prop_oneof![6 => data.prop_map(Step::Data), 2 => Just(Step::Yield), 1 => Just(Step::Trailers)];
    let body = (vec(step, 0..20), any::<bool>())
        .prop_map(|(steps, hints_end)| Steps { steps: steps.into_iter().collect(), hints_end });
    let size = prop_oneof![1 => Just(0_usize), 3 => 1_usize..50, 3 => 1_usize..200_000];
    let writes = vec(size, 1..8).prop_map(|mut writes| {
        writes.push(4096);
        writes
    });
    (vec(body, 1..4), 0..2_u8, 1..200_usize, writes, any::<bool>())
        .prop_map(|(bodies, version, reads, writes, is_vectored)| Case { bodies, version, reads, writes, is_vectored })
}

impl Case {
    /// Returns a connection with one request for each body, and an app that answers them in turn.
    fn start(&self) -> (Router, Scripted, oneshot::Receiver<Vec<u8>>) {
        let bodies = Arc::new(Mutex::new(self.bodies.clone().into_iter()));
        let handler = async move || {
            let mut response = event_stream(bodies.lock().unwrap().next().expect("one request for each body"));
            // Otherwise the dates may differ.
            response.headers_mut().insert(http::header::DATE, http::HeaderValue::from_static("now"));
            response
        };
        let last = self.bodies.len() - 1;
        let requests: String = (0..self.bodies.len())
            .map(|n| {
                let close = if n == last { "Connection: close\r\n" } else { "" };
                format!("GET / HTTP/1.{}\r\nHost: a\r\n{close}\r\n", self.version)
            })
            .collect();
        let (done, written) = oneshot::channel();
        let scripted = Scripted {
            requests: requests.into_bytes().into(),
            reads: self.reads,
            writes: self.writes.clone(),
            turn: 0,
            is_vectored: self.is_vectored,
            written: Vec::new(),
            is_shut_down: false,
            done: Some(done),
        };
        (Router::new().route("/", get(handler)), scripted, written)
    }

    async fn by_hyper(&self) -> Vec<u8> {
        let (app, scripted, written) = self.start();
        let service = TowerToHyperService::new(app);
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(scripted), service);
        connection.await.unwrap();
        written.await.unwrap()
    }

    async fn by_serve(&self) -> Vec<u8> {
        let (app, scripted, written) = self.start();
        let running = tokio::spawn(serve(Once(Mutex::new(Some(scripted))), app).into_future());
        let written = support::client::within("the end of the connection", written).await.unwrap();
        running.abort();
        written
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn client_receives_same_bytes_as_from_hyper(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (expected, received) = runtime.block_on(async { (case.by_hyper().await, case.by_serve().await) });
        prop_assert!(
            expected == received,
            "hyper: {:?}\nserve: {:?}",
            String::from_utf8_lossy(&expected),
            String::from_utf8_lossy(&received)
        );
    }
}

/// A body that is always ready, and counts its frames.
struct Endless(Arc<Mutex<usize>>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        *self.0.lock().unwrap() += 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data: x\n\n")))))
    }
}

/// Lets all other tasks that are ready run once. tokio's `yield_now` may let them run many times.
async fn yield_once() {
    let mut has_yielded = false;
    future::poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[tokio::test]
async fn endless_stream_lets_other_tasks_run_after_each_write() {
    let frames = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&frames);
    let app = Router::new().route("/", get(async move || event_stream(Endless(counted))));
    let scripted = Scripted {
        requests: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec().into(),
        reads: 1024,
        writes: vec![usize::MAX],
        turn: 0,
        is_vectored: true,
        written: Vec::new(),
        is_shut_down: false,
        done: None,
    };
    let running = tokio::spawn(serve(Once(Mutex::new(Some(scripted))), app).into_future());
    let observer = async move {
        let mut before = 0;
        for _ in 0..1_000 {
            yield_once().await;
            let now = *frames.lock().unwrap();
            assert!(now - before <= 512, "{} frames in one turn", now - before);
            before = now;
        }
        before
    };
    // The scheduler prefers tasks to the future of the test.
    let seen = tokio::spawn(observer).await.unwrap();
    assert!(seen > 10_000, "{seen}");
    running.abort();
}
