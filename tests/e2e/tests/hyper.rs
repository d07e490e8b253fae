//! The server without a framework, read by curl: what a client gets, where it goes on, and how it all ends.

use e2e::{Client, Example, eventually, installed};
use std::{net::SocketAddr, process::Command, time::Duration};

/// Milliseconds between two ticks.
const EVERY: &str = "50";
/// How many ticks a client gets that it has missed.
const REPLAYED: u64 = 600;
const SOON: Duration = Duration::from_secs(10);
/// Well below what an init system waits for.
const TO_END: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_the_head_of_an_event_stream_and_each_tick() {
    let server = Example::start("hyper", &[EVERY]);
    let mut curl = Curl::start(server.address(), &["--include"]);
    let ticks = curl.ticks(5).await;
    assert_follow_each_other(&ticks);
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
    // The time of day of the tick: its number times its length.
    let time = ticks[0] * EVERY.parse::<u64>().expect("a number");
    let clock = [time / 3_600_000 % 24, time / 60_000 % 60, time / 1000 % 60].map(|part| format!("{part:02}"));
    assert_eq!(body[4], format!("data: {}.{:03}", clock.join(":"), time % 1000));
    assert_eq!(body[5], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_2_the_same_comes_without_what_http_2_does_not_have() {
    let server = Example::start("hyper", &[EVERY]);
    let mut curl = Curl::start(server.address(), &["--include", "--http2-prior-knowledge"]);
    assert_follow_each_other(&curl.ticks(5).await);
    let lines = curl.0.lines();
    assert!(lines[0].starts_with("HTTP/2 200"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "content-type: text/event-stream"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("connection:")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_goes_on_where_it_was_also_after_a_restart() {
    let server = Example::start("hyper", &[EVERY]);
    let address = server.address();
    let seen = Curl::start(address, &[]).ticks(3).await;
    // What comes next is missed, until one of others has seen ten.
    let missed = Curl::start(address, &[]).ticks(10).await;
    for resume in [vec!["--header".to_owned(), format!("Last-Event-ID: {}", seen[2])], vec![query(seen[2])]] {
        let resume: Vec<_> = resume.iter().map(String::as_str).collect();
        let mut curl = Curl::start(address, &resume);
        let all = curl.ticks_until(missed[9] + 5).await;
        assert_eq!(all[0], seen[2] + 1, "with the one after that");
        assert_follow_each_other(&all);
    }

    drop(server);
    let server = Example::start_at(address, "hyper", &[EVERY]);
    let mut curl = Curl::start(server.address(), &[&query(missed[9])]);
    let rest = curl.ticks(10).await;
    assert_follow_each_other(&rest);
    assert_eq!(rest[0], missed[9] + 1, "the new server knows the ids of the one before");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_ago_is_left_out_and_an_id_that_cannot_be_is_told_as_such() {
    let server = Example::start("hyper", &["1000"]);
    let mut new = Curl::start(server.address(), &[]);
    let now = new.ticks(1).await[0];
    let all = Curl::start(server.address(), &[&query(1)]).ticks(600).await;
    assert_follow_each_other(&all);
    assert!((now - REPLAYED..=now).contains(&all[0]), "{REPLAYED} before {now}: {all:?}");

    let future = Curl::start(server.address(), &[&query(u64::MAX)]).ticks(1).await[0];
    assert!((now + 1..=now + 10).contains(&future), "the next one after {now}: {future}");

    let mut curl = Curl::start(server.address(), &["--include", "--header", "Last-Event-ID: yesterday"]);
    curl.ends(0).await;
    let lines = curl.0.lines();
    assert_eq!(lines[0], "HTTP/1.1 400 Bad Request");
    let last = lines.last().map(String::as_str);
    assert_eq!(last, Some(r#"the last event id "yesterday" is not one of this stream's; connect without it"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_told_to_stop_ends_its_streams_cleanly_and_then_itself() {
    // So slow that the streams are in the middle of a silence.
    for every in [EVERY, "60000"] {
        let mut server = Example::start("hyper", &[every]);
        let mut clients = [&[][..], &["--http2-prior-knowledge"]].map(|args| Curl::start(server.address(), args));
        for curl in &mut clients {
            curl.ticks(1).await;
        }
        server.terminate();
        let status = server.ended_within(TO_END).expect("it does not wait for the clients");
        assert!(status.success(), "{status}");
        for mut curl in clients {
            // What ends in the middle of a transfer is an error to curl.
            curl.ends(0).await;
            let lines = curl.0.lines();
            let [.., event, data, _, retry] = lines else { panic!("{lines:?}") };
            assert_eq!([&**event, data], ["event: shutdown", "data: The server is being restarted"]);
            let retry: u64 = retry.strip_prefix("retry: ").and_then(|retry| retry.parse().ok()).expect("a time");
            assert!((1000..=6000).contains(&retry), "when to come back: {retry}");
        }
    }
}

fn query(id: u64) -> String {
    format!("lastEventId={id}")
}

struct Curl(Client);

impl Curl {
    /// With these options, or with a query.
    fn start(server: SocketAddr, args: &[&str]) -> Self {
        let mut command = Command::new(installed(&["curl"], "curl"));
        command.args(["--silent", "--no-buffer", "--noproxy", "*"]);
        let (queries, options): (Vec<&str>, _) = args.iter().partition(|arg| arg.starts_with("lastEventId="));
        command.args::<Vec<&str>, _>(options).arg(format!("http://{server}/?{}", queries.concat()));
        Self(Client::start(&mut command))
    }

    /// The ids of so many ticks, and of those that came with them.
    async fn ticks(&mut self, count: usize) -> Vec<u64> {
        self.until(|ticks| ticks.len() >= count).await
    }

    async fn ticks_until(&mut self, id: u64) -> Vec<u64> {
        self.until(|ticks| ticks.last() >= Some(&id)).await
    }

    async fn until(&mut self, is_enough: impl Fn(&[u64]) -> bool) -> Vec<u64> {
        eventually(SOON, "there are enough ticks", async || {
            let lines = self.0.lines();
            // The blank line that ends an event has to be there, too.
            let whole = lines.iter().rposition(String::is_empty).unwrap_or(0);
            let ids = lines[..whole].iter().filter_map(|line| line.strip_prefix("id: "));
            let ticks: Vec<u64> = ids.map(|id| id.parse().expect("a number")).collect();
            if is_enough(&ticks) { Ok(ticks) } else { Err(lines.to_vec()) }
        })
        .await
    }

    async fn ends(&mut self, with: i32) {
        let status = self.0.ended_within(SOON).expect("it ends by itself");
        assert_eq!(status.code(), Some(with), "{:?}", self.0.lines());
    }
}

#[track_caller]
fn assert_follow_each_other(ticks: &[u64]) {
    assert!(ticks.windows(2).all(|pair| pair[0] + 1 == pair[1]), "each once and in order: {ticks:?}");
}
