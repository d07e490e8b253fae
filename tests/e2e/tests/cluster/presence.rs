//! Members of topics while processes are killed or paused, with real servers.

use crate::{processes::Process, with_each_store};
use e2e::{Store, StoreKind, request};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::SocketAddr,
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

with_each_store! {
    members_of_a_killed_process_leave_after_lease_and_grace,
    members_of_a_paused_process_leave_and_return,
    processes_agree_after_random_kills,
}

/// The settings of the `cluster` example.
const LEASE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(1);
/// The time until all processes must agree, if the machine has time for them.
const BOUND: Duration = Duration::from_secs(3);
/// The time that a busy machine may need in addition.
const SLACK: Duration = Duration::from_secs(10);

/// Returns the number of rounds of random kills. The variable `ROUNDS` sets it. Default: 8.
fn rounds() -> usize {
    env::var("ROUNDS").map_or(8, |rounds| rounds.parse().expect("ROUNDS is a number"))
}

/// Opens a stream, and waits for its head.
async fn enter(node: SocketAddr, room: &str, member: &str) -> TcpStream {
    let mut stream = TcpStream::connect(node).await.expect("the process listens");
    let request = format!("GET /rooms/{room}?member={member} HTTP/1.1\r\nHost: {node}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the process reads");
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.expect("there is a response");
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    stream
}

/// Returns the members that a process knows.
async fn members(node: SocketAddr, room: &str) -> Result<BTreeSet<String>, String> {
    let asked = format!("GET /rooms/{room}/members HTTP/1.0\r\n\r\n");
    let response = timeout(Duration::from_secs(20), request(node, &asked)).await.map_err(|_| "no response")?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("no response")?;
    if !head.starts_with("HTTP/1.0 200") {
        return Err(response);
    }
    serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))
}

/// Waits until these processes have the same members. Returns the time since `begin`.
async fn agree(nodes: &[SocketAddr], room: &str, expected: &BTreeSet<String>, begin: Instant) -> Duration {
    let mut last = Vec::new();
    while begin.elapsed() < BOUND + SLACK {
        last.clear();
        for node in nodes {
            last.push(members(*node, room).await);
        }
        if last.iter().all(|members| members.as_ref() == Ok(expected)) {
            return begin.elapsed();
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("the members are {expected:?}, and not {last:?}");
}

/// Waits until the stream of a client contains this number of events with a member. `read` is what
/// the client has read before.
///
/// A node that has just connected may not know all members yet, and then publishes the events of its
/// own members only. So if the node of a member stops before it has published the join, no other node
/// publishes it.
async fn published(stream: &mut TcpStream, read: &mut Vec<u8>, member: &str, count: usize) {
    let line = format!("data: {member}\n");
    while String::from_utf8_lossy(read).matches(&line).count() < count {
        let size = timeout(Duration::from_secs(20), stream.read_buf(read)).await.expect("there is an event");
        assert!(size.expect("the process writes") > 0, "the stream ends");
    }
}

/// Returns the events of a room from its beginning, such as `joined anna`.
async fn events(node: SocketAddr, room: &str) -> Vec<String> {
    let mut stream = enter(node, room, "reader").await;
    let mut bytes = Vec::new();
    // The last event is that of this reader.
    while !String::from_utf8_lossy(&bytes).contains("data: reader") {
        let read = timeout(Duration::from_secs(20), stream.read_buf(&mut bytes)).await.expect("there is an event");
        assert!(read.expect("the process writes") > 0, "the stream ends");
    }
    let text = String::from_utf8(bytes).expect("it is text");
    // Without the head and the sizes of the chunks.
    let (_, body) = text.split_once("\r\n\r\n").expect("there is a head");
    let is_size = |line: &&str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let body: String = body.split("\r\n").filter(|line| !is_size(line)).collect();
    let events = whatwg::parse(body.as_bytes()).messages.into_iter().filter(|event| event.r#type != "hub-cursor");
    events.map(|event| format!("{} {}", event.r#type, event.data)).collect()
}

/// Asserts that each member joins and leaves alternately, and returns the members at the end.
fn replay(events: &[String]) -> BTreeSet<String> {
    let mut present = BTreeSet::new();
    for event in events {
        let (change, member) = event.split_once(' ').expect("the event has a member");
        let is_change = if change == "joined" { present.insert(member.to_owned()) } else { present.remove(member) };
        assert!(is_change, "{event} is repeated or missing in {events:?}");
    }
    present.remove("reader");
    present
}

fn set(members: impl IntoIterator<Item = impl ToString>) -> BTreeSet<String> {
    members.into_iter().map(|member| member.to_string()).collect()
}

fn addresses(processes: &[Process]) -> Vec<SocketAddr> {
    processes.iter().map(Process::address).collect()
}

async fn members_of_a_killed_process_leave_after_lease_and_grace(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let mut processes = [Process::start(&store), Process::start(&store), Process::start(&store)];
    let nodes = addresses(&processes);
    for round in 0..3 {
        let room = format!("kill-{round}");
        let [_a, _b, mut other] =
            [enter(nodes[0], &room, "a").await, enter(nodes[0], &room, "b").await, enter(nodes[1], &room, "b").await];
        agree(&nodes, &room, &set(["a", "b"]), Instant::now()).await;
        let mut read = Vec::new();
        published(&mut other, &mut read, "a", 1).await;
        published(&mut other, &mut read, "b", 1).await;
        let begin = Instant::now();
        processes[0].kill();
        let time = agree(&nodes[1..], &room, &set(["b"]), begin).await;
        println!("{kind:?}: the members of a killed process have left after {time:.1?}");
        assert!(time > GRACE, "{time:?}");
        processes[0].restart();
        agree(&nodes, &room, &set(["b"]), Instant::now()).await;
        let events = events(nodes[0], &room).await;
        assert_eq!(replay(&events), set(["b"]));
        assert_eq!(events.len(), 4, "{events:?}");
    }
}

async fn members_of_a_paused_process_leave_and_return(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let processes = [Process::start(&store), Process::start(&store)];
    let nodes = addresses(&processes);
    let [_a, mut b] = [enter(nodes[0], "pause", "a").await, enter(nodes[1], "pause", "b").await];
    let mut read = Vec::new();
    for round in 0..3 {
        agree(&nodes, "pause", &set(["a", "b"]), Instant::now()).await;
        published(&mut b, &mut read, "a", 2 * round + 1).await;
        let begin = Instant::now();
        processes[0].signal("STOP");
        agree(&nodes[1..], "pause", &set(["b"]), begin).await;
        processes[0].signal("CONT");
    }
    agree(&nodes, "pause", &set(["a", "b"]), Instant::now()).await;
    // A short pause is no change.
    processes[0].signal("STOP");
    sleep(LEASE / 2).await;
    processes[0].signal("CONT");
    sleep(LEASE).await;
    agree(&nodes, "pause", &set(["a", "b"]), Instant::now()).await;
    let changes = events(nodes[1], "pause").await;
    assert_eq!(replay(&changes), set(["a", "b"]));
    assert_eq!(changes.len(), 2 + 3 * 2 + 1, "{changes:?}");
}

/// A sequence of numbers that looks random, and is the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

async fn processes_agree_after_random_kills(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let mut processes = [Process::start(&store), Process::start(&store), Process::start(&store)];
    let nodes = addresses(&processes);
    let mut numbers = Numbers(7);
    let mut clients: BTreeMap<(usize, usize), Vec<TcpStream>> = BTreeMap::new();
    let mut times = Vec::new();
    for _ in 0..rounds() {
        for _ in 0..numbers.below(6) {
            let (node, member) = (numbers.below(3), numbers.below(8));
            clients.entry((node, member)).or_default().push(enter(nodes[node], "random", &member.to_string()).await);
        }
        for _ in 0..numbers.below(4) {
            let key = (numbers.below(3), numbers.below(8));
            clients.get_mut(&key).map(Vec::pop);
        }
        let node = numbers.below(3);
        let begin = match numbers.below(4) {
            0 => {
                processes[node].signal("STOP");
                sleep(Duration::from_millis(numbers.below(5000) as u64)).await;
                processes[node].signal("CONT");
                Instant::now()
            }
            kind => {
                // While the clients are still connecting, or after the others know them.
                sleep(Duration::from_millis(numbers.below(500) as u64)).await;
                processes[node].kill();
                clients.retain(|(of, _), _| *of != node);
                let begin = Instant::now();
                sleep(Duration::from_millis((kind * numbers.below(800)) as u64)).await;
                processes[node].restart();
                begin
            }
        };
        let present = clients.iter().filter(|(_, streams)| !streams.is_empty()).map(|((_, member), _)| member);
        times.push(agree(&nodes, "random", &set(present), begin).await);
    }
    times.sort_unstable();
    let [median, most] = [times[times.len() / 2], times[times.len() - 1]];
    println!(
        "{kind:?}: after {} random kills, all agree after {median:.1?} in the median, {most:.1?} at most",
        times.len()
    );
    let present = clients.iter().filter(|(_, streams)| !streams.is_empty()).map(|((_, member), _)| member);
    assert_eq!(replay(&events(nodes[0], "random").await), set(present), "the events are those of the members");
}
