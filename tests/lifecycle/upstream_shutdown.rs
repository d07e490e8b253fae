//! Guarantee: a shutdown ends every upstream stream, between two events if possible.

use crate::common::{Summaries, assert_summary, encoded, shutdown_layer, upstream, upstream_response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, header};
use http_body::Body;
use proptest::prelude::*;
use std::{convert::Infallible, task::Poll, time::Duration};
use support::{
    polled::Polled,
    respond::through,
    script::{Script, Step},
    whatwg,
};
use tokio::time::{Instant, advance};
use tokio_test::task;
use tower_sse::{CloseReason, Event, Heartbeat, SseLayer};

#[tokio::test(start_paused = true)]
async fn stream_between_events_ends_immediately() {
    for end in ["\n\n", "\r\n\r\n"] {
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye"));
        let chunk = format!("data: a{end}");
        let mut body = upstream([Step::chunk(&chunk), Step::Hang], &[&layer]);
        body.assert_data(&chunk);
        body.assert_pending();
        token.cancel();
        assert!(body.is_woken());
        assert_eq!(body.rest(), "retry: 1000\ndata: bye\n\n", "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_stream_ends_at_next_poll() {
    let (token, layer) = shutdown_layer();
    let chunks = (0..100).map(|n| Step::chunk(format!("data: {n}\n\n")));
    let mut body = upstream(chunks, &[&layer]);
    body.assert_data("data: 0\n\n");
    token.cancel();
    assert_eq!(body.rest(), "retry: 1000\n");
}

#[tokio::test(start_paused = true)]
async fn current_event_is_completed_and_next_is_cut() {
    for (begun, next, completed) in [
        ("data: a", "\n\n", "\n\n"),
        ("data: a\n", "\n", "\n"),
        ("data: a\n", "data: b\n\n", "data: b\n\n"),
        ("data: a\n", "\ndata: half", "\n"),
        ("data: a\nda", "ta: b\n\ndata: c\n\ndata: ha", "ta: b\n\ndata: c\n\n"),
        ("data: a\r\n", "\r\n", "\r\n"),
        ("data: a\r\n", "\r\ndata: ha", "\r\n"),
        ("data: a\r\n\r", "\ndata: ha", "\n"),
        ("data: a\r", "\n\r\ndata: ha", "\n\r\n"),
        ("data: a", "\r\n\r\nid: 1\r\n", "\r\n\r\n"),
        ("id: 1\n", "data: a\n\nid: 2\n", "data: a\n\n"),
    ] {
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye"));
        let mut body = upstream([Step::chunk(begun), Step::silence(0), Step::chunk(next), Step::Hang], &[&layer]);
        body.assert_data(begun);
        token.cancel();
        let mut rest = String::new();
        while let Poll::Ready(Some(Ok(data))) = body.poll_in_time().await {
            rest.push_str(std::str::from_utf8(&data).unwrap());
        }
        if begun.ends_with("\r\n\r") {
            // The CR is the blank line. The stream does not wait for its LF.
            assert_eq!(rest.trim_start_matches('\n'), "retry: 1000\ndata: bye\n\n");
        } else {
            assert_eq!(rest, format!("{completed}retry: 1000\ndata: bye\n\n"), "{begun:?} {next:?}");
        }
        body.assert_end();
    }
}

#[tokio::test(start_paused = true)]
async fn boundary_across_chunks_is_recognized() {
    for end in ["\n\n", "\r\n\r\n"] {
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye"));
        let rest = format!("ta: a{end}data: not this");
        let chunks = rest.bytes().map(|byte| Step::chunk([byte]));
        let mut body = upstream([Step::chunk("da")].into_iter().chain(chunks), &[&layer]);
        body.assert_data("da");
        token.cancel();
        let whole = format!("da{}", body.rest());
        let parsed = whatwg::parse(whole.as_bytes());
        let data: Vec<_> = parsed.messages.iter().map(|message| &*message.data).collect();
        assert_eq!(data, ["a", "bye"], "{whole:?}");
        assert_eq!(parsed.reconnection_time.as_deref(), Some("1000"));
    }
}

#[tokio::test(start_paused = true)]
async fn silent_event_is_cut_after_250_milliseconds() {
    for (begun, last) in [("data: a\n", "retry: 1000\n"), ("data: a\r\n", "retry: 1000\n"), ("data: a", "")] {
        let (token, layer) = shutdown_layer();
        let summaries = Summaries::default();
        let layer = layer.shutdown_event(Event::new("bye")).on_close(summaries.callback());
        let mut body = upstream([Step::chunk(begun), Step::Hang], &[&layer]);
        body.assert_data(begun);
        body.assert_pending();
        token.cancel();
        assert!(body.is_woken());
        body.assert_pending();
        advance(Duration::from_millis(248)).await;
        body.assert_pending();
        assert!(!body.is_woken());
        advance(Duration::from_millis(3)).await;
        assert!(body.is_woken());
        assert_eq!(body.rest(), last, "{begun:?}");
        body.assert_end();
        assert!(whatwg::parse(format!("{begun}{last}").as_bytes()).messages.is_empty());
        drop(body);
        assert_eq!(summaries.only().reason, CloseReason::Shutdown);
        assert_eq!(summaries.only().events, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn endless_busy_event_is_cut_after_250_milliseconds() {
    let (token, layer) = shutdown_layer();
    let layer = layer.shutdown_event(Event::new("bye"));
    let endless = stream::repeat_with(|| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from("data: a\n"))));
    let body = http_body_util::StreamBody::new(endless);
    let mut body = Polled::new(through(&layer, upstream_response(body)));
    body.assert_data("data: a\n");
    token.cancel();
    let mut frames = 0;
    let end = loop {
        match body.poll() {
            Poll::Ready(Some(Ok(data))) if data == "data: a\n" => frames += 1,
            end => break end,
        }
        assert!(frames < 1000, "the stream does not end");
        advance(Duration::from_millis(1)).await;
        // Restores the cooperative budget that tokio gives the task.
        tokio::task::yield_now().await;
    };
    assert!((240..=260).contains(&frames), "{frames}");
    assert_eq!(end, Poll::Ready(Some(Ok(Bytes::from("retry: 1000\n")))));
    body.assert_end();
}

#[tokio::test(start_paused = true)]
async fn error_while_draining_is_passed_on() {
    let (token, layer) = shutdown_layer();
    let summaries = Summaries::default();
    let layer = layer.on_close(summaries.callback());
    let mut body = upstream([Step::chunk("data: a\n"), Step::Fail("broken")], &[&layer]);
    body.assert_data("data: a\n");
    token.cancel();
    assert_eq!(body.poll_in_time().await, Poll::Ready(Some(Err("broken".to_owned()))));
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::Error);
}

#[tokio::test(start_paused = true)]
async fn trailers_while_draining_are_passed_on() {
    let (token, layer) = shutdown_layer();
    let trailers = HeaderMap::from_iter([(header::HeaderName::from_static("x-sum"), "1".parse().unwrap())]);
    let response = upstream_response(Script::new([Step::chunk("data: a\n"), Step::Trailers(trailers.clone())]));
    let mut body = task::spawn(through(&layer, response).into_body());
    let mut frame = || body.enter(|cx, body| body.poll_frame(cx)).map(|frame| frame.map(Result::unwrap));
    assert!(matches!(frame(), Poll::Ready(Some(frame)) if frame.is_data()));
    token.cancel();
    let Poll::Ready(Some(retry)) = frame() else { panic!("the reconnect delay is not ready") };
    assert_eq!(retry.into_data().unwrap(), "retry: 1000\n");
    let Poll::Ready(Some(last)) = frame() else { panic!("the trailers are not ready") };
    assert_eq!(last.into_trailers().unwrap(), trailers);
    assert!(matches!(frame(), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn stream_with_cr_lines_ends_between_events() {
    let (token, layer) = shutdown_layer();
    let summaries = Summaries::default();
    let layer = layer.shutdown_event(Event::new("bye")).on_close(summaries.callback());
    let mut idle = upstream([Step::chunk("data: a\r\r"), Step::Hang], &[&layer]);
    idle.assert_data("data: a\r\r");
    idle.assert_pending();
    token.cancel();
    assert_eq!(idle.rest(), "retry: 1000\ndata: bye\n\n");
    drop(idle);
    assert_eq!(summaries.only().events, 2);

    for (next, completed) in
        [("\r\rdata: b", "\r\r"), ("\rdata: b\r\r\rdata", "\rdata: b\r\r\r"), ("\r\n\rdata", "\r\n\r")]
    {
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye"));
        let mut body = upstream([Step::chunk("data: a"), Step::chunk(next), Step::Hang], &[&layer]);
        body.assert_data("data: a");
        token.cancel();
        assert_eq!(body.rest(), format!("{completed}retry: 1000\ndata: bye\n\n"), "{next:?}");
    }
}

/// A proxied `SseStream` has such bytes. It begins with its reconnect delay and a comment, and its
/// heartbeats are comments without a blank line.
#[tokio::test(start_paused = true)]
async fn comment_or_retry_is_between_events() {
    for begun in [
        ":\n",
        ": comment\r\n",
        "retry: 5\n",
        "retry: 5\n:\n",
        "data: a\n\n:\n",
        "\u{feff}",
        "\u{feff}:\n",
        "unknown\n",
    ] {
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye"));
        let mut body = upstream([Step::chunk(begun), Step::Hang], &[&layer]);
        body.assert_data(begun);
        body.assert_pending();
        token.cancel();
        assert_eq!(body.rest(), "retry: 1000\ndata: bye\n\n", "{begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn comment_does_not_end_an_event() {
    for begun in ["data: a\n:\n", "id: 1\n:\n", "event: e\nretry: 5\n", "data\n: comment\r\n"] {
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye"));
        let mut body = upstream([Step::chunk(begun), Step::Hang], &[&layer]);
        body.assert_data(begun);
        body.assert_pending();
        token.cancel();
        body.assert_pending();
        advance(Duration::from_millis(251)).await;
        assert_eq!(body.rest(), "retry: 1000\n", "{begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn incomplete_byte_order_mark_is_discarded() {
    let (token, layer) = shutdown_layer();
    let layer = layer.retry(Duration::from_secs(2)).shutdown_event(Event::new("bye"));
    let mut body = upstream([Step::chunk(b"\xEF\xBB"), Step::Hang], &[&layer]);
    body.assert_data("retry: 2000\n");
    // The reconnect delay was sent first, so the layer holds the mark back to remove it.
    body.assert_pending();
    token.cancel();
    assert_eq!(body.rest(), "retry: 2000\ndata: bye\n\n");
    body.assert_end();
}

#[tokio::test(start_paused = true)]
async fn stream_that_ends_while_draining_sends_delay() {
    for (last, completed) in [
        ("\n", "\nretry: 1000\ndata: bye\n\n"),
        ("\n\n", "\n\nretry: 1000\ndata: bye\n\n"),
        ("data: b\n", "data: b\nretry: 1000\n"),
        ("da", "da"),
    ] {
        let summaries = Summaries::default();
        let (token, layer) = shutdown_layer();
        let layer = layer.shutdown_event(Event::new("bye")).on_close(summaries.callback());
        let mut body = upstream([Step::chunk("data: a\n"), Step::chunk(last)], &[&layer]);
        body.assert_data("data: a\n");
        token.cancel();
        assert_eq!(body.rest(), completed);
        body.assert_end();
        drop(body);
        assert_eq!(summaries.only().reason, CloseReason::Shutdown);
    }
}

/// Generates texts from all kinds of pieces of event streams.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec!["data: a", "data: b", "data", "event: e", "id: 1", "id: 2", "id", "retry: 7"]),
        2 => prop::sample::select(vec![":", ": comment", "unknown: x", "\u{feff}", "é", " ", "d", "x"]),
        8 => prop::sample::select(vec!["\n", "\n\n", "\r\n", "\r\n\r\n", "\r", "\r\r"]),
    ];
    let mark = prop_oneof![3 => Just(""), 1 => Just("\u{feff}")];
    (mark, prop::collection::vec(piece, 0..20))
        .prop_map(|(mark, pieces)| [mark, &pieces.concat()].concat().into_bytes())
}

/// Generates a text in chunks with some delays, followed by an end or by silence.
fn script() -> impl Strategy<Value = (Vec<u8>, Vec<Step>)> {
    let cuts = prop::collection::vec((1_usize..12, prop::sample::select(vec![0_u64, 0, 100, 300])), 1..10);
    (pieces(), cuts, any::<bool>()).prop_map(|(text, cuts, ends)| {
        let mut steps = Vec::new();
        let mut rest = &text[..];
        for (size, silence) in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, more) = rest.split_at(size.min(rest.len()));
            steps.push(Step::chunk(chunk));
            if silence > 0 {
                steps.push(Step::Silence(Duration::from_millis(silence)));
            }
            rest = more;
        }
        if !ends {
            steps.push(Step::Hang);
        }
        (text, steps)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn client_gets_whole_events_then_shutdown_event(
        (text, steps) in script(),
        polls in 0_usize..20,
        retry in any::<bool>(),
        heartbeats in any::<bool>(),
    ) {
        // The layer does not change a body that is already at its end.
        prop_assume!(!steps.is_empty());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let summaries = Summaries::default();
            let (token, mut layer) = shutdown_layer();
            layer = layer.shutdown_event(Event::new("bye").event("shutdown").id(9)).on_close(summaries.callback());
            if retry {
                layer = layer.retry(Duration::from_secs(1));
            }
            if heartbeats {
                layer = layer.heartbeat(Heartbeat::every(Duration::from_millis(40)));
            }
            let mut body = upstream(steps, &[&layer]);
            let mut seen = Vec::new();
            let mut is_over = false;
            for _ in 0..polls {
                match body.poll() {
                    Poll::Ready(Some(Ok(data))) => seen.extend_from_slice(&data),
                    Poll::Ready(Some(Err(error))) => panic!("{error}"),
                    Poll::Ready(None) => {
                        is_over = true;
                        break;
                    }
                    Poll::Pending => advance(Duration::from_millis(90)).await,
                }
                // hyper does not poll a body again after this.
                if body.is_end_stream() {
                    is_over = true;
                    break;
                }
            }
            token.cancel();
            let cancelled = Instant::now();
            while !is_over {
                match body.poll() {
                    Poll::Ready(Some(Ok(data))) => seen.extend_from_slice(&data),
                    Poll::Ready(Some(Err(error))) => panic!("{error}"),
                    Poll::Ready(None) => break,
                    Poll::Pending => {
                        prop_assert!(cancelled.elapsed() <= Duration::from_millis(252), "the stream does not end");
                        advance(Duration::from_millis(10)).await;
                    }
                }
                is_over = body.is_end_stream();
            }
            drop(body);

            let original = whatwg::parse(&text);
            let mut client = whatwg::parse(&seen);
            let summary = summaries.only();
            prop_assert_eq!(summary.bytes, seen.len() as u64);
            if summary.reason == CloseReason::Finished {
                prop_assert_eq!(client.messages, original.messages);
                return Ok(());
            }
            prop_assert_eq!(summary.reason, CloseReason::Shutdown);
            let has_shutdown_event = client.messages.last().is_some_and(|message| message.r#type == "shutdown");
            let shutdown_event = if has_shutdown_event { client.messages.pop() } else { None };
            prop_assert!(original.messages.starts_with(&client.messages), "{:?}", String::from_utf8_lossy(&seen));
            if let Some(shutdown_event) = shutdown_event {
                prop_assert_eq!(&shutdown_event.data, "bye");
                prop_assert_ne!(shutdown_event.last_event_id, "9");
                prop_assert_eq!(client.reconnection_time.as_deref(), Some("1000"));
            } else if matches!(seen.last(), Some(b'\n' | b'\r')) {
                // No delay can be sent in the middle of a line, only after a line end.
                prop_assert_eq!(client.reconnection_time.as_deref(), Some("1000"), "{:?}", String::from_utf8_lossy(&seen));
            }
            Ok(())
        })?;
    }
}

/// An endless encoded stream must end, too: it would block the shutdown of a server.
#[tokio::test(start_paused = true)]
async fn encoded_stream_ends_without_added_bytes() {
    let (token, layer) = shutdown_layer();
    let layer = layer.shutdown_event(Event::new("bye")).retry(Duration::from_secs(1));
    let layer = layer.heartbeat(Heartbeat::every(Duration::from_secs(1)));
    let summaries: [Summaries; 2] = Default::default();
    let outer = SseLayer::new().on_close(summaries[1].callback()).max_lifetime(Duration::from_secs(100));
    let layer = layer.on_close(summaries[0].callback());
    let response = through(&outer, through(&layer, encoded(&[Step::chunk("\x1f\n\n:d"), Step::Hang])));
    // The stream may end before it reaches that length.
    assert!(!response.headers().contains_key(header::CONTENT_LENGTH));
    let mut body = Polled::new(response);
    body.assert_data("\x1f\n\n:d");
    body.assert_pending();
    advance(Duration::from_secs(10)).await;
    body.assert_pending();
    token.cancel();
    assert!(body.is_woken());
    body.assert_end();
    body.assert_end();
    drop(body);
    assert_summary(&summaries[0], CloseReason::Shutdown, [0, 5, 0], Duration::from_secs(10));
    // The outer layer reports the same stream.
    assert_summary(&summaries[1], CloseReason::Shutdown, [0, 5, 0], Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn second_byte_order_mark_begins_a_line() {
    let (token, layer) = shutdown_layer();
    let layer = layer.retry(Duration::from_secs(2)).shutdown_event(Event::new("bye"));
    let mut body = upstream([Step::chunk("\u{feff}\u{feff}"), Step::Hang], &[&layer]);
    body.assert_data("retry: 2000\n");
    body.assert_data("\u{feff}");
    body.assert_pending();
    token.cancel();
    body.assert_pending();
    advance(Duration::from_millis(251)).await;
    assert_eq!(body.rest(), "");
}
