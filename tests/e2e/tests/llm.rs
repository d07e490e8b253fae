//! The `llm` example in Chromium: an answer survives reloads and lost connections, and stops
//! without a reader.

use e2e::{Example, Page, Relay, Window, create, eventually, request, request_until, stays};
use fantoccini::Locator;
use serde_json::json;
use std::{collections::HashSet, net::SocketAddr, ops::Deref, time::Duration};
use tokio::time::{sleep, timeout};

/// Milliseconds between two words: the whole answer takes about ten seconds.
const PACE: &str = "50";
/// The reconnection time that the server sets.
const RETRY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// Longer than any answer takes, also on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// The time without a reader after which the server abandons an answer, in some tests.
const PATIENCE: Duration = Duration::from_secs(1);

const PROMPT: &str = "Why <img src=x onerror=alert(1)> & <b>not</b>  \"two spaces\"?";

#[tokio::test(flavor = "multi_thread")]
async fn reloaded_page_shows_the_whole_answer_and_continues() {
    let (server, relay, page) = open_page(&[PACE], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    let before = page.wait_for_tokens(20).await;
    assert_eq!(page.text("#state").await, "writing");

    page.reload().await;
    let after = page.wait_for_tokens(40).await;
    assert!(after.starts_with(&before), "{after:?} does not continue {before:?}");
    assert_eq!(page.text("#prompt").await, PROMPT);

    page.wait_for_state("done").await;
    let answer = read_to_end(server.address(), &id).await;
    assert_eq!(page.text("#answer").await, answer.text());
    assert_eq!(page.text("#tokens").await, answer.ids.len().to_string());
    assert_eq!(page.eval("document.querySelector('section').querySelectorAll('img, b').length").await, 0);

    let requests = relay.event_sources();
    assert_eq!(requests.len(), 2, "one request of each page: {requests:?}");
    assert!(requests.iter().all(|head| head.target() == format!("/answers/{id}")), "{requests:?}");
    assert!(requests.iter().all(|head| head.header("last-event-id").is_none()), "{requests:?}");

    page.reload().await;
    page.wait_for_state("done").await;
    assert_eq!(page.text("#answer").await, answer.text(), "a complete answer can be read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_neither_drop_nor_repeat_tokens() {
    let (server, relay, page) = open_page(&[PACE], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    let mut lost_after = Vec::new();
    // The second time, the connection is lost until the answer is complete. Only its rest is left
    // to send.
    for misses_the_end in [false, true] {
        page.wait_for_tokens(20 + lost_after.last().copied().unwrap_or(0)).await;
        relay.cut();
        page.wait_for_state("reconnecting").await;
        let shown = page.text("#answer").await;
        let tokens = page.tokens().await;
        if misses_the_end {
            read_to_end(server.address(), &id).await;
        } else {
            read(server.address(), &id, |answer| answer.ids.len() >= tokens + 20).await;
        }
        assert_eq!(page.text("#answer").await, shown, "nothing passes a cut connection");
        relay.mend();
        lost_after.push(tokens);
    }

    page.wait_for_state("done").await;
    let answer = read_to_end(server.address(), &id).await;
    assert_eq!(page.text("#answer").await, answer.text());
    assert_eq!(page.text("#tokens").await, answer.ids.len().to_string());
    let sent: Vec<_> =
        relay.event_sources().iter().map(|head| head.header("last-event-id").map(str::to_owned)).collect();
    let expected: Vec<_> = lost_after.iter().map(|tokens| Some(answer.ids[tokens - 1].clone())).collect();
    assert_eq!(sent[0], None);
    assert_eq!(sent[1..], expected, "it reconnects twice, with the last id");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_show_the_same_answer() {
    let (server, _relay, page) = open_page(&[PACE], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    page.wait_for_tokens(10).await;

    let client = page.client();
    let first = client.window().await.expect("there is a tab");
    page.click("#again").await;
    let second = eventually(SOON, "a second tab is open", async || {
        let tabs = client.windows().await.expect("Chromium lists them");
        tabs.into_iter().find(|tab| *tab != first).ok_or("one tab")
    })
    .await;

    client.switch_to_window(second).await.expect("the tab is open");
    page.wait_for_tokens(20).await;
    assert_eq!(page.text("#prompt").await, PROMPT);
    page.wait_for_state("done").await;
    let in_second = page.text("#answer").await;
    client.switch_to_window(first).await.expect("the tab is open");
    page.wait_for_state("done").await;

    let answer = read_to_end(server.address(), &id).await;
    assert_eq!(page.text("#answer").await, answer.text());
    assert_eq!(in_second, answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_answer_ends_reconnections_with_204() {
    let (server, relay, page) = open_page(&["2"], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    page.wait_for_state("done").await;
    // An open EventSource would reconnect now.
    relay.cut();
    relay.mend();
    let seen = async || (relay.connections(), relay.heads().len(), relay.bytes_to_browser(), page.text("#state").await);
    stays(3 * RETRY, "the page sends no request", seen).await;

    let answer = read_to_end(server.address(), &id).await;
    let last = format!("GET /answers/{id} HTTP/1.0\r\nLast-Event-ID: {}\r\n\r\n", answer.last_id);
    let response = request(server.address(), &last).await;
    assert!(response.starts_with("HTTP/1.0 204 "), "{response}");
    let from_the_middle = format!("GET /answers/{id} HTTP/1.0\r\nLast-Event-ID: {}\r\n\r\n", answer.ids[99]);
    let rest = Answer::of(&request(server.address(), &from_the_middle).await);
    assert_eq!(rest.ids, answer.ids[100..]);
    assert_eq!(rest.end, Some(("done".into(), "[DONE]".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_stops_only_without_a_reader() {
    let (server, _relay, page) = open_page(&["100", "1"], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    page.wait_for_tokens(50).await;
    assert_eq!(page.text("#state").await, "writing", "after five times that time");

    page.client().goto("about:blank").await.expect("the page loads");
    let answer = wait_for_abandoned(server.address(), &id).await;
    assert_eq!(answer.end.as_ref().map(|(kind, _)| &**kind), Some("abandoned"));

    page.client().back().await.expect("the page loads");
    page.wait_for_state("abandoned").await;
    assert_eq!(page.text("#answer").await, answer.text());
    assert!(page.text("#note").await.contains("no client was reading"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_the_limit_get_503() {
    let server = Example::start("llm", &["10000", "1"]);
    let mut answers = Vec::new();
    let rejection = loop {
        assert!(answers.len() < 100, "the server has no limit");
        match ask(server.address(), PROMPT).await {
            Ok(id) => answers.push(id),
            Err(response) => break response,
        }
    };
    assert!(rejection.starts_with("HTTP/1.0 503 ") && rejection.contains("which is the limit"), "{rejection}");
    assert!(answers.iter().all(|id| id.len() == 32), "{answers:?}");
    assert_eq!(answers.iter().collect::<HashSet<_>>().len(), answers.len(), "each answer has its own id: {answers:?}");

    eventually(SOON, "an abandoned answer releases its permit", async || ask(server.address(), PROMPT).await).await;
    let answer = wait_for_abandoned(server.address(), &answers[0]).await;
    assert_eq!(answer.end, Some(("abandoned".into(), "No client was reading".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_answers_get_404_and_invalid_prompts_400() {
    let (server, relay, page) = open_page(&[PACE], Window::Desktop).await;
    let made_up = "0123456789abcdef0123456789abcdef";
    let response = request(server.address(), &format!("GET /answers/{made_up} HTTP/1.0\r\n\r\n")).await;
    assert!(response.starts_with("HTTP/1.0 404 ") && response.contains("There is no such answer"), "{response}");

    page.go_to(&format!("/#{made_up}")).await;
    page.wait_for_state("gone").await;
    eventually(SOON, "the page shows the reason", async || match page.text("#note").await {
        note if note.contains("There is no such answer") => Ok(()),
        note => Err(note),
    })
    .await;
    stays(3 * RETRY, "the page sends no request", async || relay.heads().len()).await;

    for (prompt, length) in [("", 0), (" \n ", 0), (&*"long ".repeat(401), 2004)] {
        let response = ask(server.address(), prompt).await.expect_err("the prompt is invalid");
        assert!(response.starts_with("HTTP/1.0 400 "), "{response}");
        assert!(response.ends_with(&format!("1 to 2000 characters, but this one has {length}")), "{response}");
    }
    page.click("a[href='#']").await;
    page.submit("   ").await;
    eventually(SOON, "the page shows the error of the prompt", async || match page.text("#problem").await {
        problem if problem.contains("1 to 2000 characters") => Ok(()),
        problem => Err(problem),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_fits_phone_and_desktop() {
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let (_server, _relay, page) = open_page(&["2"], window).await;
        page.browser().assert_fits("llm-form", window).await;
        page.ask(&format!("{PROMPT} {}", "unbroken".repeat(30))).await;
        page.wait_for_state("done").await;
        page.browser().assert_fits("llm", window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn screenshot_shows_an_answer_after_a_reconnection() {
    let (server, relay, page) = open_page(&[PACE], Window::Desktop).await;
    let id = page.ask("What happens to an answer when its reader disconnects?").await;
    page.wait_for_tokens(20).await;
    relay.cut();
    page.wait_for_state("reconnecting").await;
    let tokens = page.tokens().await;
    read(server.address(), &id, |answer| answer.ids.len() >= tokens + 20).await;
    relay.mend();
    page.wait_for_state("writing").await;
    page.wait_for_tokens(100).await;
    page.browser().screenshot("llm").await;
}

/// Starts the example, and opens its page through a relay.
async fn open_page(arguments: &[&str], window: Window) -> (Example, Relay, Llm) {
    let (server, relay, page) = Page::open_example("llm", arguments, window, ANSWER_TIMEOUT).await;
    (server, relay, Llm(page))
}

struct Llm(Page);

impl Deref for Llm {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.0
    }
}

impl Llm {
    async fn submit(&self, prompt: &str) {
        let field = self.client().find(Locator::Css("textarea")).await.expect("the page has a field for the prompt");
        field.send_keys(prompt).await.expect("the field is editable");
        self.click("button").await;
    }

    /// Submits a prompt, and returns the id of the answer from the URL of the page.
    async fn ask(&self, prompt: &str) -> String {
        self.submit(prompt).await;
        eventually(SOON, "the URL contains the id of the answer", async || {
            let hash = self.eval("location.hash").await;
            let id = hash.as_str().unwrap_or_default().trim_start_matches('#');
            if id.is_empty() { Err(self.text("#problem").await) } else { Ok(id.to_owned()) }
        })
        .await
    }

    async fn tokens(&self) -> usize {
        self.text("#tokens").await.parse().expect("a number")
    }

    /// Waits until the page has received this many tokens, and returns the text of the answer.
    async fn wait_for_tokens(&self, count: usize) -> String {
        eventually(SOON, &format!("the page shows {count} tokens"), async || match self.tokens().await {
            tokens if tokens >= count => Ok(self.text("#answer").await),
            tokens => Err(tokens),
        })
        .await
    }
}

/// An answer, parsed from the wire independently of the library. Lines end in LF, and data is one
/// line.
#[derive(Debug, Default)]
struct Answer {
    tokens: Vec<String>,
    /// The ids of the tokens.
    ids: Vec<String>,
    /// The type and the data of the last event.
    end: Option<(String, String)>,
    last_id: String,
}

impl Answer {
    fn of(response: &str) -> Self {
        let mut answer = Self::default();
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
        assert!(head.is_empty() || head.starts_with("HTTP/1.0 200 "), "{response}");
        let (whole, _) = body.rsplit_once("\n\n").unwrap_or_default();
        for event in whole.split("\n\n") {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            let (Some(id), Some(data)) = (field("id: "), field("data: ")) else { continue };
            id.clone_into(&mut answer.last_id);
            match field("event: ") {
                None => {
                    answer.tokens.push(serde_json::from_str(data).expect("a token is a JSON string"));
                    answer.ids.push(id.to_owned());
                }
                Some("prompt") => {}
                Some(kind) => answer.end = Some((kind.to_owned(), data.to_owned())),
            }
        }
        answer
    }

    fn text(&self) -> String {
        self.tokens.concat()
    }
}

/// Reads an answer from its start, until `is_enough` returns true.
async fn read(server: SocketAddr, id: &str, is_enough: impl Fn(&Answer) -> bool) -> Answer {
    let request = format!("GET /answers/{id} HTTP/1.0\r\n\r\n");
    let answer = Answer::of(&request_until(server, &request, |response| is_enough(&Answer::of(response))).await);
    assert!(is_enough(&answer), "the answer ended early: {answer:?}");
    answer
}

/// Reads an answer from its start to its end.
async fn read_to_end(server: SocketAddr, id: &str) -> Answer {
    let answer = Answer::of(&request(server, &format!("GET /answers/{id} HTTP/1.0\r\n\r\n")).await);
    assert!(answer.end.is_some(), "the last event reports the end: {answer:?}");
    answer
}

/// Waits until the server has abandoned an answer, and returns it.
async fn wait_for_abandoned(server: SocketAddr, id: &str) -> Answer {
    eventually(SOON, "the answer has ended without a reader", async || {
        // Reading counts as a reader. So wait without reading before each attempt.
        sleep(2 * PATIENCE).await;
        timeout(PATIENCE, read_to_end(server, id)).await
    })
    .await
}

/// Starts an answer, and returns its id. Returns the response if the server rejects the prompt.
async fn ask(server: SocketAddr, prompt: &str) -> Result<String, String> {
    create(server, "/answers", &json!({ "prompt": prompt }), 201).await
}
