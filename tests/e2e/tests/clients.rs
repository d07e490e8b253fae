//! Clients that others have made: each connects, receives, loses its connection, and comes back to where it was.
//!
//! Their scripts and versions are in `tests/e2e/clients`. What they do not do as a browser's `EventSource` does is asserted,
//! too: it is what somebody who serves them has to know.

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
/// What the server tells the clients to wait before they reconnect: other than what any of them would wait otherwise.
const RETRY: Duration = Duration::from_millis(200);
/// Often enough that there are some in every silence.
const HEARTBEAT: Duration = Duration::from_millis(20);

/// Of each kind that the format has, and that all clients here read as the standard says.
const NEWS: [(&str, &str); 7] = [
    ("message", "1"),
    ("news", "with a name"),
    ("message", "a line\n\nand one after an empty one"),
    ("news", "  spaces before\n and between \nand at the end, with a line end  \n"),
    ("message", "Grüße, 日本語, 🦀"),
    ("message", "no line ends: \u{b} \u{1c} \u{85} \u{2028} \u{2029}, nor this: \0"),
    ("tick", ""),
];
/// The first line of an event that is cut behind it.
const HALF: &str = "one half";
/// What some of them read otherwise.
const ODDITIES: [(&str, &str); 2] = [("message", ""), ("news", "\nafter an empty line")];

/// Tokens of an answer.
const ANSWER: [&str; 4] = ["Noth", "ing", "\n\n", " 🦀"];

// ---- what each of them does -----------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn curl_misses_nothing_if_the_user_names_the_last_id_and_is_answered_204_at_the_end() {
    let mut feed = Feed::start().await;
    let url = feed.url("/events");
    let mut curl = Curl::start(&url);
    nothing_is_missed(&mut feed, &mut curl).await;
    assert!(feed.relay.heads().iter().all(|head| head.header("accept") == Some("*/*")), "it asks for nothing special");

    feed.end().await;
    assert!(curl.run.ended_within(SOON).is_some_and(|status| status.success()), "an end that is no error to it");
    let last = format!("Last-Event-ID: {}", feed.last_id());
    let mut again = Client::start(curl_command().args(["--write-out", "%{http_code}", "-H", &last, &url]));
    assert!(again.ended_within(SOON).is_some_and(|status| status.success()));
    assert_eq!(again.lines(), ["204"], "no event, and no reason to come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_eventsource_package_in_node_misses_nothing_and_stays_away_after_204() {
    let mut feed = Feed::start().await;
    let mut node = Program::node(&feed.url("/events"));
    nothing_is_missed(&mut feed, &mut node).await;
    feed.end().await;
    node.says_that_it_is_closed_and_ends(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn httpx_sse_in_a_loop_misses_nothing_and_can_stay_away_after_204() {
    let mut feed = Feed::start().await;
    let mut python = Program::python(&feed.url("/events"));
    nothing_is_missed(&mut feed, &mut python).await;
    feed.end().await;
    python.says_that_it_is_closed_and_ends(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn event_source_polyfill_on_a_page_of_another_origin_misses_nothing_by_the_id_in_the_query_and_stays_away_after_204()
 {
    let mut feed = Feed::start().await;
    let mut page = Page::open(&feed, POLYFILL, "/events", "").await;
    nothing_is_missed(&mut feed, &mut page).await;
    let came_back = feed.relay.heads().split_off(1);
    assert!(came_back.iter().all(|head| head.header("last-event-id").is_none()), "the header would need a preflight");
    assert!(feed.relay.heads().iter().all(|head| !head.is_preflight()), "a stream of another origin needs none");

    feed.end().await;
    page.is_closed_and_stays_away(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_event_source_with_post_misses_nothing_if_it_is_told_what_it_has_read_and_can_stay_away_after_204() {
    let mut feed = Feed::start().await;
    let mut page = Page::open(&feed, FETCH_EVENT_SOURCE, "/events", "").await;
    nothing_is_missed(&mut feed, &mut page).await;
    assert!(feed.asked().iter().all(|head| head.method() == "POST"), "as those do that stream an answer");

    feed.end().await;
    page.is_closed_and_stays_away(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_event_source_as_it_is_takes_half_an_event_for_one_and_an_end_for_the_last() {
    let mut feed = Feed::start().await;
    let mut page = Page::open(&feed, FETCH_EVENT_SOURCE, "/events", "&as-it-is").await;
    feed.is_followed().await;
    feed.publish("message", "before").await;
    page.receives_all_of(&feed).await;

    let half = feed.publish_half().await;
    let wire = async || page.browser.eval("wire").await.as_str().is_some_and(|wire| wire.contains(HALF));
    eventually(SOON, "the package has read one half", async || if wire().await { Ok(()) } else { Err("no") }).await;
    feed.cut().await;
    feed.relay.mend();
    feed.is_followed().await;
    assert_eq!(feed.place_asked_for_last().as_ref(), Some(&half), "of which it has read the id");
    feed.publish("message", "after").await;
    feed.published.retain(|message| message.id != half);
    page.receives_all_of(&feed).await;

    feed.end().await;
    page.is_closed_and_stays_away(&feed).await;
    assert_eq!(feed.place_asked_for_last(), Some(half), "it has not come back since");
}

#[tokio::test(flavor = "multi_thread")]
async fn eventsource_client_in_rust_misses_nothing_and_comes_back_even_after_204() {
    let mut feed = Feed::start().await;
    let mut client = InRust::eventsource_client(&feed.url("/events"));
    nothing_is_missed(&mut feed, &mut client).await;
    feed.end().await;
    let asked = feed.asked().len();
    eventually(SOON, "it comes back, is answered 204, and comes back", async || match feed.asked().len() - asked {
        times @ 0..2 => Err(times),
        _ => Ok(()),
    })
    .await;
    assert_eq!(client.received().await, feed.published);
}

#[tokio::test(flavor = "multi_thread")]
async fn reqwest_eventsource_in_rust_misses_nothing_and_stays_away_after_204() {
    let mut feed = Feed::start().await;
    let mut client = InRust::reqwest_eventsource(&feed.url("/events"));
    nothing_is_missed(&mut feed, &mut client).await;
    feed.end().await;
    eventually(SOON, "its stream ends", async || if client.task.is_finished() { Ok(()) } else { Err("it goes on") })
        .await;
    assert_eq!(client.received().await, feed.published);
}

/// It does not resume, and needs not to. But it reads each event as a part of the answer, even the place that a hub's
/// newcomer is told, which is none to others.
#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_in_python_reads_an_answer_between_heartbeats_while_it_is_written() {
    let feed = Feed::start().await;
    let mut python = Program::start_python("read_with_openai.py", &feed.url("/v1"));
    feed.is_followed().await;
    for written in 1..=ANSWER.len() {
        let token = ANSWER[written - 1];
        let chunk = json!({
            "id": "answer", "object": "chat.completion.chunk", "created": 0, "model": "any",
            "choices": [{ "index": 0, "delta": { "content": token }, "finish_reason": null }],
        });
        feed.topic.publish(Event::display(chunk)).await.expect("there is room");
        eventually(SOON, "the token arrives", async || match python.objects() {
            tokens if tokens == ANSWER[..written] => Ok(()),
            tokens => Err(tokens),
        })
        .await;
        let bytes = feed.relay.bytes_to_browser();
        eventually(SOON, "a heartbeat follows", async || match feed.relay.bytes_to_browser() - bytes {
            0 => Err("nothing follows"),
            _ => Ok(()),
        })
        .await;
    }
    feed.topic.publish(Event::new("[DONE]")).await.expect("there is room");
    assert!(python.run.ended_within(SOON).is_some_and(|status| status.success()), "it goes by that, not by the end");
    assert_eq!(python.objects(), ANSWER);
    assert_eq!(feed.asked()[0].method(), "POST");

    let mut told = Program::start_python("read_with_openai.py", &feed.url("/told-its-place"));
    assert!(told.run.ended_within(SOON).is_some_and(|status| !status.success()), "an event without data is no JSON");
    assert_eq!(told.objects(), [json!("not JSON")]);
}

/// The whole of it, the same for every client.
async fn nothing_is_missed(feed: &mut Feed, client: &mut impl Follower) {
    feed.is_followed().await;
    for (kind, data) in NEWS {
        feed.publish(kind, data).await;
    }
    client.receives_all_of(feed).await;

    // Between two events, with some that it does not see.
    let last = feed.last_id();
    feed.cut().await;
    feed.publish("message", "while it was away").await;
    feed.publish("news", "and away").await;
    feed.relay.mend();
    client.resume(&feed.url("/events")).await;
    feed.is_followed().await;
    assert_eq!(feed.place_asked_for_last(), Some(last), "it names the last event that it has");
    feed.publish("message", "when it was back").await;
    client.receives_all_of(feed).await;

    // In the middle of an event.
    let last = feed.last_id();
    feed.publish_half().await;
    feed.cut().await;
    feed.publish("message", "the next one").await;
    feed.relay.mend();
    client.resume(&feed.url("/events")).await;
    feed.is_followed().await;
    assert_eq!(feed.place_asked_for_last(), Some(last), "it does not have the event that was cut");
    feed.publish("news", "when it was back again").await;
    client.receives_all_of(feed).await;

    for (kind, data) in ODDITIES {
        feed.publish(kind, data).await;
        let published = feed.published.pop().expect("one was published");
        feed.published.extend(client.makes_of(published));
    }
    feed.publish("message", "the last one").await;
    client.receives_all_of(feed).await;
}

/// A hub tells a newcomer its place, so that there is one to come back to before the first event.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_lost_before_the_first_event_is_resumed_by_all_of_them() {
    async fn lost<C: Follower>(path: &str, follow: impl AsyncFnOnce(&Feed, &str) -> C) -> (Vec<String>, bool) {
        let mut feed = Feed::start().await;
        feed.publish("message", "before anybody came").await;
        let mut client = follow(&feed, path).await;
        feed.is_followed().await;
        let place = feed.last_id();
        if path == "/events" {
            let has_place = async || match client.dispatched().await {
                told if told.iter().any(|message| message.id == place) => Ok(()),
                other => Err(other),
            };
            eventually(SOON, "it is told its place", has_place).await;
        } else {
            let sent = async || if feed.relay.bytes_to_browser() > 0 { Ok(()) } else { Err("nothing") };
            eventually(SOON, "a heartbeat has passed", sent).await;
        }
        feed.cut().await;
        feed.publish("message", "missed").await;
        feed.relay.mend();
        client.resume(&feed.url(path)).await;
        feed.is_followed().await;
        feed.publish("message", "live").await;
        let received =
            client.receives("the one that is live", |received| received.iter().any(|message| message.data == "live"));
        let data = received.await.into_iter().map(|message| message.data).collect();
        (data, feed.place_asked_for_last() == Some(place))
    }
    let resumed = (vec!["missed".to_owned(), "live".to_owned()], true);
    let not_resumed = (vec!["live".to_owned()], false);

    let curl = async |feed: &Feed, path: &str| Curl::start(&feed.url(path));
    let node = async |feed: &Feed, path: &str| Program::node(&feed.url(path));
    let python = async |feed: &Feed, path: &str| Program::python(&feed.url(path));
    let polyfill = async |feed: &Feed, path: &str| Page::open(feed, POLYFILL, path, "").await;
    let fetch_event_source = async |feed: &Feed, path: &str| Page::open(feed, FETCH_EVENT_SOURCE, path, "").await;
    let eventsource_client = async |feed: &Feed, path: &str| InRust::eventsource_client(&feed.url(path));
    let reqwest_eventsource = async |feed: &Feed, path: &str| InRust::reqwest_eventsource(&feed.url(path));

    async fn is<C: Follower>(
        expected: &(Vec<String>, bool),
        what: &str,
        path: &str,
        follow: impl AsyncFnOnce(&Feed, &str) -> C,
    ) {
        assert_eq!(lost(path, follow).await, *expected, "{what} at {path}");
    }
    tokio::join!(
        is(&resumed, "curl's user", "/events", curl),
        is(&resumed, "httpx-sse", "/events", python),
        is(&resumed, "fetch-event-source", "/events", fetch_event_source),
        is(&resumed, "the eventsource package", "/events", node),
        is(&resumed, "event-source-polyfill", "/events", polyfill),
        is(&resumed, "eventsource-client", "/events", eventsource_client),
        is(&resumed, "reqwest-eventsource", "/events", reqwest_eventsource),
        // Who is not told has none.
        is(&not_resumed, "curl's user", "/without-cursor", curl),
        is(&not_resumed, "the eventsource package", "/without-cursor", node),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn they_come_back_when_the_server_says() {
    const LONG: Duration = Duration::from_millis(2500);

    async fn waits<C: Follower>(retry: Duration, what: &str, follow: impl AsyncFnOnce(&Feed) -> C) -> Duration {
        let mut feed = Feed::start_with(retry).await;
        let mut client = follow(&feed).await;
        feed.is_followed().await;
        feed.publish("message", "something").await;
        client.receives_all_of(&feed).await;
        let connections = feed.relay.connections();
        let cut = Instant::now();
        feed.relay.cut();
        eventually(SOON, &format!("{what} tries to come back"), async || {
            match feed.relay.connections() - connections {
                0 => Err("it does not"),
                _ => Ok(()),
            }
        })
        .await;
        println!("{what} {:?}", cut.elapsed());
        cut.elapsed()
    }
    /// Of those who wait for a second or less if nobody says anything.
    async fn waits_for_long<C: Follower>(what: &str, follow: impl AsyncFnOnce(&Feed) -> C) {
        let waited = waits(LONG, what, follow).await;
        assert!(waited >= LONG.mul_f32(0.95), "{what}: {waited:?}");
    }
    tokio::join!(
        async {
            let waited =
                waits(RETRY, "the eventsource package", async |feed| Program::node(&feed.url("/events"))).await;
            assert!(waited < Duration::from_millis(2900), "three seconds is its own time: {waited:?}");
        },
        async {
            let follow = async |feed: &Feed| InRust::eventsource_client(&feed.url("/events"));
            let waited = waits(LONG, "eventsource-client", follow).await;
            assert!(waited >= LONG / 2, "it takes off up to a half, so that not all come at once: {waited:?}");
        },
        waits_for_long("httpx-sse", async |feed| Program::python(&feed.url("/events"))),
        waits_for_long("reqwest-eventsource", async |feed| InRust::reqwest_eventsource(&feed.url("/events"))),
        waits_for_long("event-source-polyfill", async |feed| Page::open(feed, POLYFILL, "/events", "").await),
        waits_for_long("fetch-event-source", async |feed| Page::open(feed, FETCH_EVENT_SOURCE, "/events", "").await),
    );
}

/// A hub's ids are ASCII. Those of a handler of its own need not be.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_not_ascii_comes_back_from_some_clients_only() {
    const ALL: [&str; 4] = ["none", "plain", "é", "日本"];
    /// As it sends the second one in Latin-1, which is no UTF-8, and cannot send the third one at all.
    const NOT_BEYOND_LATIN_1: [&str; 3] = ["none", "plain", "none"];

    async fn asked_for<C: Follower>(expected: &[&str], what: &str, follow: impl AsyncFnOnce(&Feed) -> C) {
        let feed = Feed::start().await;
        let mut client = follow(&feed).await;
        // What they do when they have all is not the question here.
        let asked = async || feed.ids.lock().expect("no holder panics").iter().take(4).cloned().collect::<Vec<_>>();
        eventually(SOON, &format!("{what} asks for {expected:?}"), async || {
            client.resume(&feed.url("/ids")).await;
            let ids = asked().await;
            if ids == expected { Ok(()) } else { Err(ids) }
        })
        .await;
        stays(3 * RETRY, &format!("{what} asks for nothing else"), asked).await;
    }
    tokio::join!(
        asked_for(&ALL, "curl's user", async |feed| Curl::start(&feed.url("/ids"))),
        asked_for(&ALL, "httpx-sse", async |feed| Program::python(&feed.url("/ids"))),
        asked_for(&ALL, "eventsource-client", async |feed| InRust::eventsource_client(&feed.url("/ids"))),
        asked_for(&ALL, "reqwest-eventsource", async |feed| InRust::reqwest_eventsource(&feed.url("/ids"))),
        asked_for(&ALL, "event-source-polyfill", async |feed| Page::open(feed, POLYFILL, "/ids", "").await),
        asked_for(&NOT_BEYOND_LATIN_1, "the eventsource package", async |feed| Program::node(&feed.url("/ids"))),
        asked_for(&NOT_BEYOND_LATIN_1, "fetch-event-source", async |feed| {
            Page::open(feed, FETCH_EVENT_SOURCE, "/ids", "").await
        }),
    );
}

// ---- the server -----------------------------------------------------------------------------------------------------------

/// A topic, as a client follows it through a wire that can be cut.
struct Feed {
    topic: Topic,
    published: Vec<Message>,
    /// The ids that clients of `/ids` came with, in order.
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
            .route("/without-cursor", get(without_cursor))
            .route("/v1/chat/completions", post(without_cursor))
            .route("/told-its-place/chat/completions", post(events))
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
            _ => Event::new(data).event(EventName::new(kind).expect("a name of one line")),
        };
        let id = self.topic.publish(event).await.expect("there is room").to_string();
        self.published.push(Message { id: id.clone(), kind: kind.into(), data: data.into() });
        id
    }

    /// Publishes an event of which half gets through.
    async fn publish_half(&mut self) -> String {
        self.relay.stop_after(HALF);
        let id = self.publish("message", &format!("{HALF}\nand the other")).await;
        let has_passed = async || if self.relay.has_stopped() { Ok(()) } else { Err("it has not") };
        eventually(SOON, "one half has passed", has_passed).await;
        id
    }

    async fn cut(&self) {
        self.relay.cut();
        self.is_left().await;
    }

    fn last_id(&self) -> String {
        self.published.last().expect("something was published").id.clone()
    }

    async fn end(&self) {
        self.topic.finish().await.expect("it exists");
    }

    async fn is_followed(&self) {
        self.has_subscribers(1, "somebody is there").await;
    }

    async fn is_left(&self) {
        self.has_subscribers(0, "the server has noticed that nobody is there").await;
    }

    async fn has_subscribers(&self, count: usize, what: &str) {
        eventually(SOON, what, async || match self.topic.subscribers() {
            subscribers if subscribers == count => Ok(()),
            subscribers => Err((subscribers, self.relay.heads())),
        })
        .await;
    }

    /// What the clients have asked for, permissions aside.
    fn asked(&self) -> Vec<RequestHead> {
        self.relay.heads().into_iter().filter(|head| !head.is_preflight()).collect()
    }

    /// By whatever means.
    fn place_asked_for_last(&self) -> Option<String> {
        let asked = self.asked();
        let last = asked.last().expect("somebody has asked");
        let in_query = || Some(last.target().split_once("?lastEventId=")?.1);
        last.header("last-event-id").or_else(in_query).map(str::to_owned)
    }
}

async fn events(State(topic): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(topic.subscribe(last).await?))
}

/// The same, without a place to come back to if the connection is lost before the first event.
async fn without_cursor(State(topic): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(topic.subscribe(last).await?.without_cursor()))
}

/// One event, with another id each time, and an end after which the client is to come back with it. Notes the one it has.
async fn next_id(
    State(ids): State<Arc<Mutex<Vec<String>>>>,
    last: LastEventId,
) -> Result<SseStream<impl Stream<Item = Event>>, StopReconnecting> {
    let mut ids = ids.lock().expect("no holder panics");
    ids.push(last.as_str().unwrap_or("none").to_owned());
    let id = ["plain", "é", "日本"].get(ids.len() - 1).ok_or_else(SseStream::stop_reconnecting)?;
    let event = Event::new(id).id(EventId::new(id).expect("it is one line"));
    Ok(SseStream::new(futures_util::stream::iter([event])))
}

async fn page(UrlPath(name): UrlPath<String>) -> impl IntoResponse {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
    ([(CONTENT_TYPE, "text/html")], fs::read(page).expect("the page is there"))
}

async fn package(UrlPath(mut path): UrlPath<String>) -> impl IntoResponse {
    // What is written for bundlers names modules without it.
    if !path.ends_with(".js") {
        path += ".js";
    }
    let file = brought("node/node_modules").join(path);
    ([(CONTENT_TYPE, "text/javascript")], fs::read(file).expect("the package has the file"))
}

// ---- the clients ----------------------------------------------------------------------------------------------------------

trait Follower {
    /// All that it has dispatched.
    async fn dispatched(&mut self) -> Vec<Message>;

    /// What was published of that.
    async fn received(&mut self) -> Vec<Message> {
        let mut received = self.dispatched().await;
        received.retain(|message| message.kind != CURSOR);
        received
    }

    /// What its user has to do when the connection was lost, if it does not come back by itself.
    async fn resume(&mut self, _url: &str) {}

    /// What it makes of one of the [`ODDITIES`].
    fn makes_of(&self, published: Message) -> Option<Message> {
        Some(published)
    }

    async fn receives(&mut self, what: &str, is_enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        eventually(SOON, &format!("the client receives {what}"), async || {
            let received = self.received().await;
            if is_enough(&received) { Ok(received) } else { Err(received) }
        })
        .await
    }

    /// Once and in order.
    async fn receives_all_of(&mut self, feed: &Feed) {
        let last = feed.last_id();
        let has_last = |received: &[Message]| received.iter().any(|message| message.id == last);
        assert_eq!(self.receives("the last event", has_last).await, feed.published);
    }
}

fn curl_command() -> Command {
    let mut command = Command::new(installed(&["curl"], "curl"));
    command.args(["-N", "--silent"]);
    command
}

/// curl, and somebody who reads what it writes, as an `EventSource` would.
struct Curl {
    run: Client,
    /// Of the runs before.
    received: Vec<Message>,
    last_event_id: String,
}

impl Curl {
    fn start(url: &str) -> Self {
        let run = Client::start(curl_command().arg(url));
        Self { run, received: Vec::new(), last_event_id: String::new() }
    }

    fn read(&mut self) -> whatwg::EventSource {
        let written: String = self.run.lines().iter().flat_map(|line| [line, "\n"]).collect();
        whatwg::parse_after(&self.last_event_id, written.as_bytes())
    }
}

impl Follower for Curl {
    async fn dispatched(&mut self) -> Vec<Message> {
        let read = self.read().messages.into_iter();
        let read = read.map(|message| Message { id: message.last_event_id, kind: message.r#type, data: message.data });
        self.received.iter().cloned().chain(read).collect()
    }

    async fn resume(&mut self, url: &str) {
        let status = self.run.ended_within(SOON).expect("it ends with its connection");
        if status.success() && self.run.lines().is_empty() {
            // Not even a heartbeat: there is nothing to come back for.
            return;
        }
        self.received = self.dispatched().await;
        self.last_event_id = self.read().last_event_id;
        let last = format!("Last-Event-ID: {}", self.last_event_id);
        self.run = Client::start(curl_command().args(["-H", &last, url]));
    }
}

/// A script that writes each event as a line of JSON.
struct Program {
    run: Client,
    /// Takes an id without an event for an empty event, so that it cannot tell an empty event from that.
    tells_places: bool,
}

impl Program {
    fn node(url: &str) -> Self {
        let mut command = Command::new(installed(&["node", "nodejs"], "nodejs"));
        command.env("NODE_PATH", brought("node/node_modules")).arg(script("follow_with_eventsource.cjs"));
        Self { run: Client::start(command.arg(url).args(KINDS)), tells_places: false }
    }

    fn python(url: &str) -> Self {
        Self::start_python("follow_with_httpx_sse.py", url)
    }

    fn start_python(name: &str, url: &str) -> Self {
        let mut command = Command::new(brought("python/bin/python"));
        Self { run: Client::start(command.arg(script(name)).arg(url)), tells_places: true }
    }

    fn objects(&mut self) -> Vec<Value> {
        self.run.lines().iter().map(|line| serde_json::from_str(line).expect("the script writes JSON")).collect()
    }

    async fn says_that_it_is_closed_and_ends(&mut self, feed: &Feed) {
        assert!(self.run.ended_within(SOON).is_some_and(|status| status.success()), "{:?}", self.run);
        assert_eq!(self.received().await, feed.published);
        assert_eq!(self.objects().last(), Some(&json!({ "closed": 204 })));
    }
}

impl Follower for Program {
    async fn dispatched(&mut self) -> Vec<Message> {
        self.objects().iter().filter_map(Message::from_page).collect()
    }

    fn makes_of(&self, published: Message) -> Option<Message> {
        let is_empty = published.kind == "message" && published.data.is_empty();
        (!is_empty || !self.tells_places).then_some(published)
    }
}

const POLYFILL: &str = "follow_with_event_source_polyfill.html";
const FETCH_EVENT_SOURCE: &str = "follow_with_fetch_event_source.html";

/// A page in Chromium, of another origin than the stream.
struct Page {
    browser: Browser,
    name: &'static str,
}

impl Page {
    async fn open(feed: &Feed, name: &'static str, path: &str, more: &str) -> Self {
        let browser = Browser::start(Window::Desktop).await;
        let kinds: String = KINDS.iter().map(|kind| format!("&type={kind}")).collect();
        let path = format!("/pages/{name}?url={}{kinds}{more}", feed.url(path));
        browser.client().goto(&feed.server.url(&path)).await.expect("the page is there");
        Self { browser, name }
    }

    async fn is_closed_and_stays_away(&mut self, feed: &Feed) {
        eventually(SOON, "the page is told that it is over", async || match self.browser.eval("isClosed()").await {
            Value::Bool(true) => Ok(()),
            other => Err(other),
        })
        .await;
        stays(Duration::from_millis(1500), "it asks for nothing any more", async || feed.asked().len()).await;
        assert_eq!(self.received().await, feed.published);
    }
}

impl Follower for Page {
    async fn dispatched(&mut self) -> Vec<Message> {
        let received = self.browser.eval("window.received ?? received").await;
        let received = received.as_array().expect("the page keeps them in an array");
        received.iter().map(|value| Message::from_page(value).expect("each has an id, a type and data")).collect()
    }

    fn makes_of(&self, mut published: Message) -> Option<Message> {
        if self.name == FETCH_EVENT_SOURCE {
            if published.kind == "message" && published.data.is_empty() {
                return None;
            }
            published.data = published.data.trim_start_matches('\n').to_owned();
        }
        Some(published)
    }
}

/// A client in this process.
struct InRust {
    received: Arc<Mutex<Vec<Message>>>,
    task: JoinHandle<()>,
}

impl InRust {
    fn eventsource_client(url: &str) -> Self {
        use eventsource_client::{Client as _, ClientBuilder, SSE};

        let transport = launchdarkly_sdk_transport::HyperTransport::new().expect("plain HTTP needs nothing");
        let client = ClientBuilder::for_url(url).expect("it is a URL").build_with_transport(transport);
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

impl Follower for InRust {
    async fn dispatched(&mut self) -> Vec<Message> {
        self.received.lock().expect("no holder panics").clone()
    }
}

impl Drop for InRust {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The type of event that tells a new client its place.
const CURSOR: &str = "hub-cursor";

/// The types of event that clients which have to name them listen to.
const KINDS: [&str; 4] = ["message", "news", "tick", CURSOR];

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// What `tests/e2e/clients/install` has put into cargo's target folder.
fn brought(path: &str) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("e2e-clients").join(path);
    assert!(file.exists(), "{} is not there: run scripts/test, which installs it", file.display());
    file
}
