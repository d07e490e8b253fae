//! Hubs with a log in Redis, NATS or Postgres.

mod callers;
mod checker;
mod connect_errors;
mod connections;
mod contract;
mod deleted;
mod faults;
mod limits;
mod nats;
mod nats_access;
mod nats_cluster;
mod nats_creation;
mod nats_epochs;
mod nats_follower;
mod nats_logs;
mod nats_lost;
mod nats_malformed;
mod nats_marks;
mod nats_unchanged;
mod nats_wire;
mod nodes;
mod postgres_access;
mod postgres_application;
mod postgres_epochs;
mod postgres_hosts;
mod postgres_notifications;
mod postgres_operators;
mod postgres_order;
mod postgres_schema;
mod postgres_shared;
mod postgres_sql;
mod presence;
mod processes;
mod quiet;
mod received;
mod recording;
mod redis;
mod redis_access;
mod redis_failover;
mod redis_loss;
mod redis_offsets;
mod redis_timeouts;
mod redis_unchanged;
mod registry;
mod remove;
mod report;
mod setup;
mod unchanged;

/// Defines each case as a test with Redis, a test with NATS, and a test with Postgres. The module
/// of the test names the store.
macro_rules! with_each_store {
    ($($case:ident),+ $(,)?) => {
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(e2e::StoreKind::Redis).await;
            })+
        }
        mod nats {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(e2e::StoreKind::Nats).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(e2e::StoreKind::Postgres).await;
            })+
        }
    };
}
use with_each_store;
