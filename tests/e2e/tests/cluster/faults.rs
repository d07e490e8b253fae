//! What becomes of events while the backend, or the way to it, is broken.

use crate::checker::Checker;
use e2e::store::{Engine, Store, Wire};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tower_sse::{
    Event,
    hub::{
        Error, ErrorKind, Hub,
        backend::{NatsBackend, RedisBackend},
    },
};

macro_rules! with_each_engine {
    ($($case:ident),+ $(,)?) => {
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Engine::Redis).await;
            })+
        }
        mod nats {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Engine::Nats).await;
            })+
        }
    };
}

with_each_engine! {
    a_backend_that_is_killed_and_started_again_loses_nothing,
    a_backend_that_stands_still_for_ten_seconds_loses_nothing,
    a_network_that_is_cut_loses_nothing,
    a_client_that_is_overtaken_by_the_retention_is_told,
    what_cannot_be_reached_is_an_error_that_says_so,
}

async fn connect(engine: Engine, url: &str) -> Result<Hub, Error> {
    connect_small(engine, url, 1_000_000).await
}

async fn connect_small(engine: Engine, url: &str, records: u32) -> Result<Hub, Error> {
    let hub = Hub::builder().max_events(200);
    match engine {
        Engine::Redis => hub.backend(RedisBackend::new(url).expect("a URL").max_records(records.into())),
        Engine::Nats => hub.backend(NatsBackend::new(url).expect("a URL").max_messages(records)),
    }
    .connect()
    .await
}

/// Two nodes, publishers on both, and clients that go from one to the other.
async fn busy(engine: Engine, url: &str) -> (Vec<Hub>, Checker) {
    let nodes =
        vec![connect(engine, url).await.expect("it is there"), connect(engine, url).await.expect("it is there")];
    let mut checker = Checker::new("news");
    for stays_for in [37, 500, usize::MAX] {
        checker.follow(&nodes, stays_for).await;
        checker.follow(&[nodes[1].clone(), nodes[0].clone()], stays_for).await;
    }
    for node in &nodes {
        checker.publish(node, Duration::from_millis(1));
    }
    checker.acknowledges(200).await;
    (nodes, checker)
}

async fn fails_fast(node: &Hub) {
    let begin = Instant::now();
    let error = node.topic("others").publish(Event::new("now")).await.expect_err("the backend is away");
    assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

async fn goes_on(engine: Engine, nodes: Vec<Hub>, checker: Checker, back: Instant) {
    checker.next_delivery().await;
    println!("{engine:?}: delivered {:?} after it was back", back.elapsed());
    checker.acknowledges(200).await;
    let (acknowledged, gaps) = checker.check(&nodes[0]).await;
    println!("{engine:?}: {acknowledged} acknowledged");
    assert!(gaps.iter().all(Vec::is_empty), "nobody has missed anything: {gaps:?}");
}

async fn a_backend_that_is_killed_and_started_again_loses_nothing(engine: Engine) {
    let mut store = Store::start(engine, &[]).await;
    let (nodes, checker) = busy(engine, &store.url()).await;
    for _ in 0..3 {
        store.kill();
        fails_fast(&nodes[0]).await;
        sleep(Duration::from_millis(500)).await;
        store.restart().await;
        checker.acknowledges(200).await;
    }
    store.kill();
    sleep(Duration::from_millis(200)).await;
    store.restart().await;
    goes_on(engine, nodes, checker, Instant::now()).await;
}

async fn a_backend_that_stands_still_for_ten_seconds_loses_nothing(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let (nodes, checker) = busy(engine, &store.url()).await;
    store.signal("STOP");
    fails_fast(&nodes[0]).await;
    sleep(Duration::from_secs(10)).await;
    store.signal("CONT");
    goes_on(engine, nodes, checker, Instant::now()).await;
}

async fn a_network_that_is_cut_loses_nothing(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let wire = Wire::to(store.address()).await;
    let (nodes, checker) =
        busy(engine, &store.url().replace(&store.address().to_string(), &wire.address().to_string())).await;
    for _ in 0..3 {
        wire.cut();
        fails_fast(&nodes[0]).await;
        sleep(Duration::from_millis(300)).await;
        wire.mend();
        checker.acknowledges(200).await;
    }
    wire.cut();
    sleep(Duration::from_millis(300)).await;
    wire.mend();
    goes_on(engine, nodes, checker, Instant::now()).await;
}

async fn a_client_that_is_overtaken_by_the_retention_is_told(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let node = connect_small(engine, &store.url(), 1000).await.expect("it is there");
    let topic = node.topic("news");
    let first = topic.publish(Event::new("first")).await.expect("it is there");
    for _ in 0..5 {
        for n in 0..1000 {
            topic.publish(Event::display(n)).await.expect("it is there");
        }
    }
    let late = topic.subscribe(first).await.expect("there is room");
    let gap = late.gap().expect("much of it is lost");
    assert_eq!(gap.reason().as_str(), "evicted");
}

async fn what_cannot_be_reached_is_an_error_that_says_so(engine: Engine) {
    let more: &[&str] = match engine {
        Engine::Redis => &["--requirepass", "secret"],
        Engine::Nats => &["--user", "me", "--pass", "secret"],
    };
    let user = |password: &str| match engine {
        Engine::Redis => format!(":{password}@"),
        Engine::Nats => format!("me:{password}@"),
    };
    let mut store = Store::start(engine, more).await;
    connect(engine, &store.url_with(&user("secret"))).await.expect("this is the password");
    for url in [store.url(), store.url_with(&user("wrong"))] {
        let error = connect(engine, &url).await.expect_err("this is not");
        let source = std::error::Error::source(&error).expect("there is a reason").to_string();
        println!("{engine:?}: {error}: {source}");
        assert!(!source.contains("wrong"), "the password is nobody's business: {source}");
    }
    store.kill();
    let error = connect(engine, &store.url_with(&user("secret"))).await.expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Backend);
}
