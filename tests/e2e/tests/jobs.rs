//! Long jobs in a real browser: their progress and their ends, seen by pages that reload, get lost, or come late.

use e2e::{Browser, Example, Message, Relay, Window, create, eventually, request, stays};
use fantoccini::Locator;
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};

/// Milliseconds between two steps: a job of 200 steps takes some six seconds.
const PACE: &str = "30";
const STEPS: u64 = 200;
/// What the server tells the browser to wait before it reconnects.
const RETRY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// By then a job has ended, on a machine that has much else to do.
const TO_THE_END: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn a_job_shows_its_progress_and_its_end_by_two_requests_and_then_nothing_is_asked_for() {
    let (server, relay, page) = open_page(PACE, Window::Desktop).await;
    stays(RETRY, "without a job nothing is followed", async || relay.event_sources().len()).await;
    let id = page.start("An import", false).await;
    page.has_come_to(&id, 20).await;
    assert_eq!(page.text(&id, ".name").await, "An import");
    assert!(page.text(&id, ".state").await.ends_with(" %"));
    page.has_ended(&id, "done", "All 200 steps are done").await;
    assert_eq!(page.state().await, "idle");

    let told = page.received().await;
    let (end, progress) = told.split_last().expect("the page was told of it");
    assert_eq!(
        status(end),
        json!({ "id": id, "name": "An import", "state": "done", "done": STEPS, "total": STEPS,
        "message": "All 200 steps are done" })
    );
    assert_eq!(end.kind, "done");
    assert!(progress.iter().all(|message| message.kind == "progress"), "there is one `done`: {told:?}");
    let steps: Vec<_> = progress.iter().map(step).collect();
    assert!(steps.is_sorted() && steps.len() >= 20, "each step once, but for those that were overtaken: {steps:?}");

    // Whatever was still open would reconnect now.
    relay.cut();
    relay.mend();
    let seen = async || (relay.connections(), relay.heads().len(), relay.bytes_to_browser(), page.state().await);
    stays(3 * RETRY, "nothing is asked for", seen).await;
    assert_eq!(page.counted("#requests").await, 2, "one to start it, and one to follow it");
    let targets: Vec<_> = relay.heads().iter().map(|head| head.target().to_owned()).collect();
    assert_eq!(targets, ["/", "/jobs", &format!("/jobs/{id}/events")]);
    assert!(page.counted("#polls").await >= 6, "once a second");
    assert!(page.counted("#news").await > page.counted("#polled").await);

    let events = format!("GET /jobs/{id}/events HTTP/1.0\r\n");
    let again = request(server.address(), &format!("{events}Last-Event-ID: {}\r\n\r\n", end.id)).await;
    assert!(again.starts_with("HTTP/1.0 204 "), "{again}");
    let anew = request(server.address(), &format!("{events}\r\n")).await;
    assert!(anew.matches("\nevent: ").count() == 1 && anew.contains("\nevent: done\n"), "how it ended: {anew}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_that_does_not_close_gets_the_end_once_and_then_a_204_by_which_it_stops() {
    let (_server, relay, page) = open_page("5", Window::Desktop).await;
    let id = page.start("An import", false).await;
    page.browser
        .eval(&format!(
            "window.ends = [], window.careless = new EventSource('/jobs/{id}/events?careless'), \
             careless.addEventListener('done', ({{ lastEventId }}) => ends.push(lastEventId)), null"
        ))
        .await;
    eventually(TO_THE_END, "it has given up", async || {
        match page.browser.eval("[careless.readyState, ends.length]").await {
            seen if seen == json!([2, 1]) => Ok(()),
            seen => Err(seen),
        }
    })
    .await;
    let ends = page.browser.eval("ends").await;
    let asked: Vec<_> = relay.event_sources().into_iter().filter(|head| head.target().ends_with("?careless")).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[1].header("last-event-id"), ends[0].as_str(), "it came back with the last id");
    let seen = async || relay.event_sources().len();
    stays(3 * RETRY, "and does not come again", seen).await;
    assert_eq!(page.browser.eval("ends.length").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_reloaded_in_the_middle_shows_the_progress_so_far_and_goes_on() {
    let (_server, relay, page) = open_page(PACE, Window::Desktop).await;
    let id = page.start("An import", false).await;
    let before = page.has_come_to(&id, 40).await;
    page.browser.client().refresh().await.expect("the page is there");
    page.has_come_to(&id, before).await;
    let first = page.received().await.swap_remove(0);
    assert!(step(&first) >= before, "no history, but how it is: {first:?} after {before}");
    assert_eq!(page.text(&id, ".name").await, "An import");
    page.has_ended(&id, "done", "All 200 steps are done").await;
    assert_eq!(page.ends().await, 1);
    let asked = relay.event_sources();
    assert_eq!(asked.len(), 2, "once by each page: {asked:?}");
    assert_eq!(page.counted("#requests").await, 1, "a page that was reloaded asks once");

    page.browser.client().refresh().await.expect("the page is there");
    page.has_ended(&id, "done", "All 200 steps are done").await;
    let told = page.received().await;
    assert_eq!(told.len(), 1, "of a job that has ended the end alone is told: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_connection_a_page_is_up_to_date_by_one_event_and_gets_the_end_once() {
    let (server, relay, page) = open_page(PACE, Window::Desktop).await;
    let id = page.start("An import", false).await;
    let mut resumed = Vec::new();
    // The second time until the job has ended: its end is then all that is left to be told.
    for misses_the_end in [false, true] {
        let steps = page.received().await.last().map_or(0, step);
        page.has_come_to(&id, steps + 20).await;
        relay.cut();
        page.is_in_state("reconnecting").await;
        let before = page.received().await;
        let last = before.last().expect("it was told something").clone();
        eventually(TO_THE_END, "the job goes on without the page", async || {
            let now = look(server.address(), &id).await;
            let is_enough =
                if misses_the_end { now["state"] == "done" } else { now["done"].as_u64() >= Some(step(&last) + 30) };
            if is_enough { Ok(()) } else { Err(now) }
        })
        .await;
        assert_eq!(page.received().await, before, "the connection is cut");
        relay.mend();
        let next = eventually(SOON, "the page is told more", async || {
            page.received().await.get(before.len()).cloned().ok_or("nothing yet")
        })
        .await;
        assert!(step(&next) >= step(&last) + 30 || misses_the_end, "not what was in between: {next:?} after {last:?}");
        resumed.push(Some(last.id));
    }
    page.has_ended(&id, "done", "All 200 steps are done").await;
    assert_eq!(page.ends().await, 1);
    let told = page.received().await;
    assert!(told.iter().all(|message| message.kind != "gap"), "a state has no gaps: {told:?}");
    let sent: Vec<_> =
        relay.event_sources().iter().map(|head| head.header("last-event-id").map(str::to_owned)).collect();
    assert_eq!(sent[1..], resumed, "it comes back with the last id, and no more often");
    stays(3 * RETRY, "and not after the end", async || relay.heads().len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_jobs_share_a_connection_and_two_tabs_see_the_same_of_them() {
    // Slow, so that the one that is to be cancelled still goes on when a second tab is open.
    let (_server, relay, page) = open_page("75", Window::Desktop).await;
    let fails = page.start("One that fails", true).await;
    let cancelled = page.start("One that is cancelled", false).await;
    let done = page.start("One that is done", false).await;
    let ids = format!("{done},{cancelled},{fails}");
    assert_eq!(page.browser.eval("location.hash").await, format!("#{ids}"));
    page.has_come_to(&done, 10).await;
    // One for all that go on: the first may have failed by now.
    let asked = relay.event_sources().last().expect("there is one").target().to_owned();
    assert!(asked.starts_with(&format!("/jobs/{done},{cancelled}")), "{asked}");

    let client = page.browser.client();
    let first = client.window().await.expect("it has a window");
    let second = client.new_window(true).await.expect("it opens another one").handle;
    client.switch_to_window(second.clone()).await.expect("it is there");
    client.goto(&format!("http://{}/#{ids}", relay.address())).await.expect("the page is there");
    page.has_come_to(&cancelled, 10).await;
    page.cancel(&cancelled).await;

    let mut seen = Vec::new();
    for tab in [second, first] {
        client.switch_to_window(tab).await.expect("it is there");
        page.has_ended(&cancelled, "cancelled", "Somebody has cancelled it").await;
        page.has_ended(&fails, "failed", "Step 121 has failed: the file ends too early").await;
        page.has_ended(&done, "done", "All 200 steps are done").await;
        page.is_in_state("idle").await;
        assert_eq!(page.ends().await, 3, "each end is told once");
        let shown = page.browser.eval("document.querySelector('#jobs').innerHTML").await;
        seen.push(shown);
        // Not in the order in which they ended, but in that in which they were started.
        let names = page.browser.eval("[...document.querySelectorAll('.name')].map((name) => name.textContent)").await;
        assert_eq!(names, json!(["One that is done", "One that is cancelled", "One that fails"]));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_stops_at_once_and_one_that_has_ended_cannot_be() {
    let server = Example::start("jobs", &["10000"]);
    let id = start(server.address(), "A slow one").await.expect("there is room");
    let delete = format!("DELETE /jobs/{id} HTTP/1.0\r\n\r\n");
    let response = request(server.address(), &delete).await;
    assert!(response.starts_with("HTTP/1.0 202 "), "{response}");
    // It ends by itself long before the next step is due.
    let events = request(server.address(), &format!("GET /jobs/{id}/events HTTP/1.0\r\n\r\n")).await;
    assert!(events.contains("\nevent: cancelled\n"), "{events}");
    let stopped = look(server.address(), &id).await;
    assert_eq!((&stopped["state"], &stopped["done"]), (&json!("cancelled"), &json!(0)));
    let response = request(server.address(), &delete).await;
    assert!(response.starts_with("HTTP/1.0 202 "), "{response}");
    assert_eq!(look(server.address(), &id).await, stopped, "nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_jobs_than_are_worked_on_at_once_are_refused_until_one_has_ended() {
    let server = Example::start("jobs", &["10000"]);
    let mut jobs = Vec::new();
    let refusal = loop {
        assert!(jobs.len() < 100, "there is a limit");
        match start(server.address(), "A slow one").await {
            Ok(id) => jobs.push(id),
            Err(response) => break response,
        }
    };
    assert!(refusal.starts_with("HTTP/1.0 503 ") && refusal.contains("which is the limit"), "{refusal}");
    request(server.address(), &format!("DELETE /jobs/{} HTTP/1.0\r\n\r\n", jobs[0])).await;
    eventually(SOON, "there is room again", async || start(server.address(), "A slow one").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_not_there_and_an_order_that_cannot_be_are_told_as_such() {
    let (server, relay, page) = open_page(PACE, Window::Desktop).await;
    let id = page.start("An import", false).await;
    let made_up = "0123456789abcdef0123456789abcdef";
    for line in [
        format!("GET /jobs/{made_up}"),
        format!("DELETE /jobs/{made_up}"),
        format!("GET /jobs/{made_up}/events"),
        format!("GET /jobs/{id},{made_up}/events"),
        format!("GET /jobs/{id},/events"),
    ] {
        let response = request(server.address(), &format!("{line} HTTP/1.0\r\n\r\n")).await;
        assert!(response.starts_with("HTTP/1.0 404 ") && response.contains("There is no such job"), "{response}");
    }
    let many = vec![&*id; 33].join(",");
    let response = request(server.address(), &format!("GET /jobs/{many}/events HTTP/1.0\r\n\r\n")).await;
    assert!(response.starts_with("HTTP/1.0 400 ") && response.contains("name at most 32"), "{response}");
    for (name, length) in [("", 0), (" \n ", 0), (&*"long ".repeat(13), 64)] {
        let response = start(server.address(), name).await.expect_err("it is refused");
        assert!(response.starts_with("HTTP/1.0 400 "), "{response}");
        assert!(response.ends_with(&format!("1 to 60 characters, and this one has {length}")), "{response}");
    }

    // The page finds out which of its jobs it is, and follows the other one.
    page.browser.client().goto("about:blank").await.expect("there is such a page");
    let both = format!("http://{}/#{made_up},{id}", relay.address());
    page.browser.client().goto(&both).await.expect("the page is there");
    page.has_ended(made_up, "gone", "The server does not know it any more").await;
    page.has_ended(&id, "done", "All 200 steps are done").await;
    stays(3 * RETRY, "it does not ask again", async || relay.heads().len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_server_the_page_says_that_the_job_is_gone() {
    let (server, _relay, page) = open_page(PACE, Window::Desktop).await;
    let id = page.start("<img src=x onerror=alert(1)>", false).await;
    page.has_come_to(&id, 10).await;
    assert_eq!(page.text(&id, ".name").await, "<img src=x onerror=alert(1)>");
    assert_eq!(page.browser.eval("document.querySelectorAll('#jobs img').length").await, 0, "text stays text");
    let address = server.address();
    drop(server);
    page.is_in_state("reconnecting").await;
    let _server = Example::start_at(address, "jobs", &[PACE]);
    page.has_ended(&id, "gone", "The server does not know it any more").await;
    page.is_in_state("idle").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_into_the_width_of_a_phone_and_of_a_desk() {
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let (_server, _relay, page) = open_page("1", window).await;
        let long = page.start(&"W".repeat(60), false).await;
        let fails = page.start("One that fails, and says so in several words", true).await;
        page.has_ended(&long, "done", "All 200 steps are done").await;
        page.has_ended(&fails, "failed", "Step 121 has failed: the file ends too early").await;
        page.browser.fits("jobs", window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_shows_jobs_that_go_on_and_jobs_that_have_ended() {
    let (_server, _relay, page) = open_page(PACE, Window::Desktop).await;
    let done = page.start("Resize 200 photos", false).await;
    let fails = page.start("Import the orders of May", true).await;
    page.has_ended(&fails, "failed", "Step 121 has failed: the file ends too early").await;
    page.has_ended(&done, "done", "All 200 steps are done").await;
    let goes_on = page.start("Export the ledger", false).await;
    page.has_come_to(&goes_on, 80).await;
    page.browser.screenshot("jobs").await;
}

/// The page of a new server, seen through a relay.
async fn open_page(pace: &str, window: Window) -> (Example, Relay, Page) {
    let server = Example::start("jobs", &[pace]);
    let relay = Relay::to(server.address()).await.expect("there is a free port");
    let page = Page { browser: Browser::start(window).await };
    page.browser.client().goto(&format!("http://{}/", relay.address())).await.expect("the page is there");
    (server, relay, page)
}

struct Page {
    browser: Browser,
}

impl Page {
    /// Starts a job by the form, and returns the id that it then has in the address of the page.
    async fn start(&self, name: &str, fails: bool) -> String {
        let client = self.browser.client();
        let before = self.browser.eval("ids()").await;
        let field = client.find(Locator::Css("[name=name]")).await.expect("the page has a field");
        field.clear().await.expect("it can be edited");
        field.send_keys(name).await.expect("it can be edited");
        for selector in fails.then_some("[name=fails]").into_iter().chain(["form button"]) {
            let button = client.find(Locator::Css(selector)).await.expect("the page has it");
            button.click().await.expect("it can be pressed");
        }
        eventually(SOON, "the job has an address", async || {
            let ids = self.browser.eval("ids()").await;
            if ids != before { Ok(ids[0].as_str().expect("an id is text").to_owned()) } else { Err(self.note().await) }
        })
        .await
    }

    async fn cancel(&self, id: &str) {
        let button = format!("jobs.get({}).card.querySelector('button')", json!(id));
        self.browser.eval(&format!("{button}.click()")).await;
    }

    /// Of a job, in its card.
    async fn text(&self, id: &str, selector: &str) -> String {
        let card = format!("jobs.get({})?.card", json!(id));
        let text = self.browser.eval(&format!("{card}.querySelector({}).textContent", json!(selector))).await;
        text.as_str().expect("an element has text").to_owned()
    }

    /// Waits until the bar of a job shows so many steps, and returns how many it shows.
    async fn has_come_to(&self, id: &str, steps: u64) -> u64 {
        let bar = format!("jobs.get({})?.card.querySelector('progress').value", json!(id));
        eventually(TO_THE_END, &format!("the page shows {steps} steps"), async || {
            let shown = self.browser.eval(&bar).await;
            shown.as_f64().map(|shown| shown as u64).filter(|shown| *shown >= steps).ok_or(shown)
        })
        .await
    }

    async fn has_ended(&self, id: &str, how: &str, why: &str) {
        eventually(TO_THE_END, &format!("the page says {how}: {why}"), async || {
            let said = (self.text(id, ".state").await, self.text(id, ".message").await);
            if said.0 == how && said.1 == why { Ok(()) } else { Err(said) }
        })
        .await;
    }

    async fn note(&self) -> String {
        self.browser.eval("document.querySelector('#note').textContent").await.to_string()
    }

    async fn state(&self) -> String {
        let text = self.browser.eval("document.querySelector('#state').textContent").await;
        text.as_str().expect("an element has text").to_owned()
    }

    async fn is_in_state(&self, state: &str) {
        eventually(SOON, &format!("the page says {state:?}"), async || match self.state().await {
            said if said == state => Ok(()),
            said => Err(said),
        })
        .await;
    }

    async fn counted(&self, selector: &str) -> u64 {
        let text = self.browser.eval(&format!("document.querySelector('{selector}').textContent")).await;
        text.as_str().and_then(|text| text.parse().ok()).expect("a number")
    }

    async fn received(&self) -> Vec<Message> {
        let received = self.browser.eval("received").await;
        let received = received.as_array().expect("the page keeps them in an array");
        received.iter().map(|value| Message::from_page(value).expect("each has an id, a type and data")).collect()
    }

    /// How many ends it was told of.
    async fn ends(&self) -> usize {
        self.received().await.iter().filter(|message| message.kind != "progress").count()
    }
}

fn status(message: &Message) -> Value {
    serde_json::from_str(&message.data).expect("the data is JSON")
}

fn step(message: &Message) -> u64 {
    status(message)["done"].as_u64().expect("a number of steps")
}

/// What somebody gets who polls.
async fn look(server: SocketAddr, id: &str) -> Value {
    let response = request(server, &format!("GET /jobs/{id} HTTP/1.0\r\n\r\n")).await;
    let (head, body) = response.split_once("\r\n\r\n").expect("a response has a head");
    assert!(head.starts_with("HTTP/1.0 200 "), "{response}");
    serde_json::from_str(body).expect("its body is JSON")
}

/// Starts a job and returns its id; the response if there is none.
async fn start(server: SocketAddr, name: &str) -> Result<String, String> {
    create(server, "/jobs", &json!({ "name": name }), 202).await
}
