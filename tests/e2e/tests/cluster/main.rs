//! Hubs whose log is in Redis or NATS.

mod checker;
mod connections;
mod contract;
mod faults;
mod limits;
mod nats;
mod nats_cluster;
mod nats_creation;
mod nats_logs;
mod nodes;
mod processes;
mod redis;
mod redis_failover;
mod redis_loss;
mod refusals;
mod report;
mod world;

/// Each of these is a test with each engine, which the test's name says.
macro_rules! with_each_engine {
    ($($case:ident),+ $(,)?) => {
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(e2e::store::Engine::Redis).await;
            })+
        }
        mod nats {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(e2e::store::Engine::Nats).await;
            })+
        }
    };
}
use with_each_engine;
