//! Third-party clients: each connects, receives events, loses its connection, and resumes.
//!
//! Their scripts and versions are in `tests/e2e/clients`. The tests also assert where a client
//! differs from the `EventSource` of a browser, because a server has to handle these differences.

use axum::{
    Router,
    extract::{Path as UrlPath, State},
    http::header::CONTENT_TYPE,
    response::IntoResponse,
    routing::{get, post},
};
use e2e::{Browser, Client, Message, Relay, RequestHead, Server, Window, eventually, installed, stays};
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use std::{
    fs,
    future::ready,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::task::JoinHandle;
use tower_http::cors::CorsLayer;
use tower_sse::{
    Event, EventId, EventName, Heartbeat, LastEventId, SseLayer, SseStream, StopReconnecting,
    hub::{Error, Hub, Subscription, Topic},
};

const SOON: Duration = Duration::from_secs(15);
/// The reconnection time that the server sets. It differs from the default of every client.
const RETRY: Duration = Duration::from_millis(200);
/// So short that every silence contains heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(20);

/// Events of every kind that all clients read as the standard specifies.
const EVENTS: [(&str, &str); 7] = [
    ("message", "1"),
    ("news", "with a name"),
    ("message", "a line\n\nand one after an empty one"),
    ("news", "  spaces before\n and between \nand at the end, with a line end  \n"),
    ("message", "Grüße, 日本語, 🦀"),
    ("message", "no line ends: \u{b} \u{1c} \u{85} \u{2028} \u{2029}, nor this: \0"),
    ("tick", ""),
];
/// The first line of an event that is cut after this line.
const HALF: &str = "first half";
/// Events that some clients read differently.
const SPECIAL_CASES: [(&str, &str); 2] = [("message", ""), ("news", "\nafter an empty line")];

/// The tokens of an answer.
const ANSWER: [&str; 4] = ["Noth", "ing", "\n\n", " 🦀"];

// ---- tests --------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn curl_resumes_with_last_event_id_until_204() {
    let mut feed = Feed::start().await;
    let url = feed.url("/events");
    let mut curl = Curl::start(&url);
    assert_resumes(&mut feed, &mut curl).await;
    assert!(feed.relay.heads().iter().all(|head| head.header("accept") == Some("*/*")), "curl accepts any media type");

    feed.end().await;
    assert!(
        curl.run.wait_for_exit(SOON).is_some_and(|status| status.success()),
        "curl succeeds at the end of the stream"
    );
    let last = format!("Last-Event-ID: {}", feed.last_id());
    let mut again = Client::start(curl_command().args(["--write-out", "%{http_code}", "-H", &last, &url]));
    assert!(again.wait_for_exit(SOON).is_some_and(|status| status.success()));
    assert_eq!(again.lines(), ["204"], "a finished topic has no more events");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_eventsource_misses_nothing_and_stops_at_204() {
    let mut feed = Feed::start().await;
    let mut node = Script::node(&feed.url("/events"));
    assert_resumes(&mut feed, &mut node).await;
    feed.end().await;
    node.assert_closed_by_204(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn httpx_sse_misses_nothing_and_stops_at_204() {
    let mut feed = Feed::start().await;
    let mut python = Script::python(&feed.url("/events"));
    assert_resumes(&mut feed, &mut python).await;
    feed.end().await;
    python.assert_closed_by_204(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polyfill_resumes_by_query_and_stops_at_204() {
    let mut feed = Feed::start().await;
    let mut page = Page::open(&feed, POLYFILL, "/events", "").await;
    assert_resumes(&mut feed, &mut page).await;
    let reconnections = feed.relay.heads().split_off(1);
    let has_no_header = reconnections.iter().all(|head| head.header("last-event-id").is_none());
    assert!(has_no_header, "the header would need a preflight");
    assert!(feed.relay.heads().iter().all(|head| !head.is_preflight()), "a simple request needs no preflight");

    feed.end().await;
    page.assert_closed_by_204(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_event_source_resumes_post_until_204() {
    let mut feed = Feed::start().await;
    let mut page = Page::open(&feed, FETCH_EVENT_SOURCE, "/events", "").await;
    assert_resumes(&mut feed, &mut page).await;
    assert!(
        feed.requests().iter().all(|head| head.method() == "POST"),
        "every request is a POST, as for the stream of an answer"
    );

    feed.end().await;
    page.assert_closed_by_204(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_fetch_event_source_skips_a_cut_event() {
    let mut feed = Feed::start().await;
    let mut page = Page::open(&feed, FETCH_EVENT_SOURCE, "/events", "&unchanged").await;
    feed.wait_for_client().await;
    feed.publish("message", "before").await;
    page.assert_received_all(&feed).await;

    let half = feed.publish_half().await;
    let wire = async || page.browser.eval("wire").await.as_str().is_some_and(|wire| wire.contains(HALF));
    eventually(SOON, "the package has read half an event", async || if wire().await { Ok(()) } else { Err("no") })
        .await;
    feed.cut().await;
    feed.relay.mend();
    feed.wait_for_client().await;
    assert_eq!(feed.last_requested_id().as_ref(), Some(&half), "the package sends the id of the incomplete event");
    feed.publish("message", "after").await;
    feed.published.retain(|message| message.id != half);
    page.assert_received_all(&feed).await;

    feed.end().await;
    page.assert_closed_by_204(&feed).await;
    assert_eq!(feed.last_requested_id(), Some(half), "it does not reconnect after the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn eventsource_client_misses_nothing_and_reconnects_after_204() {
    let mut feed = Feed::start().await;
    let mut client = RustClient::eventsource_client(&feed.url("/events"));
    assert_resumes(&mut feed, &mut client).await;
    feed.end().await;
    let before = feed.requests().len();
    eventually(SOON, "it reconnects again after a 204", async || match feed.requests().len() - before {
        requests @ 0..2 => Err(requests),
        _ => Ok(()),
    })
    .await;
    assert_eq!(client.received().await, feed.published);
}

#[tokio::test(flavor = "multi_thread")]
async fn reqwest_eventsource_misses_nothing_and_stops_at_204() {
    let mut feed = Feed::start().await;
    let mut client = RustClient::reqwest_eventsource(&feed.url("/events"));
    assert_resumes(&mut feed, &mut client).await;
    feed.end().await;
    eventually(SOON, "its stream ends", async || if client.task.is_finished() { Ok(()) } else { Err("open") }).await;
    assert_eq!(client.received().await, feed.published);
}

/// The package does not resume. It reads each event as a part of the answer, also the cursor event
/// that a hub sends to a new client.
#[tokio::test(flavor = "multi_thread")]
async fn openai_package_reads_tokens_between_heartbeats() {
    let feed = Feed::start().await;
    let mut python = Script::start_python("read_with_openai.py", &feed.url("/v1"));
    feed.wait_for_client().await;
    for count in 1..=ANSWER.len() {
        let token = ANSWER[count - 1];
        let chunk = json!({
            "id": "answer", "object": "chat.completion.chunk", "created": 0, "model": "any",
            "choices": [{ "index": 0, "delta": { "content": token }, "finish_reason": null }],
        });
        feed.topic.publish(Event::display(chunk)).await.expect("the event is published");
        eventually(SOON, "the token arrives", async || match python.objects() {
            tokens if tokens == ANSWER[..count] => Ok(()),
            tokens => Err(tokens),
        })
        .await;
        let bytes = feed.relay.bytes_to_browser();
        eventually(SOON, "a heartbeat follows", async || match feed.relay.bytes_to_browser() - bytes {
            0 => Err("no bytes"),
            _ => Ok(()),
        })
        .await;
    }
    feed.topic.publish(Event::new("[DONE]")).await.expect("the event is published");
    assert!(
        python.run.wait_for_exit(SOON).is_some_and(|status| status.success()),
        "it stops at [DONE], not at the end of the stream"
    );
    assert_eq!(python.objects(), ANSWER);
    assert_eq!(feed.requests()[0].method(), "POST");

    let mut with_cursor = Script::start_python("read_with_openai.py", &feed.url("/with-cursor"));
    let status = with_cursor.run.wait_for_exit(SOON);
    assert!(status.is_some_and(|status| !status.success()), "an event without data is not JSON");
    assert_eq!(with_cursor.objects(), [json!("not JSON")]);
}

/// Asserts that a client receives every event, through two lost connections.
async fn assert_resumes(feed: &mut Feed, client: &mut impl Follower) {
    feed.wait_for_client().await;
    for (kind, data) in EVENTS {
        feed.publish(kind, data).await;
    }
    client.assert_received_all(feed).await;

    // The connection is lost between two events. The client misses others.
    let last = feed.last_id();
    feed.cut().await;
    feed.publish("message", "while disconnected").await;
    feed.publish("news", "still disconnected").await;
    feed.relay.mend();
    client.resume(&feed.url("/events")).await;
    feed.wait_for_client().await;
    assert_eq!(feed.last_requested_id(), Some(last), "the client sends the id of its last event");
    feed.publish("message", "after the reconnection").await;
    client.assert_received_all(feed).await;

    // The connection is lost in the middle of an event.
    let last = feed.last_id();
    feed.publish_half().await;
    feed.cut().await;
    feed.publish("message", "the next one").await;
    feed.relay.mend();
    client.resume(&feed.url("/events")).await;
    feed.wait_for_client().await;
    assert_eq!(feed.last_requested_id(), Some(last), "the client does not count the incomplete event");
    feed.publish("news", "after the second reconnection").await;
    client.assert_received_all(feed).await;

    for (kind, data) in SPECIAL_CASES {
        feed.publish(kind, data).await;
        let published = feed.published.pop().expect("an event was published");
        feed.published.extend(client.expected(published));
    }
    feed.publish("message", "the last one").await;
    client.assert_received_all(feed).await;
}

/// A hub sends a cursor to a new client, so that the client can resume before its first event.
#[tokio::test(flavor = "multi_thread")]
async fn cursor_resumes_clients_before_their_first_event() {
    async fn lose_connection<C: Follower>(
        path: &str,
        follow: impl AsyncFnOnce(&Feed, &str) -> C,
    ) -> (Vec<String>, bool) {
        let mut feed = Feed::start().await;
        feed.publish("message", "before the client").await;
        let mut client = follow(&feed, path).await;
        feed.wait_for_client().await;
        let cursor = feed.last_id();
        if path == "/events" {
            let has_cursor = async || match client.dispatched().await {
                messages if messages.iter().any(|message| message.id == cursor) => Ok(()),
                other => Err(other),
            };
            eventually(SOON, "the client receives its cursor", has_cursor).await;
        } else {
            let sent = async || if feed.relay.bytes_to_browser() > 0 { Ok(()) } else { Err("no bytes") };
            eventually(SOON, "the client receives a heartbeat", sent).await;
        }
        feed.cut().await;
        feed.publish("message", "missed").await;
        feed.relay.mend();
        client.resume(&feed.url(path)).await;
        feed.wait_for_client().await;
        feed.publish("message", "live").await;
        let received =
            client.wait_for("the live event", |received| received.iter().any(|message| message.data == "live"));
        let data = received.await.into_iter().map(|message| message.data).collect();
        (data, feed.last_requested_id() == Some(cursor))
    }
    let resumed = (vec!["missed".to_owned(), "live".to_owned()], true);
    let not_resumed = (vec!["live".to_owned()], false);

    let curl = async |feed: &Feed, path: &str| Curl::start(&feed.url(path));
    let node = async |feed: &Feed, path: &str| Script::node(&feed.url(path));
    let python = async |feed: &Feed, path: &str| Script::python(&feed.url(path));
    let polyfill = async |feed: &Feed, path: &str| Page::open(feed, POLYFILL, path, "").await;
    let fetch_event_source = async |feed: &Feed, path: &str| Page::open(feed, FETCH_EVENT_SOURCE, path, "").await;
    let eventsource_client = async |feed: &Feed, path: &str| RustClient::eventsource_client(&feed.url(path));
    let reqwest_eventsource = async |feed: &Feed, path: &str| RustClient::reqwest_eventsource(&feed.url(path));

    async fn check<C: Follower>(
        expected: &(Vec<String>, bool),
        name: &str,
        path: &str,
        follow: impl AsyncFnOnce(&Feed, &str) -> C,
    ) {
        assert_eq!(lose_connection(path, follow).await, *expected, "{name} at {path}");
    }
    tokio::join!(
        check(&resumed, "curl's user", "/events", curl),
        check(&resumed, "httpx-sse", "/events", python),
        check(&resumed, "fetch-event-source", "/events", fetch_event_source),
        check(&resumed, "the eventsource package", "/events", node),
        check(&resumed, "event-source-polyfill", "/events", polyfill),
        check(&resumed, "eventsource-client", "/events", eventsource_client),
        check(&resumed, "reqwest-eventsource", "/events", reqwest_eventsource),
        // Without the cursor event, a client cannot resume.
        check(&not_resumed, "curl's user", "/without-control-events", curl),
        check(&not_resumed, "the eventsource package", "/without-control-events", node),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_wait_for_the_retry_time() {
    const LONG: Duration = Duration::from_millis(2500);

    async fn measure<C: Follower>(retry: Duration, name: &str, follow: impl AsyncFnOnce(&Feed) -> C) -> Duration {
        let mut feed = Feed::start_with(retry).await;
        let mut client = follow(&feed).await;
        feed.wait_for_client().await;
        feed.publish("message", "something").await;
        client.assert_received_all(&feed).await;
        let connections = feed.relay.connections();
        let cut = Instant::now();
        feed.relay.cut();
        eventually(SOON, &format!("{name} tries to reconnect"), async || {
            match feed.relay.connections() - connections {
                0 => Err("no attempt"),
                _ => Ok(()),
            }
        })
        .await;
        println!("{name} {:?}", cut.elapsed());
        cut.elapsed()
    }
    /// Checks a client whose default is a second or less.
    async fn check_long<C: Follower>(name: &str, follow: impl AsyncFnOnce(&Feed) -> C) {
        let waited = measure(LONG, name, follow).await;
        assert!(waited >= LONG.mul_f32(0.95), "{name}: {waited:?}");
    }
    tokio::join!(
        async {
            let waited =
                measure(RETRY, "the eventsource package", async |feed| Script::node(&feed.url("/events"))).await;
            assert!(waited < Duration::from_millis(2900), "its default is three seconds: {waited:?}");
        },
        async {
            let follow = async |feed: &Feed| RustClient::eventsource_client(&feed.url("/events"));
            let waited = measure(LONG, "eventsource-client", follow).await;
            assert!(waited >= LONG / 2, "its jitter shortens the time by up to a half: {waited:?}");
        },
        check_long("httpx-sse", async |feed| Script::python(&feed.url("/events"))),
        check_long("reqwest-eventsource", async |feed| RustClient::reqwest_eventsource(&feed.url("/events"))),
        check_long("event-source-polyfill", async |feed| Page::open(feed, POLYFILL, "/events", "").await),
        check_long("fetch-event-source", async |feed| Page::open(feed, FETCH_EVENT_SOURCE, "/events", "").await),
    );
}

/// The ids of a hub are ASCII. The ids of a handler can be any text.
#[tokio::test(flavor = "multi_thread")]
async fn only_some_clients_send_back_non_ascii_ids() {
    const ALL: [&str; 4] = ["none", "plain", "é", "日本"];
    /// These clients send `é` in Latin-1, which is not UTF-8, and cannot send `日本`.
    const LATIN_1: [&str; 3] = ["none", "plain", "\u{fffd}"];

    async fn check<C: Follower>(expected: &[&str], name: &str, follow: impl AsyncFnOnce(&Feed) -> C) {
        let feed = Feed::start().await;
        let mut client = follow(&feed).await;
        // The test ignores requests after the fourth.
        let requested = async || feed.ids.lock().expect("no holder panics").iter().take(4).cloned().collect::<Vec<_>>();
        eventually(SOON, &format!("{name} sends the ids {expected:?}"), async || {
            client.resume(&feed.url("/ids")).await;
            let ids = requested().await;
            if ids == expected { Ok(()) } else { Err(ids) }
        })
        .await;
        stays(3 * RETRY, &format!("{name} sends no other id"), requested).await;
    }
    tokio::join!(
        check(&ALL, "curl's user", async |feed| Curl::start(&feed.url("/ids"))),
        check(&ALL, "httpx-sse", async |feed| Script::python(&feed.url("/ids"))),
        check(&ALL, "eventsource-client", async |feed| RustClient::eventsource_client(&feed.url("/ids"))),
        check(&ALL, "reqwest-eventsource", async |feed| RustClient::reqwest_eventsource(&feed.url("/ids"))),
        check(&ALL, "event-source-polyfill", async |feed| Page::open(feed, POLYFILL, "/ids", "").await),
        check(&LATIN_1, "the eventsource package", async |feed| Script::node(&feed.url("/ids"))),
        check(&LATIN_1, "fetch-event-source", async |feed| { Page::open(feed, FETCH_EVENT_SOURCE, "/ids", "").await }),
    );
}

// ---- server -------------------------------------------------------------------------------------

/// A topic of a server, behind a relay that can cut the connection.
struct Feed {
    topic: Topic,
    published: Vec<Message>,
    /// The last event ids in the requests to `/ids`, in order.
    ids: Arc<Mutex<Vec<String>>>,
    relay: Relay,
    server: Server,
}

impl Feed {
    async fn start() -> Self {
        Self::start_with(RETRY).await
    }

    async fn start_with(retry: Duration) -> Self {
        let topic = Hub::new().topic("news");
        let ids = Arc::<Mutex<Vec<String>>>::default();
        let app = Router::new()
            .route("/events", get(events).post(events))
            .route("/without-control-events", get(without_control_events))
            .route("/v1/chat/completions", post(without_control_events))
            .route("/with-cursor/chat/completions", post(events))
            .with_state(topic.clone())
            .route("/ids", get(next_id).post(next_id))
            .with_state(ids.clone())
            .layer(SseLayer::new().retry(retry).heartbeat(Heartbeat::every(HEARTBEAT)))
            .layer(CorsLayer::permissive())
            .route("/pages/{page}", get(page))
            .route("/packages/{*path}", get(package));
        let server = Server::start(app);
        let relay = Relay::to(server.address()).await.expect("there is a free port");
        Self { topic, published: Vec::new(), ids, relay, server }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.relay.address())
    }

    async fn publish(&mut self, kind: &str, data: &str) -> String {
        let event = match kind {
            "message" => Event::new(data),
            _ => Event::new(data).event(EventName::new(kind).expect("the name is valid")),
        };
        let id = self.topic.publish(event).await.expect("the event is published").to_string();
        self.published.push(Message { id: id.clone(), kind: kind.into(), data: data.into() });
        id
    }

    /// Publishes an event, and passes only half of it to the client.
    async fn publish_half(&mut self) -> String {
        self.relay.stop_after(HALF);
        let id = self.publish("message", &format!("{HALF}\nsecond half")).await;
        let has_passed = async || if self.relay.has_stopped() { Ok(()) } else { Err("not passed") };
        eventually(SOON, "half of the event has passed", has_passed).await;
        id
    }

    async fn cut(&self) {
        self.relay.cut();
        self.wait_for_no_client().await;
    }

    fn last_id(&self) -> String {
        self.published.last().expect("an event was published").id.clone()
    }

    async fn end(&self) {
        self.topic.finish().await.expect("the topic exists");
    }

    async fn wait_for_client(&self) {
        self.wait_for_subscribers(1, "a client has subscribed").await;
    }

    async fn wait_for_no_client(&self) {
        self.wait_for_subscribers(0, "the server has noticed the disconnect").await;
    }

    async fn wait_for_subscribers(&self, count: usize, what: &str) {
        eventually(SOON, what, async || match self.topic.subscribers() {
            subscribers if subscribers == count => Ok(()),
            subscribers => Err((subscribers, self.relay.heads())),
        })
        .await;
    }

    /// Returns the requests of clients, without preflights.
    fn requests(&self) -> Vec<RequestHead> {
        self.relay.heads().into_iter().filter(|head| !head.is_preflight()).collect()
    }

    /// Returns the last event id of the latest request, from its header or its query.
    fn last_requested_id(&self) -> Option<String> {
        let requests = self.requests();
        let last = requests.last().expect("there is a request");
        let in_query = || Some(last.target().split_once("?lastEventId=")?.1);
        last.header("last-event-id").or_else(in_query).map(str::to_owned)
    }
}

async fn events(State(topic): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(topic.subscribe(last).await?))
}

/// Streams only the published events of the topic.
async fn without_control_events(
    State(topic): State<Topic>,
    last: LastEventId,
) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(topic.subscribe(last).await?.without_control_events()))
}

/// Streams one event with another id for each request, and ends. Records the last event id of the
/// request.
async fn next_id(
    State(ids): State<Arc<Mutex<Vec<String>>>>,
    last: LastEventId,
) -> Result<SseStream<impl Stream<Item = Event>>, StopReconnecting> {
    let mut ids = ids.lock().expect("no holder panics");
    ids.push(last.as_str().unwrap_or("none").to_owned());
    let id = ["plain", "é", "日本"].get(ids.len() - 1).ok_or(StopReconnecting)?;
    let event = Event::new(id).id(EventId::new(id).expect("the id is valid"));
    Ok(SseStream::new(futures_util::stream::iter([event])))
}

async fn page(UrlPath(name): UrlPath<String>) -> impl IntoResponse {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
    ([(CONTENT_TYPE, "text/html")], fs::read(page).expect("the page exists"))
}

async fn package(UrlPath(mut path): UrlPath<String>) -> impl IntoResponse {
    // Modules for bundlers import others without the extension.
    if !path.ends_with(".js") {
        path += ".js";
    }
    let file = installed_client("node/node_modules").join(path);
    ([(CONTENT_TYPE, "text/javascript")], fs::read(file).expect("the file exists"))
}

// ---- clients ------------------------------------------------------------------------------------

trait Follower {
    /// Returns all events that the client has dispatched.
    async fn dispatched(&mut self) -> Vec<Message>;

    /// Returns the published events that the client has dispatched.
    async fn received(&mut self) -> Vec<Message> {
        let mut received = self.dispatched().await;
        received.retain(|message| message.kind != CURSOR);
        received
    }

    /// Reconnects a client that does not reconnect by itself.
    async fn resume(&mut self, _url: &str) {}

    /// Returns how the client dispatches one of the [`SPECIAL_CASES`].
    fn expected(&self, published: Message) -> Option<Message> {
        Some(published)
    }

    async fn wait_for(&mut self, what: &str, is_enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        eventually(SOON, &format!("the client has received {what}"), async || {
            let received = self.received().await;
            if is_enough(&received) { Ok(received) } else { Err(received) }
        })
        .await
    }

    /// Asserts that the client receives all published events, once and in order.
    async fn assert_received_all(&mut self, feed: &Feed) {
        let last = feed.last_id();
        let has_last = |received: &[Message]| received.iter().any(|message| message.id == last);
        assert_eq!(self.wait_for("the last event", has_last).await, feed.published);
    }
}

fn curl_command() -> Command {
    let mut command = Command::new(installed(&["curl"], "curl"));
    command.args(["-N", "--silent"]);
    command
}

/// curl, and a parser that reads its output like an `EventSource`.
struct Curl {
    run: Client,
    /// The messages of earlier runs.
    received: Vec<Message>,
    last_event_id: String,
}

impl Curl {
    fn start(url: &str) -> Self {
        let run = Client::start(curl_command().arg(url));
        Self { run, received: Vec::new(), last_event_id: String::new() }
    }

    fn read(&mut self) -> whatwg::EventSource {
        let output: String = self.run.lines().iter().flat_map(|line| [line, "\n"]).collect();
        whatwg::parse_after(&self.last_event_id, output.as_bytes())
    }
}

impl Follower for Curl {
    async fn dispatched(&mut self) -> Vec<Message> {
        let read = self.read().messages.into_iter();
        let read = read.map(|message| Message { id: message.last_event_id, kind: message.r#type, data: message.data });
        self.received.iter().cloned().chain(read).collect()
    }

    async fn resume(&mut self, url: &str) {
        let status = self.run.wait_for_exit(SOON).expect("curl exits when its connection ends");
        if status.success() && self.run.lines().is_empty() {
            // A 204 response without a body: the client must not reconnect.
            return;
        }
        self.received = self.dispatched().await;
        self.last_event_id = self.read().last_event_id;
        let last = format!("Last-Event-ID: {}", self.last_event_id);
        self.run = Client::start(curl_command().args(["-H", &last, url]));
    }
}

/// A script that prints each event as a line of JSON.
struct Script {
    run: Client,
    /// The client dispatches an id without data as an empty event, so its script prints no empty
    /// events.
    prints_cursors: bool,
}

impl Script {
    fn node(url: &str) -> Self {
        let mut command = Command::new(installed(&["node", "nodejs"], "nodejs"));
        command.env("NODE_PATH", installed_client("node/node_modules")).arg(script("follow_with_eventsource.cjs"));
        Self { run: Client::start(command.arg(url).args(KINDS)), prints_cursors: false }
    }

    fn python(url: &str) -> Self {
        Self::start_python("follow_with_httpx_sse.py", url)
    }

    fn start_python(name: &str, url: &str) -> Self {
        let mut command = Command::new(installed_client("python/bin/python"));
        Self { run: Client::start(command.arg(script(name)).arg(url)), prints_cursors: true }
    }

    fn objects(&mut self) -> Vec<Value> {
        self.run.lines().iter().map(|line| serde_json::from_str(line).expect("the script prints JSON")).collect()
    }

    async fn assert_closed_by_204(&mut self, feed: &Feed) {
        assert!(self.run.wait_for_exit(SOON).is_some_and(|status| status.success()), "{:?}", self.run);
        assert_eq!(self.received().await, feed.published);
        assert_eq!(self.objects().last(), Some(&json!({ "closed": 204 })));
    }
}

impl Follower for Script {
    async fn dispatched(&mut self) -> Vec<Message> {
        self.objects().iter().filter_map(Message::from_page).collect()
    }

    fn expected(&self, published: Message) -> Option<Message> {
        let is_empty = published.kind == "message" && published.data.is_empty();
        (!is_empty || !self.prints_cursors).then_some(published)
    }
}

const POLYFILL: &str = "follow_with_event_source_polyfill.html";
const FETCH_EVENT_SOURCE: &str = "follow_with_fetch_event_source.html";

/// A page in Chromium. Its origin is not that of the stream.
struct Page {
    browser: Browser,
    name: &'static str,
}

impl Page {
    async fn open(feed: &Feed, name: &'static str, path: &str, parameters: &str) -> Self {
        let browser = Browser::start(Window::Desktop).await;
        let kinds: String = KINDS.iter().map(|kind| format!("&type={kind}")).collect();
        let path = format!("/pages/{name}?url={}{kinds}{parameters}", feed.url(path));
        browser.client().goto(&feed.server.url(&path)).await.expect("the page loads");
        Self { browser, name }
    }

    async fn assert_closed_by_204(&mut self, feed: &Feed) {
        eventually(SOON, "the client of the page is closed", async || match self.browser.eval("isClosed()").await {
            Value::Bool(true) => Ok(()),
            other => Err(other),
        })
        .await;
        stays(Duration::from_millis(1500), "the page sends no request", async || feed.requests().len()).await;
        assert_eq!(self.received().await, feed.published);
    }
}

impl Follower for Page {
    async fn dispatched(&mut self) -> Vec<Message> {
        Message::all_from_page(&self.browser.eval("window.received ?? received").await)
    }

    fn expected(&self, mut published: Message) -> Option<Message> {
        if self.name == FETCH_EVENT_SOURCE {
            if published.kind == "message" && published.data.is_empty() {
                return None;
            }
            published.data = published.data.trim_start_matches('\n').to_owned();
        }
        Some(published)
    }
}

/// A Rust client in this process.
struct RustClient {
    received: Arc<Mutex<Vec<Message>>>,
    task: JoinHandle<()>,
}

impl RustClient {
    fn eventsource_client(url: &str) -> Self {
        use eventsource_client::{Client as _, ClientBuilder, SSE};

        let transport =
            launchdarkly_sdk_transport::HyperTransport::new().expect("plain HTTP needs no TLS configuration");
        let client = ClientBuilder::for_url(url).expect("the URL is valid").build_with_transport(transport);
        Self::follow(client.stream().filter_map(async |item| match item {
            Ok(SSE::Event(event)) => {
                let id = event.id.unwrap_or_default();
                Some(Message { id, kind: event.event_type, data: event.data })
            }
            _ => None,
        }))
    }

    fn reqwest_eventsource(url: &str) -> Self {
        use reqwest_eventsource::{Event, EventSource};

        Self::follow(EventSource::get(url).filter_map(async |item| match item {
            Ok(Event::Message(event)) => Some(Message { id: event.id, kind: event.event, data: event.data }),
            _ => None,
        }))
    }

    fn follow(messages: impl Stream<Item = Message> + Send + 'static) -> Self {
        let received = Arc::<Mutex<Vec<Message>>>::default();
        let to = received.clone();
        let task = tokio::spawn(messages.for_each(move |message| {
            to.lock().expect("no holder panics").push(message);
            ready(())
        }));
        Self { received, task }
    }
}

impl Follower for RustClient {
    async fn dispatched(&mut self) -> Vec<Message> {
        self.received.lock().expect("no holder panics").clone()
    }
}

impl Drop for RustClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The type of the cursor event for a new client.
const CURSOR: &str = "hub-cursor";

/// The event types for clients that must list them.
const KINDS: [&str; 4] = ["message", "news", "tick", CURSOR];

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// Returns the path of a client that `tests/e2e/clients/install` has installed.
fn installed_client(path: &str) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("e2e-clients").join(path);
    assert!(file.exists(), "{} does not exist: run scripts/test, which installs the clients", file.display());
    file
}
