//! A browser of one of three engines.

use crate::{driver::Driver, engine::Engine};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Tests run beside each other, but more browsers than this starve each other on a small machine. A test that needs two waits
/// for both at once: if each of two tests had one, both would wait for ever.
static BROWSERS: Semaphore = Semaphore::const_new(2);

/// A browser with an empty profile. It ends on drop, and its profile with it.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    // Dropped in this order: the browser ends before its profile is removed, and then the next one may start.
    _driver: Driver,
    _profile: TempDir,
    _permit: SemaphorePermit<'static>,
}

/// What the page is shown in.
#[derive(Clone, Copy, Debug)]
pub enum Window {
    /// As wide as on a desk.
    Desktop,
    /// As on a phone: this many CSS pixels wide, and with touch.
    Phone {
        /// Usually 360 to 430.
        width: u32,
    },
}

impl Window {
    /// In CSS pixels.
    pub(crate) fn width(self) -> u32 {
        match self {
            Self::Desktop => 1280,
            Self::Phone { width } => width,
        }
    }
}

impl Browser {
    /// Starts Chromium, which can be a phone, and takes screenshots.
    ///
    /// # Panics
    ///
    /// If it, or chromedriver, is not installed or does not start.
    pub async fn start(window: Window) -> Self {
        Self::start_with(permit().await, Engine::Chromium, window).await
    }

    /// Starts two of Chromium that know nothing of each other, as on two machines.
    ///
    /// # Panics
    ///
    /// If Chromium, or chromedriver, is not installed or does not start.
    pub async fn start_two(windows: [Window; 2]) -> [Self; 2] {
        let mut permit = BROWSERS.acquire_many(2).await.expect("never closed");
        let another = permit.split(1).expect("it is for two");
        [
            Self::start_with(permit, Engine::Chromium, windows[0]).await,
            Self::start_with(another, Engine::Chromium, windows[1]).await,
        ]
    }

    /// Starts the browser of an engine.
    ///
    /// # Panics
    ///
    /// If it, or its driver, is not installed or does not start.
    pub async fn of(engine: Engine) -> Self {
        Self::start_with(permit().await, engine, Window::Desktop).await
    }

    async fn start_with(permit: SemaphorePermit<'static>, engine: Engine, window: Window) -> Self {
        let profile = tempfile::tempdir().expect("there is room for a profile");
        let driver = engine.start(profile.path(), window);
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(driver.capabilities())
            .connect(&driver.url())
            .await
            .unwrap_or_else(|error| panic!("{engine:?} does not start; do browser and driver match? {error}"));
        Self { client, _driver: driver, _profile: profile, _permit: permit }
    }

    /// What is on its screen, and what can be done there.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What a script returns in the page.
    ///
    /// # Panics
    ///
    /// If the script throws.
    pub async fn eval(&self, expression: &str) -> Value {
        let result = self.client.execute(&format!("return {expression};"), Vec::new()).await;
        result.unwrap_or_else(|error| panic!("`{expression}` throws in the page: {error}"))
    }
}

async fn permit() -> SemaphorePermit<'static> {
    BROWSERS.acquire().await.expect("never closed")
}
