//! Event streams through reverse proxies, with the configurations of the folder `proxies`.

/// Defines the tests for every proxy.
macro_rules! proxy_tests {
    ($case:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn events_arrive_within_100_ms_uncompressed() {
            $case.check_events().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn client_disconnect_drops_the_stream() {
            $case.check_disconnect().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn last_event_id_reaches_the_handler() {
            $case.check_last_event_id().await;
        }
    };
}

mod apache;
mod caddy;
mod case;
mod haproxy;
mod nginx;
mod server;
mod varnish;

use apache::APACHE;
use caddy::CADDY;
use futures_util::future::join_all;
use haproxy::HAPROXY;
use nginx::NGINX;
use varnish::{PIPED, VARNISH};

/// Tests all proxies concurrently, because each waits for its timeouts.
#[tokio::test(flavor = "multi_thread")]
async fn silent_streams_survive_timeouts_only_with_the_layer() {
    let cases = [APACHE, CADDY, HAPROXY, NGINX, VARNISH, PIPED];
    join_all(cases.map(|case| case.check_silence())).await;
}
