//! The `ops` example in Chromium: graceful shutdown, restart and metrics.

use e2e::{Browser, Example, Message, Page, Window, eventually, request};
use std::{net::SocketAddr, time::Duration};

const SOON: Duration = Duration::from_secs(10);
/// Longer than the reconnection time with its jitter, also on a busy machine.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Well below the time after which an init system sends SIGKILL.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_streams_and_page_reconnects_after_restart() {
    let mut server = Example::start("ops", &[]);
    let page = open_page(server.address(), Window::Desktop).await;
    wait_for_event(&page, "an event", |message| message.kind == "message").await;
    wait_for_event(&page, "a heartbeat", |message| message.kind == "heartbeat").await;
    assert_eq!(page.text("#connections").await, "1");

    server.terminate();
    let status = server.wait_for_exit(SHUTDOWN_TIMEOUT).expect("the server does not wait for the page");
    assert!(status.success(), "{status}");
    let last = wait_for_event(&page, "the shutdown event", |message| message.kind == "shutdown").await;
    assert_eq!(last.data, "The server is being restarted.");
    assert_eq!(page.text("#note").await, last.data);

    let server = Example::start_at(server.address(), "ops", &[]);
    eventually(RECONNECT_TIMEOUT, "the page has reconnected", async || match page.text("#connections").await {
        connections if connections == "2" => Ok(()),
        connections => Err(connections),
    })
    .await;
    // The last id is from the old server.
    let gap = wait_for_event(&page, "a gap", |message| message.kind == "gap").await;
    assert!(gap.data.contains("other_epoch"), "{gap:?}");
    wait_for_event(&page, "an event after the gap", |message| message.kind == "message" && message.id > gap.id).await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_open_streams_and_their_ends() {
    let server = Example::start("ops", &[]);
    let page = open_page(server.address(), Window::Desktop).await;
    wait_for_event(&page, "an event", |message| message.kind == "message").await;
    wait_for_event(&page, "a heartbeat", |message| message.kind == "heartbeat").await;

    let metrics = Metrics::of(server.address()).await;
    assert_eq!(metrics.value("tower_sse_streams_active"), 1.0, "{metrics:?}");
    for counter in ["events", "bytes", "heartbeats"] {
        assert!(metrics.value(&format!("tower_sse_{counter}_sent_total")) >= 1.0, "{counter}: {metrics:?}");
    }
    let text = &metrics.0;
    assert!(text.contains("# HELP tower_sse_streams_active Open event streams."), "{text}");
    assert!(text.contains("# TYPE tower_sse_streams_active gauge"), "{text}");

    // End the whole browser: it may keep the connection of a closed page for a while.
    drop(page);
    eventually(SOON, "the stream has ended", async || {
        let metrics = Metrics::of(server.address()).await;
        let has_ended = metrics.value("tower_sse_streams_active") == 0.0
            && metrics.value("tower_sse_streams_closed_total{reason=\"client_gone\"}") == 1.0
            && metrics.value("tower_sse_stream_duration_seconds_count") == 1.0
            && metrics.value("tower_sse_stream_duration_seconds_bucket{le=\"+Inf\"}") == 1.0;
        if has_ended { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_fits_phone() {
    let server = Example::start("ops", &[]);
    let phone = Window::Phone { width: 390 };
    let page = open_page(server.address(), phone).await;
    wait_for_event(&page, "an event", |message| message.kind == "message").await;
    page.browser().assert_fits("ops", phone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn screenshot_shows_a_page_after_a_restart() {
    let mut server = Example::start("ops", &[]);
    let page = open_page(server.address(), Window::Desktop).await;
    wait_for_event(&page, "a heartbeat", |message| message.kind == "heartbeat").await;
    wait_for_event(&page, "an event", |message| message.kind == "message").await;
    server.terminate();
    server.wait_for_exit(SHUTDOWN_TIMEOUT).expect("the server exits");
    let server = Example::start_at(server.address(), "ops", &[]);
    eventually(RECONNECT_TIMEOUT, "the page has reconnected", async || match page.text("#connections").await {
        connections if connections == "2" => Ok(()),
        connections => Err(connections),
    })
    .await;
    eventually(SOON, "the page has received a gap, and then a message and a heartbeat", async || {
        let received = page.received().await;
        let after: Vec<_> = received.iter().map(|message| &*message.kind).skip_while(|kind| *kind != "gap").collect();
        if after.contains(&"message") && after.contains(&"heartbeat") { Ok(()) } else { Err(received.clone()) }
    })
    .await;
    page.browser().screenshot("ops").await;
    drop(server);
}

async fn open_page(server: SocketAddr, window: Window) -> Page {
    Page::open(Browser::start(window).await, server, SOON).await
}

/// Waits until `is_match` returns true for an event, and returns the event.
async fn wait_for_event(page: &Page, what: &str, is_match: impl Fn(&Message) -> bool) -> Message {
    eventually(SOON, &format!("the page has received {what}"), async || {
        let received = page.received().await;
        received.iter().find(|message| is_match(message)).cloned().ok_or(received)
    })
    .await
}

/// The response of `/metrics`.
#[derive(Debug)]
struct Metrics(String);

impl Metrics {
    async fn of(server: SocketAddr) -> Self {
        let response = request(server, &format!("GET /metrics HTTP/1.0\r\nHost: {server}\r\n\r\n")).await;
        assert!(response.starts_with("HTTP/1.0 200 "), "{response}");
        Self(response)
    }

    /// Returns the value of a metric, and 0 if there is none.
    fn value(&self, name: &str) -> f64 {
        let values = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.into_iter().next().map_or(0.0, |value| value.parse().expect("a number"))
    }
}
