//! The `hyper` example, read by curl: headers, resuming, and graceful shutdown.

use e2e::{Client, Example, eventually, installed};
use std::{net::SocketAddr, process::Command, time::Duration};

/// Milliseconds between two ticks.
const INTERVAL: &str = "50";
/// The maximum number of missed ticks that a client receives.
const MAX_REPLAY: u64 = 600;
const SOON: Duration = Duration::from_secs(10);
/// Well below the time after which an init system sends SIGKILL.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_event_stream_headers_and_every_tick() {
    let server = Example::start("hyper", &[INTERVAL]);
    let mut curl = Curl::start(server.address(), &["--include"]);
    let ticks = curl.ticks(5).await;
    assert_consecutive(&ticks);
    let lines = curl.0.lines();
    let (head, body) = lines.split_at(lines.iter().position(String::is_empty).expect("the head has an end"));
    assert_eq!(head[0], "HTTP/1.1 200 OK");
    for header in [
        "content-type: text/event-stream",
        "cache-control: no-cache, no-transform",
        "x-accel-buffering: no",
        "connection: keep-alive",
    ] {
        assert!(head.iter().any(|line| line == header), "{header}: {head:?}");
    }
    assert_eq!(body[1], "retry: 1000");
    assert_eq!(body[2], format!("id: {}", ticks[0]));
    assert_eq!(body[3], "event: tick");
    // The time of a tick is its id times the interval.
    let time = ticks[0] * INTERVAL.parse::<u64>().expect("a number");
    let clock = [time / 3_600_000 % 24, time / 60_000 % 60, time / 1000 % 60].map(|part| format!("{part:02}"));
    assert_eq!(body[4], format!("data: {}.{:03}", clock.join(":"), time % 1000));
    assert_eq!(body[5], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_response_has_no_connection_header() {
    let server = Example::start("hyper", &[INTERVAL]);
    let mut curl = Curl::start(server.address(), &["--include", "--http2-prior-knowledge"]);
    assert_consecutive(&curl.ticks(5).await);
    let lines = curl.0.lines();
    assert!(lines[0].starts_with("HTTP/2 200"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "content-type: text/event-stream"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("connection:")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_resumes_after_disconnect_and_after_restart() {
    let server = Example::start("hyper", &[INTERVAL]);
    let address = server.address();
    let seen = Curl::start(address, &[]).ticks(3).await;
    // The client misses ticks until another client has received ten.
    let missed = Curl::start(address, &[]).ticks(10).await;
    for resume in [vec!["--header".to_owned(), format!("Last-Event-ID: {}", seen[2])], vec![query(seen[2])]] {
        let resume: Vec<_> = resume.iter().map(String::as_str).collect();
        let mut curl = Curl::start(address, &resume);
        let all = curl.ticks_until(missed[9] + 5).await;
        assert_eq!(all[0], seen[2] + 1, "the client resumes after its last tick");
        assert_consecutive(&all);
    }

    drop(server);
    let server = Example::start_at(address, "hyper", &[INTERVAL]);
    let mut curl = Curl::start(server.address(), &[&query(missed[9])]);
    let rest = curl.ticks(10).await;
    assert_consecutive(&rest);
    assert_eq!(rest[0], missed[9] + 1, "the new server understands the ids of the old one");
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_is_limited_and_invalid_ids_get_400() {
    let server = Example::start("hyper", &["1000"]);
    let mut new = Curl::start(server.address(), &[]);
    let now = new.ticks(1).await[0];
    let all = Curl::start(server.address(), &[&query(1)]).ticks(600).await;
    assert_consecutive(&all);
    assert!((now - MAX_REPLAY..=now).contains(&all[0]), "at most {MAX_REPLAY} ticks before {now}: {all:?}");

    let future = Curl::start(server.address(), &[&query(u64::MAX)]).ticks(1).await[0];
    assert!((now + 1..=now + 10).contains(&future), "the next tick after {now}: {future}");

    let mut curl = Curl::start(server.address(), &["--include", "--header", "Last-Event-ID: yesterday"]);
    curl.wait_for_exit(0).await;
    let lines = curl.0.lines();
    assert_eq!(lines[0], "HTTP/1.1 400 Bad Request");
    let last = lines.last().map(String::as_str);
    assert_eq!(last, Some(r#"the last event id "yesterday" is not one of this stream's; connect without it"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_streams_cleanly_and_exits() {
    // With a minute between two ticks, the streams are silent at the shutdown.
    for interval in [INTERVAL, "60000"] {
        let mut server = Example::start("hyper", &[interval]);
        let mut clients = [&[][..], &["--http2-prior-knowledge"]].map(|args| Curl::start(server.address(), args));
        for curl in &mut clients {
            curl.ticks(1).await;
        }
        server.terminate();
        let status = server.wait_for_exit(SHUTDOWN_TIMEOUT).expect("the server does not wait for its clients");
        assert!(status.success(), "{status}");
        for mut curl in clients {
            // curl would fail if the response were incomplete.
            curl.wait_for_exit(0).await;
            let lines = curl.0.lines();
            let [.., retry, event, data, _] = lines else { panic!("{lines:?}") };
            assert_eq!([&**event, data], ["event: shutdown", "data: The server is being restarted"]);
            let retry: u64 = retry.strip_prefix("retry: ").and_then(|retry| retry.parse().ok()).expect("a time");
            assert!((1000..=6000).contains(&retry), "the reconnection time is {retry} ms");
        }
    }
}

fn query(id: u64) -> String {
    format!("lastEventId={id}")
}

struct Curl(Client);

impl Curl {
    /// Starts curl with these arguments. An argument `lastEventId=…` becomes the query.
    fn start(server: SocketAddr, args: &[&str]) -> Self {
        let mut command = Command::new(installed(&["curl"], "curl"));
        command.args(["--silent", "--no-buffer", "--noproxy", "*"]);
        let (queries, options): (Vec<&str>, _) = args.iter().partition(|arg| arg.starts_with("lastEventId="));
        command.args::<Vec<&str>, _>(options).arg(format!("http://{server}/?{}", queries.concat()));
        Self(Client::start(&mut command))
    }

    /// Waits for this many ticks, and returns the ids of all received ticks.
    async fn ticks(&mut self, count: usize) -> Vec<u64> {
        self.wait_until(|ticks| ticks.len() >= count).await
    }

    async fn ticks_until(&mut self, id: u64) -> Vec<u64> {
        self.wait_until(|ticks| ticks.last() >= Some(&id)).await
    }

    async fn wait_until(&mut self, is_enough: impl Fn(&[u64]) -> bool) -> Vec<u64> {
        eventually(SOON, "curl has received enough ticks", async || {
            let lines = self.0.lines();
            // An event is complete when its blank line has arrived.
            let whole = lines.iter().rposition(String::is_empty).unwrap_or(0);
            let ids = lines[..whole].iter().filter_map(|line| line.strip_prefix("id: "));
            let ticks: Vec<u64> = ids.map(|id| id.parse().expect("a number")).collect();
            if is_enough(&ticks) { Ok(ticks) } else { Err(lines.to_vec()) }
        })
        .await
    }

    async fn wait_for_exit(&mut self, code: i32) {
        let status = self.0.wait_for_exit(SOON).expect("curl exits");
        assert_eq!(status.code(), Some(code), "{:?}", self.0.lines());
    }
}

#[track_caller]
fn assert_consecutive(ticks: &[u64]) {
    assert!(ticks.windows(2).all(|pair| pair[0] + 1 == pair[1]), "not each tick once and in order: {ticks:?}");
}
