//! A page that keeps what its `EventSource`s tell it.

use axum::response::Html;
use e2e::{Browser, Engine, Message, eventually};
use serde_json::{Value, json};
use std::time::Duration;

/// Far longer than anything takes that does happen.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// What is looked at from outside are properties of the window: in Firefox, scripts from outside see no `const` of the page.
const HTML: &str = "<!doctype html><meta charset=utf-8><link rel=icon href=data:,><script>
    window.sources = {};
    window.told = {};
    // What it is told goes into a list of its own: messages, and events of the other types that are named.
    function listen(name, url, types, init) {
        const source = sources[name] = new EventSource(url, init);
        const messages = told[name] = [];
        const tell = (event) => messages.push({ type: event.type, id: event.lastEventId, data: event.data });
        for (const type of ['message', ...types]) source.addEventListener(type, tell);
    }
    // The text of an answer, up to its end, or to an error and its name.
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

/// The page itself, for the application under test to serve.
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
        let page = Self { browser: Browser::of(engine).await };
        page.go_to(url).await;
        page
    }

    pub(crate) async fn go_to(&self, url: &str) {
        self.browser.client().goto(url).await.unwrap_or_else(|error| panic!("{url} is not there: {error}"));
    }

    pub(crate) async fn eval(&self, expression: &str) -> Value {
        self.browser.eval(expression).await
    }

    /// Opens an `EventSource` of this name, and listens to messages and to events of these types.
    pub(crate) async fn listen(&self, name: &str, url: &str, types: &[&str]) {
        self.listen_with(name, url, types, json!({})).await;
    }

    /// The same, with what the constructor takes beside the URL.
    pub(crate) async fn listen_with(&self, name: &str, url: &str, types: &[&str], init: Value) {
        self.eval(&format!("listen({}, {}, {}, {init})", json!(name), json!(url), json!(types))).await;
    }

    pub(crate) async fn close(&self, name: &str) {
        self.eval(&format!("sources[{}].close()", json!(name))).await;
    }

    /// What it was told so far.
    pub(crate) async fn told(&self, name: &str) -> Vec<Message> {
        let told = self.eval(&format!("told[{}]", json!(name))).await;
        let told = told.as_array().expect("the page keeps it in an array");
        told.iter().map(|value| Message::from_page(value).expect("each has an id, a type and data")).collect()
    }

    /// Waits until it was told enough.
    pub(crate) async fn is_told(&self, name: &str, what: &str, is_enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        eventually(SOON, &format!("{name} is told {what}"), async || {
            let told = self.told(name).await;
            if is_enough(&told) { Ok(told) } else { Err(told) }
        })
        .await
    }

    /// `CONNECTING`, `OPEN` or `CLOSED`.
    pub(crate) async fn state(&self, name: &str) -> &'static str {
        let state = self.eval(&format!("sources[{}].readyState", json!(name))).await;
        let state = state.as_u64().and_then(|state| ["CONNECTING", "OPEN", "CLOSED"].get(state as usize).copied());
        state.expect("there are three states")
    }

    /// Waits until it is in this state.
    pub(crate) async fn becomes(&self, name: &str, state: &str) {
        eventually(SOON, &format!("{name} is {state}"), async || {
            let is = self.state(name).await;
            if is == state { Ok(()) } else { Err(is) }
        })
        .await;
    }
}

/// As the page tells it.
pub(crate) fn message(kind: &str, id: &str, data: &str) -> Message {
    Message { kind: kind.to_owned(), id: id.to_owned(), data: data.to_owned() }
}
