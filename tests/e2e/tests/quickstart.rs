//! The quickstart in a real browser: its page, its feed, and what happens when the connection is lost.

use e2e::{Browser, Example, Message, Relay, Window, eventually, read, read_until, stays};
use fantoccini::Locator;
use std::time::Duration;
use tokio::time::sleep;

/// Ten times as fast as by default: more events fall into every interruption.
const EVERY: Duration = Duration::from_millis(100);
/// What the server tells the browser to wait before it reconnects.
const RETRY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// By then the page has what is enough, on a machine that has much else to do: up to ten seconds' worth of events.
const ENOUGH: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_each_event_and_the_wire_it_came_by() {
    let (server, relay, page) = open_page(EVERY, Window::Desktop).await;

    eventually(SOON, "the wire shows every kind of line, a heartbeat too", async || {
        let wire = page.text_of("document.querySelector('#wire').textContent").await;
        let starts = |with: &str| wire.lines().any(|line| line.starts_with(with));
        let kinds = ["retry: 1000", "id: ", "data: {", "event: peak", ":"];
        if kinds.iter().all(|kind| starts(kind)) { Ok(()) } else { Err(wire) }
    })
    .await;
    let head = page.text_of("document.querySelector('#head').textContent").await;
    let has = |line: &str| head.lines().any(|found| found == line);
    assert!(has("200 OK"), "{head}");
    assert!(has("content-type: text/event-stream"), "{head}");
    assert!(has("cache-control: no-cache, no-transform"), "{head}");

    page.receives("a peak", |received| received.iter().any(|message| message.kind == "peak")).await;
    let received = page.receives("twenty events", |received| received.len() >= 20).await;
    assert!(received.iter().all(|message| message.kind == "message" || message.kind == "peak"), "{received:?}");
    let sample: serde_json::Value = serde_json::from_str(&received[0].data).expect("the data is JSON");
    assert!(
        sample["memory_used"].as_u64() > Some(0) && sample["memory_used"].as_u64() < sample["memory_total"].as_u64()
    );
    assert_same(&received, &read_until(server.address(), &received[received.len() - 1].id).await);

    for chart in ["#load path", "#memory path"] {
        eventually(SOON, "the chart is a line over several samples", async || {
            let line = page.text_of(&format!("document.querySelector('{chart}')?.getAttribute('d')")).await;
            let drawn = page.browser.eval(&format!("document.querySelector('{chart}')?.getBBox().width")).await;
            if line.matches('L').count() >= 10 && drawn.as_f64() > Some(0.0) { Ok(()) } else { Err((line, drawn)) }
        })
        .await;
    }
    eventually(SOON, "the page lists a peak and counts the events", async || {
        let peak = page.text_of("document.querySelector('#peaks li')?.textContent").await;
        let count = page.text_of("document.querySelector('#count').textContent").await;
        if peak.contains("load") && count.parse().is_ok_and(|count: u64| count >= 20) {
            Ok(())
        } else {
            Err((peak, count))
        }
    })
    .await;

    assert_eq!(relay.event_sources().len(), 1, "one connection is enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_server_the_browser_is_told_of_the_gap_and_gets_everything_of_the_new_server() {
    let (server, relay, page) = open_page(EVERY, Window::Desktop).await;
    page.receives("some events", |received| received.len() >= 10).await;

    let address = server.address();
    drop(server);
    page.is_in_state("reconnecting").await;
    let before = page.received().await;
    let last = &before[before.len() - 1].id;
    let server = Example::start_at(address, "quickstart", &[&EVERY.as_millis().to_string()]);
    page.is_in_state("open").await;

    let received = page.receives("events of the new server", |received| received.len() >= before.len() + 10).await;
    let asked = relay.event_sources();
    assert_eq!(asked[1].header("last-event-id"), Some(&**last));

    let (gap, news) = received[before.len()..].split_first().expect("there is more than before");
    assert_eq!(received[..before.len()], before, "what the page had, it has");
    assert_eq!(gap.kind, "gap", "it goes first: {gap:?}");
    let told: serde_json::Value = serde_json::from_str(&gap.data).expect("the data is JSON");
    assert_eq!((&told["reason"], &told["requested"]), (&"other_epoch".into(), &(&**last).into()));
    assert_eq!(news, read_until(server.address(), &received[received.len() - 1].id).await, "from its first event on");

    eventually(SOON, "the page says what is missing, and its wire shows it", async || {
        let note = page.text_of("document.querySelector('#gap').textContent").await;
        let wire = page.text_of("document.querySelector('#wire').textContent").await;
        let is_told = note.contains("started anew") && note.contains(&**last) && wire.contains("event: gap\n");
        if is_told { Ok(()) } else { Err((note, wire)) }
    })
    .await;
    eventually(SOON, "the chart leaves out the time without samples, and goes on", async || {
        let line = page.text_of("document.querySelector('#load path').getAttribute('d')").await;
        let pieces: Vec<_> = line.split('M').skip(1).collect();
        if pieces.len() >= 2 && pieces[pieces.len() - 1].contains('L') { Ok(()) } else { Err(line) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_while_the_connection_is_lost_arrives_once_and_in_order_when_it_is_back() {
    // Fast, so that events are published also between what is replayed and what is live.
    let (server, relay, page) = open_page(Duration::from_millis(10), Window::Desktop).await;
    page.receives("some events", |received| received.len() >= 10).await;

    for _ in 0..3 {
        relay.cut();
        page.is_in_state("reconnecting").await;
        let before = page.received().await;
        let last = &before[before.len() - 1].id;
        let refused = relay.connections();
        eventually(SOON, "the browser tries again and is refused", async || match relay.connections() - refused {
            0 | 1 => Err("not twice yet"),
            _ => Ok(()),
        })
        .await;
        // The server has gone on: there are events that the page cannot know of.
        let after = |messages: &[Message]| messages.iter().rev().take_while(|message| message.id != *last).count();
        let missed =
            read(server.address(), |published| after(published) >= 150 && after(published) < published.len()).await;
        assert_eq!(page.received().await, before, "the connection is cut");

        relay.mend();
        page.is_in_state("open").await;
        let resumed = relay.event_sources().pop().expect("there is one");
        assert_eq!(resumed.header("last-event-id"), Some(&**last));
        let newest = &missed[missed.len() - 1].id;
        let received = page
            .receives("what it missed, and more", |received| {
                received.iter().rev().skip(50).any(|message| message.id == *newest)
            })
            .await;
        assert_same(&received, &read_until(server.address(), &received[received.len() - 1].id).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_button_closes_the_feed_for_good_and_opens_it_where_it_was() {
    let (server, relay, page) = open_page(EVERY, Window::Desktop).await;
    page.receives("some events", |received| received.len() >= 10).await;

    page.press_the_button().await;
    page.is_in_state("closed").await;
    assert_eq!(page.browser.eval("source.readyState").await, 2, "EventSource.CLOSED");
    let closed = page.received().await;
    eventually(SOON, "nothing is sent any more", async || {
        let before = relay.bytes_to_browser();
        sleep(5 * EVERY).await;
        if relay.bytes_to_browser() == before { Ok(()) } else { Err("more bytes") }
    })
    .await;
    // Whatever was still open would now reconnect.
    relay.cut();
    relay.mend();
    let seen =
        async || (relay.connections(), relay.heads().len(), relay.bytes_to_browser(), page.received().await.len());
    stays(3 * RETRY, "nothing is asked for and nothing comes", seen).await;

    page.press_the_button().await;
    page.is_in_state("open").await;
    let received = page.receives("more events", |received| received.len() >= closed.len() + 40).await;
    assert_same(&received, &read_until(server.address(), &received[received.len() - 1].id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_into_the_width_of_a_phone_and_of_a_desk() {
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let (_server, _relay, page) = open_page(EVERY, window).await;
        page.receives("enough to fill the page", |received| received.len() >= 40).await;
        page.browser.fits("quickstart", window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_shows_the_machine_while_it_is_watched() {
    let (_server, _relay, page) = open_page(EVERY, Window::Desktop).await;
    page.receives("enough for a chart", |received| received.len() >= 100).await;
    page.browser.screenshot("quickstart").await;
}

/// The page of a new server, seen through a relay.
async fn open_page(every: Duration, window: Window) -> (Example, Relay, Page) {
    let server = Example::start("quickstart", &[&every.as_millis().to_string()]);
    let relay = Relay::to(server.address()).await.expect("there is a free port");
    let page = Page { browser: Browser::start(window).await };
    page.browser.client().goto(&format!("http://{}/", relay.address())).await.expect("the page is there");
    page.is_in_state("open").await;
    (server, relay, page)
}

struct Page {
    browser: Browser,
}

impl Page {
    async fn received(&self) -> Vec<Message> {
        let received = self.browser.eval("received").await;
        let received = received.as_array().expect("the page keeps them in an array");
        let messages = received.iter().map(|value| Message::from_page(value).expect("each has an id, a type and data"));
        messages.collect()
    }

    async fn receives(&self, what: &str, is_enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        eventually(ENOUGH, &format!("the page receives {what}"), async || {
            let received = self.received().await;
            if is_enough(&received) { Ok(received) } else { Err(received.last().cloned()) }
        })
        .await
    }

    async fn is_in_state(&self, state: &str) {
        eventually(SOON, &format!("the page says {state:?}"), async || {
            let said = self.text_of("document.querySelector('#state').textContent").await;
            if said == state { Ok(()) } else { Err(said) }
        })
        .await;
    }

    async fn press_the_button(&self) {
        let button = self.browser.client().find(Locator::Css("#toggle")).await.expect("the page has a button");
        button.click().await.expect("the button can be pressed");
    }

    async fn text_of(&self, expression: &str) -> String {
        self.browser.eval(expression).await.as_str().unwrap_or_default().to_owned()
    }
}

/// All that was published from the first event the page received to the last, exactly once and in order.
#[track_caller]
fn assert_same(received: &[Message], published: &[Message]) {
    let first = &received[0].id;
    let published: Vec<_> = published.iter().skip_while(|message| message.id != *first).cloned().collect();
    let missing: Vec<_> = published.iter().filter(|message| !received.contains(message)).collect();
    assert!(missing.is_empty(), "published, and never received: {missing:?}");
    let ids = |messages: &[Message]| messages.iter().map(|message| message.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(received), ids(&published), "received is what was published, once and in order");
}
