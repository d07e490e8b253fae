//! A page that records the events of its `EventSource`s.

use axum::response::Html;
use e2e::{Browser, Engine, Message, eventually};
use serde_json::{Value, json};
use std::time::Duration;

/// Much longer than any expected event takes.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// The variables for tests are properties of `window`. In Firefox, WebDriver scripts cannot see a
/// `const` of the page.
const HTML: &str = "<!doctype html><meta charset=utf-8><link rel=icon href=data:,><script>
    window.sources = {};
    window.received = {};
    // Records `message` events, and events of these other types, in a list for this name.
    function listen(name, url, types, init) {
        const source = sources[name] = new EventSource(url, init);
        const messages = received[name] = [];
        const record = (event) => messages.push({ type: event.type, id: event.lastEventId, data: event.data });
        for (const type of ['message', ...types]) source.addEventListener(type, record);
    }
    // The text of a response. The name of an error, or `the end`, follows it.
    window.answer = { text: '' };
    function ask(url, question) {
        window.question = new AbortController();
        const read = async () => {
            const response = await fetch(url, { method: 'POST', body: question, signal: window.question.signal });
            const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
            for (let part; !(part = await reader.read()).done;) answer.text += part.value;
        };
        answer.text = '';
        read().then(() => answer.text += 'the end', (error) => answer.text += error.name);
    }
</script>";

/// Serves the page.
pub(crate) async fn html() -> Html<&'static str> {
    Html(HTML)
}

/// The page in a browser.
pub(crate) struct Page {
    browser: Browser,
}

impl Page {
    /// Starts the browser and opens the page.
    pub(crate) async fn open(engine: Engine, url: &str) -> Self {
        let page = Self { browser: Browser::start_engine(engine).await };
        page.go_to(url).await;
        page
    }

    pub(crate) async fn go_to(&self, url: &str) {
        self.browser.client().goto(url).await.unwrap_or_else(|error| panic!("{url} does not load: {error}"));
    }

    pub(crate) async fn eval(&self, expression: &str) -> Value {
        self.browser.eval(expression).await
    }

    /// Opens an `EventSource` with this name, and listens to `message` and to these event types.
    pub(crate) async fn listen(&self, name: &str, url: &str, types: &[&str]) {
        self.listen_with(name, url, types, json!({})).await;
    }

    /// Opens an `EventSource` with this second argument of its constructor.
    pub(crate) async fn listen_with(&self, name: &str, url: &str, types: &[&str], init: Value) {
        self.eval(&format!("listen({}, {}, {}, {init})", json!(name), json!(url), json!(types))).await;
    }

    pub(crate) async fn close(&self, name: &str) {
        self.eval(&format!("sources[{}].close()", json!(name))).await;
    }

    /// Returns the events that the `EventSource` has dispatched until now.
    pub(crate) async fn received(&self, name: &str) -> Vec<Message> {
        Message::all_from_page(&self.eval(&format!("received[{}]", json!(name))).await)
    }

    /// Waits for enough events, and returns all dispatched events.
    pub(crate) async fn wait_for_events(
        &self,
        name: &str,
        what: &str,
        is_enough: impl Fn(&[Message]) -> bool,
    ) -> Vec<Message> {
        eventually(SOON, &format!("{name} dispatches {what}"), async || {
            let received = self.received(name).await;
            if is_enough(&received) { Ok(received) } else { Err(received) }
        })
        .await
    }

    /// Returns the `readyState`: `CONNECTING`, `OPEN` or `CLOSED`.
    pub(crate) async fn ready_state(&self, name: &str) -> &'static str {
        let state = self.eval(&format!("sources[{}].readyState", json!(name))).await;
        let state = state.as_u64().and_then(|state| ["CONNECTING", "OPEN", "CLOSED"].get(state as usize).copied());
        state.expect("there are three states")
    }

    /// Waits until the `EventSource` has this `readyState`.
    pub(crate) async fn wait_for_ready_state(&self, name: &str, state: &str) {
        eventually(SOON, &format!("{name} is {state}"), async || {
            let current = self.ready_state(name).await;
            if current == state { Ok(()) } else { Err(current) }
        })
        .await;
    }
}

/// Creates a message to compare with.
pub(crate) fn message(kind: &str, id: &str, data: &str) -> Message {
    Message { kind: kind.to_owned(), id: id.to_owned(), data: data.to_owned() }
}
