//! gRPC and an event stream on one port: a gRPC client and a browser are told of the same changes.

use e2e::{Browser, Client, Example, Relay, Window, eventually, installed, program, request, request_until};
use fantoccini::Locator;
use serde_json::{Value, json};
use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};
use tokio::time::timeout;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const SERVICES: [&str; 3] = ["payments", "inventory", "search"];
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_and_an_event_stream_are_told_the_same_changes_in_the_same_order() {
    let server = Example::start("tonic", &[]);
    let mut client = connect(server.address()).await;
    let mut watched = client.watch(of("payments")).await.expect("it can be watched").into_inner();
    let mut own =
        Client::start(Command::new(program("tonic")).args([&*server.address().to_string(), "watch", "payments"]));
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
        // It begins with how it is.
        if !expected.is_empty() {
            set(server.address(), "payments", serving).await;
        }
        let status = if serving { "SERVING" } else { "NOT_SERVING" };
        expected.push(status.to_owned());
        let change = timeout(SOON, watched.message()).await.expect("soon").expect("no error").expect("no end");
        by_grpc.push(change.status().as_str_name().to_owned());
        eventually(SOON, "the others are told, too", async || {
            let by_own: Vec<_> =
                own.lines().iter().filter_map(|line| Some(line.strip_prefix("payments: ")?.to_owned())).collect();
            let by_events = changes(curl.lines(), "payments");
            if by_own == expected && by_events == expected { Ok(()) } else { Err((by_own, by_events)) }
        })
        .await;
        assert_eq!(by_grpc, expected);
    }
    for other in ["inventory", "search"] {
        assert_eq!(changes(curl.lines(), other), ["SERVING"], "nothing has happened to it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_pass_the_layer_with_their_trailers_beside_open_event_streams() {
    let server = Example::start("tonic", &[]);
    let mut client = connect(server.address()).await;
    // On the connection of the calls, and by HTTP/1.1.
    let _watched = client.watch(of("search")).await.expect("it can be watched");
    let events = request_until(server.address(), "GET /events HTTP/1.1\r\nHost: test\r\n\r\n", |response| {
        SERVICES.iter().all(|service| response.contains(service))
    });
    assert!(events.await.contains("\r\ncontent-type: text/event-stream\r\n"));

    let checked = client.check(of("payments")).await.expect("it is there").into_inner();
    assert_eq!(checked.status().as_str_name(), "SERVING");
    set(server.address(), "payments", false).await;
    let checked = client.check(of("payments")).await.expect("it is there").into_inner();
    assert_eq!(checked.status().as_str_name(), "NOT_SERVING");
    let unknown = client.check(of("nobody")).await.expect_err("there is no such service");
    assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "service not registered"));

    // As it is on the wire: the message, and after it the trailers.
    let message = Path::new(env!("CARGO_TARGET_TMPDIR")).join("health-check-request");
    fs::write(&message, b"\0\0\0\0\x08\x0A\x06search").expect("the target folder can be written to");
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
    let status = curl.ended_within(SOON).expect("the call ends");
    assert!(status.success(), "{status}");
    let response = curl.lines().join("\n");
    let (head, body) = response.split_once("\n\n").expect("the head has an end");
    assert!(head.contains("content-type: application/grpc") && !head.contains("grpc-status"), "{head}");
    assert!(!head.contains("cache-control") && !head.contains("x-accel-buffering"), "the layer adds nothing: {head}");
    assert!(body.starts_with("\0\0\0\0\x02\x08\x01") && body.contains("grpc-status: 0"), "{body:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_button_changes_the_page_and_a_grpc_client_are_told_and_a_page_that_was_away_is_too() {
    let server = Example::start("tonic", &[]);
    let relay = Relay::to(server.address()).await.expect("there is a free port");
    let page = Page::open(relay.address(), Window::Desktop).await;
    page.shows([("inventory", "SERVING"), ("payments", "SERVING"), ("search", "SERVING")]).await;
    let mut client = connect(server.address()).await;
    let mut watched = client.watch(of("inventory")).await.expect("it can be watched").into_inner();
    let mut told = async || {
        let change = timeout(SOON, watched.message()).await.expect("soon").expect("no error").expect("no end");
        change.status().as_str_name()
    };
    assert_eq!(told().await, "SERVING");

    page.presses("inventory").await;
    page.shows([("inventory", "NOT_SERVING"), ("payments", "SERVING"), ("search", "SERVING")]).await;
    assert_eq!(told().await, "NOT_SERVING");
    page.presses("inventory").await;
    page.shows([("inventory", "SERVING"), ("payments", "SERVING"), ("search", "SERVING")]).await;
    assert_eq!(told().await, "SERVING");

    relay.cut();
    page.is_in_state("reconnecting").await;
    set(server.address(), "search", false).await;
    set(server.address(), "inventory", false).await;
    set(server.address(), "inventory", true).await;
    relay.mend();
    page.is_in_state("open").await;
    page.shows([("inventory", "SERVING"), ("payments", "SERVING"), ("search", "NOT_SERVING")]).await;
    let log = page.log().await;
    assert_eq!(log[..3], ["search NOT_SERVING", "inventory SERVING", "inventory NOT_SERVING"], "{log:?}");

    let refused = request(server.address(), &put("nobody", "{\"serving\":true}")).await;
    assert!(refused.starts_with("HTTP/1.0 404 ") && refused.contains("there is no service \"nobody\""), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_into_the_width_of_a_phone_and_a_picture_shows_it_on_a_desk() {
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let server = Example::start("tonic", &[]);
        let page = Page::open(server.address(), window).await;
        let up = SERVICES.map(|service| (service, "SERVING"));
        page.shows(up).await;
        for (service, status) in [("search", "NOT_SERVING"), ("payments", "NOT_SERVING"), ("search", "SERVING")] {
            page.presses(service).await;
            eventually(SOON, "it has changed", async || {
                let log = page.log().await;
                if log[0] == format!("{service} {status}") { Ok(()) } else { Err(log) }
            })
            .await;
        }
        page.browser.fits("tonic", window).await;
        if let Window::Desktop = window {
            page.browser.screenshot("tonic").await;
        }
    }
}

/// By HTTP/2 without TLS.
async fn connect(server: SocketAddr) -> HealthClient<Channel> {
    let endpoint = Endpoint::new(format!("http://{server}")).expect("it is an address").timeout(SOON);
    HealthClient::new(endpoint.connect().await.expect("the server listens"))
}

fn of(service: &str) -> HealthCheckRequest {
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

/// What an event stream says of a service.
fn changes(lines: &[String], service: &str) -> Vec<String> {
    let data = lines.iter().filter_map(|line| line.strip_prefix("data: "));
    let changes = data.map(|data| serde_json::from_str::<Value>(data).expect("the data is JSON"));
    let changes = changes.filter(|change| change["service"] == service);
    changes.map(|change| change["status"].as_str().expect("a status is text").to_owned()).collect()
}

struct Page {
    browser: Browser,
}

impl Page {
    async fn open(server: SocketAddr, window: Window) -> Self {
        let browser = Browser::start(window).await;
        browser.client().goto(&format!("http://{server}/")).await.expect("the page is there");
        Self { browser }
    }

    /// In its cards, in the order of their names.
    async fn shows(&self, expected: [(&str, &str); 3]) {
        let mut expected = expected;
        expected.sort_unstable();
        eventually(SOON, &format!("the page shows {expected:?}"), async || {
            let cards = "[...document.querySelectorAll('ul li')]";
            let part = |name| format!("card.querySelector('{name}').textContent");
            let shown = self.browser.eval(&format!("{cards}.map((card) => [{}, {}])", part("b"), part("code"))).await;
            if shown == json!(expected) { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    async fn presses(&self, service: &str) {
        let buttons = self.browser.client().find_all(Locator::Css("ul li")).await.expect("the page has a list");
        for card in buttons {
            if card.text().await.expect("it has a text").starts_with(service) {
                let button = card.find(Locator::Css("button")).await.expect("it has a button");
                return button.click().await.expect("it can be pressed");
            }
        }
        panic!("the page has no {service}");
    }

    /// The newest first.
    async fn log(&self) -> Vec<String> {
        let part = |name| format!("item.querySelector('{name}').textContent");
        let items = "[...document.querySelectorAll('ol li')]";
        let log = self.browser.eval(&format!("{items}.map((item) => {} + ' ' + {})", part("b"), part("code"))).await;
        let log = log.as_array().expect("it is a list").iter();
        log.map(|line| line.as_str().expect("of texts").to_owned()).collect()
    }

    async fn is_in_state(&self, state: &str) {
        eventually(SOON, &format!("the page says {state:?}"), async || {
            let said = self.browser.eval("document.querySelector('#state').textContent").await;
            if said == state { Ok(()) } else { Err(said) }
        })
        .await;
    }
}
