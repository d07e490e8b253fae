//! Appends to a topic of NATS that has not changed, if messages of the stream are missing, or if
//! the stream was replaced, and in a cluster.

use crate::{
    nats::{SOON, admin, stream_info, stream_of_log},
    nats_cluster::Cluster,
    nats_wire::NatsWire,
    unchanged::{
        DEFAULT_TIMEOUT, append, append_if_unchanged, assert_one_copy_if_acknowledgement_is_lost, count_together, nats,
        read, record,
    },
};
use async_nats::jetstream::{self, stream};
use e2e::{Store, StoreKind, eventually};
use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::sleep;
use tower_sse::hub::backend::{Backend, Bounds};

#[tokio::test(flavor = "multi_thread")]
async fn missing_messages_refuse_an_append() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let log = nats(&store.url());
    let begin = log.bounds().await.expect("the server responds").last;
    let mut positions = Vec::new();
    for n in 0..4 {
        positions.push(append(&log, "news", n).await);
    }
    let sequence = |n: usize| positions[n].get() >> 16;
    let stream = stream_of_log(&admin).await;
    // The newest message of the stream, and of the topic.
    stream.delete_message(sequence(3)).await.expect("the server responds");
    for since in [begin, positions[2]] {
        assert_eq!(append_if_unchanged(&log, "news", "refused", since).await, None, "a message is missing");
    }
    let next = append_if_unchanged(&log, "news", 4, positions[3]).await.expect("it is not after the position");
    assert_eq!(
        append_if_unchanged(&log, "topic", "refused", positions[2]).await,
        None,
        "a message is missing before 4"
    );
    // The topic has no message any more, and the stream has some.
    append(&log, "other", "x").await;
    stream.purge().filter("tower-sse.news=").await.expect("the server responds");
    assert_eq!(append_if_unchanged(&log, "news", "refused", positions[3]).await, None, "4 is missing");
    let end = append_if_unchanged(&log, "news", 5, next).await.expect("no message after it is missing");
    // The stream is empty.
    let last = append(&log, "news", 6).await;
    stream.purge().await.expect("the server responds");
    assert_eq!(append_if_unchanged(&log, "news", "refused", end).await, None, "all messages were removed");
    append_if_unchanged(&log, "news", 7, last).await.expect("no message after it was removed");
    assert_eq!(read(&log, "news").await, ["7"]);
}

async fn recreate(admin: &jetstream::Context) {
    let config = stream_info(admin).await.config;
    admin.delete_stream("tower-sse").await.expect("the server responds");
    // nats-server 2.9 still removes files after its response, and would remove those of a new
    // stream as well.
    sleep(Duration::from_millis(1000)).await;
    admin.create_stream(config).await.expect("the stream is deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn recreated_stream_refuses_an_append() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    // Another process, which has not noticed that the stream was replaced.
    let Bounds { epoch, last: begin, .. } = nats(&store.url()).bounds().await.expect("the server responds");
    let [of_empty, of_record] = [(); 2].map(|()| nats(&store.url()));
    of_empty.bounds().await.expect("the server responds");
    let since = append(&of_record, "news", "first").await;
    recreate(&admin).await;
    // The new stream has other messages with the same sequences and subjects.
    for (subject, text) in [("tower-sse.some", "text"), ("tower-sse.news=", "data: new\n\n")] {
        let ack = admin.publish(subject, text.into()).await.expect("the server responds");
        ack.await.expect("the message is stored");
    }
    for (log, topic, since) in [(&of_empty, "new", begin), (&of_record, "news", since)] {
        for n in 0..2 {
            let refused = log.append_if_unchanged(vec![record(topic, "refused")], epoch, since).await;
            assert_eq!(refused.expect("the server responds"), None, "{topic} {n}");
        }
    }
    let Bounds { epoch: new, last, .. } = of_record.bounds().await.expect("the server responds");
    assert_ne!(new, epoch);
    // A process that does not know the new epoch yet gets it from its caller.
    let appended = of_empty.append_if_unchanged(vec![record("news", "second")], new, last).await;
    assert_eq!(appended.expect("the server responds").map(|appended| appended.epoch), Some(new));
    for log in [&of_empty, &of_record] {
        assert_eq!((read(log, "new").await, read(log, "news").await), (vec![], vec!["new".into(), "second".into()]));
    }
}

/// Topics of a stream with an eviction limit: the newest message of a topic is evicted.
#[tokio::test(flavor = "multi_thread")]
async fn evicted_messages_refuse_an_append() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let log = nats(&store.url()).max_messages(10);
    let begin = log.bounds().await.expect("the server responds").last;
    let news = append(&log, "news", "evicted").await;
    let mut last = news;
    for n in 0..20 {
        last = append(&log, "other", n).await;
    }
    for since in [begin, news] {
        assert_eq!(append_if_unchanged(&log, "news", "refused", since).await, None, "messages were evicted");
    }
    append_if_unchanged(&log, "news", "appended", last).await.expect("no message after it was evicted");
}

/// Before nats-server 2.9.21, the replicas of a stream did not compare the sequence of a subject.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_callers_of_a_cluster_count_without_repetition() {
    let cluster = Cluster::start().await;
    cluster.connect(&cluster.url(), 3).await;
    let logs = [0, 1].map(|n| nats(&cluster.servers[n].url()).replicas(3));
    count_together(&logs, 6, || 150).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_a_cluster_count_without_repetition_if_leaders_die() {
    let mut cluster = Cluster::start().await;
    let url = cluster.url();
    cluster.connect(&url, 3).await;
    let logs = [(); 2].map(|()| nats(&url).replicas(3).timeout(DEFAULT_TIMEOUT));
    let near = nats(&url).replicas(3).timeout(DEFAULT_TIMEOUT);
    let end = AtomicUsize::new(usize::MAX);
    let faults = async {
        for _ in 0..2 {
            sleep(Duration::from_secs(1)).await;
            let leader = cluster.leader().await;
            let before = near.bounds().await.expect("the server responds").last.get();
            cluster.servers[leader].kill();
            eventually(2 * SOON, "the other servers store messages", async || match near.bounds().await {
                Ok(bounds) if bounds.last.get() > before + (200 << 16) => Ok(()),
                other => Err(other.map(|bounds| bounds.last).map_err(|error| error.to_string())),
            })
            .await;
            cluster.servers[leader].restart().await;
            cluster.wait_for_replicas(leader).await;
        }
        end.store(0, Relaxed);
    };
    let (errors, ()) = tokio::join!(count_together(&logs, 6, || end.load(Relaxed)), faults);
    assert!(errors > 0, "the callers noticed no fault");
}

/// The leader of several replicas compares the sequence before it looks for a duplicate.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_stores_one_copy_if_an_acknowledgement_is_lost() {
    let cluster = Cluster::start().await;
    cluster.connect(&cluster.url(), 3).await;
    let wire = NatsWire::to(cluster.servers[0].address()).await;
    let near = nats(&cluster.servers[1].url()).replicas(3);
    assert_one_copy_if_acknowledgement_is_lost(&near, nats(&wire.url()).replicas(3), &wire).await;
}

/// All messages of a topic are missing after a lost acknowledgement.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcome_is_an_error() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let admin = admin(&store.url()).await;
    let config = stream::Config {
        name: "tower-sse".to_owned(),
        subjects: vec!["tower-sse.>".to_owned()],
        // The server forgets the ids of messages before the second attempt.
        duplicate_window: Duration::from_millis(100),
        ..stream::Config::default()
    };
    admin.create_stream(config).await.expect("the stream is new");
    let wire = NatsWire::to(store.address()).await;
    let [near, far] = [nats(&store.url()), nats(&wire.url()).timeout(DEFAULT_TIMEOUT)];
    let Bounds { epoch, .. } = far.bounds().await.expect("the server responds");
    let since = append(&near, "news", "first").await;
    wire.lose_acknowledgements(1);
    let remove = async {
        while wire.acknowledgements_to_lose() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        stream_of_log(&admin).await.purge().filter("tower-sse.news=").await.expect("the server responds");
    };
    let records = vec![record("news", "second")];
    let (appended, ()) = tokio::join!(far.append_if_unchanged(records, epoch, since), remove);
    let error = appended.expect_err("it is unknown").to_string();
    assert!(error.contains("unknown whether the stream has stored it"), "{error}");
}
