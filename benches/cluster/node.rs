//! A process with hubs, which executes commands.
//!
//! Each line of the standard input is a command, and each line of the standard output is its
//! result, as numbers.
//!
//! The process has one thread, so that it has the CPU time of its work only, and that nodes on one
//! machine disturb each other as little as possible.

use crate::clients::{Clients, connect, now};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{
    fs,
    hint::black_box,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    task::{JoinSet, yield_now},
    time::{self, MissedTickBehavior, timeout},
};
use tower_sse::{
    BoxError, Event,
    hub::{
        Hub, Start, Topic,
        backend::{Durability, FileBackend, MemoryBackend, NatsBackend, PostgresBackend, RedisBackend},
    },
};

/// The time limit of a command, long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The number of events in flight while a log is filled.
const IN_FLIGHT: usize = 100;
/// The number of quantiles in the result of a distribution, without the minimum.
pub(crate) const QUANTILES: usize = 1000;

/// A topic of a hub, and its clients.
struct Feed {
    topic: Topic,
    clients: Clients,
    /// The CPU time of this process at the last `begin`.
    cpu_at_begin: u64,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() -> Result<(), BoxError> {
    let mut feeds = Vec::new();
    let mut connections = JoinSet::new();
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    // The end of the parent process closes the standard input and ends this process.
    while let Some(line) = commands.next_line().await? {
        let words: Vec<_> = line.split(' ').collect();
        let numbers: Vec<_> = words.iter().skip(1).map(|word| word.parse().unwrap_or(0)).collect();
        let result = match (words[0], &numbers[..]) {
            ("open", &[.., max_events]) => {
                let [_, kind, url, stream, ..] = words[..] else { return Err(line.into()) };
                let hub = open(kind, url, stream, max_events as usize).await?;
                feeds.push(Feed { topic: hub.topic("ticks"), clients: Clients::default(), cpu_at_begin: 0 });
                Vec::new()
            }
            // Connects as clients of another node's server.
            ("connect", &[port, count]) => {
                connections = connect(u16::try_from(port)?, count as usize).await?;
                Vec::new()
            }
            // Ends the process as an application does.
            ("quit", []) => return Ok(()),
            ("disconnect", []) => {
                connections.shutdown().await;
                Vec::new()
            }
            (word, &[feed, ref numbers @ ..]) => execute(&mut feeds[feed as usize], word, numbers).await?,
            _ => return Err(line.into()),
        };
        let result: Vec<_> = result.iter().map(u64::to_string).collect();
        println!("{}", result.join(" "));
        io::stdout().flush()?;
    }
    Ok(())
}

async fn open(kind: &str, url: &str, stream: &str, max_events: usize) -> Result<Hub, BoxError> {
    let hub = Hub::builder().max_events(max_events).max_bytes(usize::MAX);
    Ok(match kind {
        "memory" => hub.build(),
        "file" | "file-process" => {
            let durability = if kind == "file" { Durability::Disk } else { Durability::Process };
            let file = FileBackend::new(Path::new(url).join(stream)).max_records(2_000_000).durability(durability);
            hub.backend(file).connect().await?
        }
        "redis" => hub.backend(RedisBackend::new(url)?.stream(stream).timeout(TIMEOUT)).connect().await?,
        "postgres" => hub.backend(PostgresBackend::new(url)?.schema(stream)?.timeout(TIMEOUT)).connect().await?,
        "nats" => hub.backend(NatsBackend::new(url)?.stream(stream).timeout(TIMEOUT)).connect().await?,
        _ => hub.backend(MemoryBackend::new(1_000_000)).connect().await?,
    })
}

async fn execute(feed: &mut Feed, word: &str, numbers: &[u64]) -> Result<Vec<u64>, BoxError> {
    let topic = &feed.topic;
    Ok(match (word, numbers) {
        // Replaces the clients by tasks of this process.
        ("read", &[count, is_timed]) => {
            feed.clients = Clients::spawn(topic, count as usize, is_timed == 1).await?;
            // The tasks of the earlier clients end soon.
            while topic.subscribers() > count as usize {
                time::sleep(Duration::from_millis(1)).await;
            }
            Vec::new()
        }
        // Replaces the clients by a server for another process. Returns its port.
        ("serve", &[count]) => {
            let (clients, port) = Clients::serve(topic, count as usize).await;
            feed.clients = clients;
            vec![port.into()]
        }
        // Begins a measurement.
        ("begin", []) => {
            feed.clients.begin();
            feed.cpu_at_begin = cpu();
            Vec::new()
        }
        // Waits until the clients have received this many events each since `begin`.
        // Returns the CPU time and the number of deliveries since then.
        ("wait", &[events]) => {
            let deliveries = timeout(TIMEOUT, feed.clients.wait_for(events as usize)).await;
            let deliveries = deliveries
                .map_err(|_| format!("clients received {} of {events} events", feed.clients.events_per_client()))?;
            vec![cpu() - feed.cpu_at_begin, deliveries as u64]
        }
        // Publishes bursts at an interval. Returns the times until their acknowledgements.
        ("pace", &[times, burst, micros]) => {
            let mut interval = time::interval(Duration::from_micros(micros));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut acknowledged = Vec::new();
            for _ in 0..times {
                interval.tick().await;
                let begin = Instant::now();
                match burst {
                    1 => drop(topic.publish(event()).await?),
                    _ => drop(topic.publish_all((0..burst).map(|_| event())).await?),
                }
                acknowledged.push(begin.elapsed().as_nanos() as u64);
            }
            quantiles(acknowledged)
        }
        // Publishes with concurrent publishers for a duration. Returns the number of events.
        ("flood", &[millis, publishers]) => {
            let end = Instant::now() + Duration::from_millis(millis);
            let mut tasks = JoinSet::new();
            for _ in 0..publishers {
                let topic = topic.clone();
                tasks.spawn(async move {
                    let mut published = 0;
                    while Instant::now() < end {
                        topic.publish(event()).await?;
                        published += 1;
                        // A hub in memory never waits. The clients need the thread, too.
                        yield_now().await;
                    }
                    Ok::<_, tower_sse::hub::Error>(published)
                });
            }
            let mut published = 0;
            while let Some(ended) = tasks.join_next().await {
                published += ended??;
            }
            vec![published]
        }
        // Publishes with concurrent publishers for a duration. Returns the number of events, the
        // duration, and the median and the 99th percentile of the times until an acknowledgement.
        ("publishers", &[millis, publishers]) => {
            let (begin, end) = (Instant::now(), Instant::now() + Duration::from_millis(millis));
            let mut tasks = JoinSet::new();
            for _ in 0..publishers {
                let topic = topic.clone();
                tasks.spawn(async move {
                    let mut times = Vec::new();
                    // One reading of the clock per event: it takes a part of the measured time.
                    let mut begin = Instant::now();
                    while begin < end {
                        topic.publish(event()).await?;
                        let acknowledged = Instant::now();
                        times.push((acknowledged - begin).as_nanos() as u64);
                        begin = acknowledged;
                    }
                    Ok::<_, tower_sse::hub::Error>(times)
                });
            }
            let mut times = Vec::new();
            while let Some(ended) = tasks.join_next().await {
                times.extend(ended??);
            }
            let (events, nanos) = (times.len() as u64, begin.elapsed().as_nanos() as u64);
            let times = quantiles(times);
            vec![events, nanos, times[QUANTILES / 2], times[QUANTILES * 99 / 100]]
        }
        // Waits for the first event of a new subscriber.
        ("first", []) => {
            let mut subscription = topic.subscribe(Start::Earliest).await?;
            black_box(timeout(TIMEOUT, subscription.next()).await?.ok_or("the subscription has ended")??);
            Vec::new()
        }
        // Returns the delays of the events at their clients.
        ("delays", []) => quantiles(feed.clients.delays()),
        // Publishes bursts, without an interval.
        ("fill", &[times, burst]) => {
            let publish = |_| topic.publish_all((0..burst).map(|_| event()));
            let concurrent = (IN_FLIGHT / burst as usize).max(1);
            stream::iter(0..times).map(publish).buffered(concurrent).try_collect::<Vec<_>>().await?;
            Vec::new()
        }
        // Replays the log. Returns the duration, and the CPU time of this process.
        ("replay", &[events]) => {
            let begin = Instant::now();
            let mut subscription = topic.subscribe(Start::Earliest).await?;
            let mut read = 0;
            while read < events as usize {
                let next = timeout(TIMEOUT, subscription.next()).await?.ok_or("the subscription has ended")??;
                read += black_box(next).count();
            }
            if subscription.gap().is_some() || read > events as usize {
                return Err(format!("read {read} of {events} events, with the gap {:?}", subscription.gap()).into());
            }
            vec![begin.elapsed().as_nanos() as u64, cpu()]
        }
        _ => return Err(format!("unknown command: {word} {numbers:?}").into()),
    })
}

/// Returns an event of 128 bytes of data, which begin with the current time.
fn event() -> Event {
    let time = now().to_string();
    // `{:<128}` writes each space on its own, which takes a sixth of the time of a publication.
    let padding = " ".repeat(128 - time.len());
    Event::new(time + &padding)
}

fn quantiles(mut values: Vec<u64>) -> Vec<u64> {
    values.sort_unstable();
    match values.len().checked_sub(1) {
        Some(last) => (0..=QUANTILES).map(|n| values[n * last / QUANTILES]).collect(),
        None => Vec::new(),
    }
}

/// Returns the CPU time of this process in nanoseconds, from Linux's `/proc/self/task`.
fn cpu() -> u64 {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |path: std::path::PathBuf| fs::read_to_string(path).ok()?.split(' ').next()?.parse::<u64>().ok();
    threads.filter_map(|thread| of(thread.path().join("schedstat"))).sum()
}
