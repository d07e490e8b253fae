//! The chat in real browsers: rooms, who is here, and what happens when the connection is lost.

use e2e::{Browser, Example, Message, Relay, Window, eventually};
use fantoccini::Locator;
use serde_json::{Value, json};
use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn two_browsers_talk_in_several_rooms_over_one_connection_each() {
    let server = Example::start("chat", &[]);
    let [ann, bob] = two_pages(server.address(), ["/?rooms=lobby,rust,music", "/"]).await;
    ann.is_called("Ann").await;
    bob.is_called("Bob").await;

    ann.says("lobby", "Good morning").await;
    bob.reads("lobby", &["Ann: Good morning"]).await;
    bob.says("rust", "It compiles").await;
    ann.has_unread("rust", "1").await;
    ann.has_unread("lobby", "").await;
    bob.says("rust", "And it runs").await;
    bob.says("music", "La, la").await;
    ann.has_unread("rust", "2").await;
    ann.has_unread("music", "1").await;
    assert!(ann.text_of("document.title").await.starts_with("(3) lobby"), "all that is unread is in the title");

    ann.enters("rust").await;
    ann.has_unread("rust", "").await;
    ann.has_unread("music", "1").await;
    ann.says("rust", "Hurray").await;
    // Where Ann is not, nothing reaches her.
    bob.says("random", "Anybody here?").await;
    bob.says("music", "Only me, then").await;
    for page in [&ann, &bob] {
        page.reads("lobby", &["Ann: Good morning"]).await;
        page.reads("rust", &["Bob: It compiles", "Bob: And it runs", "Ann: Hurray"]).await;
        page.reads("music", &["Bob: La, la", "Bob: Only me, then"]).await;
    }
    bob.reads("random", &["Bob: Anybody here?"]).await;
    let of_bob = bob.messages().await;
    let for_ann: Vec<_> = of_bob.iter().filter(|message| !message.data.contains("Anybody here?")).cloned().collect();
    assert_eq!(ann.messages().await, for_ann, "both have the messages of all their rooms in the same order");

    for page in [&ann, &bob] {
        assert_eq!(page.relay.event_sources().len(), 1, "to see another room no connection is made");
    }
    assert_eq!(ann.relay.event_sources()[0].target(), "/events?rooms=lobby,rust,music");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_loaded_again_has_what_was_said_and_knows_what_was_read() {
    let server = Example::start("chat", &[]);
    let page = Page::open(Browser::start(Window::Desktop).await, server.address(), "/?rooms=lobby,rust").await;
    page.is_called("Ann").await;
    page.says("rust", "One").await;
    page.says("rust", "Two").await;
    page.enters("lobby").await;
    page.post("rust", "Bob", "Three").await;
    page.has_unread("rust", "1").await;

    page.browser.client().refresh().await.expect("the page is there");
    page.reads("rust", &["Ann: One", "Ann: Two", "Bob: Three"]).await;
    page.has_unread("rust", "1").await;
    page.has_unread("lobby", "").await;
    let name = page.text_of("document.querySelector('#name').value").await;
    assert_eq!(name, "Ann", "and how its user is called");
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_goes_up_with_each_tab_and_down_when_one_is_closed_or_its_wire_is_cut() {
    let server = Example::start("chat", &[]);
    let [ann, bob] = two_pages(server.address(), ["/?rooms=lobby,rust", "/?rooms=lobby"]).await;
    for page in [&ann, &bob] {
        page.counts("lobby", "2 here").await;
    }
    ann.counts("rust", "1 here").await;

    let bobs = bob.browser.client();
    let first = bobs.window().await.expect("there is one");
    let second = bobs.new_window(true).await.expect("Chromium has tabs").handle;
    bobs.switch_to_window(second).await.expect("it is open");
    bob.goes_to("/?rooms=lobby,rust").await;
    ann.counts("lobby", "3 here").await;
    ann.counts("rust", "2 here").await;
    bob.counts("lobby", "3 here").await;
    bobs.close_window().await.expect("it is open");
    bobs.switch_to_window(first).await.expect("it is open");
    ann.counts("lobby", "2 here").await;
    ann.counts("rust", "1 here").await;
    bob.counts("lobby", "2 here").await;

    bob.relay.cut();
    ann.counts("lobby", "1 here").await;
    bob.is_in_state("reconnecting").await;
    bob.counts("lobby", "").await;
    bob.relay.mend();
    for page in [&ann, &bob] {
        page.counts("lobby", "2 here").await;
    }

    drop(bob);
    ann.counts("lobby", "1 here").await;
    ann.counts("rust", "1 here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_while_the_connection_is_lost_arrives_once_and_in_order_when_it_is_back() {
    let server = Example::start("chat", &[]);
    let [ann, bob] = two_pages(server.address(), ["/?rooms=lobby,rust,music", "/"]).await;
    ann.is_called("Ann").await;
    bob.is_called("Bob").await;
    bob.says("lobby", "Before").await;
    ann.reads("lobby", &["Bob: Before"]).await;

    let mut lobby = vec!["Bob: Before".to_owned()];
    let mut rust = Vec::new();
    for round in 0..3 {
        ann.relay.cut();
        ann.is_in_state("reconnecting").await;
        let before = ann.messages().await;
        let last = ann.text_of("received.at(-1).id").await;
        let refused = ann.relay.connections();
        for n in 0..3 {
            bob.says("lobby", &format!("{round}, {n}")).await;
            bob.says("rust", &format!("{round}, {n}")).await;
            lobby.push(format!("Bob: {round}, {n}"));
            rust.push(format!("Bob: {round}, {n}"));
        }
        bob.reads("rust", &rust).await;
        eventually(SOON, "Ann's browser tries again and is refused", async || {
            if ann.relay.connections() > refused { Ok(()) } else { Err("not yet") }
        })
        .await;
        assert_eq!(ann.messages().await, before, "the connection is cut");

        ann.relay.mend();
        ann.is_in_state("open").await;
        bob.says("rust", &format!("after {round}")).await;
        rust.push(format!("Bob: after {round}"));
        ann.reads("rust", &rust).await;
        ann.reads("lobby", &lobby).await;
        assert_eq!(ann.messages().await, bob.messages().await, "in the order of all rooms together");
        let back = ann.relay.event_sources().pop().expect("there is one");
        assert_eq!(back.header("last-event-id"), Some(&*last));
    }
    ann.has_unread("rust", &rust.len().to_string()).await;
    let told = ann.received("gap").await;
    assert!(told.is_empty(), "nothing was missed: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_server_the_gap_is_told_in_each_room_and_the_talk_goes_on() {
    const GAP: &str = "Messages may be missing here: the server was started anew.";
    let server = Example::start("chat", &[]);
    let [ann, bob] = two_pages(server.address(), ["/?rooms=lobby,rust", "/?rooms=lobby,rust"]).await;
    ann.is_called("Ann").await;
    bob.is_called("Bob").await;
    ann.says("lobby", "Before").await;
    bob.reads("lobby", &["Ann: Before"]).await;

    let address = server.address();
    drop(server);
    for page in [&ann, &bob] {
        page.is_in_state("reconnecting").await;
    }
    ann.types("Too early").await;
    ann.notes("No answer").await;
    assert_eq!(ann.text_of("document.querySelector('#text').value").await, "Too early", "to be sent again");
    ann.browser.eval("document.querySelector('#text').value = ''").await;

    // Bob is back first, and what he says to the new server is not passed over when Ann is told of the gap.
    ann.relay.cut();
    let _server = Example::start_at(address, "chat", &[]);
    bob.is_in_state("open").await;
    bob.reads("lobby", &["Ann: Before", GAP]).await;
    bob.says("lobby", "First").await;
    bob.reads("lobby", &["Ann: Before", GAP, "Bob: First"]).await;
    ann.relay.mend();
    ann.reads("lobby", &["Ann: Before", GAP, "Bob: First"]).await;
    ann.says("rust", "We are back").await;
    for page in [&ann, &bob] {
        page.reads("rust", &[GAP, "Ann: We are back"]).await;
        page.reads("lobby", &["Ann: Before", GAP, "Bob: First"]).await;
        page.counts("lobby", "2 here").await;
        let told = page.received("gap").await;
        assert_eq!(told.len(), 1, "once: {told:?}");
        let told: Value = serde_json::from_str(&told[0].data).expect("the data is JSON");
        assert_eq!(told["reason"], "other_epoch");
    }
    ann.notes("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_types_stays_text() {
    const EVIL: &str = r#"<img src=x onerror="window.hacked = true"><b>&amp;</b>"#;
    const NAME: &str = "<img src=x onerror=hacked=1>";
    let server = Example::start("chat", &[]);
    let page = Page::open(Browser::start(Window::Desktop).await, server.address(), "/").await;
    let is_unharmed = async || {
        let images = page.browser.eval("[document.querySelectorAll('img').length, 'hacked' in window]").await;
        assert_eq!(images, json!([0, false]), "no element came of it");
    };
    page.is_called(NAME).await;
    page.says("lobby", EVIL).await;
    page.reads("lobby", &[format!("{NAME}: {EVIL}")]).await;
    // A data line of an event stream ends at these.
    page.post("rust", "Bob", "one\ntwo\r\nid: 3\n\ndata: four").await;
    page.reads("rust", &["Bob: one\ntwo\r\nid: 3\n\ndata: four"]).await;
    is_unharmed().await;

    // What the server says of it stays text, too.
    page.goes_to(&format!("/?rooms=lobby,{NAME}")).await;
    page.notes("there is no room \"<img src=x").await;
    page.reads(NAME, &[] as &[&str]).await;
    is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_does_not_take_it_answers_with_a_sentence() {
    let server = Example::start("chat", &[]);
    let page = Page::open(Browser::start(Window::Desktop).await, server.address(), "/?rooms=lobby").await;
    let no_rooms = "name a room or more, as in /events?rooms=lobby,rust";
    for (query, answer) in [
        ("", no_rooms),
        ("?rooms=", no_rooms),
        ("?rooms=,,", no_rooms),
        ("?rooms=lobby,cellar", r#"there is no room "cellar", but lobby, rust, music, random"#),
        ("?rooms=lobby,rust,lobby,rust,lobby", "5 rooms are too many: name at most 4"),
    ] {
        let answered =
            page.browser.eval(&format!("fetch('/events{query}').then(async (a) => [a.status, await a.text()])")).await;
        assert_eq!(answered, json!([400, answer]), "/events{query}");
    }
    let long = |n| "ü".repeat(n);
    for (room, name, text, status, answer) in [
        ("cellar", "Ann", "Hello", 400, r#"there is no room "cellar", but lobby, rust, music, random"#),
        ("lobby", " ", "Hello", 400, "the name is empty"),
        ("lobby", "Ann", "\n", 400, "the message is empty"),
        ("lobby", &long(33), "Hello", 400, "the name has 33 characters, and at most 32 are allowed"),
        ("lobby", "Ann", &long(501), 400, "the message has 501 characters, and at most 500 are allowed"),
        ("lobby", &long(32), &long(500), 204, ""),
    ] {
        assert_eq!(page.post(room, name, text).await, json!([status, answer]), "{name} says {text} in {room}");
    }
    page.reads("lobby", &[format!("{}: {}", long(32), long(500))]).await;

    page.browser.eval("document.querySelector('#text').removeAttribute('maxlength')").await;
    page.types(&long(501)).await;
    page.notes("Not sent: the message has 501 characters").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_into_the_width_of_a_phone_and_of_a_desk() {
    let server = Example::start("chat", &[]);
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let page = Page::open(Browser::start(window).await, server.address(), "/").await;
        page.post("lobby", &"W".repeat(32), &"W".repeat(500)).await;
        page.post(
            "lobby",
            "Ann",
            "Several\nlines, and not all of them are short: this one is longer than a phone is wide.",
        )
        .await;
        for n in 0..20 {
            page.post("rust", "Bob", &format!("Message {n}")).await;
        }
        eventually(SOON, "the page is full", async || {
            let count = page.browser.eval("rooms.get('rust').list.children.length").await;
            if count.as_u64() >= Some(20) { Ok(()) } else { Err(count) }
        })
        .await;
        page.counts("lobby", "1 here").await;
        page.browser.fits("chat", window).await;
        // It scrolls by itself: the page would fit whatever is in it.
        let pixels = async |what: &str| page.browser.eval(what).await.as_u64().expect("a number of pixels");
        let needed = pixels("document.querySelector('#log').scrollWidth").await;
        let there = pixels("document.querySelector('#log').clientWidth").await;
        assert!(needed <= there, "the messages need {needed} of {there} pixels in {window:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_shows_a_talk_in_a_room() {
    let server = Example::start("chat", &[]);
    let page = Page::open(Browser::start(Window::Desktop).await, server.address(), "/").await;
    let talk = [
        ("Ann", "Good morning! Is the new server up?"),
        ("Bob", "Since eight. I was thrown out for a second, and back before I noticed."),
        ("Ann", "Same here, and nothing is missing: I have all of what Cem wrote in between."),
        ("Cem", "I had hoped that nobody would read that …"),
        ("Bob", "Too late.\nIt is in the log, and so are you."),
    ];
    for (name, text) in talk {
        page.post("lobby", name, text).await;
    }
    for n in 1..=3 {
        page.post("rust", "Dora", &format!("Part {n}")).await;
    }
    page.has_unread("rust", "3").await;
    page.is_called("Ann").await;
    page.browser.eval("document.activeElement.blur()").await;
    // Some others, who only listen.
    let others = ["lobby,rust", "lobby,music", "lobby,rust,random"].map(|rooms| {
        let mut other = TcpStream::connect(server.address()).expect("the server listens");
        write!(other, "GET /events?rooms={rooms} HTTP/1.0\r\n\r\n").expect("the server reads");
        other
    });
    page.counts("lobby", "4 here").await;
    page.reads("lobby", &talk.map(|(name, text)| format!("{name}: {text}"))).await;
    page.browser.screenshot("chat").await;
    drop(others);
}

/// One page in each of two browsers, each with a wire of its own.
async fn two_pages(server: SocketAddr, paths: [&str; 2]) -> [Page; 2] {
    let [one, other] = Browser::start_two([Window::Desktop; 2]).await;
    [Page::open(one, server, paths[0]).await, Page::open(other, server, paths[1]).await]
}

struct Page {
    browser: Browser,
    relay: Relay,
}

impl Page {
    async fn open(browser: Browser, server: SocketAddr, path: &str) -> Self {
        let page = Self { browser, relay: Relay::to(server).await.expect("there is a free port") };
        page.goes_to(path).await;
        page.is_in_state("open").await;
        page
    }

    async fn goes_to(&self, path: &str) {
        let url = format!("http://{}{path}", self.relay.address());
        self.browser.client().goto(&url).await.expect("the page is there");
    }

    async fn is_called(&self, name: &str) {
        let field = self.browser.client().find(Locator::Css("#name")).await.expect("the page has a field for it");
        field.clear().await.expect("it can be edited");
        field.send_keys(name).await.expect("it can be edited");
    }

    async fn enters(&self, room: &str) {
        let rooms = self.browser.client().find_all(Locator::Css("nav button")).await.expect("the page has a list");
        for button in rooms {
            if button.text().await.expect("it has a text").starts_with(room) {
                return button.click().await.expect("it can be pressed");
            }
        }
        panic!("the page has no room {room}");
    }

    /// Into the field for messages, and Enter.
    async fn types(&self, text: &str) {
        let field = self.browser.client().find(Locator::Css("#text")).await.expect("the page has a field for it");
        field.send_keys(text).await.expect("it can be edited");
        field.send_keys("\n").await.expect("it can be edited");
    }

    async fn says(&self, room: &str, text: &str) {
        self.enters(room).await;
        self.types(text).await;
        eventually(SOON, "the server has taken it, and there is room for the next", async || {
            let field = self.text_of("document.querySelector('#text').value").await;
            let note = self.text_of("document.querySelector('#note').textContent").await;
            let is_busy = self.browser.eval("document.querySelector('#send').disabled").await;
            if field.is_empty() && is_busy == false { Ok(()) } else { Err((field, note)) }
        })
        .await;
    }

    /// Says something past the form: the status of the answer and its text.
    async fn post(&self, room: &str, name: &str, text: &str) -> Value {
        let message = json!({ "room": room, "name": name, "text": text }).to_string();
        let options = json!({ "method": "POST", "headers": { "Content-Type": "application/json" }, "body": message });
        self.browser.eval(&format!("fetch('/messages', {options}).then(async (a) => [a.status, await a.text()])")).await
    }

    /// These lines are all that it has of a room.
    async fn reads(&self, room: &str, lines: &[impl AsRef<str>]) {
        let lines: Vec<_> = lines.iter().map(AsRef::as_ref).collect();
        let items = format!("[...rooms.get({}).list.children]", json!(room));
        let line = "(item) => item.children.length \
            ? `${item.querySelector('b').textContent}: ${item.querySelector('p').textContent}` : item.textContent";
        eventually(SOON, &format!("{lines:?} in {room}"), async || {
            let read = self.browser.eval(&format!("{items}.map({line})")).await;
            if read == json!(lines) { Ok(()) } else { Err(read) }
        })
        .await;
    }

    async fn counts(&self, room: &str, here: &str) {
        let text = format!("rooms.get({}).here.textContent", json!(room));
        self.comes_to(&text, here).await;
    }

    async fn has_unread(&self, room: &str, count: &str) {
        let text = format!("rooms.get({}).unread.textContent", json!(room));
        self.comes_to(&text, count).await;
    }

    async fn is_in_state(&self, state: &str) {
        self.comes_to("document.querySelector('#state').textContent", state).await;
    }

    async fn notes(&self, beginning: &str) {
        eventually(SOON, &format!("the page notes {beginning:?}"), async || {
            let note = self.text_of("document.querySelector('#note').textContent").await;
            if note.starts_with(beginning) && note.is_empty() == beginning.is_empty() { Ok(()) } else { Err(note) }
        })
        .await;
    }

    async fn comes_to(&self, expression: &str, text: &str) {
        eventually(SOON, &format!("{expression} is {text:?}"), async || {
            let is = self.text_of(expression).await;
            if is == text { Ok(()) } else { Err(is) }
        })
        .await;
    }

    /// What it has received since it was loaded: the messages of all its rooms.
    async fn messages(&self) -> Vec<Message> {
        self.received("message").await
    }

    async fn received(&self, kind: &str) -> Vec<Message> {
        let received = self.browser.eval("received").await;
        let received = received.as_array().expect("the page keeps them in an array");
        let messages = received.iter().map(|value| Message::from_page(value).expect("each has an id, a type and data"));
        messages.filter(|message| message.kind == kind).collect()
    }

    async fn text_of(&self, expression: &str) -> String {
        self.browser.eval(expression).await.as_str().unwrap_or_default().to_owned()
    }
}
