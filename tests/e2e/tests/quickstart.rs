//! The `quickstart` example in Chromium: its page, its feed, and lost connections.

use e2e::{Example, Message, Page, Relay, Window, eventually, read, read_until, stays};
use std::time::Duration;
use tokio::time::sleep;

/// Ten times as fast as the default, so that each interruption misses more events.
const INTERVAL: Duration = Duration::from_millis(100);
/// The reconnection time that the server sets.
const RETRY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// The tests wait for up to ten seconds of events. A busy machine takes longer.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn page_shows_every_event_and_the_wire() {
    let (server, relay, page) = open_page(INTERVAL, Window::Desktop).await;

    eventually(SOON, "the wire shows every kind of line, also a heartbeat", async || {
        let wire = page.text("#wire").await;
        let starts = |with: &str| wire.lines().any(|line| line.starts_with(with));
        let kinds = ["retry: 1000", "id: ", "data: {", "event: peak", ":"];
        if kinds.iter().all(|kind| starts(kind)) { Ok(()) } else { Err(wire) }
    })
    .await;
    let head = page.text("#head").await;
    let has = |line: &str| head.lines().any(|found| found == line);
    assert!(has("200 OK"), "{head}");
    assert!(has("content-type: text/event-stream"), "{head}");
    assert!(has("cache-control: no-cache, no-transform"), "{head}");

    wait_for_events(&page, "a peak", |received| received.iter().any(|message| message.kind == "peak")).await;
    let received = wait_for_events(&page, "twenty events", |received| received.len() >= 20).await;
    assert!(received.iter().all(|message| message.kind == "message" || message.kind == "peak"), "{received:?}");
    let sample: serde_json::Value = serde_json::from_str(&received[0].data).expect("the data is JSON");
    assert!(
        sample["memory_used"].as_u64() > Some(0) && sample["memory_used"].as_u64() < sample["memory_total"].as_u64()
    );
    assert_same(&received, &read_until(server.address(), &received[received.len() - 1].id).await);

    for chart in ["#load path", "#memory path"] {
        eventually(SOON, "the chart draws a line of ten samples", async || {
            let line = page.eval_text(&format!("document.querySelector('{chart}')?.getAttribute('d')")).await;
            let drawn = page.eval(&format!("document.querySelector('{chart}')?.getBBox().width")).await;
            if line.matches('L').count() >= 10 && drawn.as_f64() > Some(0.0) { Ok(()) } else { Err((line, drawn)) }
        })
        .await;
    }
    eventually(SOON, "the page lists a peak, and counts the events", async || {
        let peak = page.eval_text("document.querySelector('#peaks li')?.textContent").await;
        let count = page.text("#count").await;
        if peak.contains("load") && count.parse().is_ok_and(|count: u64| count >= 20) {
            Ok(())
        } else {
            Err((peak, count))
        }
    })
    .await;

    assert_eq!(relay.event_sources().len(), 1, "the page has one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_is_a_gap_then_all_new_events() {
    let (server, relay, page) = open_page(INTERVAL, Window::Desktop).await;
    wait_for_events(&page, "some events", |received| received.len() >= 10).await;

    let address = server.address();
    drop(server);
    page.wait_for_state("reconnecting").await;
    let before = page.received().await;
    let last = &before[before.len() - 1].id;
    let server = Example::start_at(address, "quickstart", &[&INTERVAL.as_millis().to_string()]);
    page.wait_for_state("open").await;

    let received =
        wait_for_events(&page, "events of the new server", |received| received.len() >= before.len() + 10).await;
    let requests = relay.event_sources();
    assert_eq!(requests[1].header("last-event-id"), Some(&**last));

    let (gap, new) = received[before.len()..].split_first().expect("there are new events");
    assert_eq!(received[..before.len()], before, "the page keeps the events of the old server");
    assert_eq!(gap.kind, "gap", "the gap comes first: {gap:?}");
    let data: serde_json::Value = serde_json::from_str(&gap.data).expect("the data is JSON");
    assert_eq!((&data["reason"], &data["requested"]), (&"other_epoch".into(), &(&**last).into()));
    let published = read_until(server.address(), &received[received.len() - 1].id).await;
    assert_eq!(new, published, "the page has all events of the new server");

    eventually(SOON, "the page describes the gap, and the wire shows it", async || {
        let note = page.text("#gap").await;
        let wire = page.text("#wire").await;
        let is_reported = note.contains("restarted") && note.contains(&**last) && wire.contains("event: gap\n");
        if is_reported { Ok(()) } else { Err((note, wire)) }
    })
    .await;
    eventually(SOON, "the chart has an interruption for the time without samples", async || {
        let line = page.eval_text("document.querySelector('#load path').getAttribute('d')").await;
        let pieces: Vec<_> = line.split('M').skip(1).collect();
        if pieces.len() >= 2 && pieces[pieces.len() - 1].contains('L') { Ok(()) } else { Err(line) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_during_lost_connection_are_replayed_once() {
    // So fast that events are published between the replay and the live events.
    let (server, relay, page) = open_page(Duration::from_millis(10), Window::Desktop).await;
    wait_for_events(&page, "some events", |received| received.len() >= 10).await;

    for _ in 0..3 {
        relay.cut();
        page.wait_for_state("reconnecting").await;
        let before = page.received().await;
        let last = &before[before.len() - 1].id;
        let connections = relay.connections();
        eventually(SOON, "the browser tries to reconnect twice, and fails", async || {
            match relay.connections() - connections {
                0 | 1 => Err("fewer attempts"),
                _ => Ok(()),
            }
        })
        .await;
        // The server has published at least 150 events that the page has not received.
        let after = |messages: &[Message]| messages.iter().rev().take_while(|message| message.id != *last).count();
        let missed =
            read(server.address(), |published| after(published) >= 150 && after(published) < published.len()).await;
        assert_eq!(page.received().await, before, "nothing passes a cut connection");

        relay.mend();
        page.wait_for_state("open").await;
        let reconnection = relay.event_sources().pop().expect("there is a request");
        assert_eq!(reconnection.header("last-event-id"), Some(&**last));
        let newest = &missed[missed.len() - 1].id;
        let received = wait_for_events(&page, "the missed events and 50 more", |received| {
            received.iter().rev().skip(50).any(|message| message.id == *newest)
        })
        .await;
        assert_same(&received, &read_until(server.address(), &received[received.len() - 1].id).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn button_closes_the_feed_and_resumes_it() {
    let (server, relay, page) = open_page(INTERVAL, Window::Desktop).await;
    wait_for_events(&page, "some events", |received| received.len() >= 10).await;

    page.click("#toggle").await;
    page.wait_for_state("closed").await;
    let closed = page.received().await;
    eventually(SOON, "the server sends no more bytes", async || {
        let before = relay.bytes_to_browser();
        sleep(5 * INTERVAL).await;
        if relay.bytes_to_browser() == before { Ok(()) } else { Err("more bytes") }
    })
    .await;
    // An open EventSource would reconnect now.
    relay.cut();
    relay.mend();
    let seen =
        async || (relay.connections(), relay.heads().len(), relay.bytes_to_browser(), page.received().await.len());
    stays(3 * RETRY, "the page sends no request, and receives no bytes", seen).await;

    page.click("#toggle").await;
    page.wait_for_state("open").await;
    let received = wait_for_events(&page, "more events", |received| received.len() >= closed.len() + 40).await;
    assert_same(&received, &read_until(server.address(), &received[received.len() - 1].id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn page_fits_phone_and_desktop() {
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let (_server, _relay, page) = open_page(INTERVAL, window).await;
        wait_for_events(&page, "40 events", |received| received.len() >= 40).await;
        page.browser().assert_fits("quickstart", window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn screenshot_shows_the_charts() {
    let (_server, _relay, page) = open_page(INTERVAL, Window::Desktop).await;
    wait_for_events(&page, "100 events", |received| received.len() >= 100).await;
    page.browser().screenshot("quickstart").await;
}

/// Starts the example, and opens its page through a relay.
async fn open_page(interval: Duration, window: Window) -> (Example, Relay, Page) {
    let interval = interval.as_millis().to_string();
    let (server, relay, page) = Page::open_example("quickstart", &[&interval], window, SOON).await;
    page.wait_for_state("open").await;
    (server, relay, page)
}

/// Waits until the page has received enough events, and returns all of them.
async fn wait_for_events(page: &Page, what: &str, is_enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
    eventually(EVENTS_TIMEOUT, &format!("the page has received {what}"), async || {
        let received = page.received().await;
        if is_enough(&received) { Ok(received) } else { Err(received.last().cloned()) }
    })
    .await
}

/// Asserts that the page has received each published event once and in order, beginning with the
/// first event that it received.
#[track_caller]
fn assert_same(received: &[Message], published: &[Message]) {
    let first = &received[0].id;
    let published: Vec<_> = published.iter().skip_while(|message| message.id != *first).cloned().collect();
    let missing: Vec<_> = published.iter().filter(|message| !received.contains(message)).collect();
    assert!(missing.is_empty(), "published, and not received: {missing:?}");
    let ids = |messages: &[Message]| messages.iter().map(|message| message.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(received), ids(&published), "the page has received each event once and in order");
}
