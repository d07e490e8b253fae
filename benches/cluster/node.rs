//! A process with hubs, which does what it is told on its standard input, line by line, and answers each line with numbers.
//!
//! It has one thread, so that its CPU time is that of its work, and nodes on one machine disturb each other as little as they
//! can.

use crate::audience::{Audience, connect, now};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{
    fs,
    hint::black_box,
    io::{self, Write},
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
        backend::{MemoryBackend, NatsBackend, RedisBackend},
    },
};

/// Long for anything that is measured here, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many events are on their way at the same time to fill a log.
const IN_FLIGHT: usize = 100;
/// Of a distribution, as many are told.
pub(crate) const QUANTILES: usize = 1000;

struct Place {
    topic: Topic,
    audience: Audience,
    /// When its audience began to listen: CPU time.
    began: u64,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() -> Result<(), BoxError> {
    let mut places = Vec::new();
    let mut connections = JoinSet::new();
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    // It ends with whoever has started it.
    while let Some(line) = commands.next_line().await? {
        let words: Vec<_> = line.split(' ').collect();
        let numbers: Vec<_> = words.iter().skip(1).map(|word| word.parse().unwrap_or(0)).collect();
        let answer = match (words[0], &numbers[..]) {
            ("open", &[.., max_events]) => {
                let [_, kind, url, stream, ..] = words[..] else { return Err(line.into()) };
                let hub = open(kind, url, stream, max_events as usize).await?;
                places.push(Place { topic: hub.topic("ticks"), audience: Audience::default(), began: 0 });
                Vec::new()
            }
            // Is as many clients of such a server.
            ("connect", &[port, clients]) => {
                connections = connect(u16::try_from(port)?, clients as usize).await?;
                Vec::new()
            }
            ("disconnect", []) => {
                connections.shutdown().await;
                Vec::new()
            }
            (word, &[place, ref numbers @ ..]) => act(&mut places[place as usize], word, numbers).await?,
            _ => return Err(line.into()),
        };
        let answer: Vec<_> = answer.iter().map(u64::to_string).collect();
        println!("{}", answer.join(" "));
        io::stdout().flush()?;
    }
    Ok(())
}

async fn open(kind: &str, url: &str, stream: &str, max_events: usize) -> Result<Hub, BoxError> {
    let hub = Hub::builder().max_events(max_events).max_bytes(usize::MAX);
    Ok(match kind {
        "memory" => hub.build(),
        "redis" => hub.backend(RedisBackend::new(url)?.stream(stream).timeout(PATIENCE)).connect().await?,
        "nats" => hub.backend(NatsBackend::new(url)?.stream(stream).timeout(PATIENCE)).connect().await?,
        _ => hub.backend(MemoryBackend::new(1_000_000)).connect().await?,
    })
}

async fn act(place: &mut Place, word: &str, numbers: &[u64]) -> Result<Vec<u64>, BoxError> {
    let topic = &place.topic;
    Ok(match (word, numbers) {
        // As many clients, from now on, who note when they get what.
        ("listen", &[clients, is_timed]) => {
            place.audience = Audience::of(topic, clients as usize, is_timed == 1).await?;
            // Those of before have gone.
            while topic.subscribers() > clients as usize {
                time::sleep(Duration::from_millis(1)).await;
            }
            Vec::new()
        }
        // As many clients, from now on, of a server that answers at this port.
        ("serve", &[clients]) => {
            let (audience, port) = Audience::of_connections(topic, clients as usize).await;
            place.audience = audience;
            vec![port.into()]
        }
        ("begin", []) => {
            place.audience.begin();
            place.began = cpu();
            Vec::new()
        }
        // Waits until everybody has got so many events since then. Answers what CPU time it took, and how many deliveries.
        ("heard", &[events]) => {
            let heard = timeout(PATIENCE, place.audience.hears(events as usize)).await;
            let times = heard.map_err(|_| format!("{} of {events} events came", place.audience.has_heard()))?;
            vec![cpu() - place.began, times as u64]
        }
        // Publishes so often, so many at once, in time. Answers how long each took to be acknowledged.
        ("pace", &[times, burst, micros]) => {
            let mut interval = time::interval(Duration::from_micros(micros));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut times_taken = Vec::new();
            for _ in 0..times {
                interval.tick().await;
                let begin = Instant::now();
                match burst {
                    1 => drop(topic.publish(event()).await?),
                    _ => drop(topic.publish_all((0..burst).map(|_| event())).await?),
                }
                times_taken.push(begin.elapsed().as_nanos() as u64);
            }
            quantiles(times_taken)
        }
        // Publishes for so long, with so many at the same time. Answers how many that were.
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
                        // A hub in memory waits for nothing, and the clients have to have their turn.
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
        ("delays", []) => quantiles(place.audience.delays()),
        // Publishes so often, so many at once, in any time.
        ("fill", &[times, burst]) => {
            let publish = |_| topic.publish_all((0..burst).map(|_| event()));
            let at_once = (IN_FLIGHT / burst as usize).max(1);
            stream::iter(0..times).map(publish).buffered(at_once).try_collect::<Vec<_>>().await?;
            Vec::new()
        }
        // Reads so many events from the beginning. Answers how long it took.
        ("replay", &[events]) => {
            let begin = Instant::now();
            let mut subscription = topic.subscribe(Start::Earliest).await?;
            let mut read = 0;
            while read < events as usize {
                let next = timeout(PATIENCE, subscription.next()).await?.ok_or("it has ended")??;
                read += black_box(next).count();
            }
            if subscription.gap().is_some() || read > events as usize {
                return Err(format!("{read} events came, and a gap: {:?}", subscription.gap()).into());
            }
            vec![begin.elapsed().as_nanos() as u64, cpu()]
        }
        _ => return Err(format!("{word} {numbers:?}").into()),
    })
}

/// 128 bytes of data that begin with the time.
fn event() -> Event {
    Event::new(format!("{:<128}", now()))
}

fn quantiles(mut values: Vec<u64>) -> Vec<u64> {
    values.sort_unstable();
    match values.len().checked_sub(1) {
        Some(last) => (0..=QUANTILES).map(|n| values[n * last / QUANTILES]).collect(),
        None => Vec::new(),
    }
}

/// The CPU time of this process, in nanoseconds, from what Linux tells of its threads.
fn cpu() -> u64 {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |path: std::path::PathBuf| fs::read_to_string(path).ok()?.split(' ').next()?.parse::<u64>().ok();
    threads.filter_map(|thread| of(thread.path().join("schedstat"))).sum()
}
