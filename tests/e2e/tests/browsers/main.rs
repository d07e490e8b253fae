//! What browsers of three engines make of event streams.

mod cross_origin;
mod fetch;
mod fields;
mod heartbeats;
mod many_streams;
mod page;
mod reconnection;
mod restart;
mod visits;

/// Each of these is a test in each engine, which the test's name says.
macro_rules! in_every_engine {
    ($($case:ident),+ $(,)?) => {
        mod in_chromium {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(e2e::Engine::Chromium).await;
            })+
        }
        mod in_firefox {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(e2e::Engine::Firefox).await;
            })+
        }
        mod in_webkit {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(e2e::Engine::WebKit).await;
            })+
        }
    };
}
use in_every_engine;
