//! The `account` example in Chromium: unread notifications, logout in all tabs, and expiry.

use e2e::{Browser, Example, Page, Window, eventually};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

const SOON: Duration = Duration::from_secs(20);

struct Account(Page);

impl Account {
    async fn open(server: &Example) -> Self {
        Self(Page::open(Browser::start(Window::Desktop).await, server.address(), SOON).await)
    }

    async fn open_two(server: &Example) -> [Self; 2] {
        let [one, other] = Browser::start_two([Window::Desktop; 2]).await;
        let open = async |browser| Self(Page::open(browser, server.address(), SOON).await);
        [open(one).await, open(other).await]
    }

    async fn log_in(&self, name: &str) {
        self.0.wait_for_state("logged out").await;
        self.fill("#name", name).await;
        self.0.click("#login button").await;
        self.0.wait_for_state("open").await;
        self.0.wait_for_text("#user", &format!("of {name}")).await;
    }

    async fn fill(&self, selector: &str, text: &str) {
        self.0.eval(&format!("document.querySelector('{selector}').value = {}", serde_json::json!(text))).await;
    }

    async fn send(&self, to: &str, text: &str) {
        self.fill("#to", to).await;
        self.fill("#text", text).await;
        self.0.click("#send button").await;
        self.0.wait_for("document.querySelector('#text').value", "").await;
    }

    async fn wait_for_notifications(&self, texts: &str) {
        self.0.wait_for("[...document.querySelectorAll('li')].map((item) => item.textContent).join('|')", texts).await;
    }
}

/// Ann logs in on two tabs of one browser, and Bob in another browser.
#[tokio::test(flavor = "multi_thread")]
async fn logout_in_one_tab_ends_streams_of_all_tabs() {
    let server = Example::start("account", &[]);
    let [ann, bob] = Account::open_two(&server).await;
    ann.log_in("Ann").await;
    let client = ann.0.client();
    let first = client.window().await.expect("there is a tab");
    let second = client.new_window(true).await.expect("Chromium opens a tab").handle;
    client.switch_to_window(second.clone()).await.expect("the tab is open");
    ann.0.go_to("/").await;
    ann.0.wait_for_state("open").await;
    bob.log_in("Bob").await;
    bob.send("Ann", "Hello").await;
    ann.wait_for_notifications("BobHello").await;
    bob.wait_for_notifications("").await;

    ann.0.click("#logout").await;
    for tab in [second, first] {
        client.switch_to_window(tab).await.expect("the tab is open");
        ann.0.wait_for_state("logged out").await;
        ann.0.wait_for_text("#note", "You have logged out.").await;
        ann.wait_for_notifications("").await;
    }
    // Bob stays logged in, and Ann receives nothing any more.
    bob.send("Ann", "Are you there?").await;
    bob.send("Bob", "To myself").await;
    bob.wait_for_notifications("BobTo myself").await;
    ann.wait_for_notifications("").await;
    assert!(!ann.0.received().await.iter().any(|message| message.data.contains("Are you there?")));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_login_replays_what_is_unread() {
    let server = Example::start("account", &[]);
    let [ann, bob] = Account::open_two(&server).await;
    ann.log_in("Ann").await;
    bob.log_in("Bob").await;
    bob.send("Ann", "One").await;
    ann.wait_for_notifications("BobOne").await;
    ann.0.click("#read").await;
    ann.0.wait_for("String(document.querySelectorAll('.unread').length)", "0").await;
    bob.send("Ann", "Two").await;
    ann.wait_for_notifications("BobTwo|BobOne").await;
    ann.0.click("#logout").await;
    ann.0.wait_for_state("logged out").await;
    bob.send("Ann", "Three").await;
    ann.log_in("Ann").await;
    ann.wait_for_notifications("BobThree|BobTwo").await;
    ann.0.reload().await;
    ann.wait_for_notifications("BobThree|BobTwo").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_session_ends_the_stream() {
    let server = Example::start_with("account", &["127.0.0.1:0", "8"]);
    let ann = Account::open(&server).await;
    ann.log_in("Ann").await;
    ann.0.wait_for_state("logged out").await;
    ann.0.wait_for_text("#note", "Your session has expired.").await;
    ann.log_in("Ann").await;
}

/// A page of another origin cannot read the notifications of a user who is logged in.
#[tokio::test(flavor = "multi_thread")]
async fn page_of_another_origin_is_refused() {
    let server = Example::start("account", &[]);
    let ann = Account::open(&server).await;
    ann.log_in("Ann").await;
    let api = ann.0.eval_text("API").await;
    let address = api.strip_prefix("http://").expect("the URL of the API");
    let head = eventually(SOON, "a response", async || {
        let mut socket = TcpStream::connect(address).map_err(|error| error.to_string())?;
        write!(socket, "GET /me HTTP/1.0\r\nHost: {address}\r\nOrigin: http://evil.example\r\n\r\n")
            .expect("it is sent");
        let mut head = String::new();
        socket.read_to_string(&mut head).map_err(|error| error.to_string())?;
        Ok::<_, String>(head.to_lowercase())
    })
    .await;
    assert!(head.contains(" 401 ") && !head.contains("access-control-allow-origin: http://evil"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn screenshot_shows_notifications() {
    let server = Example::start("account", &[]);
    let [ann, bob] = Account::open_two(&server).await;
    ann.log_in("Ann").await;
    bob.log_in("Bob").await;
    bob.send("Ann", "Your order has been shipped.").await;
    ann.wait_for_notifications("BobYour order has been shipped.").await;
    ann.0.click("#read").await;
    ann.0.wait_for("String(document.querySelectorAll('.unread').length)", "0").await;
    bob.send("Ann", "The parcel is at your neighbour's.").await;
    ann.wait_for_notifications("BobThe parcel is at your neighbour's.|BobYour order has been shipped.").await;
    ann.0.eval("document.activeElement.blur()").await;
    ann.0.browser().screenshot("account").await;
}
