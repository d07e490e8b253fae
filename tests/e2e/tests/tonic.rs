//! The `tonic` example: a gRPC client and a page in Chromium watch the same changes on one port.

use e2e::{Browser, Client, Example, Page, Relay, Window, eventually, example_path, installed, request, request_until};
use fantoccini::Locator;
use serde_json::{Value, json};
use std::{fs, net::SocketAddr, ops::Deref, path::Path, process::Command, time::Duration};
use tokio::time::timeout;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const SERVICES: [&str; 3] = ["payments", "inventory", "search"];
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn grpc_and_event_stream_report_the_same_changes() {
    let server = Example::start("tonic", &[]);
    let mut client = connect(server.address()).await;
    let mut watched = client.watch(for_service("payments")).await.expect("the service exists").into_inner();
    let mut own =
        Client::start(Command::new(example_path("tonic")).args([&*server.address().to_string(), "watch", "payments"]));
    let mut curl = Client::start(Command::new(installed(&["curl"], "curl")).args([
        "--silent",
        "--no-buffer",
        "--noproxy",
        "*",
        &format!("http://{}/events", server.address()),
    ]));

    let mut expected = Vec::new();
    let mut by_grpc = Vec::new();
    for serving in [true, false, true, false, false, true] {
        // The first message is the current status.
        if !expected.is_empty() {
            set(server.address(), "payments", serving).await;
        }
        let status = if serving { "SERVING" } else { "NOT_SERVING" };
        expected.push(status.to_owned());
        let change = timeout(SOON, watched.message()).await.expect("soon").expect("no error").expect("no end");
        by_grpc.push(change.status().as_str_name().to_owned());
        eventually(SOON, "the other clients receive the change", async || {
            let by_own: Vec<_> =
                own.lines().iter().filter_map(|line| Some(line.strip_prefix("payments: ")?.to_owned())).collect();
            let by_events = changes(curl.lines(), "payments");
            if by_own == expected && by_events == expected { Ok(()) } else { Err((by_own, by_events)) }
        })
        .await;
        assert_eq!(by_grpc, expected);
    }
    for other in ["inventory", "search"] {
        assert_eq!(changes(curl.lines(), other), ["SERVING"], "the status has not changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_calls_pass_the_layer_with_trailers() {
    let server = Example::start("tonic", &[]);
    let mut client = connect(server.address()).await;
    // One stream on the connection of the calls, and one over HTTP/1.1.
    let _watched = client.watch(for_service("search")).await.expect("the service exists");
    let events = request_until(server.address(), "GET /events HTTP/1.1\r\nHost: test\r\n\r\n", |response| {
        SERVICES.iter().all(|service| response.contains(service))
    });
    assert!(events.await.contains("\r\ncontent-type: text/event-stream\r\n"));

    let checked = client.check(for_service("payments")).await.expect("the service exists").into_inner();
    assert_eq!(checked.status().as_str_name(), "SERVING");
    set(server.address(), "payments", false).await;
    let checked = client.check(for_service("payments")).await.expect("the service exists").into_inner();
    assert_eq!(checked.status().as_str_name(), "NOT_SERVING");
    let unknown = client.check(for_service("unknown")).await.expect_err("there is no such service");
    assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "service not registered"));

    // On the wire, the trailers follow the message.
    let message = Path::new(env!("CARGO_TARGET_TMPDIR")).join("health-check-request");
    fs::write(&message, b"\0\0\0\0\x08\x0A\x06search").expect("the target folder is writable");
    let mut curl = Client::start(Command::new(installed(&["curl"], "curl")).args([
        "--silent",
        "--include",
        "--http2-prior-knowledge",
        "--noproxy",
        "*",
        "--header",
        "content-type: application/grpc",
        "--header",
        "te: trailers",
        "--data-binary",
        &format!("@{}", message.display()),
        &format!("http://{}/grpc.health.v1.Health/Check", server.address()),
    ]));
    let status = curl.wait_for_exit(SOON).expect("the call ends");
    assert!(status.success(), "{status}");
    let response = curl.lines().join("\n");
    let (head, body) = response.split_once("\n\n").expect("the head has an end");
    assert!(head.contains("content-type: application/grpc") && !head.contains("grpc-status"), "{head}");
    assert!(!head.contains("cache-control") && !head.contains("x-accel-buffering"), "the layer adds no header: {head}");
    assert!(body.starts_with("\0\0\0\0\x02\x08\x01") && body.contains("grpc-status: 0"), "{body:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn page_shows_changes_also_after_lost_connection() {
    let server = Example::start("tonic", &[]);
    let relay = Relay::to(server.address()).await.expect("there is a free port");
    let page = Health::open(relay.address(), Window::Desktop).await;
    page.wait_for_statuses([("inventory", "SERVING"), ("payments", "SERVING"), ("search", "SERVING")]).await;
    let mut client = connect(server.address()).await;
    let mut watched = client.watch(for_service("inventory")).await.expect("the service exists").into_inner();
    let mut next = async || {
        let change = timeout(SOON, watched.message()).await.expect("soon").expect("no error").expect("no end");
        change.status().as_str_name()
    };
    assert_eq!(next().await, "SERVING");

    page.press("inventory").await;
    page.wait_for_statuses([("inventory", "NOT_SERVING"), ("payments", "SERVING"), ("search", "SERVING")]).await;
    assert_eq!(next().await, "NOT_SERVING");
    page.press("inventory").await;
    page.wait_for_statuses([("inventory", "SERVING"), ("payments", "SERVING"), ("search", "SERVING")]).await;
    assert_eq!(next().await, "SERVING");

    relay.cut();
    page.wait_for_state("reconnecting").await;
    set(server.address(), "search", false).await;
    set(server.address(), "inventory", false).await;
    set(server.address(), "inventory", true).await;
    relay.mend();
    page.wait_for_state("open").await;
    page.wait_for_statuses([("inventory", "SERVING"), ("payments", "SERVING"), ("search", "NOT_SERVING")]).await;
    let log = page.log().await;
    assert_eq!(log[..3], ["search NOT_SERVING", "inventory SERVING", "inventory NOT_SERVING"], "{log:?}");

    let rejection = request(server.address(), &put("unknown", "{\"serving\":true}")).await;
    let reason = "there is no service \"unknown\"";
    assert!(rejection.starts_with("HTTP/1.0 404 ") && rejection.contains(reason), "{rejection}");
}

#[tokio::test(flavor = "multi_thread")]
async fn page_fits_phone_and_screenshot_shows_desktop() {
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let server = Example::start("tonic", &[]);
        let page = Health::open(server.address(), window).await;
        let up = SERVICES.map(|service| (service, "SERVING"));
        page.wait_for_statuses(up).await;
        for (service, status) in [("search", "NOT_SERVING"), ("payments", "NOT_SERVING"), ("search", "SERVING")] {
            page.press(service).await;
            eventually(SOON, "the status has changed", async || {
                let log = page.log().await;
                if log[0] == format!("{service} {status}") { Ok(()) } else { Err(log) }
            })
            .await;
        }
        page.browser().assert_fits("tonic", window).await;
        if let Window::Desktop = window {
            page.browser().screenshot("tonic").await;
        }
    }
}

/// Connects with HTTP/2, without TLS.
async fn connect(server: SocketAddr) -> HealthClient<Channel> {
    let endpoint = Endpoint::new(format!("http://{server}")).expect("the address is valid").timeout(SOON);
    HealthClient::new(endpoint.connect().await.expect("the server listens"))
}

fn for_service(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

async fn set(server: SocketAddr, service: &str, serving: bool) {
    let response = request(server, &put(service, &json!({ "serving": serving }).to_string())).await;
    assert!(response.starts_with("HTTP/1.0 204 "), "{response}");
}

fn put(service: &str, body: &str) -> String {
    let length = body.len();
    let head =
        format!("PUT /services/{service} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}");
    format!("{head}\r\n\r\n{body}")
}

/// Returns the statuses of a service in the lines of an event stream.
fn changes(lines: &[String], service: &str) -> Vec<String> {
    let data = lines.iter().filter_map(|line| line.strip_prefix("data: "));
    let changes = data.map(|data| serde_json::from_str::<Value>(data).expect("the data is JSON"));
    let changes = changes.filter(|change| change["service"] == service);
    changes.map(|change| change["status"].as_str().expect("a status is a string").to_owned()).collect()
}

struct Health(Page);

impl Deref for Health {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.0
    }
}

impl Health {
    async fn open(server: SocketAddr, window: Window) -> Self {
        Self(Page::open(Browser::start(window).await, server, SOON).await)
    }

    /// Waits until the cards of the page show these statuses.
    async fn wait_for_statuses(&self, expected: [(&str, &str); 3]) {
        let mut expected = expected;
        expected.sort_unstable();
        eventually(SOON, &format!("the page shows {expected:?}"), async || {
            let cards = "[...document.querySelectorAll('ul li')]";
            let part = |name| format!("card.querySelector('{name}').textContent");
            let shown = self.eval(&format!("{cards}.map((card) => [{}, {}])", part("b"), part("code"))).await;
            if shown == json!(expected) { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    async fn press(&self, service: &str) {
        let cards = self.client().find_all(Locator::Css("ul li")).await.expect("the page lists the services");
        for card in cards {
            if card.text().await.expect("the card has a text").starts_with(service) {
                let button = card.find(Locator::Css("button")).await.expect("the card has a button");
                return button.click().await.expect("the button is clickable");
            }
        }
        panic!("the page has no {service}");
    }

    /// Returns the changes that the page lists, newest first.
    async fn log(&self) -> Vec<String> {
        let part = |name| format!("item.querySelector('{name}').textContent");
        let items = "[...document.querySelectorAll('ol li')]";
        let log = self.eval(&format!("{items}.map((item) => {} + ' ' + {})", part("b"), part("code"))).await;
        let log = log.as_array().expect("an array").iter();
        log.map(|line| line.as_str().expect("an array of strings").to_owned()).collect()
    }
}
