//! Appends to a topic of Redis that has not changed, if entries of the stream are missing, or if
//! other programs have added entries.

use crate::{
    redis::cli,
    unchanged::{append, append_if_unchanged, read, record, redis},
};
use e2e::{Store, StoreKind};
use std::time::Instant;
use tower_sse::hub::backend::{Backend, Position, Record, RecordKind};

fn id(position: Position) -> String {
    format!("{}-{}", position.get() >> 20, position.get() & ((1 << 20) - 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_entries_refuse_an_append() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let log = redis(&store.url());
    let begin = log.bounds().await.expect("the server responds").last;
    let mut positions = Vec::new();
    for n in 0..4 {
        positions.push(append(&log, ["news", "other"][n % 2], n).await);
    }
    // The deleted entry is the newest, so only the last id of the stream shows that it existed.
    assert_eq!(cli(&store, &["xdel", "tower-sse", &id(positions[3])]), "1");
    assert_eq!(append_if_unchanged(&log, "news", "refused", positions[2]).await, None, "the newest entry is missing");
    assert!(append_if_unchanged(&log, "news", 4, positions[3]).await.is_some(), "it is not after the position");
    assert_eq!(append_if_unchanged(&log, "topic", "refused", positions[2]).await, None, "an entry is missing before 4");
    // An entry between two others.
    let before = append(&log, "other", 5).await;
    let deleted = append(&log, "other", 6).await;
    append(&log, "other", 7).await;
    assert_eq!(cli(&store, &["xdel", "tower-sse", &id(deleted)]), "1");
    for since in [begin, positions[3], before] {
        assert_eq!(append_if_unchanged(&log, "topic", "refused", since).await, None, "{since}");
    }
    // The entries of one append do not contain the id of the entry before them.
    let (mut batch, mut deleted) = (before, before);
    for kind in [RecordKind::Remove, RecordKind::Finish, RecordKind::State, RecordKind::Event] {
        let records = (0..3).map(|n| Record::new("other", kind, record("other", n).event)).collect();
        batch = log.append(records).await.expect("the server responds").position;
        let first = Position::new(batch.get() - 2);
        deleted = first.next();
        assert_eq!(cli(&store, &["xdel", "tower-sse", &id(deleted)]), "1");
        let refused = append_if_unchanged(&log, "topic", "refused", first).await;
        assert_eq!(refused, None, "the second entry is missing, before a {kind:?}");
    }
    let last = append_if_unchanged(&log, "topic", 8, deleted).await.expect("no entry after it is missing");
    assert!(append_if_unchanged(&log, "other", 9, batch).await.is_some());
    // All entries are trimmed.
    let end = append(&log, "other", 10).await;
    assert_eq!(cli(&store, &["xtrim", "tower-sse", "maxlen", "0"]).parse::<u32>().expect("a number"), 17);
    assert_eq!(append_if_unchanged(&log, "topic", "refused", last).await, None, "entries after it were trimmed");
    assert!(append_if_unchanged(&log, "topic", 11, end).await.is_some(), "no entry after it was trimmed");
    assert_eq!(append_if_unchanged(&log, "news", "refused", last).await, None, "an entry before 11 is missing");
    assert_eq!(read(&log, "topic").await, ["11"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_stream_refuses_an_append() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let logs = [redis(&store.url()), redis(&store.url())];
    let epoch = logs[0].bounds().await.expect("the server responds").epoch;
    let first = append(&logs[0], "news", "first").await;
    for is_recreated in [false, true] {
        assert_eq!(cli(&store, &["del", "tower-sse"]), "1");
        if is_recreated {
            logs[1].bounds().await.expect("the server responds");
        }
        for log in &logs {
            // Without `bounds`, which would create the stream.
            let refused = log.append_if_unchanged(vec![record("news", "refused")], epoch, first).await;
            assert_eq!(refused.expect("the server responds"), None, "recreated: {is_recreated}");
        }
        logs[1].bounds().await.expect("the server responds");
    }
    append(&logs[1], "other", "of the new stream").await;
    assert_eq!(append_if_unchanged(&logs[0], "news", "refused", first).await, None);
    let end = logs[0].bounds().await.expect("the server responds").last;
    assert!(append_if_unchanged(&logs[0], "news", "later", end).await.is_some());
    assert_eq!(read(&logs[0], "news").await, ["later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_end_refuses_an_append() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let [knows, other] = [(); 2].map(|()| redis(&store.url()));
    let kept = append(&knows, "news", "kept").await;
    // Later entries are lost, as in a failover to a replica that has not received them.
    assert_eq!(cli(&store, &["copy", "tower-sse", "older"]), "1");
    let lost = append(&knows, "news", "lost").await;
    assert_eq!(cli(&store, &["rename", "older", "tower-sse"]), "OK");
    assert_eq!(append_if_unchanged(&other, "news", "refused", lost).await, None, "the stream ends before the position");
    for since in [kept, lost] {
        assert_eq!(append_if_unchanged(&knows, "news", "refused", since).await, None, "this process knows of the loss");
    }
    // The next entry of this process reports the loss to the others.
    let next = append(&knows, "other", "next").await;
    for since in [kept, lost] {
        assert_eq!(append_if_unchanged(&other, "news", "refused", since).await, None, "the stream reports the loss");
    }
    let after = append_if_unchanged(&other, "news", "after", next).await.expect("nothing after it is lost");
    // Another process reports a loss with an entry of its own.
    let lost = id(Position::new(after.get() + 5));
    let mark = cli(&store, &["xadd", "tower-sse", "*", "p", &id(after), "g", &lost]);
    assert_eq!(append_if_unchanged(&other, "news", "refused", after).await, None, "the mark reports a loss: {mark}");
    let end = other.bounds().await.expect("the server responds").last;
    assert!(append_if_unchanged(&other, "news", "last", end).await.is_some());
    assert_eq!(read(&other, "news").await, ["kept", "after", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_other_programs_refuse_nothing() {
    let store = Store::start(StoreKind::Redis, &[]).await;
    let log = redis(&store.url());
    let mut since = append(&log, "news", 0).await;
    let add = |id: &str| cli(&store, &["xadd", "tower-sse", id, "some", "thing"]);
    for n in 1..4 {
        add("*");
        append(&log, "other", n).await;
        add("*");
        since = append_if_unchanged(&log, "news", n, since).await.expect("the topic has not changed");
    }
    assert_eq!(read(&log, "news").await, ["0", "1", "2", "3"]);
    // Two ids with the same position, which is the end of the log.
    let ms = (since.get() >> 20) + 5_000;
    for sequence in ["99999999", "100000000"] {
        assert!(add(&format!("{ms}-{sequence}")).contains('-'));
    }
    let end = log.bounds().await.expect("the server responds").last;
    let next = append_if_unchanged(&log, "news", 4, end).await.expect("the topic has not changed");
    append_if_unchanged(&log, "topic", "x", end).await.expect("the topic has not changed");
    // An entry of another program does not name the entry before it, which was trimmed here.
    let trimmed = append(&log, "other", "trimmed").await;
    let id = add(&format!("{}-0", ms + 5_000));
    cli(&store, &["xtrim", "tower-sse", "minid", &id]);
    assert_eq!(append_if_unchanged(&log, "news", "refused", next).await, None, "{trimmed} was trimmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_entries_are_compared_in_milliseconds() {
    let store = Store::start(StoreKind::Redis, &["--appendfsync", "no"]).await;
    let log = redis(&store.url());
    let since = append(&log, "news", 0).await;
    let mut second = since;
    for block in 0..21 {
        let records = (0..100).map(|n| record("other", format!("{block}/{n}"))).collect();
        let position = log.append(records).await.expect("the server responds").position;
        if block == 1 {
            second = position;
        }
    }
    let begin = Instant::now();
    assert_eq!(append_if_unchanged(&log, "topic", "refused", since).await, None, "there are 2,100 entries");
    println!("2,100 entries: {:?}", begin.elapsed());
    let begin = Instant::now();
    let appended = append_if_unchanged(&log, "topic", "appended", second).await;
    println!("1,900 entries: {:?}", begin.elapsed());
    appended.expect("there are 1,900 entries");
}
