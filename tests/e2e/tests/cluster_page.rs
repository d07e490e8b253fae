//! The page of the cluster in real browsers, with a real Redis and a real NATS: it goes from node to node, and misses nothing.

use e2e::{
    Browser, Engine, Example, Message, Port, Window, eventually,
    store::{self, Store},
};
use fantoccini::Locator;
use serde_json::{Value, json};
use std::{collections::HashSet, net::SocketAddr, time::Duration};

/// A node that was stopped is away for five seconds, and the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn in_chromium_a_page_of_nodes_with_redis_goes_on_at_the_other_node() {
    goes_on_at_the_other_node(Engine::Chromium, store::Engine::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_chromium_a_page_of_nodes_with_nats_goes_on_at_the_other_node() {
    goes_on_at_the_other_node(Engine::Chromium, store::Engine::Nats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_firefox_a_page_of_nodes_with_nats_goes_on_at_the_other_node() {
    goes_on_at_the_other_node(Engine::Firefox, store::Engine::Nats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_webkit_a_page_of_nodes_with_redis_goes_on_at_the_other_node() {
    goes_on_at_the_other_node(Engine::WebKit, store::Engine::Redis).await;
}

async fn goes_on_at_the_other_node(engine: Engine, kind: store::Engine) {
    let nodes = TwoNodes::start(kind).await;
    let page = Page::open(Browser::of(engine).await, nodes.addresses[0]).await;
    page.is_at(nodes.addresses[0]).await;
    let mut sent = Vec::new();
    for node in [0, 1, 1, 0] {
        sent.push(page.publishes(&nodes, node).await);
    }
    page.has(&sent).await;

    // From the one to the other, and back, while somebody publishes.
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        page.is_at(nodes.addresses[from]).await;
        page.presses(from, "Stop").await;
        sent.push(nodes.publishes(to, &format!("while {from} is away")).await);
        page.is_at(nodes.addresses[to]).await;
        sent.push(page.publishes(&nodes, to).await);
        page.has(&sent).await;
        nodes.is_there(from).await;
        sent.push(nodes.publishes(from, &format!("{from} is back")).await);
    }
    page.has(&sent).await;
    page.counts("moves", "3").await;

    // A new one begins with what comes, and has a place before that.
    page.browser.client().refresh().await.expect("the page is there");
    page.is_at(nodes.addresses[0]).await;
    page.presses(0, "Stop").await;
    page.is_at(nodes.addresses[1]).await;
    let only = page.publishes(&nodes, 1).await;
    page.has(&[only]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_goes_on_at_another_program_when_that_of_its_node_is_killed() {
    for kind in [store::Engine::Redis, store::Engine::Nats] {
        let store = Store::start(kind, &[]).await;
        let ports = [Port::free().expect("there is one"), Port::free().expect("there is one")];
        let [one, other] = [0, 1].map(|n| ports[n].address());
        let start = |own: SocketAddr, other: SocketAddr| start(&store, &[own], &[other]);
        let (first, second) = (start(one, other), start(other, one));
        let page = Page::open(Browser::start(Window::Desktop).await, one).await;
        page.is_at(one).await;
        let before = publishes(other, "before").await;
        page.has(std::slice::from_ref(&before)).await;
        drop(first);
        let meanwhile = publishes(other, "meanwhile").await;
        page.is_at(other).await;
        page.has(&[before.clone(), meanwhile.clone()]).await;

        let _first = start(one, other);
        let back = publishes(one, "back").await;
        drop(second);
        page.is_at(one).await;
        let after = publishes(one, "after").await;
        page.has(&[before, meanwhile, back, after]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_that_nothing_can_be_published_while_the_backend_is_down_and_goes_on_afterwards() {
    for kind in [store::Engine::Redis, store::Engine::Nats] {
        let mut nodes = TwoNodes::start(kind).await;
        let page = Page::open(Browser::start(Window::Desktop).await, nodes.addresses[0]).await;
        page.is_at(nodes.addresses[0]).await;
        let mut sent = vec![page.publishes(&nodes, 0).await];
        nodes.store.kill();
        for node in [0, 1] {
            page.presses(node, "Publish").await;
            let where_ = nodes.addresses[node];
            page.notes(&format!("{where_} says: the backend has not confirmed what was published to \"news\"")).await;
        }
        page.is_at(nodes.addresses[0]).await;
        nodes.store.restart().await;
        eventually(SOON, "it can be published again", async || {
            match post(nodes.addresses[1], "/publish", "again").await {
                (200, id) => {
                    sent.push((id, "again".to_owned()));
                    Ok(())
                }
                other => Err(other),
            }
        })
        .await;
        sent.push(page.publishes(&nodes, 0).await);
        page.notes("").await;
        page.has(&sent).await;
        page.counts("moves", "0").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_tells_of_what_it_cannot_get_any_more() {
    let nodes = TwoNodes::start(store::Engine::Redis).await;
    let page = Page::open(Browser::start(Window::Desktop).await, nodes.addresses[0]).await;
    page.is_at(nodes.addresses[0]).await;
    let sent = page.publishes(&nodes, 0).await;
    page.has(std::slice::from_ref(&sent)).await;
    assert!(nodes.store.redis("DEL tower-sse").await.starts_with(":1"));
    let next = nodes.publishes(1, "in a log that begins anew").await;
    page.counts("gaps", "1").await;
    let item = page.text_of("document.querySelector('.gap').textContent").await;
    assert!(item.contains(&format!("what came after {} and before {} is no longer held", sent.0, next.0)), "{item}");
    let received: Vec<_> = page.received().await.into_iter().map(|message| message.kind).collect();
    assert_eq!(received, ["message", "gap", "message"], "it is told where it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_events_at_once_arrive_together_and_in_order() {
    let nodes = TwoNodes::start(store::Engine::Nats).await;
    let page = Page::open(Browser::start(Window::Desktop).await, nodes.addresses[0]).await;
    page.is_at(nodes.addresses[0]).await;
    page.presses(1, "Publish 100").await;
    page.counts("received", "100").await;
    let received: Vec<_> = page.received().await.into_iter().map(|message| message.data).collect();
    let expected: Vec<_> = (1..=100).map(|n| format!("Event 1 · {n}")).collect();
    assert_eq!(received, expected);
    page.counts("missing", "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_said_on_the_command_line() {
    let program = e2e::program("cluster");
    for (args, says) in [
        (&[][..], "Say where the log is"),
        (&["--kafka", "kafka://127.0.0.1"], "Say where the log is"),
        (
            &["--redis", "redis://127.0.0.1:1", "127.0.0.1:0"],
            "the backend cannot be used\n  Redis at 127.0.0.1:1 cannot be used: Connection refused (os error 111)\n",
        ),
        (&["--nats", "nats://127.0.0.1:1", "127.0.0.1:0"], "the backend cannot be used\n"),
        (&["--redis", "redis://127.0.0.1:1", "here"], "cannot listen on \"here\""),
        (&["--redis", "redis://127.0.0.1:1", "127.0.0.1:0", "--others", "there"], "\"there\" is no address of a node"),
    ] {
        let output = std::process::Command::new(&program).args(args).output().expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(says), "{args:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_into_the_width_of_a_phone_and_of_a_desk() {
    let nodes = TwoNodes::start(store::Engine::Redis).await;
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let page = Page::open(Browser::start(window).await, nodes.addresses[0]).await;
        page.is_at(nodes.addresses[0]).await;
        let sent = [nodes.publishes(1, &"W".repeat(500)).await, nodes.publishes(0, "An event of a few words").await];
        page.has(&sent).await;
        page.browser.fits("cluster", window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_shows_a_page_that_was_moved() {
    let nodes = TwoNodes::start(store::Engine::Redis).await;
    let page = Page::open(Browser::start(Window::Desktop).await, nodes.addresses[0]).await;
    page.is_at(nodes.addresses[0]).await;
    let mut sent = Vec::new();
    for (node, text) in
        [(0, "An order: two chairs, one table"), (1, "The chairs are packed"), (0, "The table is packed")]
    {
        sent.push(nodes.publishes(node, text).await);
    }
    page.has(&sent).await;
    page.presses(0, "Stop").await;
    sent.push(nodes.publishes(1, "The carrier has it, and nobody has missed that").await);
    page.is_at(nodes.addresses[1]).await;
    sent.push(nodes.publishes(1, "It is in the next street").await);
    page.has(&sent).await;
    page.browser.eval("document.activeElement.blur()").await;
    page.browser.screenshot("cluster").await;
}

/// Two nodes in one program.
struct TwoNodes {
    store: Store,
    addresses: [SocketAddr; 2],
    _ports: [Port; 2],
    _example: Example,
}

impl TwoNodes {
    async fn start(kind: store::Engine) -> Self {
        let store = Store::start(kind, &[]).await;
        let ports = [Port::free().expect("there is one"), Port::free().expect("there is one")];
        let addresses = [ports[0].address(), ports[1].address()];
        let example = start(&store, &addresses, &[]);
        Self { store, addresses, _ports: ports, _example: example }
    }

    /// Past the page.
    async fn publishes(&self, node: usize, text: &str) -> Sent {
        publishes(self.addresses[node], text).await
    }

    async fn is_there(&self, node: usize) {
        eventually(SOON, "the node is there again", async || {
            tokio::net::TcpStream::connect(self.addresses[node]).await.map(drop)
        })
        .await;
    }
}

/// Its id and its text.
type Sent = (String, String);

fn start(store: &Store, own: &[SocketAddr], others: &[SocketAddr]) -> Example {
    let backend = match store.engine() {
        store::Engine::Redis => "--redis",
        store::Engine::Nats => "--nats",
    };
    let mut args = vec![backend.to_owned(), store.url()];
    args.extend(own.iter().map(SocketAddr::to_string));
    if !others.is_empty() {
        args.push("--others".to_owned());
    }
    args.extend(others.iter().map(SocketAddr::to_string));
    Example::start_with("cluster", &args.iter().map(String::as_str).collect::<Vec<_>>())
}

async fn publishes(node: SocketAddr, text: &str) -> Sent {
    let (status, id) = post(node, "/publish", text).await;
    assert_eq!(status, 200, "{id}");
    (id, text.to_owned())
}

async fn post(node: SocketAddr, path: &str, text: &str) -> (u16, String) {
    let head = format!("POST {path} HTTP/1.0\r\nHost: {node}\r\nContent-Length: {}\r\n\r\n", text.len());
    let answer = e2e::request(node, &format!("{head}{text}")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("it answers");
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body.to_owned())
}

struct Page {
    browser: Browser,
}

impl Page {
    async fn open(browser: Browser, node: SocketAddr) -> Self {
        browser.client().goto(&format!("http://{node}/")).await.expect("the page is there");
        Self { browser }
    }

    async fn is_at(&self, node: SocketAddr) {
        self.comes_to("document.querySelector('#state').textContent", &format!("at {node}")).await;
        let here = "document.querySelector('[aria-current=true] h2 span')?.textContent";
        assert_eq!(self.text_of(here).await, node.to_string(), "and shows where it is");
    }

    /// The button of a node with this text.
    async fn presses(&self, node: usize, text: &str) {
        let cards = self.browser.client().find_all(Locator::Css("section")).await.expect("the page has its nodes");
        for button in cards[node].find_all(Locator::Css("button")).await.expect("it has buttons") {
            if button.text().await.expect("it has a text") == text {
                return button.click().await.expect("it can be pressed");
            }
        }
        panic!("there is no button {text}");
    }

    /// What the field says, by the button of a node.
    async fn publishes(&self, nodes: &TwoNodes, node: usize) -> Sent {
        let field = async || self.text_of("document.querySelector('#text').value").await;
        let text = field().await;
        self.presses(node, "Publish").await;
        let note = async || self.text_of("document.querySelector('#note').textContent").await;
        eventually(SOON, "it is acknowledged", async || match field().await {
            other if other != text => Ok(()),
            _ => Err(note().await),
        })
        .await;
        let id = eventually(SOON, &format!("{text:?}, from {}", nodes.addresses[node]), async || {
            let received = self.received().await;
            let message = received.iter().rev().find(|message| message.data == text);
            message.map(|message| message.id.clone()).ok_or(received.len())
        })
        .await;
        (id, text)
    }

    /// It has received this, in this order, and nothing else.
    async fn has(&self, sent: &[Sent]) {
        let message = |(id, data): &Sent| Message { id: id.clone(), kind: "message".to_owned(), data: data.clone() };
        let expected: Vec<_> = sent.iter().map(message).collect();
        eventually(SOON, &format!("{expected:?}"), async || {
            let received = self.received().await;
            if received == expected { Ok(()) } else { Err(received) }
        })
        .await;
        let ids: HashSet<_> = sent.iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), sent.len(), "each has an id of its own");
        self.counts("received", &sent.len().to_string()).await;
        for none in ["missing", "twice", "gaps"] {
            self.counts(none, "0").await;
        }
    }

    async fn counts(&self, what: &str, number: &str) {
        self.comes_to(&format!("document.querySelector('#{what}').textContent"), number).await;
    }

    async fn notes(&self, text: &str) {
        self.comes_to("document.querySelector('#note').textContent", text).await;
    }

    async fn comes_to(&self, expression: &str, text: &str) {
        eventually(SOON, &format!("{expression} is {text:?}"), async || {
            let is = self.text_of(expression).await;
            if is == text { Ok(()) } else { Err(is) }
        })
        .await;
    }

    async fn received(&self) -> Vec<Message> {
        let received: Value = self.browser.eval("received").await;
        let received = received.as_array().expect("the page keeps them in an array");
        received.iter().map(|value| Message::from_page(value).expect("each has an id, a type and data")).collect()
    }

    async fn text_of(&self, expression: &str) -> String {
        let value = self.browser.eval(expression).await;
        value.as_str().map_or_else(|| json!(value).to_string(), str::to_owned)
    }
}
