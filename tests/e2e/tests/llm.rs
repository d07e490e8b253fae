//! The answer of a language model in a real browser: what becomes of it when its readers reload, get lost, or go away.

use e2e::{Browser, Example, Relay, Window, create, eventually, request, request_until, stays};
use fantoccini::Locator;
use serde_json::json;
use std::{collections::HashSet, net::SocketAddr, time::Duration};
use tokio::time::{sleep, timeout};

/// Milliseconds between two words: the whole answer takes some ten seconds.
const PACE: &str = "50";
/// What the server tells the browser to wait before it reconnects.
const RETRY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// By then an answer is written, on a machine that has much else to do.
const TO_THE_END: Duration = Duration::from_secs(40);
/// How long an answer is written to which nobody listens, where a test waits for that.
const PATIENCE: Duration = Duration::from_secs(1);

const PROMPT: &str = "Why <img src=x onerror=alert(1)> & <b>not</b>  \"two spaces\"?";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_reloaded_shows_the_same_answer_from_its_first_word_and_goes_on() {
    let (server, relay, page) = open_page(&[PACE], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    let before = page.shows_tokens(20).await;
    assert_eq!(page.state().await, "writing");

    page.browser.client().refresh().await.expect("the page is there");
    let after = page.shows_tokens(40).await;
    assert!(after.starts_with(&before), "{after:?} goes on from {before:?}");
    assert_eq!(page.text("#prompt").await, PROMPT);

    page.is_in_state("done").await;
    let answer = read_to_its_end(server.address(), &id).await;
    assert_eq!(page.text("#answer").await, answer.text());
    assert_eq!(page.text("#tokens").await, answer.ids.len().to_string());
    assert_eq!(page.browser.eval("document.querySelector('section').querySelectorAll('img, b').length").await, 0);

    let asked = relay.event_sources();
    assert_eq!(asked.len(), 2, "once by each page: {asked:?}");
    assert!(asked.iter().all(|head| head.target() == format!("/answers/{id}")), "{asked:?}");
    assert!(asked.iter().all(|head| head.header("last-event-id").is_none()), "{asked:?}");

    page.browser.client().refresh().await.expect("the page is there");
    page.is_in_state("done").await;
    assert_eq!(page.text("#answer").await, answer.text(), "it can be read again when it is complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_lost_connections_the_answer_is_whole_and_nothing_in_it_is_doubled() {
    let (server, relay, page) = open_page(&[PACE], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    let mut lost_after = Vec::new();
    // The second time until the answer is complete: its rest and its end are then all that is left to be had.
    for misses_the_end in [false, true] {
        page.shows_tokens(20 + lost_after.last().copied().unwrap_or(0)).await;
        relay.cut();
        page.is_in_state("reconnecting").await;
        let shown = page.text("#answer").await;
        let tokens = page.tokens().await;
        if misses_the_end {
            read_to_its_end(server.address(), &id).await;
        } else {
            read(server.address(), &id, |answer| answer.ids.len() >= tokens + 20).await;
        }
        assert_eq!(page.text("#answer").await, shown, "the connection is cut");
        relay.mend();
        lost_after.push(tokens);
    }

    page.is_in_state("done").await;
    let answer = read_to_its_end(server.address(), &id).await;
    assert_eq!(page.text("#answer").await, answer.text());
    assert_eq!(page.text("#tokens").await, answer.ids.len().to_string());
    let sent: Vec<_> =
        relay.event_sources().iter().map(|head| head.header("last-event-id").map(str::to_owned)).collect();
    let expected: Vec<_> = lost_after.iter().map(|tokens| Some(answer.ids[tokens - 1].clone())).collect();
    assert_eq!(sent[0], None);
    assert_eq!(sent[1..], expected, "it comes back with the last id that it has got, and no more often");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_follow_one_answer_and_end_with_the_same_text() {
    let (server, _relay, page) = open_page(&[PACE], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    page.shows_tokens(10).await;

    let client = page.browser.client();
    let first = client.window().await.expect("it has a window");
    let link = client.find(Locator::Css("#again")).await.expect("the page has a link to the answer");
    link.click().await.expect("the link can be followed");
    let second = eventually(SOON, "there is another tab", async || {
        let tabs = client.windows().await.expect("Chromium lists them");
        tabs.into_iter().find(|tab| *tab != first).ok_or("only one")
    })
    .await;

    client.switch_to_window(second).await.expect("it is there");
    page.shows_tokens(20).await;
    assert_eq!(page.text("#prompt").await, PROMPT);
    page.is_in_state("done").await;
    let in_the_second = page.text("#answer").await;
    client.switch_to_window(first).await.expect("it is there");
    page.is_in_state("done").await;

    let answer = read_to_its_end(server.address(), &id).await;
    assert_eq!(page.text("#answer").await, answer.text());
    assert_eq!(in_the_second, answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_answer_is_complete_the_page_stays_away_and_who_comes_back_is_told_to() {
    let (server, relay, page) = open_page(&["2"], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    page.is_in_state("done").await;
    // An EventSource that was still open would reconnect now.
    relay.cut();
    relay.mend();
    let seen = async || (relay.connections(), relay.heads().len(), relay.bytes_to_browser(), page.state().await);
    stays(3 * RETRY, "nothing is asked for", seen).await;

    let answer = read_to_its_end(server.address(), &id).await;
    let last = format!("GET /answers/{id} HTTP/1.0\r\nLast-Event-ID: {}\r\n\r\n", answer.last_id);
    let response = request(server.address(), &last).await;
    assert!(response.starts_with("HTTP/1.0 204 "), "{response}");
    let from_the_middle = format!("GET /answers/{id} HTTP/1.0\r\nLast-Event-ID: {}\r\n\r\n", answer.ids[99]);
    let rest = Answer::of(&request(server.address(), &from_the_middle).await);
    assert_eq!(rest.ids, answer.ids[100..]);
    assert_eq!(rest.end, Some(("done".into(), "[DONE]".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_listens_to_ends_and_one_that_somebody_does_goes_on() {
    let (server, _relay, page) = open_page(&["100", "1"], Window::Desktop).await;
    let id = page.ask(PROMPT).await;
    page.shows_tokens(50).await;
    assert_eq!(page.state().await, "writing", "after some five times as long");

    page.browser.client().goto("about:blank").await.expect("there is such a page");
    let answer = ended_unheard(server.address(), &id).await;
    assert_eq!(answer.end.as_ref().map(|(kind, _)| &**kind), Some("abandoned"));

    page.browser.client().back().await.expect("the page is there");
    page.is_in_state("abandoned").await;
    assert_eq!(page.text("#answer").await, answer.text());
    assert!(page.text("#note").await.contains("nobody was listening"));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_answers_than_are_written_at_once_are_refused_until_some_were_abandoned() {
    let server = Example::start("llm", &["10000", "1"]);
    let mut answers = Vec::new();
    let refusal = loop {
        assert!(answers.len() < 100, "there is a limit");
        match ask(server.address(), PROMPT).await {
            Ok(id) => answers.push(id),
            Err(response) => break response,
        }
    };
    assert!(refusal.starts_with("HTTP/1.0 503 ") && refusal.contains("which is the limit"), "{refusal}");
    assert!(answers.iter().all(|id| id.len() == 32), "{answers:?}");
    assert_eq!(answers.iter().collect::<HashSet<_>>().len(), answers.len(), "each has an id of its own: {answers:?}");

    eventually(SOON, "there is room again", async || ask(server.address(), PROMPT).await).await;
    let answer = ended_unheard(server.address(), &answers[0]).await;
    assert_eq!(answer.end, Some(("abandoned".into(), "Nobody was listening".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_exist_and_a_prompt_that_cannot_be_are_told_as_such() {
    let (server, relay, page) = open_page(&[PACE], Window::Desktop).await;
    let made_up = "0123456789abcdef0123456789abcdef";
    let response = request(server.address(), &format!("GET /answers/{made_up} HTTP/1.0\r\n\r\n")).await;
    assert!(response.starts_with("HTTP/1.0 404 ") && response.contains("There is no such answer"), "{response}");

    page.browser.client().goto(&format!("http://{}/#{made_up}", relay.address())).await.expect("the page is there");
    page.is_in_state("gone").await;
    eventually(SOON, "the page says why", async || match page.text("#note").await {
        note if note.contains("There is no such answer") => Ok(()),
        note => Err(note),
    })
    .await;
    stays(3 * RETRY, "it does not ask again", async || relay.heads().len()).await;

    for (prompt, length) in [("", 0), (" \n ", 0), (&*"long ".repeat(401), 2004)] {
        let response = ask(server.address(), prompt).await.expect_err("it is refused");
        assert!(response.starts_with("HTTP/1.0 400 "), "{response}");
        assert!(response.ends_with(&format!("1 to 2000 characters, and this one has {length}")), "{response}");
    }
    let link = page.browser.client().find(Locator::Css("a[href='#']")).await.expect("the page has a way back");
    link.click().await.expect("the link can be followed");
    page.submit("   ").await;
    eventually(SOON, "the page says what is wrong with the prompt", async || match page.text("#problem").await {
        problem if problem.contains("1 to 2000 characters") => Ok(()),
        problem => Err(problem),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_into_the_width_of_a_phone_and_of_a_desk() {
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let (_server, _relay, page) = open_page(&["2"], window).await;
        page.browser.fits("llm-form", window).await;
        page.ask(&format!("{PROMPT} {}", "unbroken".repeat(30))).await;
        page.is_in_state("done").await;
        page.browser.fits("llm", window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_shows_an_answer_that_goes_on_after_a_lost_connection() {
    let (server, relay, page) = open_page(&[PACE], Window::Desktop).await;
    let id = page.ask("What happens to an answer when its reader is gone?").await;
    page.shows_tokens(20).await;
    relay.cut();
    page.is_in_state("reconnecting").await;
    let tokens = page.tokens().await;
    read(server.address(), &id, |answer| answer.ids.len() >= tokens + 20).await;
    relay.mend();
    page.is_in_state("writing").await;
    page.shows_tokens(100).await;
    page.browser.screenshot("llm").await;
}

/// The page of a new server, seen through a relay.
async fn open_page(args: &[&str], window: Window) -> (Example, Relay, Page) {
    let server = Example::start("llm", args);
    let relay = Relay::to(server.address()).await.expect("there is a free port");
    let page = Page { browser: Browser::start(window).await };
    page.browser.client().goto(&format!("http://{}/", relay.address())).await.expect("the page is there");
    (server, relay, page)
}

struct Page {
    browser: Browser,
}

impl Page {
    async fn submit(&self, prompt: &str) {
        let client = self.browser.client();
        let field = client.find(Locator::Css("textarea")).await.expect("the page has a field");
        field.send_keys(prompt).await.expect("one can write there");
        let button = client.find(Locator::Css("button")).await.expect("the page has a button");
        button.click().await.expect("the button can be pressed");
    }

    /// Asks, and returns the id that the answer then has in the address of the page.
    async fn ask(&self, prompt: &str) -> String {
        self.submit(prompt).await;
        eventually(SOON, "the answer has an address", async || {
            let hash = self.browser.eval("location.hash").await;
            let id = hash.as_str().unwrap_or_default().trim_start_matches('#');
            if id.is_empty() { Err(self.text("#problem").await) } else { Ok(id.to_owned()) }
        })
        .await
    }

    async fn text(&self, selector: &str) -> String {
        let text = self.browser.eval(&format!("document.querySelector({}).textContent", json!(selector))).await;
        text.as_str().expect("an element has text").to_owned()
    }

    async fn state(&self) -> String {
        self.text("#state").await
    }

    async fn tokens(&self) -> usize {
        self.text("#tokens").await.parse().expect("a number")
    }

    async fn is_in_state(&self, state: &str) {
        eventually(TO_THE_END, &format!("the page says {state:?}"), async || {
            let said = self.state().await;
            if said == state { Ok(()) } else { Err(said) }
        })
        .await;
    }

    /// Waits for so many tokens, and returns the text.
    async fn shows_tokens(&self, count: usize) -> String {
        eventually(SOON, &format!("the page shows {count} tokens"), async || match self.tokens().await {
            tokens if tokens >= count => Ok(self.text("#answer").await),
            tokens => Err(tokens),
        })
        .await
    }
}

/// An answer as it is on the wire, read apart from the library: lines end in LF, data is one line.
#[derive(Debug, Default)]
struct Answer {
    tokens: Vec<String>,
    /// Of the tokens.
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

/// Reads an answer from its beginning, as far as it is enough.
async fn read(server: SocketAddr, id: &str, is_enough: impl Fn(&Answer) -> bool) -> Answer {
    let request = format!("GET /answers/{id} HTTP/1.0\r\n\r\n");
    let answer = Answer::of(&request_until(server, &request, |response| is_enough(&Answer::of(response))).await);
    assert!(is_enough(&answer), "it ended before: {answer:?}");
    answer
}

/// Reads an answer from its beginning until the server has nothing more to send.
async fn read_to_its_end(server: SocketAddr, id: &str) -> Answer {
    let answer = Answer::of(&request(server, &format!("GET /answers/{id} HTTP/1.0\r\n\r\n")).await);
    assert!(answer.end.is_some(), "the last event says so: {answer:?}");
    answer
}

/// Reads an answer when it has ended because nobody was listening.
async fn ended_unheard(server: SocketAddr, id: &str) -> Answer {
    eventually(SOON, "it has ended while nobody looked", async || {
        // To look is to listen, so before each look there is a time without one.
        sleep(2 * PATIENCE).await;
        timeout(PATIENCE, read_to_its_end(server, id)).await
    })
    .await
}

/// Begins an answer and returns its id; the response if there is none.
async fn ask(server: SocketAddr, prompt: &str) -> Result<String, String> {
    create(server, "/answers", &json!({ "prompt": prompt }), 201).await
}
