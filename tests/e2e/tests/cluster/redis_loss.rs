//! A stream that other programs delete, trim or corrupt.

use crate::{
    checker::{Checker, Load, PauseMode},
    nodes::Node,
    redis::{Client, cli, hub, publish, publish_error},
    report::GapTiming,
    setup::two_hubs,
    unchanged::redis,
};
use e2e::{Store, StoreKind, Wire};
use futures_util::future::join_all;
use std::{collections::HashSet, time::Duration};
use tokio::time::sleep;
use tower_sse::hub::{
    Hub, Start,
    backend::{Backend, Record, RecordKind},
};

/// The number of deletions under load.
const DELETIONS: usize = 150;

/// Publishes on two nodes, removes the stream repeatedly, and checks what clients received.
async fn remove_repeatedly(what: &str, timing: GapTiming, times: usize, remove: impl AsyncFn(&Store)) {
    let store = Store::start(StoreKind::Redis, &["--appendfsync", "no"]).await;
    let hubs = two_hubs(StoreKind::Redis, &store.url()).await;
    let nodes = hubs.each_ref().map(Node::from);
    let mut checker = Checker::new(StoreKind::Redis);
    for node in nodes.iter().chain(&nodes) {
        // Publishers do not wait for them: they never get deleted events.
        checker.follow_unpaced(node.clone(), PauseMode::StaySubscribed).await;
    }
    for node in &nodes {
        checker.publish(node.clone(), Load::BATCHES);
        checker.publish(node.clone(), Load { batch: 1, bytes: 10, pause: Duration::ZERO });
        checker.publish(node.clone(), Load { batch: 2, bytes: 10, pause: Duration::ZERO });
    }
    for round in 0..times {
        // In the middle of a burst, at a different event each time.
        checker.wait_for_more_acknowledged(50 + 37 * (round % 7)).await;
        remove(&store).await;
    }
    checker.wait_for_more_acknowledged(2000).await;
    store.redis("DEL tower-sse").await;
    checker.wait_for_more_acknowledged(2000).await;
    let report = checker.check_with(timing, &hubs[0], what).await;
    assert!(report.gaps.iter().all(|gaps| !gaps.is_empty()), "every client received a gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_under_load_repeats_no_id() {
    remove_repeatedly("deleted repeatedly", GapTiming::BeforeLaterEvents, DELETIONS, async |store| {
        store.redis("DEL tower-sse").await;
    })
    .await;
}

/// The stream is deleted in its first millisecond. A gap may then contain an id that is too small.
#[tokio::test(flavor = "multi_thread")]
async fn deleting_twice_at_once_repeats_no_id() {
    remove_repeatedly("deleted twice at once", GapTiming::AnyTime, DELETIONS / 2, async |store| {
        store.redis("DEL tower-sse\r\nDEL tower-sse\r\nDEL tower-sse").await;
        store.redis("DEL tower-sse").await;
    })
    .await;
}

/// Deletes the stream some thousand times per second. Several streams begin in one millisecond, and
/// no backend knows all of them.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_millisecond_share_no_id() {
    let store = Store::start(StoreKind::Redis, &["--appendfsync", "no"]).await;
    let deletes = async {
        loop {
            store.redis("DEL tower-sse").await;
        }
    };
    let appends = async |n: usize| {
        let backend = redis(&store.url());
        let record = Record::new("news", RecordKind::Event, "data: 1\n\n");
        let mut positions = Vec::new();
        for round in 0..15_000 {
            if round % 8 == 0 {
                // Creates an empty stream if there is none.
                backend.bounds().await.expect("the server responds");
            }
            let records = vec![record.clone(); 1 + (n + round) % 3];
            let count = records.len() as u64;
            let last = backend.append(records).await.expect("the server stores the records").position.get();
            positions.extend(last + 1 - count..=last);
        }
        positions
    };
    let all = join_all([appends(0), appends(1), appends(2)]);
    let positions = tokio::select! {
        positions = all => positions.concat(),
        () = deletes => unreachable!("the deletions never end"),
    };
    let distinct: HashSet<_> = positions.iter().collect();
    assert_eq!(positions.len(), distinct.len(), "a position was used twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn flushing_under_load_is_a_gap() {
    remove_repeatedly("flushed repeatedly", GapTiming::BeforeLaterEvents, 10, async |store| {
        assert!(store.redis("FLUSHALL").await.starts_with("+OK\r\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_under_load_is_a_gap() {
    remove_repeatedly("evicted repeatedly", GapTiming::BeforeLaterEvents, 5, async |store| {
        store.redis("CONFIG SET maxmemory-policy allkeys-random maxmemory 1").await;
        sleep(Duration::from_millis(20)).await;
        assert!(store.redis("EXISTS tower-sse").await.starts_with(":0\r\n"));
        store.redis("CONFIG SET maxmemory 0").await;
    })
    .await;
}

/// Nothing is published afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn deleting_an_idle_stream_is_a_gap() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let topic = hub(&store).await.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "before").await;
    client.assert_next("before").await;
    cli(&store, &["del", "tower-sse"]);
    assert_eq!(client.next().await.0, "gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_entries_are_a_gap_where_they_were() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let wire = Wire::to(store.address()).await;
    let topic = hub(&store).await.topic("news");
    let backend = redis(&store.url_through(&wire));
    let cut_off = Hub::builder().backend(backend).connect().await.expect("the server responds").topic("news");
    let mut reader = Client::of(&topic, Start::Latest).await;
    let mut late = Client::of(&cut_off, Start::Latest).await;
    let begin = late.subscription.cursor();
    wire.cut();
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(publish(&topic, &n.to_string()).await);
        reader.assert_next(&n.to_string()).await;
    }
    // In the middle, and the newest one.
    for deleted in [2, 5] {
        assert_eq!(cli(&store, &["xdel", "tower-sse", ids[deleted].as_str()]), "1");
    }
    publish(&topic, "6").await;
    reader.assert_next("6").await;
    wire.mend();
    let mut later = Client::of(&hub(&store).await.topic("news"), begin).await;
    for client in [&mut late, &mut later] {
        if client.subscription.gap().is_none() {
            for data in ["0", "1"] {
                client.assert_next(data).await;
            }
            assert_eq!(client.next_after_gap().await, "3");
            client.assert_next("4").await;
        }
        assert_eq!(client.next_after_gap().await, "6");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn far_ids_of_others_stop_no_node() {
    for (far, is_far) in [
        ("18446744073709551615-18446744073709551615", true),
        ("18446744073709551615-7", true),
        ("17592186044416-0", true),
        ("17592186044415-99999999", true),
        ("17592186044415-0", true),
        ("17592186044414-7", true),
        ("9999999999999-0", false),
    ] {
        let store = Store::start(StoreKind::Redis, &[]).await;
        let node = hub(&store).await;
        let topic = node.topic("news");
        let mut client = Client::of(&topic, Start::Latest).await;
        let begin = client.subscription.cursor();
        publish(&topic, "before").await;
        assert_eq!(cli(&store, &["xadd", "tower-sse", far, "far", "off"]), far);
        client.assert_next("before").await;

        // The entry stops no follower, no connecting node, and no replay.
        let other = hub(&store).await.topic("news");
        let mut late = Client::of(&other, begin).await;
        late.assert_next("before").await;
        assert!(late.subscription.gap().is_none(), "{far}");
        sleep(Duration::from_millis(700)).await;
        let latest = Client::of(&other, Start::Latest).await.subscription.cursor();
        let reader = redis(&store.url());
        let after = reader.bounds().await.expect("the server responds").last;
        let page = reader.read(&["news".into()], after).await.expect("a page");
        assert_eq!((page.records.len(), page.through), (0, after), "{far}");
        if is_far {
            let error = publish_error(&topic).await;
            assert!(error.contains(far) && error.contains("delete the stream"), "{error}");
        } else {
            publish(&topic, "far").await;
            client.assert_next("far").await;
        }

        // As the error advises.
        cli(&store, &["del", "tower-sse"]);
        let id = publish(&topic, "again").await;
        assert!(id.as_str().starts_with('1') && id.as_str() < "2", "{far}: {id:?} is of the current time");
        assert_eq!(id.as_str().split('-').next().map(str::len), Some(13), "{far}: {id:?} is of the current time");
        client.reconnect(&topic).await;
        assert_eq!(client.next_after_gap().await, "again", "{far}");
        for topic in [&other, &hub(&store).await.topic("news")] {
            let mut holder = Client::of(topic, latest.clone()).await;
            if holder.subscription.gap().is_none() {
                holder.reconnect(topic).await;
            }
            assert_eq!(holder.next_after_gap().await, "again", "{far}: {latest:?}");
        }
        publish(&topic, "on").await;
        client.assert_next("on").await;
    }
}
