//! Passes upstream event streams through `SseLayer`.
//!
//! A parser from the HTML standard dispatches the same events with and without the layer, apart
//! from the heartbeat and shutdown events of the layer. A stream that the layer ends keeps every
//! event that was complete before, and the event that is completed within 250 milliseconds.
//!
//! An input is a line of settings, and after it the bytes of the stream. A letter sets something,
//! with the number that follows it:
//!
//! | setting | meaning |
//! |---|---|
//! | `c`, `e` | comments or events as heartbeats after one second |
//! | `r` | a reconnect delay |
//! | `b` | a shutdown event |
//! | `t7`, `f7` | the shutdown token is cancelled after 700 milliseconds, or after 7 frames |
//! | `l7` | the maximum lifetime is 700 milliseconds (630 with the jitter that fuzzing has) |
//! | `d` | an inner layer for heartbeats, an outer layer for the end |
//! | `o` | the layer has an `on_close` |
//! | `p` | the reader polls the body after its end |
//!
//! In the stream, `\` and one more byte are a step of the upstream body:
//!
//! | step | meaning |
//! |---|---|
//! | `\|` | the chunk ends |
//! | `\-` | an empty chunk |
//! | `\0` | the chunk ends, and the body is pending once |
//! | `\1` to `\9` | the chunk ends, and the body is silent for a time of `SILENCES` |
//! | `\h` | the body is pending until it is dropped |
//! | `\t`, `\x` | the stream ends with trailers, or with an error |
//!
//! Any other byte after a `\` is a byte of the stream.

#![no_main]

use bytes::Bytes;
use fuzz::{
    in_paused_time, split_line,
    whatwg::{self, EventSource},
};
use http::{HeaderMap, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use libfuzzer_sys::{Corpus, fuzz_target};
use std::{
    collections::VecDeque,
    convert::Infallible,
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{CloseReason, Event, Heartbeat, SseLayer, StreamSummary};

/// Milliseconds.
const SILENCES: [u64; 9] = [1, 50, 100, 200, 249, 251, 500, 999, 2500];

/// The time that a stream has to complete its event.
const COMPLETION_TIMEOUT: Duration = Duration::from_millis(250);

/// Timers may be off by this much.
const TOLERANCE: Duration = Duration::from_millis(2);

const COMMENT: &str = ": ~idle~\n";
const BEAT: &str = "event: ~beat~\ndata: \n\n";
const BYE: &str = "event: ~bye~\ndata: bye\n\n";

/// The last id of the client, which has reconnected.
const LAST: &str = "41";

fuzz_target!(|input: &[u8]| -> Corpus {
    let (settings, stream) = split_line(input);
    let (settings, steps) = (Settings::read(settings), read_steps(stream));
    let upstream = steps.iter().filter_map(Step::data).flatten().copied().collect::<Vec<_>>();
    // The events and comments of the layer have it.
    let is_ambiguous = upstream.contains(&b'~');
    if is_ambiguous || steps.is_empty() || (steps.ends_with(&[Step::Hang]) && !settings.ends_by_time()) {
        return Corpus::Reject;
    }
    in_paused_time(run(&settings, &steps)).check(&settings, &steps, &upstream);
    Corpus::Keep
});

#[derive(Debug, Default)]
struct Settings {
    heartbeat: Option<Beat>,
    has_retry: bool,
    has_shutdown_event: bool,
    shutdown_at: Option<Duration>,
    shutdown_after_frames: Option<u64>,
    max_lifetime: Option<Duration>,
    is_double: bool,
    has_on_close: bool,
    polls_after_end: bool,
}

#[derive(Debug, PartialEq)]
enum Beat {
    Comment,
    Event,
}

impl Settings {
    fn read(mut text: &[u8]) -> Self {
        let mut settings = Self::default();
        while let Some((letter, rest)) = text.split_first() {
            let digits = rest.iter().take(2).take_while(|byte| byte.is_ascii_digit()).count();
            let number = rest[..digits].iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
            let time = Duration::from_millis(100 * number);
            text = &rest[digits..];
            match letter {
                b'c' => settings.heartbeat = Some(Beat::Comment),
                b'e' => settings.heartbeat = Some(Beat::Event),
                b'r' => settings.has_retry = true,
                b'b' => settings.has_shutdown_event = true,
                b't' => settings.shutdown_at = Some(time),
                b'f' => settings.shutdown_after_frames = Some(number),
                b'l' => settings.max_lifetime = Some(time),
                b'd' => settings.is_double = true,
                b'o' => settings.has_on_close = true,
                b'p' => settings.polls_after_end = true,
                _ => {}
            }
        }
        settings
    }

    fn ends_by_time(&self) -> bool {
        self.shutdown_at.is_some() || self.max_lifetime.is_some()
    }

    /// The reconnect delay of the preamble and of the shutdown.
    fn retries(&self) -> (&'static str, &'static str) {
        if self.has_retry { ("retry: 3000\n", "retry: 3000\n") } else { ("", "retry: 1000\n") }
    }

    /// Returns the inner layer and the outer layer.
    fn layers(&self, token: &CancellationToken, summary: &Arc<Mutex<Option<StreamSummary>>>) -> (SseLayer, SseLayer) {
        let mut inner = match self.heartbeat {
            None => SseLayer::new().without_heartbeat(),
            Some(Beat::Comment) => {
                SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(1)).comment("~idle~"))
            }
            // A comment stands in for the event in the middle of another event. Ids are removed.
            Some(Beat::Event) => {
                let heartbeat = Heartbeat::every(Duration::from_secs(1)).comment("~idle~");
                SseLayer::new().heartbeat(heartbeat.event(Event::new("").event("~beat~").id(7)))
            }
        };
        if self.has_retry {
            inner = inner.retry(Duration::from_secs(3));
        }
        let mut outer = if self.is_double { SseLayer::new() } else { inner.clone() };
        if self.has_retry {
            outer = outer.retry(Duration::from_secs(3));
        }
        outer = outer.reconnect_jitter(Duration::ZERO);
        if self.shutdown_at.is_some() || self.shutdown_after_frames.is_some() {
            outer = outer.shutdown(token.clone());
        }
        if self.has_shutdown_event {
            outer = outer.shutdown_event(Event::new("bye").event("~bye~").id(8));
        }
        if let Some(time) = self.max_lifetime {
            outer = outer.max_lifetime(time);
        }
        if self.has_on_close {
            let summary = Arc::clone(summary);
            outer = outer.on_close(move |it| {
                let before = summary.lock().expect("no panic before").replace(it);
                assert!(before.is_none(), "on_close was called twice");
            });
        }
        (inner, outer)
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Chunk(Vec<u8>),
    Yield,
    Silence(Duration),
    Hang,
    Trailers,
    Fail,
}

impl Step {
    fn data(&self) -> Option<&[u8]> {
        match self {
            Self::Chunk(data) => Some(data),
            _ => None,
        }
    }
}

fn read_steps(stream: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut chunk = Vec::new();
    let mut bytes = stream.iter();
    while let Some(byte) = bytes.next() {
        let escaped = if *byte == b'\\' { bytes.next() } else { None };
        let step = match escaped {
            None => {
                chunk.push(*byte);
                continue;
            }
            Some(b'|') => None,
            Some(b'-') => Some(Step::Chunk(Vec::new())),
            Some(b'0') => Some(Step::Yield),
            Some(digit @ b'1'..=b'9') => {
                Some(Step::Silence(Duration::from_millis(SILENCES[usize::from(digit - b'1')])))
            }
            Some(b'h') => Some(Step::Hang),
            Some(b't') => Some(Step::Trailers),
            Some(b'x') => Some(Step::Fail),
            Some(byte) => {
                chunk.push(*byte);
                continue;
            }
        };
        if !chunk.is_empty() {
            steps.push(Step::Chunk(mem::take(&mut chunk)));
        }
        let is_last = matches!(step, Some(Step::Hang | Step::Trailers | Step::Fail));
        steps.extend(step);
        if is_last {
            return steps;
        }
    }
    if !chunk.is_empty() {
        steps.push(Step::Chunk(chunk));
    }
    steps
}

/// The body of the upstream stream. It panics if it is polled after its end.
struct Upstream {
    steps: VecDeque<Step>,
    silence: Option<Pin<Box<Sleep>>>,
    is_ended: bool,
    /// The number of bytes that were read.
    read: Arc<Mutex<usize>>,
}

impl Body for Upstream {
    type Data = Bytes;
    type Error = io::Error;

    fn is_end_stream(&self) -> bool {
        self.is_ended || (self.steps.is_empty() && self.silence.is_none())
    }

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        assert!(!self.is_ended, "the body was polled after its end");
        loop {
            if let Some(silence) = &mut self.silence {
                ready!(silence.as_mut().poll(cx));
                self.silence = None;
            }
            let step = self.steps.pop_front();
            self.is_ended = matches!(step, None | Some(Step::Fail));
            return match step {
                None => Poll::Ready(None),
                Some(Step::Chunk(data)) => {
                    *self.read.lock().expect("no panic before") += data.len();
                    Poll::Ready(Some(Ok(Frame::data(data.into()))))
                }
                Some(Step::Yield) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Some(Step::Silence(time)) => {
                    self.silence = Some(Box::pin(sleep(time)));
                    continue;
                }
                Some(Step::Hang) => {
                    self.steps.push_front(Step::Hang);
                    Poll::Pending
                }
                Some(Step::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new())))),
                Some(Step::Fail) => Poll::Ready(Some(Err(io::Error::other("failed")))),
            };
        }
    }
}

/// The stream as a client has received it.
struct Received {
    bytes: Vec<u8>,
    has_failed: bool,
    /// The time of the shutdown, and the number of bytes that the layer had read then.
    shutdown: Option<(Duration, usize)>,
    summary: Option<StreamSummary>,
}

async fn run(settings: &Settings, steps: &[Step]) -> Received {
    let token = CancellationToken::new();
    let summary = Arc::default();
    let (inner, outer) = settings.layers(&token, &summary);
    let read = Arc::new(Mutex::new(0));
    let service = service_fn(async |_: Request<()>| {
        let (steps, read) = (steps.iter().cloned().collect(), Arc::clone(&read));
        let body = Upstream { steps, silence: None, is_ended: false, read };
        Ok::<_, Infallible>(Response::builder().header(CONTENT_TYPE, "text/event-stream").body(body).unwrap())
    });
    let request = Request::new(());
    let response = match settings.is_double {
        true => outer.layer(inner.layer(service)).oneshot(request).await.unwrap().map(BodyExt::boxed_unsync),
        false => outer.layer(service).oneshot(request).await.unwrap().map(BodyExt::boxed_unsync),
    };

    let began = Instant::now();
    let shutdown = Arc::new(Mutex::new(None));
    let cancel = {
        let (shutdown, token) = (Arc::clone(&shutdown), token.clone());
        move || {
            let read = *read.lock().expect("no panic before");
            shutdown.lock().expect("no panic before").get_or_insert((began.elapsed(), read));
            token.cancel();
        }
    };
    if let Some(time) = settings.shutdown_at {
        let cancel = cancel.clone();
        tokio::spawn(async move {
            sleep(time).await;
            cancel();
        });
    }

    let mut body = response.into_body();
    let mut received = Received { bytes: Vec::new(), has_failed: false, shutdown: None, summary: None };
    let mut frames = 0;
    loop {
        if settings.shutdown_after_frames == Some(frames) {
            cancel();
        }
        if body.is_end_stream() && !settings.polls_after_end {
            break;
        }
        match body.frame().await {
            Some(Ok(frame)) => received.bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            Some(Err(_)) => received.has_failed = true,
            None => break,
        }
        frames += 1;
    }
    if settings.polls_after_end {
        assert!(body.frame().await.is_none(), "the body has ended");
    }
    drop(body);
    received.shutdown = shutdown.lock().expect("no panic before").take();
    received.summary = summary.lock().expect("no panic before").take();
    received
}

impl Received {
    fn check(self, settings: &Settings, steps: &[Step], upstream: &[u8]) {
        let with = whatwg::parse_after(LAST, &self.bytes);
        let without = whatwg::parse_after(LAST, upstream);
        let (messages, has_bye) = messages(&with);
        assert!(without.messages.starts_with(&messages), "{with:#?} is no part of {without:#?}");

        let passed = self.passed(settings);
        let is_part = |upstream: &[u8]| upstream.starts_with(&passed);
        assert!(
            is_part(upstream) || is_part(without_mark(upstream)),
            "other bytes than those of the stream were passed"
        );

        let reason = self.summary.as_ref().map(|summary| summary.reason);
        assert_eq!(settings.has_on_close, reason.is_some());
        let can_be_cut = self.shutdown.is_some() || settings.max_lifetime.is_some();
        let is_cut = match reason {
            Some(CloseReason::Shutdown | CloseReason::MaxLifetime) => {
                assert!(can_be_cut);
                true
            }
            Some(CloseReason::Finished) => false,
            Some(CloseReason::Error) => {
                assert!(self.has_failed);
                false
            }
            Some(reason) => panic!("the stream has ended, and was not dropped: {reason:?}"),
            None => can_be_cut,
        };
        if is_cut {
            let needed = self.needed(settings, steps, upstream);
            assert!(messages.len() >= needed, "{needed} events were complete: {with:#?}");
        } else {
            assert_eq!(messages, without.messages);
            assert!(passed.len() >= without_mark(upstream).len(), "bytes at the end are missing");
            let retry = without.reconnection_time.or(settings.has_retry.then(|| "3000".to_owned()));
            assert_eq!(with.reconnection_time, retry);
            assert_eq!(self.has_failed, steps.ends_with(&[Step::Fail]));
            if self.heartbeats(BEAT) == 0 {
                assert_eq!(with.last_event_id, without.last_event_id);
            }
        }
        assert!(!has_bye || (is_cut && settings.has_shutdown_event && self.shutdown.is_some()));

        if let Some(summary) = &self.summary {
            assert!(summary.events >= (messages.len() + usize::from(has_bye)) as u64);
            assert_eq!(summary.bytes, self.bytes.len() as u64);
            assert_eq!(summary.heartbeats, (self.heartbeats(COMMENT) + self.heartbeats(BEAT)) as u64);
            if summary.reason == CloseReason::Shutdown && (passed.is_empty() || passed.ends_with(b"\n\n")) {
                assert_eq!(has_bye, settings.has_shutdown_event, "the stream ended between events");
                let retry = settings.retries().1;
                let end = if has_bye { [retry, BYE].concat() } else { retry.to_owned() };
                assert!(self.bytes.ends_with(end.as_bytes()));
            }
        }
    }

    /// Counts the heartbeats with this text.
    fn heartbeats(&self, text: &str) -> usize {
        count(&self.bytes, text) + count(&self.bytes, &after_cr(text))
    }

    /// Returns the bytes of the upstream stream, without the additions of the layer.
    fn passed(&self, settings: &Settings) -> Vec<u8> {
        let (preamble, retry) = settings.retries();
        let bytes = self.bytes.strip_prefix(preamble.as_bytes());
        let bytes = bytes.or_else(|| self.bytes.is_empty().then_some(b"")).expect("the reconnect delay is first");
        let bytes = match self.shutdown {
            Some(_) => {
                let bytes = bytes.strip_suffix(BYE.as_bytes()).unwrap_or(bytes);
                bytes.strip_suffix(retry.as_bytes()).unwrap_or(bytes)
            }
            None => bytes,
        };
        let added = [BEAT, COMMENT].map(|text| [text.to_owned(), after_cr(text)]).concat();
        added.iter().fold(bytes.to_vec(), |bytes, added| removed(added, &bytes))
    }

    /// Returns the number of events that have to arrive although the layer has ended the stream.
    fn needed(&self, settings: &Settings, steps: &[Step], upstream: &[u8]) -> usize {
        let by_shutdown = self.shutdown.map(|(at, read)| (at, Some(read)));
        // The jitter is 10 % less: see `random.rs`.
        let by_lifetime = settings.max_lifetime.map(|time| (time.mul_f64(0.9), None));
        let first = [by_shutdown, by_lifetime].into_iter().flatten().min_by_key(|(at, _)| *at);
        let Some((at, read)) = first else { return usize::MAX };
        let complete_at = |len: usize| whatwg::parse(&upstream[..len]).messages.len();
        // At the moment of the end itself, either can be first.
        let read =
            read.filter(|_| by_lifetime.is_none()).unwrap_or_else(|| arrived_before(steps, at - at.min(TOLERANCE)));
        let complete = complete_at(read);
        let is_begun = whatwg::parse(&[&upstream[..read], b"\n\n"].concat()).messages.len() > complete;
        let deadline = arrived_before(steps, at + COMPLETION_TIMEOUT - 2 * TOLERANCE);
        let end = (read + 1..=deadline).find(|len| is_between_events(&upstream[..*len]));
        complete + usize::from(is_begun && end.is_some_and(|end| complete_at(end) > complete))
    }
}

/// Returns whether an event that follows would be an event of its own.
fn is_between_events(stream: &[u8]) -> bool {
    let messages = whatwg::parse(&[stream, b"data: probe\n\n"].concat()).messages;
    messages.last().is_some_and(|message| message.data == "probe" && message.r#type == "message")
}

/// Returns the number of bytes that have arrived before a time.
fn arrived_before(steps: &[Step], time: Duration) -> usize {
    let (mut now, mut bytes) = (Duration::ZERO, 0);
    for step in steps {
        match step {
            Step::Chunk(data) if now < time => bytes += data.len(),
            Step::Silence(length) => now += *length,
            _ => {}
        }
    }
    bytes
}

/// Returns the messages of the upstream stream, and whether the shutdown event is the last message.
fn messages(source: &EventSource) -> (Vec<whatwg::Message>, bool) {
    let mut messages = source.messages.clone();
    let has_bye = messages.pop_if(|message| message.r#type == "~bye~").is_some();
    messages.retain(|message| message.r#type != "~beat~");
    (messages, has_bye)
}

fn without_mark(stream: &[u8]) -> &[u8] {
    stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream)
}

fn count(bytes: &[u8], added: &str) -> usize {
    bytes.windows(added.len()).filter(|window| *window == added.as_bytes()).count()
}

fn removed(added: &str, mut bytes: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    while let Some(at) = bytes.windows(added.len()).position(|window| window == added.as_bytes()) {
        rest.extend_from_slice(&bytes[..at]);
        bytes = &bytes[at + added.len()..];
    }
    rest.extend_from_slice(bytes);
    rest
}

/// Returns a heartbeat as it is after a CR: it ends in a CR, too.
fn after_cr(heartbeat: &str) -> String {
    format!("{}\r", heartbeat.strip_suffix('\n').expect("a heartbeat ends in LF"))
}
