//! The page of an example in a browser.

use crate::{
    browser::{Browser, Window},
    example::Example,
    http::Message,
    relay::Relay,
    wait::eventually,
};
use fantoccini::{Client, Locator};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};

/// A page in a browser. Every page of the examples has an element `#state`.
#[derive(Debug)]
pub struct Page {
    browser: Browser,
    address: SocketAddr,
    timeout: Duration,
}

impl Page {
    /// Opens the page of a server. `timeout` is the limit for [`wait_for`](Self::wait_for).
    ///
    /// # Panics
    ///
    /// If the page does not load.
    pub async fn open(browser: Browser, address: SocketAddr, timeout: Duration) -> Self {
        Self::open_path(browser, address, "/", timeout).await
    }

    /// Opens a path of a server.
    ///
    /// # Panics
    ///
    /// If the path does not load.
    pub async fn open_path(browser: Browser, address: SocketAddr, path: &str, timeout: Duration) -> Self {
        let page = Self { browser, address, timeout };
        page.go_to(path).await;
        page
    }

    /// Starts an example, and opens its page in Chromium through a relay.
    ///
    /// # Panics
    ///
    /// If the example or the browser does not start, or the page does not load.
    pub async fn open_example(
        name: &str,
        arguments: &[&str],
        window: Window,
        timeout: Duration,
    ) -> (Example, Relay, Self) {
        let server = Example::start(name, arguments);
        let relay = Relay::to(server.address()).await.expect("there is a free port");
        let page = Self::open(Browser::start(window).await, relay.address(), timeout).await;
        (server, relay, page)
    }

    /// Loads a path of the server.
    ///
    /// # Panics
    ///
    /// If the path does not load.
    pub async fn go_to(&self, path: &str) {
        self.client().goto(&format!("http://{}{path}", self.address)).await.expect("the page loads");
    }

    /// Loads the page again.
    ///
    /// # Panics
    ///
    /// If the page does not load.
    pub async fn reload(&self) {
        self.client().refresh().await.expect("the page loads");
    }

    /// Returns the browser.
    pub fn browser(&self) -> &Browser {
        &self.browser
    }

    /// Returns the WebDriver client.
    pub fn client(&self) -> &Client {
        self.browser.client()
    }

    /// Evaluates a JavaScript expression in the page. Awaits a promise.
    ///
    /// # Panics
    ///
    /// If the expression throws.
    pub async fn eval(&self, expression: &str) -> Value {
        self.browser.eval(expression).await
    }

    /// Evaluates an expression, and returns a string as text, and other values as JSON.
    ///
    /// # Panics
    ///
    /// If the expression throws.
    pub async fn eval_text(&self, expression: &str) -> String {
        let value = self.eval(expression).await;
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    /// Returns the text of an element.
    ///
    /// # Panics
    ///
    /// If the page has no such element.
    pub async fn text(&self, selector: &str) -> String {
        self.eval_text(&format!("document.querySelector({}).textContent", json!(selector))).await
    }

    /// Clicks on an element.
    ///
    /// # Panics
    ///
    /// If the page has no such element, or it is not clickable.
    pub async fn click(&self, selector: &str) {
        let element = self.client().find(Locator::Css(selector)).await;
        let element = element.unwrap_or_else(|error| panic!("the page has no {selector}: {error}"));
        element.click().await.unwrap_or_else(|error| panic!("{selector} is not clickable: {error}"));
    }

    /// Returns the events that the page has received since it was loaded.
    ///
    /// # Panics
    ///
    /// If the page has no array `received`.
    pub async fn received(&self) -> Vec<Message> {
        Message::all_from_page(&self.eval("received").await)
    }

    /// Waits until an expression has this value.
    ///
    /// # Panics
    ///
    /// If the expression has another value after the timeout of the page.
    pub async fn wait_for(&self, expression: &str, text: &str) {
        eventually(self.timeout, &format!("{expression} is {text:?}"), async || {
            let value = self.eval_text(expression).await;
            if value == text { Ok(()) } else { Err(value) }
        })
        .await;
    }

    /// Waits until an element has this text.
    ///
    /// # Panics
    ///
    /// If the element has another text after the timeout of the page.
    pub async fn wait_for_text(&self, selector: &str, text: &str) {
        self.wait_for(&format!("document.querySelector({}).textContent", json!(selector)), text).await;
    }

    /// Waits until the page shows this state, such as `open` or `reconnecting`.
    ///
    /// # Panics
    ///
    /// If the page shows another state after its timeout.
    pub async fn wait_for_state(&self, state: &str) {
        self.wait_for_text("#state", state).await;
    }
}
