//! A browser that loses its connection before anything was sent.

use axum::{Router, extract::State, response::Html, routing::get};
use e2e::{Browser, Relay, RequestHead, Window, eventually};
use std::time::Duration;
use tokio::net::TcpListener;
use tower_sse::{
    Event, LastEventId, SseLayer, SseStream,
    hub::{Error, Subscription, Topic},
};

const SOON: Duration = Duration::from_secs(10);
const PAGE: &str = "<!doctype html><link rel=icon href=data:,><script>
    const received = [];
    const source = new EventSource('/events');
    source.onmessage = (event) => received.push(event.data);
</script>";

/// A newcomer gets what is published from now on: from its first connection on, not from the one that lasted.
async fn events(State(news): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(news.subscribe(last).await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_while_the_connection_is_lost_arrives_even_if_nothing_was_sent_before() {
    let news = tower_sse::hub::Hub::new().topic("news");
    let publish = async |text: &'static str| news.publish(Event::new(text)).await.expect("there is room");
    let before = publish("before anybody came").await;
    let app = Router::new()
        .route("/", get(Html(PAGE)))
        .route("/events", get(events))
        .with_state(news.clone())
        .layer(SseLayer::new().retry(Duration::from_millis(200)));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let relay = Relay::to(listener.local_addr().expect("it listens")).await.expect("there is a free port");
    let _server = tokio::spawn(axum::serve(listener, app).into_future());

    let browser = Browser::start(Window::Desktop).await;
    browser.client().goto(&format!("http://{}/", relay.address())).await.expect("the page is there");
    let becomes = async |state: &str| {
        eventually(SOON, &format!("the EventSource is {state}"), async || {
            let is = browser.eval(&format!("source.readyState === EventSource.{state}")).await;
            if is == true { Ok(()) } else { Err(is) }
        })
        .await;
    };
    becomes("OPEN").await;
    assert_eq!(browser.eval("received").await, serde_json::json!([]), "a newcomer gets nothing of before");

    relay.cut();
    becomes("CONNECTING").await;
    eventually(SOON, "the server has noticed", async || match news.subscribers() {
        0 => Ok(()),
        some => Err(some),
    })
    .await;
    publish("one").await;
    publish("two").await;
    relay.mend();
    becomes("OPEN").await;
    publish("three").await;

    eventually(SOON, "all three arrive, once and in order", async || {
        let received = browser.eval("received").await;
        if received == serde_json::json!(["one", "two", "three"]) { Ok(()) } else { Err(received) }
    })
    .await;
    let heads: Vec<_> = relay.heads().into_iter().filter(RequestHead::is_of_event_source).collect();
    assert_eq!(heads[0].header("last-event-id"), None, "a newcomer has no id");
    assert_eq!(heads[1].header("last-event-id"), Some(before.as_str()), "it came back with the place where it began");
}
