//! Event streams through the proxies that people put in front of their servers, configured as in the folder `proxies`.

/// What holds through each of them.
macro_rules! holds_through {
    ($way:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn events_arrive_within_100_ms_and_are_not_compressed() {
            $way.carries_events_at_once_and_as_they_are().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn the_handlers_stream_is_dropped_when_the_client_goes() {
            $way.lets_a_client_go().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn the_handler_sees_the_last_event_id_of_a_client_that_comes_back() {
            $way.passes_on_where_a_client_was().await;
        }
    };
}

mod apache;
mod caddy;
mod haproxy;
mod nginx;
mod server;
mod through;
mod varnish;

use apache::APACHE;
use caddy::CADDY;
use futures_util::future::join_all;
use haproxy::HAPROXY;
use nginx::NGINX;
use varnish::{PIPED, VARNISH};

/// All at once, as it takes the time that it is about.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_survives_three_timeouts_and_without_the_layer_not_one() {
    let ways = [APACHE, CADDY, HAPROXY, NGINX, VARNISH, PIPED];
    join_all(ways.map(|way| way.carries_silence_only_with_the_layer())).await;
}
