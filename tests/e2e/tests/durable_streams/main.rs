//! Durable Streams with the published client and conformance tests of the protocol.
//!
//! The conformance tests write to the streams that they read, so the server of these tests adds the
//! writes that reading needs. `not_applicable.txt` lists the other tests by name, each with the
//! reason.

mod backends;
mod cache;
mod server;

use axum::Router;
use e2e::{Client, Server, eventually, installed};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tower_http::cors::CorsLayer;
use tower_sse::{
    Event,
    hub::{Hub, durable_streams::DurableStreams},
};

const SOON: Duration = Duration::from_secs(20);
/// The conformance tests wait for long polls without an event.
const LONG_POLL: Duration = Duration::from_secs(2);
/// The number of conformance tests that apply. docs/durable-streams.md states it.
const APPLICABLE: usize = 138;

#[tokio::test(flavor = "multi_thread")]
async fn conformance_tests_of_reading_pass() {
    let hub = Hub::new();
    let server = Server::start(server::app(&hub, |streams| streams.long_poll_timeout(LONG_POLL)));
    let folder = clients();
    let test = folder.join("durable_streams.test.mjs");
    fs::copy(script("durable_streams.test.mjs"), &test).expect("the clients are installed");
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut vitest = Command::new(installed(&["node", "nodejs"], "nodejs"));
    vitest
        .arg("node_modules/vitest/vitest.mjs")
        .args(["run", "durable_streams.test.mjs", "--reporter=json", "--testTimeout=60000", "--outputFile"])
        .arg(report.path())
        // These groups do not apply as a whole, and wait for times to live.
        .args(["--testNamePattern", "^(?!(Fork -|TTL |Idempotent Producer|Reserved subscription))"])
        .current_dir(&folder)
        .env("CONFORMANCE_TEST_URL", server.url(""))
        .env("LONG_POLL_TIMEOUT", LONG_POLL.as_millis().to_string());
    let mut vitest = Client::start(&mut vitest);
    // It fails, because it also runs tests that do not apply.
    tokio::task::block_in_place(|| vitest.wait_for_exit(Duration::from_secs(180))).expect("the tests end");

    let report: Value = serde_json::from_reader(report).expect("a report");
    let mut outcomes = BTreeMap::new();
    for test in report["testResults"][0]["assertionResults"].as_array().expect("a list of tests") {
        outcomes.insert(test["fullName"].as_str().unwrap(), test);
    }
    let listed: BTreeSet<_> =
        include_str!("not_applicable.txt").lines().filter_map(|line| line.strip_prefix("- ")).collect();
    let unknown: Vec<_> = listed.iter().filter(|name| !outcomes.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "not_applicable.txt has tests that do not exist: {unknown:#?}");
    outcomes.retain(|name, _| !listed.contains(name));
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|(_, test)| test["status"] != "passed")
        .map(|(name, test)| {
            let message = test["failureMessages"][0].as_str().unwrap_or_default();
            format!("{name}: {} {}", test["status"], message.lines().next().unwrap_or_default())
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(outcomes.len(), APPLICABLE, "update docs/durable-streams.md");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_reads_all_pages_and_resumes_at_its_offset() {
    let hub = Hub::new();
    publish(&hub, 0..10).await;
    let server = serve(&hub, |streams| streams.page_size(10));
    let read = finish(&mut start(&server, "-1", "pages"));
    assert_eq!((numbers(&read), read.len()), ((0..10).collect(), 2));
    publish(&hub, 10..12).await;
    assert_eq!(numbers(&finish(&mut start(&server, last_offset(&read), "pages"))), [10, 11]);
    assert_eq!(numbers(&finish(&mut start(&server, "now", "pages"))), [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_follows_long_polls_to_the_end() {
    let hub = Hub::new();
    publish(&hub, 0..3).await;
    let server = serve(&hub, |streams| streams.page_size(5).long_poll_timeout(Duration::from_millis(300)));
    follow_to_the_end(&hub, &server, "long-poll").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_follows_event_streams_to_the_end() {
    let hub = Hub::new();
    publish(&hub, 0..3).await;
    // The client reconnects several times. It would fall back to long polls below one second.
    let server = serve(&hub, |streams| streams.page_size(5).close_events_after(Duration::from_millis(1_200)));
    follow_to_the_end(&hub, &server, "sse").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_misses_nothing_during_a_restart_of_the_server() {
    let hub = Hub::new();
    for (live, first) in [("long-poll", 0), ("sse", 3)] {
        publish(&hub, first..first + 1).await;
        let server = serve(&hub, |streams| streams);
        let mut client = start(&server, "-1", live);
        received(&mut client, first + 1).await;
        let port = server.stop().await;
        publish(&hub, first + 1..first + 3).await;
        let server = Server::start_at(port, app(&hub, |streams| streams));
        let mut lines = received(&mut client, first + 3).await;
        if lines.last().is_some_and(|line| line["error"] == "TypeError") {
            // The break of an event stream can be an error of this client. The application then
            // starts it again at its last offset.
            assert_eq!(live, "sse");
            lines.pop();
            client = start(&server, last_offset(&lines), live);
            lines.extend(received(&mut client, first + 3 - numbers(&lines).len()).await);
        }
        assert_eq!(numbers(&lines), (0..first + 3).collect::<Vec<_>>(), "{live}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_fails_with_410_for_evicted_events() {
    let hub = Hub::builder().max_events(2).build();
    publish(&hub, 0..1).await;
    let server = serve(&hub, |streams| streams);
    let read = finish(&mut start(&server, "-1", "pages"));
    publish(&hub, 1..10).await;
    for live in ["pages", "long-poll", "sse"] {
        let lines = finish(&mut start(&server, last_offset(&read), live));
        assert_eq!(lines.last().unwrap()["status"], json!(410), "{live}: {lines:?}");
    }
}

/// Publishes events while a client reads them, and finishes the topic.
async fn follow_to_the_end(hub: &Hub, server: &Server, live: &str) {
    let mut client = start(server, "-1", live);
    received(&mut client, 3).await;
    for number in 3..9 {
        publish(hub, number..number + 1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    hub.topic("t").finish().await.unwrap();
    let lines = finish(&mut client);
    assert_eq!(numbers(&lines), (0..9).collect::<Vec<_>>());
    assert!(lines.iter().any(|line| line["closed"] == true), "{lines:?}");
}

fn app(hub: &Hub, settings: impl FnOnce(DurableStreams) -> DurableStreams) -> Router {
    let streams = settings(hub.durable_streams().readable(|topic, _| topic == "t"));
    Router::new().nest_service("/streams", streams).layer(CorsLayer::permissive())
}

fn serve(hub: &Hub, settings: impl FnOnce(DurableStreams) -> DurableStreams) -> Server {
    Server::start(app(hub, settings))
}

async fn publish(hub: &Hub, numbers: std::ops::Range<usize>) {
    hub.topic("t").publish_all(numbers.map(Event::display)).await.unwrap();
}

/// Starts the client. `live` is `pages`, `long-poll` or `sse`.
fn start(server: &Server, offset: &str, live: &str) -> Client {
    let mut command = Command::new(installed(&["node", "nodejs"], "nodejs"));
    command.env("NODE_PATH", clients().join("node_modules")).arg(script("read_with_durable_streams.cjs")).args([
        &server.url("/streams/t"),
        offset,
        live,
    ]);
    Client::start(&mut command)
}

/// Waits for the end of the client, and returns what it has written.
fn finish(client: &mut Client) -> Vec<Value> {
    let status = tokio::task::block_in_place(|| client.wait_for_exit(SOON));
    assert!(status.is_some_and(|status| status.success()), "{status:?}: {:?}", client.lines());
    parse(client)
}

/// Waits until the client has received this number of events, or has failed.
async fn received(client: &mut Client, count: usize) -> Vec<Value> {
    eventually(SOON, "the client has received all events", async || {
        let lines = parse(client);
        let has_failed = lines.iter().any(|line| line.get("error").is_some());
        if has_failed || numbers(&lines).len() >= count { Ok(lines) } else { Err(lines) }
    })
    .await
}

fn parse(client: &mut Client) -> Vec<Value> {
    client.lines().iter().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn numbers(lines: &[Value]) -> Vec<usize> {
    let items = lines.iter().filter_map(|line| line["items"].as_array()).flatten();
    items.map(|item| item.as_u64().expect("a number") as usize).collect()
}

/// Returns the offset for the next request of a client.
fn last_offset(lines: &[Value]) -> &str {
    lines.last().expect("a batch")["offset"].as_str().expect("an offset")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/node").join(name)
}

/// Returns the folder with the clients from npm.
fn clients() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("e2e-clients/node");
    assert!(folder.exists(), "{} does not exist: run scripts/test, which installs it", folder.display());
    folder
}
