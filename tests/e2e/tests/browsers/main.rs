//! Event streams in browsers of three engines.

mod cross_origin;
mod fetch;
mod fields;
mod heartbeats;
mod many_streams;
mod page;
mod reconnection;
mod requests;
mod restart;

/// Defines each case as a test in each engine. The module of the test names the engine.
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
