//! A browser, driven through WebDriver.

use crate::{driver::Driver, engine::Engine};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The number of browsers at the same time. Tests run in parallel, and more browsers would starve
/// each other on a small machine.
///
/// A test with two browsers acquires both permits together. Two such tests with one permit each
/// would wait for each other forever.
static BROWSERS: Semaphore = Semaphore::const_new(2);

/// A browser with an empty profile. Dropping it ends the browser, and removes the profile.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    // Dropped in this order: the browser ends, its profile is removed, and the next one may start.
    _driver: Driver,
    _profile: TempDir,
    _permit: SemaphorePermit<'static>,
}

/// The window of a browser.
#[derive(Clone, Copy, Debug)]
pub enum Window {
    /// A window that is 1280 CSS pixels wide.
    Desktop,
    /// The screen of a phone, with touch.
    Phone {
        /// In CSS pixels, usually 360 to 430.
        width: u32,
    },
}

impl Window {
    /// Returns the width in CSS pixels.
    pub(crate) fn width(self) -> u32 {
        match self {
            Self::Desktop => 1280,
            Self::Phone { width } => width,
        }
    }
}

impl Browser {
    /// Starts Chromium. Only Chromium can emulate a phone.
    ///
    /// # Panics
    ///
    /// If Chromium or chromedriver is not installed, or does not start.
    pub async fn start(window: Window) -> Self {
        Self::start_with(permit().await, Engine::Chromium, window).await
    }

    /// Starts Chromium twice, with separate profiles, as on two machines.
    ///
    /// # Panics
    ///
    /// If Chromium or chromedriver is not installed, or does not start.
    pub async fn start_two(windows: [Window; 2]) -> [Self; 2] {
        let mut permit = BROWSERS.acquire_many(2).await.expect("the semaphore is never closed");
        let another = permit.split(1).expect("the permit is for two browsers");
        [
            Self::start_with(permit, Engine::Chromium, windows[0]).await,
            Self::start_with(another, Engine::Chromium, windows[1]).await,
        ]
    }

    /// Starts the browser of an engine.
    ///
    /// # Panics
    ///
    /// If the browser or its driver is not installed, or does not start.
    pub async fn start_engine(engine: Engine) -> Self {
        Self::start_with(permit().await, engine, Window::Desktop).await
    }

    async fn start_with(permit: SemaphorePermit<'static>, engine: Engine, window: Window) -> Self {
        let profile = tempfile::tempdir().expect("the folder can be created");
        let driver = engine.start(profile.path(), window);
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(driver.capabilities())
            .connect(&driver.url())
            .await
            .unwrap_or_else(|error| panic!("{engine:?} does not start; do browser and driver match? {error}"));
        Self { client, _driver: driver, _profile: profile, _permit: permit }
    }

    /// Returns the WebDriver client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Evaluates a JavaScript expression in the page. Awaits a promise.
    ///
    /// # Panics
    ///
    /// If the expression throws.
    pub async fn eval(&self, expression: &str) -> Value {
        let result = self.client.execute(&format!("return {expression};"), Vec::new()).await;
        result.unwrap_or_else(|error| panic!("`{expression}` throws in the page: {error}"))
    }
}

async fn permit() -> SemaphorePermit<'static> {
    BROWSERS.acquire().await.expect("the semaphore is never closed")
}
