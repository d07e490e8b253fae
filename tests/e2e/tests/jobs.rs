//! The `jobs` example in Chromium: progress and ends of jobs, through reloads, lost connections and
//! restarts.

use e2e::{Example, Message, Page, Relay, Window, create, eventually, request, stays};
use fantoccini::Locator;
use serde_json::{Value, json};
use std::{env, fs, net::SocketAddr, ops::Deref, process, time::Duration};

/// Milliseconds between two steps: a job of 200 steps takes about six seconds.
const PACE: &str = "30";
/// So slow that a job still runs after its page has loaded or reconnected on a busy machine: a job
/// takes about 15 seconds.
const SLOW_PACE: &str = "75";
const STEPS: u64 = 200;
/// The reconnection time that the server sets.
const RETRY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// Longer than any job takes, also on a busy machine.
const JOB_TIMEOUT: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn two_requests_start_and_follow_a_job() {
    let (server, relay, page) = open_page(PACE, Window::Desktop).await;
    stays(RETRY, "without a job, the page opens no stream", async || relay.event_sources().len()).await;
    let id = page.start("An import", false).await;
    page.wait_for_steps(&id, 20).await;
    assert_eq!(page.job_text(&id, ".name").await, "An import");
    assert!(page.job_text(&id, ".state").await.ends_with(" %"));
    page.wait_for_end(&id, "done", "All 200 steps are done").await;
    assert_eq!(page.text("#state").await, "idle");

    let received = page.received().await;
    let (end, progress) = received.split_last().expect("the page has received events");
    let expected = json!({
        "id": id, "name": "An import", "state": "done", "done": STEPS, "total": STEPS,
        "message": "All 200 steps are done",
    });
    assert_eq!(status(end), expected);
    assert_eq!(end.kind, "done");
    assert!(progress.iter().all(|message| message.kind == "progress"), "there is one `done`: {received:?}");
    let steps: Vec<_> = progress.iter().map(step).collect();
    assert!(steps.is_sorted() && steps.len() >= 20, "steps rise, and a newer one replaces an older one: {steps:?}");

    // An open EventSource would reconnect now.
    relay.cut();
    relay.mend();
    let seen = async || (relay.connections(), relay.heads().len(), relay.bytes_to_browser(), page.text("#state").await);
    stays(3 * RETRY, "the page sends no request", seen).await;
    assert_eq!(page.number("#requests").await, 2, "one request starts the job, and one follows it");
    let targets: Vec<_> = relay.heads().iter().map(|head| head.target().to_owned()).collect();
    assert_eq!(targets, ["/", "/jobs", &format!("/jobs/{id}/events")]);
    assert!(page.number("#polls").await >= 6, "a client that polls sends a request every second");
    assert!(page.number("#updates").await > page.number("#polled").await);

    let events = format!("GET /jobs/{id}/events HTTP/1.0\r\n");
    let again = request(server.address(), &format!("{events}Last-Event-ID: {}\r\n\r\n", end.id)).await;
    assert!(again.starts_with("HTTP/1.0 204 "), "{again}");
    let new = request(server.address(), &format!("{events}\r\n")).await;
    let names: Vec<_> = new.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, ["hub-cursor", "done"], "only the end: {new}");
}

#[tokio::test(flavor = "multi_thread")]
async fn event_source_stops_at_204_after_the_end() {
    let (_server, relay, page) = open_page("5", Window::Desktop).await;
    let id = page.start("An import", false).await;
    page.eval(&format!(
        "window.ends = [], window.careless = new EventSource('/jobs/{id}/events?careless'), \
             careless.addEventListener('done', ({{ lastEventId }}) => ends.push(lastEventId)), null"
    ))
    .await;
    eventually(JOB_TIMEOUT, "the EventSource is closed, with one end", async || {
        match page.eval("[careless.readyState, ends.length]").await {
            seen if seen == json!([2, 1]) => Ok(()),
            seen => Err(seen),
        }
    })
    .await;
    let ends = page.eval("ends").await;
    let mut requests = relay.event_sources();
    requests.retain(|head| head.target().ends_with("?careless"));
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert_eq!(requests[1].header("last-event-id"), ends[0].as_str(), "it reconnects with the last id");
    let seen = async || relay.event_sources().len();
    stays(3 * RETRY, "it does not reconnect again", seen).await;
    assert_eq!(page.eval("ends.length").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn reloaded_page_continues_at_the_current_step() {
    let (_server, relay, page) = open_page(PACE, Window::Desktop).await;
    let id = page.start("An import", false).await;
    let before = page.wait_for_steps(&id, 40).await;
    page.reload().await;
    page.wait_for_steps(&id, before).await;
    let first = page.received().await.swap_remove(0);
    assert!(step(&first) >= before, "the first event is the current status: {first:?} after {before}");
    assert_eq!(page.job_text(&id, ".name").await, "An import");
    page.wait_for_end(&id, "done", "All 200 steps are done").await;
    assert_eq!(page.ends().await, 1);
    let requests = relay.event_sources();
    assert_eq!(requests.len(), 2, "one request of each page: {requests:?}");
    assert_eq!(page.number("#requests").await, 1, "a reloaded page sends one request");

    page.reload().await;
    page.wait_for_end(&id, "done", "All 200 steps are done").await;
    let received = page.received().await;
    assert_eq!(received.len(), 1, "a finished job has one event: {received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_updates_page_after_lost_connection() {
    let (server, relay, page) = open_page(SLOW_PACE, Window::Desktop).await;
    let id = page.start("An import", false).await;
    let mut resumed = Vec::new();
    // The second time, the connection is lost until the job has ended. Only its end is left to
    // send.
    for misses_the_end in [false, true] {
        let steps = page.received().await.last().map_or(0, step);
        page.wait_for_steps(&id, steps + 20).await;
        relay.cut();
        page.wait_for_state("reconnecting").await;
        let before = page.received().await;
        let last = before.last().expect("the page has received events").clone();
        eventually(JOB_TIMEOUT, "the job continues without the page", async || {
            let now = status_of(server.address(), &id).await;
            let is_enough =
                if misses_the_end { now["state"] == "done" } else { now["done"].as_u64() >= Some(step(&last) + 30) };
            if is_enough { Ok(()) } else { Err(now) }
        })
        .await;
        assert_eq!(page.received().await, before, "nothing passes a cut connection");
        relay.mend();
        let next = eventually(SOON, "the page receives the next event", async || {
            page.received().await.get(before.len()).cloned().ok_or("no event")
        })
        .await;
        assert!(
            step(&next) >= step(&last) + 30 || misses_the_end,
            "one event skips the steps in between: {next:?} after {last:?}"
        );
        resumed.push(Some(last.id));
    }
    page.wait_for_end(&id, "done", "All 200 steps are done").await;
    assert_eq!(page.ends().await, 1);
    let received = page.received().await;
    assert!(received.iter().all(|message| message.kind != "gap"), "a `latest_only` topic has no gaps: {received:?}");
    let sent: Vec<_> =
        relay.event_sources().iter().map(|head| head.header("last-event-id").map(str::to_owned)).collect();
    assert_eq!(sent[1..], resumed, "it reconnects twice, with the last id");
    stays(3 * RETRY, "it does not reconnect after the end", async || relay.heads().len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_share_one_connection_and_tabs_agree() {
    let (_server, relay, page) = open_page(SLOW_PACE, Window::Desktop).await;
    let fails = page.start("One that fails", true).await;
    let cancelled = page.start("One that is cancelled", false).await;
    let done = page.start("One that is done", false).await;
    let ids = format!("{done},{cancelled},{fails}");
    assert_eq!(page.eval("location.hash").await, format!("#{ids}"));
    page.wait_for_steps(&done, 10).await;
    // One stream follows all running jobs. The first job may have failed already.
    let target = relay.event_sources().last().expect("there is a request").target().to_owned();
    assert!(target.starts_with(&format!("/jobs/{done},{cancelled}")), "{target}");

    let client = page.client();
    let first = client.window().await.expect("there is a tab");
    let second = client.new_window(true).await.expect("Chromium opens a tab").handle;
    client.switch_to_window(second.clone()).await.expect("the tab is open");
    page.go_to(&format!("/#{ids}")).await;
    page.wait_for_steps(&cancelled, 10).await;
    page.cancel(&cancelled).await;

    let mut seen = Vec::new();
    for tab in [second, first] {
        client.switch_to_window(tab).await.expect("the tab is open");
        page.wait_for_end(&cancelled, "cancelled", "The job was cancelled").await;
        page.wait_for_end(&fails, "failed", "Step 121 failed: the file ends too early").await;
        page.wait_for_end(&done, "done", "All 200 steps are done").await;
        page.wait_for_state("idle").await;
        assert_eq!(page.ends().await, 3, "each end is one event");
        let shown = page.eval("document.querySelector('#jobs').innerHTML").await;
        seen.push(shown);
        // In the order of their start, newest first, and not in the order of their end.
        let names = page.eval("[...document.querySelectorAll('.name')].map((name) => name.textContent)").await;
        assert_eq!(names, json!(["One that is done", "One that is cancelled", "One that fails"]));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_stops_a_job_immediately_and_only_once() {
    let server = Example::start("jobs", &["10000"]);
    let id = start(server.address(), "A slow one").await.expect("the server accepts the job");
    let delete = format!("DELETE /jobs/{id} HTTP/1.0\r\n\r\n");
    let response = request(server.address(), &delete).await;
    assert!(response.starts_with("HTTP/1.0 202 "), "{response}");
    // The job ends long before its next step is due.
    let events = request(server.address(), &format!("GET /jobs/{id}/events HTTP/1.0\r\n\r\n")).await;
    assert!(events.contains("\nevent: cancelled\n"), "{events}");
    let stopped = status_of(server.address(), &id).await;
    assert_eq!((&stopped["state"], &stopped["done"]), (&json!("cancelled"), &json!(0)));
    let response = request(server.address(), &delete).await;
    assert!(response.starts_with("HTTP/1.0 202 "), "{response}");
    assert_eq!(status_of(server.address(), &id).await, stopped, "a second request has no effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_over_the_limit_get_503() {
    let server = Example::start("jobs", &["10000"]);
    let mut jobs = Vec::new();
    let rejection = loop {
        assert!(jobs.len() < 100, "the server has no limit");
        match start(server.address(), "A slow one").await {
            Ok(id) => jobs.push(id),
            Err(response) => break response,
        }
    };
    assert!(rejection.starts_with("HTTP/1.0 503 ") && rejection.contains("which is the limit"), "{rejection}");
    request(server.address(), &format!("DELETE /jobs/{} HTTP/1.0\r\n\r\n", jobs[0])).await;
    eventually(SOON, "another job can start", async || start(server.address(), "A slow one").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_jobs_get_404_and_invalid_requests_400() {
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
        let response = start(server.address(), name).await.expect_err("the name is invalid");
        assert!(response.starts_with("HTTP/1.0 400 "), "{response}");
        assert!(response.ends_with(&format!("1 to 60 characters, but this one has {length}")), "{response}");
    }

    // The page detects the unknown job, and follows the other one.
    page.client().goto("about:blank").await.expect("the page loads");
    page.go_to(&format!("/#{made_up},{id}")).await;
    page.wait_for_end(made_up, "gone", "The server no longer has this job").await;
    page.wait_for_end(&id, "done", "All 200 steps are done").await;
    stays(3 * RETRY, "the page sends no request", async || relay.heads().len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_reports_jobs_lost_by_a_restart() {
    let (server, _relay, page) = open_page(SLOW_PACE, Window::Desktop).await;
    let id = page.start("<img src=x onerror=alert(1)>", false).await;
    page.wait_for_steps(&id, 10).await;
    assert_eq!(page.job_text(&id, ".name").await, "<img src=x onerror=alert(1)>");
    assert_eq!(page.eval("document.querySelectorAll('#jobs img').length").await, 0, "a name is never read as HTML");
    let address = server.address();
    drop(server);
    page.wait_for_state("reconnecting").await;
    let _server = Example::start_at(address, "jobs", &[SLOW_PACE]);
    page.wait_for_end(&id, "gone", "The server no longer has this job").await;
    page.wait_for_state("idle").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_with_file_continues_its_jobs() {
    let log = env::temp_dir().join(format!("tower-sse-jobs-{}.log", process::id()));
    let mark = log.with_extension("log.mark");
    let args = [SLOW_PACE, log.to_str().expect("the path is text")];
    let (mut server, relay, page) = Page::open_example("jobs", &args, Window::Desktop, SOON).await;
    let (address, page) = (server.address(), Jobs(page));
    let ended = page.start("An import that ends", true).await;
    page.wait_for_end(&ended, "failed", "Step 121 failed: the file ends too early").await;
    let id = page.start("An import", false).await;
    let mut shown = 0;
    for _ in 0..2 {
        shown = page.wait_for_steps(&id, shown + 20).await;
        // SIGKILL, in the middle of a job.
        drop(server);
        page.wait_for_state("reconnecting").await;
        server = Example::start_at(address, "jobs", &args);
    }
    page.wait_for_end(&id, "done", "All 200 steps are done").await;
    page.wait_for_state("idle").await;
    let received = page.received().await;
    assert!(received.iter().all(|message| message.kind != "gap"), "no event is missing: {received:?}");
    let steps: Vec<_> = received.iter().filter(|message| status(message)["id"] == *id).map(step).collect();
    assert!(steps.is_sorted(), "the job does not begin again: {steps:?}");
    let resumed = relay.event_sources().into_iter().filter(|head| head.header("last-event-id").is_some()).count();
    assert!(resumed >= 2, "the page resumes after each restart");

    // The ended job has survived, too.
    page.reload().await;
    page.wait_for_end(&ended, "failed", "Step 121 failed: the file ends too early").await;
    page.wait_for_end(&id, "done", "All 200 steps are done").await;
    drop(server);
    for path in [log, mark] {
        fs::remove_file(path).expect("the server has created the file");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_fits_phone_and_desktop() {
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let (_server, _relay, page) = open_page("1", window).await;
        let long = page.start(&"W".repeat(60), false).await;
        let fails = page.start("A job with a long name that fails", true).await;
        page.wait_for_end(&long, "done", "All 200 steps are done").await;
        page.wait_for_end(&fails, "failed", "Step 121 failed: the file ends too early").await;
        page.browser().assert_fits("jobs", window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn screenshot_shows_running_and_ended_jobs() {
    let (_server, _relay, page) = open_page(PACE, Window::Desktop).await;
    let done = page.start("Resize 200 photos", false).await;
    let fails = page.start("Import the orders of May", true).await;
    page.wait_for_end(&fails, "failed", "Step 121 failed: the file ends too early").await;
    page.wait_for_end(&done, "done", "All 200 steps are done").await;
    let running = page.start("Export the ledger", false).await;
    page.wait_for_steps(&running, 80).await;
    page.browser().screenshot("jobs").await;
}

/// Starts the example, and opens its page through a relay.
async fn open_page(pace: &str, window: Window) -> (Example, Relay, Jobs) {
    let (server, relay, page) = Page::open_example("jobs", &[pace], window, SOON).await;
    (server, relay, Jobs(page))
}

struct Jobs(Page);

impl Deref for Jobs {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.0
    }
}

impl Jobs {
    /// Starts a job with the form, and returns its id from the URL of the page.
    async fn start(&self, name: &str, fails: bool) -> String {
        let before = self.eval("ids()").await;
        let field = self.client().find(Locator::Css("[name=name]")).await.expect("the page has a field for the name");
        field.clear().await.expect("the field is editable");
        field.send_keys(name).await.expect("the field is editable");
        if fails {
            self.click("[name=fails]").await;
        }
        self.click("form button").await;
        eventually(SOON, "the URL contains the id of the job", async || {
            let ids = self.eval("ids()").await;
            if ids == before {
                Err(self.text("#note").await)
            } else {
                Ok(ids[0].as_str().expect("a string").to_owned())
            }
        })
        .await
    }

    async fn cancel(&self, id: &str) {
        self.eval(&format!("jobs.get({}).card.querySelector('button').click()", json!(id))).await;
    }

    /// Returns the text of an element in the card of a job.
    async fn job_text(&self, id: &str, selector: &str) -> String {
        let card = format!("jobs.get({})?.card", json!(id));
        self.eval_text(&format!("{card}.querySelector({}).textContent", json!(selector))).await
    }

    /// Waits until a job has done this many steps, and returns the number that its bar shows.
    async fn wait_for_steps(&self, id: &str, steps: u64) -> u64 {
        let bar = format!("jobs.get({})?.card.querySelector('progress').value", json!(id));
        eventually(JOB_TIMEOUT, &format!("the page shows {steps} steps"), async || {
            let shown = self.eval(&bar).await;
            shown.as_f64().map(|shown| shown as u64).filter(|shown| *shown >= steps).ok_or(shown)
        })
        .await
    }

    async fn wait_for_end(&self, id: &str, state: &str, message: &str) {
        eventually(JOB_TIMEOUT, &format!("the page shows {state}: {message}"), async || {
            let shown = (self.job_text(id, ".state").await, self.job_text(id, ".message").await);
            if shown.0 == state && shown.1 == message { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    async fn number(&self, selector: &str) -> u64 {
        self.text(selector).await.parse().expect("a number")
    }

    /// Returns the number of events that report an end.
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

/// Requests the status of a job, as a client that polls.
async fn status_of(server: SocketAddr, id: &str) -> Value {
    let response = request(server, &format!("GET /jobs/{id} HTTP/1.0\r\n\r\n")).await;
    let (head, body) = response.split_once("\r\n\r\n").expect("a response has a head");
    assert!(head.starts_with("HTTP/1.0 200 "), "{response}");
    serde_json::from_str(body).expect("the body is JSON")
}

/// Starts a job, and returns its id. Returns the response if the server rejects the job.
async fn start(server: SocketAddr, name: &str) -> Result<String, String> {
    create(server, "/jobs", &json!({ "name": name }), 202).await
}
