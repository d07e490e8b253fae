//! Publishers and clients, and what every client has to have got of what was acknowledged.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use support::whatwg;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tower_sse::{
    Event, EventId,
    hub::{Hub, Start},
};

/// The events that were published to one topic, by their data.
#[derive(Debug, Default)]
struct Published {
    /// In the order in which each publisher was answered.
    acknowledged: Vec<(EventId, String)>,
    /// Of which nothing is known.
    unsure: HashSet<String>,
}

/// Some that publish, and some that follow, on several nodes.
#[derive(Debug)]
pub(crate) struct Checker {
    topic: &'static str,
    published: Arc<Mutex<Published>>,
    is_over: Arc<AtomicBool>,
    publishers: Vec<JoinHandle<()>>,
    clients: Vec<JoinHandle<Client>>,
    /// How many events the clients have got, to see whether there is anything new.
    delivered: Arc<AtomicUsize>,
}

/// What one client got.
#[derive(Debug, Default)]
struct Client {
    received: Vec<(String, String)>,
    gaps: Vec<String>,
}

const LAST: &str = "the last one";

impl Checker {
    pub(crate) fn new(topic: &'static str) -> Self {
        Self {
            topic,
            published: Arc::default(),
            is_over: Arc::default(),
            publishers: Vec::new(),
            clients: Vec::new(),
            delivered: Arc::default(),
        }
    }

    /// Publishes until it is over, one after the other, whether it is answered with an error or not.
    pub(crate) fn publish(&mut self, node: &Hub, pause: Duration) {
        let topic = node.topic(self.topic);
        let name = self.publishers.len();
        let (published, is_over) = (self.published.clone(), self.is_over.clone());
        self.publishers.push(tokio::spawn(async move {
            for n in 0.. {
                if is_over.load(SeqCst) {
                    break;
                }
                let data = format!("{name}/{n}");
                let result = topic.publish(Event::new(&data)).await;
                {
                    let mut published = published.lock().expect("no holder panics");
                    match result {
                        Ok(id) => published.acknowledged.push((id, data)),
                        Err(_) => drop(published.unsure.insert(data)),
                    }
                }
                sleep(pause).await;
            }
        }));
    }

    /// Follows from now on, and goes from node to node each time it has got so many events.
    pub(crate) async fn follow(&mut self, nodes: &[Hub], stays_for: usize) {
        let nodes: Vec<_> = nodes.iter().map(|node| node.topic(self.topic)).collect();
        let delivered = self.delivered.clone();
        let first = nodes[0].subscribe(Start::Latest).await.expect("there is room");
        let mut last = first.cursor();
        self.clients.push(tokio::spawn(async move {
            let mut client = Client::default();
            let mut subscription = first;
            for node in nodes.iter().cycle().skip(1) {
                let mut left = stays_for;
                while left > 0 {
                    let Some(events) = subscription.next().await else { break };
                    let source = whatwg::parse_after(last.as_str(), events.as_bytes());
                    for message in source.messages {
                        delivered.fetch_add(1, SeqCst);
                        left = left.saturating_sub(1);
                        match &*message.r#type {
                            "gap" => client.gaps.push(message.data),
                            _ if message.data == LAST => return client,
                            _ => client.received.push((message.last_event_id.clone(), message.data)),
                        }
                        last = EventId::new(&message.last_event_id).expect("it was one");
                    }
                }
                subscription = node.subscribe(last.clone()).await.expect("there is room");
            }
            client
        }));
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.published.lock().expect("no holder panics").acknowledged.len()
    }

    /// Waits until so many more were acknowledged.
    pub(crate) async fn acknowledges(&self, more: usize) {
        let before = self.acknowledged();
        let begin = Instant::now();
        while self.acknowledged() < before + more {
            assert!(begin.elapsed() < Duration::from_secs(60), "{} of {more} more", self.acknowledged() - before);
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// How long it takes until somebody is delivered something.
    pub(crate) async fn next_delivery(&self) -> Duration {
        let before = self.delivered.load(SeqCst);
        let begin = Instant::now();
        while self.delivered.load(SeqCst) == before {
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is delivered");
            sleep(Duration::from_millis(2)).await;
        }
        begin.elapsed()
    }

    /// Ends it, and compares. Returns how many were acknowledged, and the gaps that each client was told.
    pub(crate) async fn check(mut self, node: &Hub) -> (usize, Vec<Vec<String>>) {
        self.is_over.store(true, SeqCst);
        for publisher in self.publishers.drain(..) {
            publisher.await.expect("it does not panic");
        }
        node.topic(self.topic).publish(Event::new(LAST)).await.expect("it is over, and all is well");
        let published = std::mem::take(&mut *self.published.lock().expect("no holder panics"));
        let number = |id: &str| id.rsplit_once('-').expect("a hub's id").1.parse::<u64>().expect("a number");
        let acknowledged: BTreeMap<u64, &str> =
            published.acknowledged.iter().map(|(id, data)| (number(id.as_str()), data.as_str())).collect();
        assert_eq!(acknowledged.len(), published.acknowledged.len(), "no id was given twice");
        let mut gaps = Vec::new();
        for client in self.clients.drain(..) {
            let client =
                timeout(Duration::from_secs(60), client).await.expect("it gets the last one").expect("no panic");
            let ids: Vec<_> = client.received.iter().map(|(id, _)| number(id)).collect();
            assert!(ids.is_sorted_by(|one, other| one < other), "in order, and nothing twice: {ids:?}");
            let data: HashSet<_> = client.received.iter().map(|(_, data)| data.as_str()).collect();
            assert_eq!(data.len(), client.received.len(), "nothing twice");
            let received: BTreeMap<u64, &str> =
                client.received.iter().map(|(id, data)| (number(id), data.as_str())).collect();
            for (number, data) in &received {
                let is_known = acknowledged.get(number) == Some(data) || published.unsure.contains(*data);
                assert!(is_known, "{number} {data:?} was published by nobody");
            }
            let missed: Vec<_> = acknowledged.iter().filter(|(number, _)| !received.contains_key(number)).collect();
            assert!(missed.is_empty() || !client.gaps.is_empty(), "missed without a word: {missed:?}");
            gaps.push(client.gaps);
        }
        (acknowledged.len(), gaps)
    }
}
