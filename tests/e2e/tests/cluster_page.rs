//! The `cluster` example in browsers, with Redis and NATS: the page moves between nodes, and misses
//! no event.

use e2e::{Browser, Engine, Example, Message, Page, Port, Store, StoreKind, Window, eventually, example_path, request};
use fantoccini::Locator;
use std::{collections::HashSet, net::SocketAddr, ops::Deref, process::Command, time::Duration};
use tokio::net::TcpStream;

/// A stopped node is down for five seconds, and the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn page_moves_between_nodes_chromium_redis() {
    moves_to_the_other_node(Engine::Chromium, StoreKind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_moves_between_nodes_chromium_nats() {
    moves_to_the_other_node(Engine::Chromium, StoreKind::Nats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_moves_between_nodes_firefox_nats() {
    moves_to_the_other_node(Engine::Firefox, StoreKind::Nats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_moves_between_nodes_webkit_redis() {
    moves_to_the_other_node(Engine::WebKit, StoreKind::Redis).await;
}

async fn moves_to_the_other_node(engine: Engine, kind: StoreKind) {
    let nodes = TwoNodes::start(kind).await;
    let page = ClusterPage::open(Browser::start_engine(engine).await, nodes.addresses[0]).await;
    page.wait_for_node(nodes.addresses[0]).await;
    let mut published = Vec::new();
    for node in [0, 1, 1, 0] {
        published.push(page.publish(&nodes, node).await);
    }
    page.assert_received(&published).await;

    // The page moves there, back, and there again. Other clients publish meanwhile.
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        page.wait_for_node(nodes.addresses[from]).await;
        page.press(from, "Stop").await;
        published.push(nodes.publish(to, &format!("while {from} is down")).await);
        page.wait_for_node(nodes.addresses[to]).await;
        published.push(page.publish(&nodes, to).await);
        page.assert_received(&published).await;
        nodes.wait_for(from).await;
        published.push(nodes.publish(from, &format!("{from} is back")).await);
    }
    page.assert_received(&published).await;
    page.wait_for_count("moves", "3").await;

    // A reloaded page begins with live events. It has a cursor before its first event.
    page.reload().await;
    page.wait_for_node(nodes.addresses[0]).await;
    page.press(0, "Stop").await;
    page.wait_for_node(nodes.addresses[1]).await;
    let only = page.publish(&nodes, 1).await;
    page.assert_received(&[only]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_moves_when_its_process_dies() {
    for kind in [StoreKind::Redis, StoreKind::Nats] {
        let store = Store::start(kind, &[]).await;
        let ports = [Port::free().expect("there is a free port"), Port::free().expect("there is a free port")];
        let [one, other] = [0, 1].map(|n| ports[n].address());
        let start = |own: SocketAddr, other: SocketAddr| start(&store, &[own], &[other]);
        let (first, second) = (start(one, other), start(other, one));
        let page = ClusterPage::open(Browser::start(Window::Desktop).await, one).await;
        page.wait_for_node(one).await;
        let before = publish(other, "before").await;
        page.assert_received(std::slice::from_ref(&before)).await;
        drop(first);
        let meanwhile = publish(other, "meanwhile").await;
        page.wait_for_node(other).await;
        page.assert_received(&[before.clone(), meanwhile.clone()]).await;

        let _first = start(one, other);
        let back = publish(one, "back").await;
        drop(second);
        page.wait_for_node(one).await;
        let after = publish(one, "after").await;
        page.assert_received(&[before, meanwhile, back, after]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_reports_failed_publish_and_recovers_after_outage() {
    for kind in [StoreKind::Redis, StoreKind::Nats] {
        let mut nodes = TwoNodes::start(kind).await;
        let page = ClusterPage::open(Browser::start(Window::Desktop).await, nodes.addresses[0]).await;
        page.wait_for_node(nodes.addresses[0]).await;
        let mut published = vec![page.publish(&nodes, 0).await];
        nodes.store.kill();
        for node in [0, 1] {
            page.press(node, "Publish").await;
            let address = nodes.addresses[node];
            page.wait_for_note(&format!("{address} says: the backend has not confirmed a write to the topic \"news\""))
                .await;
        }
        page.wait_for_node(nodes.addresses[0]).await;
        nodes.store.restart().await;
        // Each node reconnects by itself. Until then, it refuses what is published.
        for node in [1, 0] {
            eventually(SOON, "events can be published again", async || {
                match post(nodes.addresses[node], "/publish", "again").await {
                    (200, id) => {
                        published.push((id, "again".to_owned()));
                        Ok(())
                    }
                    other => Err(other),
                }
            })
            .await;
        }
        published.push(page.publish(&nodes, 0).await);
        page.wait_for_note("").await;
        page.assert_received(&published).await;
        page.wait_for_count("moves", "0").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_log_is_shown_as_a_gap() {
    let nodes = TwoNodes::start(StoreKind::Redis).await;
    let page = ClusterPage::open(Browser::start(Window::Desktop).await, nodes.addresses[0]).await;
    page.wait_for_node(nodes.addresses[0]).await;
    let published = page.publish(&nodes, 0).await;
    page.assert_received(std::slice::from_ref(&published)).await;
    assert!(nodes.store.redis("DEL tower-sse").await.starts_with(":1"));
    let next = nodes.publish(1, "in a new log").await;
    page.wait_for_count("gaps", "1").await;
    let item = page.text(".gap").await;
    assert!(item.contains(&format!("events after {} and before {} are missing", published.0, next.0)), "{item}");
    let received: Vec<_> = page.received().await.into_iter().map(|message| message.kind).collect();
    assert_eq!(received, ["message", "gap", "message"], "the gap comes before the next event");
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_of_100_arrives_in_order() {
    let nodes = TwoNodes::start(StoreKind::Nats).await;
    let page = ClusterPage::open(Browser::start(Window::Desktop).await, nodes.addresses[0]).await;
    page.wait_for_node(nodes.addresses[0]).await;
    page.press(1, "Publish 100").await;
    page.wait_for_count("received", "100").await;
    let received: Vec<_> = page.received().await.into_iter().map(|message| message.data).collect();
    let expected: Vec<_> = (1..=100).map(|n| format!("Event 1 · {n}")).collect();
    assert_eq!(received, expected);
    page.wait_for_count("missing", "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_arguments_are_reported_on_the_command_line() {
    let program = example_path("cluster");
    for (args, message) in [
        (&[][..], "Give the URL of the log"),
        (&["--kafka", "kafka://127.0.0.1"], "Give the URL of the log"),
        (
            &["--redis", "redis://127.0.0.1:1", "127.0.0.1:0"],
            "the backend cannot be used\n  Redis at 127.0.0.1:1 cannot be used: Connection refused (os error 111)\n",
        ),
        (&["--nats", "nats://127.0.0.1:1", "127.0.0.1:0"], "the backend cannot be used\n"),
        (&["--redis", "redis://127.0.0.1:1", "here"], "cannot listen on \"here\""),
        (
            &["--redis", "redis://127.0.0.1:1", "127.0.0.1:0", "--others", "there"],
            "invalid address of a node \"there\"",
        ),
    ] {
        let output = Command::new(&program).args(args).output().expect("the example starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(message), "{args:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_fits_phone_and_desktop() {
    let nodes = TwoNodes::start(StoreKind::Redis).await;
    for window in [Window::Phone { width: 390 }, Window::Desktop] {
        let page = ClusterPage::open(Browser::start(window).await, nodes.addresses[0]).await;
        page.wait_for_node(nodes.addresses[0]).await;
        let published = [nodes.publish(1, &"W".repeat(500)).await, nodes.publish(0, "An event of a few words").await];
        page.assert_received(&published).await;
        page.browser().assert_fits("cluster", window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn screenshot_shows_a_page_that_has_moved() {
    let nodes = TwoNodes::start(StoreKind::Redis).await;
    let page = ClusterPage::open(Browser::start(Window::Desktop).await, nodes.addresses[0]).await;
    page.wait_for_node(nodes.addresses[0]).await;
    let mut published = Vec::new();
    for (node, text) in
        [(0, "An order: two chairs, one table"), (1, "The chairs are packed"), (0, "The table is packed")]
    {
        published.push(nodes.publish(node, text).await);
    }
    page.assert_received(&published).await;
    page.press(0, "Stop").await;
    published.push(nodes.publish(1, "The carrier has the order").await);
    page.wait_for_node(nodes.addresses[1]).await;
    published.push(nodes.publish(1, "The order is in the next street").await);
    page.assert_received(&published).await;
    page.eval("document.activeElement.blur()").await;
    page.browser().screenshot("cluster").await;
}

/// Two nodes in one process.
struct TwoNodes {
    store: Store,
    addresses: [SocketAddr; 2],
    _ports: [Port; 2],
    _example: Example,
}

impl TwoNodes {
    async fn start(kind: StoreKind) -> Self {
        let store = Store::start(kind, &[]).await;
        let ports = [Port::free().expect("there is a free port"), Port::free().expect("there is a free port")];
        let addresses = [ports[0].address(), ports[1].address()];
        let example = start(&store, &addresses, &[]);
        Self { store, addresses, _ports: ports, _example: example }
    }

    /// Publishes without the page.
    async fn publish(&self, node: usize, text: &str) -> Published {
        publish(self.addresses[node], text).await
    }

    async fn wait_for(&self, node: usize) {
        eventually(SOON, "the node listens again", async || TcpStream::connect(self.addresses[node]).await.map(drop))
            .await;
    }
}

/// The id and the data of an event.
type Published = (String, String);

fn start(store: &Store, own: &[SocketAddr], others: &[SocketAddr]) -> Example {
    let mut args = vec![store.kind().option().to_owned(), store.url()];
    args.extend(own.iter().map(SocketAddr::to_string));
    if !others.is_empty() {
        args.push("--others".to_owned());
    }
    args.extend(others.iter().map(SocketAddr::to_string));
    Example::start_with("cluster", &args.iter().map(String::as_str).collect::<Vec<_>>())
}

async fn publish(node: SocketAddr, text: &str) -> Published {
    let (status, id) = post(node, "/publish", text).await;
    assert_eq!(status, 200, "{id}");
    (id, text.to_owned())
}

async fn post(node: SocketAddr, path: &str, text: &str) -> (u16, String) {
    let head = format!("POST {path} HTTP/1.0\r\nHost: {node}\r\nContent-Length: {}\r\n\r\n", text.len());
    let answer = request(node, &format!("{head}{text}")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a response has a head");
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body.to_owned())
}

struct ClusterPage(Page);

impl Deref for ClusterPage {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.0
    }
}

impl ClusterPage {
    async fn open(browser: Browser, node: SocketAddr) -> Self {
        Self(Page::open(browser, node, SOON).await)
    }

    /// Waits until the page is connected to this node.
    async fn wait_for_node(&self, node: SocketAddr) {
        self.wait_for_state(&format!("connected to {node}")).await;
        let current = self.text("[aria-current=true] h2 span").await;
        assert_eq!(current, node.to_string(), "the page marks the node");
    }

    /// Clicks the button of a node with this text.
    async fn press(&self, node: usize, text: &str) {
        let cards = self.client().find_all(Locator::Css("section")).await.expect("the page lists the nodes");
        for button in cards[node].find_all(Locator::Css("button")).await.expect("a node has buttons") {
            if button.text().await.expect("the button has a text") == text {
                return button.click().await.expect("the button is clickable");
            }
        }
        panic!("there is no button {text}");
    }

    /// Publishes the text of the field with the button of a node.
    async fn publish(&self, nodes: &TwoNodes, node: usize) -> Published {
        let field = async || self.eval_text("document.querySelector('#text').value").await;
        let text = field().await;
        self.press(node, "Publish").await;
        eventually(SOON, "the event is acknowledged", async || match field().await {
            other if other != text => Ok(()),
            _ => Err(self.text("#note").await),
        })
        .await;
        let what = format!("the page has received {text:?}, published on {}", nodes.addresses[node]);
        let id = eventually(SOON, &what, async || {
            let received = self.received().await;
            let message = received.iter().rev().find(|message| message.data == text);
            message.map(|message| message.id.clone()).ok_or(received.len())
        })
        .await;
        (id, text)
    }

    /// Asserts that the page receives exactly these events, in this order.
    async fn assert_received(&self, published: &[Published]) {
        let message =
            |(id, data): &Published| Message { id: id.clone(), kind: "message".to_owned(), data: data.clone() };
        let expected: Vec<_> = published.iter().map(message).collect();
        eventually(SOON, &format!("the page has received {expected:?}"), async || {
            let received = self.received().await;
            if received == expected { Ok(()) } else { Err(received) }
        })
        .await;
        let ids: HashSet<_> = published.iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), published.len(), "each event has its own id");
        self.wait_for_count("received", &published.len().to_string()).await;
        for counter in ["missing", "twice", "gaps"] {
            self.wait_for_count(counter, "0").await;
        }
    }

    async fn wait_for_count(&self, counter: &str, number: &str) {
        self.wait_for_text(&format!("#{counter}"), number).await;
    }

    async fn wait_for_note(&self, text: &str) {
        self.wait_for_text("#note", text).await;
    }
}
