//! The `chat` example in Chromium: rooms, presence, and lost connections.

use e2e::{Browser, Example, Message, Page, Relay, Window, eventually};
use fantoccini::Locator;
use serde_json::{Value, json};
use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    ops::Deref,
    time::Duration,
};

const SOON: Duration = Duration::from_secs(10);
/// The grace time of the example.
const GRACE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn rooms_share_one_connection_per_browser() {
    let server = Example::start("chat", &[]);
    let [ann, bob] = open_two(server.address(), ["/?rooms=lobby,rust,music", "/"]).await;
    ann.set_name("Ann").await;
    bob.set_name("Bob").await;

    ann.send("lobby", "Good morning").await;
    bob.wait_for_room("lobby", &["Ann: Good morning"]).await;
    bob.send("rust", "It compiles").await;
    ann.wait_for_unread("rust", "1").await;
    ann.wait_for_unread("lobby", "").await;
    bob.send("rust", "And it runs").await;
    bob.send("music", "La, la").await;
    ann.wait_for_unread("rust", "2").await;
    ann.wait_for_unread("music", "1").await;
    assert!(ann.eval_text("document.title").await.starts_with("(3) lobby"), "the title counts all unread messages");

    ann.enter("rust").await;
    ann.wait_for_unread("rust", "").await;
    ann.wait_for_unread("music", "1").await;
    ann.send("rust", "Hurray").await;
    // Ann does not follow the room `random`.
    bob.send("random", "Is anyone here?").await;
    bob.send("music", "Only me, then").await;
    for page in [&ann, &bob] {
        page.wait_for_room("lobby", &["Ann: Good morning"]).await;
        page.wait_for_room("rust", &["Bob: It compiles", "Bob: And it runs", "Ann: Hurray"]).await;
        page.wait_for_room("music", &["Bob: La, la", "Bob: Only me, then"]).await;
    }
    bob.wait_for_room("random", &["Bob: Is anyone here?"]).await;
    let of_bob = bob.messages().await;
    let for_ann: Vec<_> = of_bob.iter().filter(|message| !message.data.contains("Is anyone here?")).cloned().collect();
    assert_eq!(ann.messages().await, for_ann, "both pages have the messages of their rooms in the same order");

    for page in [&ann, &bob] {
        assert_eq!(page.relay.event_sources().len(), 2, "entering a room needs no new connection, a new name does");
    }
    let target = ann.relay.event_sources()[1].target().to_owned();
    assert!(target.starts_with("/events?rooms=lobby,rust,music&name=Ann&lastEventId="), "{target}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reloaded_page_replays_messages_and_keeps_unread_counts() {
    let server = Example::start("chat", &[]);
    let page = Chat::open(Browser::start(Window::Desktop).await, server.address(), "/?rooms=lobby,rust").await;
    page.set_name("Ann").await;
    page.send("rust", "One").await;
    page.send("rust", "Two").await;
    page.enter("lobby").await;
    page.post("rust", "Bob", "Three").await;
    page.wait_for_unread("rust", "1").await;

    page.reload().await;
    page.wait_for_room("rust", &["Ann: One", "Ann: Two", "Bob: Three"]).await;
    page.wait_for_unread("rust", "1").await;
    page.wait_for_unread("lobby", "").await;
    let name = page.eval_text("document.querySelector('#name').value").await;
    assert_eq!(name, "Ann", "the page remembers the name of its user");
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_has_each_name_once_and_survives_reconnects() {
    let server = Example::start("chat", &[]);
    let [ann, bob] = open_two(server.address(), ["/?rooms=lobby,rust", "/?rooms=lobby"]).await;
    ann.set_name("Ann").await;
    bob.set_name("Bob").await;
    for page in [&ann, &bob] {
        page.wait_for_presence("lobby", "2 here").await;
        page.wait_for("rooms.get('lobby').here.title", "Ann, Bob").await;
    }
    ann.wait_for_presence("rust", "1 here").await;

    let client = bob.client();
    let first = client.window().await.expect("there is a tab");
    let second = client.new_window(true).await.expect("Chromium opens a tab").handle;
    client.switch_to_window(second).await.expect("the tab is open");
    bob.go_to("/?rooms=lobby,rust").await;
    // The tab has the same name.
    ann.wait_for("rooms.get('rust').here.title", "Ann, Bob").await;
    for page in [&ann, &bob] {
        page.wait_for_presence("lobby", "2 here").await;
    }
    client.close_window().await.expect("the tab is open");
    client.switch_to_window(first).await.expect("the tab is open");
    ann.wait_for_presence("rust", "1 here").await;
    ann.wait_for_presence("lobby", "2 here").await;

    // A short interruption is no change.
    let changes = ann.changes().await.len();
    bob.relay.cut();
    bob.wait_for_state("reconnecting").await;
    bob.relay.mend();
    bob.wait_for_state("open").await;
    tokio::time::sleep(GRACE * 2).await;
    assert_eq!(ann.changes().await.len(), changes);

    bob.relay.cut();
    ann.wait_for_presence("lobby", "1 here").await;
    bob.wait_for_state("reconnecting").await;
    bob.wait_for_presence("lobby", "").await;
    bob.relay.mend();
    for page in [&ann, &bob] {
        page.wait_for_presence("lobby", "2 here").await;
    }

    drop(bob);
    ann.wait_for_presence("lobby", "1 here").await;
    ann.wait_for_presence("rust", "1 here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_during_lost_connection_are_replayed_once() {
    let server = Example::start("chat", &[]);
    let [ann, bob] = open_two(server.address(), ["/?rooms=lobby,rust,music", "/"]).await;
    ann.set_name("Ann").await;
    bob.set_name("Bob").await;
    bob.send("lobby", "Before").await;
    ann.wait_for_room("lobby", &["Bob: Before"]).await;

    let mut lobby = vec!["Bob: Before".to_owned()];
    let mut rust = Vec::new();
    for round in 0..3 {
        ann.relay.cut();
        ann.wait_for_state("reconnecting").await;
        let before = ann.messages().await;
        let last = ann.eval_text("received.at(-1).id").await;
        let connections = ann.relay.connections();
        for n in 0..3 {
            bob.send("lobby", &format!("{round}, {n}")).await;
            bob.send("rust", &format!("{round}, {n}")).await;
            lobby.push(format!("Bob: {round}, {n}"));
            rust.push(format!("Bob: {round}, {n}"));
        }
        bob.wait_for_room("rust", &rust).await;
        eventually(SOON, "Ann's browser tries to reconnect, and fails", async || {
            if ann.relay.connections() > connections { Ok(()) } else { Err("no attempt") }
        })
        .await;
        assert_eq!(ann.messages().await, before, "nothing passes a cut connection");

        ann.relay.mend();
        ann.wait_for_state("open").await;
        bob.send("rust", &format!("after {round}")).await;
        rust.push(format!("Bob: after {round}"));
        ann.wait_for_room("rust", &rust).await;
        ann.wait_for_room("lobby", &lobby).await;
        assert_eq!(ann.messages().await, bob.messages().await, "the order across all rooms is the same");
        let reconnection = ann.relay.event_sources().pop().expect("there is a request");
        assert_eq!(reconnection.header("last-event-id"), Some(&*last));
    }
    ann.wait_for_unread("rust", &rust.len().to_string()).await;
    let gaps = ann.received_of("gap").await;
    assert!(gaps.is_empty(), "no event is missing: {gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_restart_is_a_gap_in_each_room() {
    const GAP: &str = "Messages may be missing here: the server was restarted.";
    let server = Example::start("chat", &[]);
    let [ann, bob] = open_two(server.address(), ["/?rooms=lobby,rust", "/?rooms=lobby,rust"]).await;
    ann.set_name("Ann").await;
    bob.set_name("Bob").await;
    ann.send("lobby", "Before").await;
    bob.wait_for_room("lobby", &["Ann: Before"]).await;

    let address = server.address();
    drop(server);
    for page in [&ann, &bob] {
        page.wait_for_state("reconnecting").await;
    }
    ann.submit("Too early").await;
    ann.wait_for_note("No response").await;
    let field = ann.eval_text("document.querySelector('#text').value").await;
    assert_eq!(field, "Too early", "the text stays in the field, to be sent again");
    ann.eval("document.querySelector('#text').value = ''").await;

    // Bob reconnects first. After the gap, Ann still receives what he sends to the new server.
    ann.relay.cut();
    let _server = Example::start_at(address, "chat", &[]);
    bob.wait_for_state("open").await;
    bob.wait_for_room("lobby", &["Ann: Before", GAP]).await;
    bob.send("lobby", "First").await;
    bob.wait_for_room("lobby", &["Ann: Before", GAP, "Bob: First"]).await;
    ann.relay.mend();
    ann.wait_for_room("lobby", &["Ann: Before", GAP, "Bob: First"]).await;
    ann.send("rust", "We are back").await;
    for page in [&ann, &bob] {
        page.wait_for_room("rust", &[GAP, "Ann: We are back"]).await;
        page.wait_for_room("lobby", &["Ann: Before", GAP, "Bob: First"]).await;
        page.wait_for_presence("lobby", "2 here").await;
        let gaps = page.received_of("gap").await;
        assert_eq!(gaps.len(), 1, "one gap event covers all rooms: {gaps:?}");
        let gap: Value = serde_json::from_str(&gaps[0].data).expect("the data is JSON");
        assert_eq!(gap["reason"], "other_epoch");
    }
    ann.wait_for_note("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_input_is_never_read_as_html() {
    const EVIL: &str = r#"<img src=x onerror="window.hacked = true"><b>&amp;</b>"#;
    const NAME: &str = "<img src=x onerror=hacked=1>";
    let server = Example::start("chat", &[]);
    let page = Chat::open(Browser::start(Window::Desktop).await, server.address(), "/").await;
    let assert_unharmed = async || {
        let images = page.eval("[document.querySelectorAll('img').length, 'hacked' in window]").await;
        assert_eq!(images, json!([0, false]), "the input created no element, and ran no script");
    };
    page.set_name(NAME).await;
    page.send("lobby", EVIL).await;
    page.wait_for_room("lobby", &[format!("{NAME}: {EVIL}")]).await;
    // These line ends would end a data line of an event stream.
    page.post("rust", "Bob", "one\ntwo\r\nid: 3\n\ndata: four").await;
    page.wait_for_room("rust", &["Bob: one\ntwo\r\nid: 3\n\ndata: four"]).await;
    assert_unharmed().await;

    // The error message of the server contains the input, too.
    page.go_to(&format!("/?rooms=lobby,{NAME}")).await;
    page.wait_for_note("there is no room \"<img src=x").await;
    page.wait_for_room(NAME, &[] as &[&str]).await;
    assert_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_requests_get_400_with_the_reason() {
    let server = Example::start("chat", &[]);
    let page = Chat::open(Browser::start(Window::Desktop).await, server.address(), "/?rooms=lobby").await;
    let no_rooms = "no room given: name some, as in /events?rooms=lobby,rust";
    let no_cellar = r#"there is no room "cellar": choose from lobby, rust, music, random"#;
    for (query, reason) in [
        ("", no_rooms),
        ("?rooms=", no_rooms),
        ("?rooms=,,", no_rooms),
        ("?rooms=lobby,cellar", no_cellar),
        ("?rooms=lobby,rust,lobby,rust,lobby", "too many rooms (5): name at most 4"),
        ("?rooms=lobby", "the name is empty"),
        ("?rooms=lobby&name=123456789012345678901234567890123", "the name has 33 characters: at most 32 are allowed"),
    ] {
        let response =
            page.eval(&format!("fetch('/events{query}').then(async (a) => [a.status, await a.text()])")).await;
        assert_eq!(response, json!([400, reason]), "/events{query}");
    }
    let long = |n| "ü".repeat(n);
    for (room, name, text, status, reason) in [
        ("cellar", "Ann", "Hello", 400, no_cellar),
        ("lobby", " ", "Hello", 400, "the name is empty"),
        ("lobby", "Ann", "\n", 400, "the message is empty"),
        ("lobby", &long(33), "Hello", 400, "the name has 33 characters: at most 32 are allowed"),
        ("lobby", "Ann", &long(501), 400, "the message has 501 characters: at most 500 are allowed"),
        ("lobby", &long(32), &long(500), 204, ""),
    ] {
        assert_eq!(page.post(room, name, text).await, json!([status, reason]), "{text} of {name} in {room}");
    }
    page.wait_for_room("lobby", &[format!("{}: {}", long(32), long(500))]).await;

    page.eval("document.querySelector('#text').removeAttribute('maxlength')").await;
    page.submit(&long(501)).await;
    page.wait_for_note("Not sent: the message has 501 characters").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_fits_phone_and_desktop() {
    let server = Example::start("chat", &[]);
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let page = Chat::open(Browser::start(window).await, server.address(), "/").await;
        page.post("lobby", &"W".repeat(32), &"W".repeat(500)).await;
        let long_line = "Several\nlines, and not all of them are short: this line is longer than a phone is wide.";
        page.post("lobby", "Ann", long_line).await;
        for n in 0..20 {
            page.post("rust", "Bob", &format!("Message {n}")).await;
        }
        eventually(SOON, "the page shows 20 messages", async || {
            let count = page.eval("rooms.get('rust').list.children.length").await;
            if count.as_u64() >= Some(20) { Ok(()) } else { Err(count) }
        })
        .await;
        page.wait_for_presence("lobby", "1 here").await;
        page.browser().assert_fits("chat", window).await;
        // The log scrolls on its own, so the page can fit although the log does not.
        let pixels = async |what: &str| page.eval(what).await.as_u64().expect("a number of pixels");
        let needed = pixels("document.querySelector('#log').scrollWidth").await;
        let available = pixels("document.querySelector('#log').clientWidth").await;
        assert!(needed <= available, "the messages need {needed} of {available} pixels in {window:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn screenshot_shows_a_conversation() {
    let server = Example::start("chat", &[]);
    let page = Chat::open(Browser::start(Window::Desktop).await, server.address(), "/").await;
    let conversation = [
        ("Ann", "Good morning! Is the new server up?"),
        ("Bob", "Since eight. My connection was lost for a second, and I was back before I noticed."),
        ("Ann", "Same here, and no message is missing: I have all that Cem wrote in between."),
        ("Cem", "I had hoped that my message got lost …"),
        ("Bob", "Too late.\nIt is in the log, and so are you."),
    ];
    for (name, text) in conversation {
        page.post("lobby", name, text).await;
    }
    for n in 1..=3 {
        page.post("rust", "Dora", &format!("Part {n}")).await;
    }
    page.wait_for_unread("rust", "3").await;
    page.set_name("Ann").await;
    page.eval("document.activeElement.blur()").await;
    // Three more members.
    let others = [("lobby,rust", "Bob"), ("lobby,music", "Cem"), ("lobby,rust,random", "Dora")].map(|(rooms, name)| {
        let mut other = TcpStream::connect(server.address()).expect("the server listens");
        write!(other, "GET /events?rooms={rooms}&name={name} HTTP/1.0\r\n\r\n").expect("the server reads");
        other
    });
    page.wait_for_presence("lobby", "4 here").await;
    page.wait_for_room("lobby", &conversation.map(|(name, text)| format!("{name}: {text}"))).await;
    page.browser().screenshot("chat").await;
    drop(others);
}

/// Opens a page in each of two browsers. Each page has its own relay.
async fn open_two(server: SocketAddr, paths: [&str; 2]) -> [Chat; 2] {
    let [one, other] = Browser::start_two([Window::Desktop; 2]).await;
    [Chat::open(one, server, paths[0]).await, Chat::open(other, server, paths[1]).await]
}

struct Chat {
    page: Page,
    relay: Relay,
}

impl Deref for Chat {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.page
    }
}

impl Chat {
    async fn open(browser: Browser, server: SocketAddr, path: &str) -> Self {
        let relay = Relay::to(server).await.expect("there is a free port");
        let page = Page::open_path(browser, relay.address(), path, SOON).await;
        page.wait_for_state("open").await;
        Self { page, relay }
    }

    async fn set_name(&self, name: &str) {
        let field = self.client().find(Locator::Css("#name")).await.expect("the page has a field for the name");
        field.clear().await.expect("the field is editable");
        field.send_keys(name).await.expect("the field is editable");
        self.eval("document.querySelector('#name').blur()").await;
        self.wait_for_state("open").await;
        // The first event of the new connection.
        self.wait_for(
            "String([...rooms.values()].every((room) => room.members.has(document.querySelector(`#name`).value)))",
            "true",
        )
        .await;
    }

    async fn enter(&self, room: &str) {
        for button in self.client().find_all(Locator::Css("nav button")).await.expect("the page lists its rooms") {
            if button.text().await.expect("the button has a text").starts_with(room) {
                return button.click().await.expect("the button is clickable");
            }
        }
        panic!("the page has no room {room}");
    }

    /// Types into the field for messages, and presses Enter.
    async fn submit(&self, text: &str) {
        let field = self.client().find(Locator::Css("#text")).await.expect("the page has a field for messages");
        field.send_keys(text).await.expect("the field is editable");
        field.send_keys("\n").await.expect("the field is editable");
    }

    async fn send(&self, room: &str, text: &str) {
        self.enter(room).await;
        self.submit(text).await;
        eventually(SOON, "the server has accepted the message, and the field is empty", async || {
            let field = self.eval_text("document.querySelector('#text').value").await;
            let note = self.text("#note").await;
            let is_busy = self.eval("document.querySelector('#send').disabled").await;
            if field.is_empty() && is_busy == false { Ok(()) } else { Err((field, note)) }
        })
        .await;
    }

    /// Sends a message without the form. Returns the status and the text of the response.
    async fn post(&self, room: &str, name: &str, text: &str) -> Value {
        let message = json!({ "room": room, "name": name, "text": text }).to_string();
        let options = json!({ "method": "POST", "headers": { "Content-Type": "application/json" }, "body": message });
        self.eval(&format!("fetch('/messages', {options}).then(async (a) => [a.status, await a.text()])")).await
    }

    /// Waits until the page shows exactly these lines in a room.
    async fn wait_for_room(&self, room: &str, lines: &[impl AsRef<str>]) {
        let lines: Vec<_> = lines.iter().map(AsRef::as_ref).collect();
        let items = format!("[...rooms.get({}).list.children]", json!(room));
        let line = "(item) => item.children.length \
            ? `${item.querySelector('b').textContent}: ${item.querySelector('p').textContent}` : item.textContent";
        eventually(SOON, &format!("{room} has the lines {lines:?}"), async || {
            let shown = self.eval(&format!("{items}.map({line})")).await;
            if shown == json!(lines) { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    async fn wait_for_presence(&self, room: &str, text: &str) {
        self.wait_for(&format!("rooms.get({}).here.textContent", json!(room)), text).await;
    }

    async fn wait_for_unread(&self, room: &str, count: &str) {
        self.wait_for(&format!("rooms.get({}).unread.textContent", json!(room)), count).await;
    }

    /// Waits until the note begins with this text. An empty text waits for an empty note.
    async fn wait_for_note(&self, beginning: &str) {
        eventually(SOON, &format!("the note begins with {beginning:?}"), async || {
            let note = self.text("#note").await;
            if note.starts_with(beginning) && note.is_empty() == beginning.is_empty() { Ok(()) } else { Err(note) }
        })
        .await;
    }

    /// Returns the messages of all rooms since the page was loaded.
    async fn messages(&self) -> Vec<Message> {
        self.received_of("message").await
    }

    /// Returns the events of members who have joined or left.
    async fn changes(&self) -> Vec<Message> {
        let mut messages = self.received().await;
        messages.retain(|message| message.kind == "joined" || message.kind == "left");
        messages
    }

    async fn received_of(&self, kind: &str) -> Vec<Message> {
        let mut messages = self.received().await;
        messages.retain(|message| message.kind == kind);
        messages
    }
}
