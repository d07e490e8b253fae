//! A server in production, seen by a real browser: what becomes of its page when it is restarted, and what its metrics say.

use e2e::{Browser, Example, Message, Window, eventually};
use serde_json::Value;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(10);
/// The reconnection time and its spread, on a machine that has much else to do.
const TO_COME_BACK: Duration = Duration::from_secs(20);
/// Well below what an init system waits for.
const TO_END: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_told_to_stop_ends_by_itself_and_the_page_comes_back_to_the_next_one() {
    let mut server = Example::start("ops", &[]);
    let page = Page::open(server.address()).await;
    page.receives("an event", |message| message.kind == "message").await;
    page.receives("a heartbeat", |message| message.kind == "heartbeat").await;
    assert_eq!(page.text("#connections").await, "1");

    server.terminate();
    let status = server.ended_within(TO_END).expect("it does not wait for the page to be closed");
    assert!(status.success(), "{status}");
    let last = page.receives("the shutdown event", |message| message.kind == "shutdown").await;
    assert_eq!(last.data, "The server is being restarted.");
    assert_eq!(page.text("#note").await, last.data);

    let server = Example::start_at(server.address(), "ops", &[]);
    eventually(TO_COME_BACK, "the page has come back", async || match page.text("#connections").await {
        connections if connections == "2" => Ok(()),
        connections => Err(connections),
    })
    .await;
    // Its id is of the server before.
    let gap = page.receives("what it missed", |message| message.kind == "gap").await;
    assert!(gap.data.contains("other_epoch"), "{gap:?}");
    page.receives("an event after it", |message| message.kind == "message" && message.id > gap.id).await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_show_a_stream_while_it_is_open_and_how_it_ended_afterwards() {
    let server = Example::start("ops", &[]);
    let page = Page::open(server.address()).await;
    page.receives("an event", |message| message.kind == "message").await;
    page.receives("a heartbeat", |message| message.kind == "heartbeat").await;

    let metrics = Metrics::of(server.address()).await;
    assert_eq!(metrics.value("tower_sse_streams_active"), 1.0, "{metrics:?}");
    for counter in ["events", "bytes", "heartbeats"] {
        assert!(metrics.value(&format!("tower_sse_{counter}_sent_total")) >= 1.0, "{counter}: {metrics:?}");
    }
    let text = &metrics.0;
    assert!(text.contains("# HELP tower_sse_streams_active Open event streams."), "{text}");
    assert!(text.contains("# TYPE tower_sse_streams_active gauge"), "{text}");

    // Not only the page: of one that was left, a browser may keep the connection for a while.
    drop(page);
    eventually(SOON, "the stream has ended", async || {
        let metrics = Metrics::of(server.address()).await;
        let is_over = metrics.value("tower_sse_streams_active") == 0.0
            && metrics.value("tower_sse_streams_closed_total{reason=\"client_gone\"}") == 1.0
            && metrics.value("tower_sse_stream_duration_seconds_count") == 1.0
            && metrics.value("tower_sse_stream_duration_seconds_bucket{le=\"+Inf\"}") == 1.0;
        if is_over { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_into_the_width_of_a_phone() {
    let server = Example::start("ops", &[]);
    let phone = Window::Phone { width: 390 };
    let page = Page { browser: Browser::start(phone).await };
    page.browser.client().goto(&format!("http://{}/", server.address())).await.expect("the page is there");
    page.receives("an event", |message| message.kind == "message").await;
    page.browser.fits("ops", phone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_shows_a_page_that_has_come_back_after_a_restart() {
    let mut server = Example::start("ops", &[]);
    let page = Page::open(server.address()).await;
    page.receives("a heartbeat", |message| message.kind == "heartbeat").await;
    page.receives("an event", |message| message.kind == "message").await;
    server.terminate();
    server.ended_within(TO_END).expect("it ends by itself");
    let server = Example::start_at(server.address(), "ops", &[]);
    eventually(TO_COME_BACK, "the page has come back", async || match page.text("#connections").await {
        connections if connections == "2" => Ok(()),
        connections => Err(connections),
    })
    .await;
    eventually(SOON, "the page receives the gap and what follows it", async || {
        let kinds = page.browser.eval("received.map(({ type }) => type)").await;
        let kinds: Vec<_> = kinds.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let after = kinds.iter().skip_while(|kind| **kind != "gap").copied().collect::<Vec<_>>();
        if after.contains(&"message") && after.contains(&"heartbeat") { Ok(()) } else { Err(kinds.join(", ")) }
    })
    .await;
    page.browser.screenshot("ops").await;
    drop(server);
}

struct Page {
    browser: Browser,
}

impl Page {
    async fn open(server: SocketAddr) -> Self {
        let browser = Browser::start(Window::Desktop).await;
        browser.client().goto(&format!("http://{server}/")).await.expect("the page is there");
        Self { browser }
    }

    async fn text(&self, selector: &str) -> String {
        let text = self.browser.eval(&format!("document.querySelector('{selector}').textContent")).await;
        text.as_str().expect("an element has text").to_owned()
    }

    /// The first event of this kind.
    async fn receives(&self, what: &str, is_it: impl Fn(&Message) -> bool) -> Message {
        eventually(SOON, &format!("the page receives {what}"), async || {
            let received = self.browser.eval("received").await;
            let messages = received.as_array().map(|messages| messages.iter().filter_map(Message::from_page));
            messages.into_iter().flatten().find(&is_it).ok_or::<Value>(received.clone())
        })
        .await
    }
}

/// The page that Prometheus reads.
#[derive(Debug)]
struct Metrics(String);

impl Metrics {
    async fn of(server: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(server).await.expect("the server listens");
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {server}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut response = String::new();
        stream.read_to_string(&mut response).await.expect("the server writes");
        assert!(response.starts_with("HTTP/1.0 200 "), "{response}");
        Self(response)
    }

    /// 0 for what is not there.
    fn value(&self, name: &str) -> f64 {
        let values = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.into_iter().next().map_or(0.0, |value| value.parse().expect("a number"))
    }
}
