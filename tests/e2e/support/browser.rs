//! Chromium, by way of chromedriver.

use crate::process::{Process, installed};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Tests run beside each other, but more browsers than this starve each other on a small machine. A test that needs two waits
/// for both at once: if each of two tests had one, both would wait for ever.
static BROWSERS: Semaphore = Semaphore::const_new(2);

/// A Chromium with an empty profile. It ends on drop, and its profile with it.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    // Dropped in this order: Chromium ends before its profile is removed, and then the next one may start.
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

impl Browser {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// If it, or chromedriver, is not installed or does not start.
    pub async fn start(window: Window) -> Self {
        Self::start_with(BROWSERS.acquire().await.expect("never closed"), window).await
    }

    /// Starts two that know nothing of each other, as on two machines.
    ///
    /// # Panics
    ///
    /// If Chromium, or chromedriver, is not installed or does not start.
    pub async fn start_two(windows: [Window; 2]) -> [Self; 2] {
        let mut permit = BROWSERS.acquire_many(2).await.expect("never closed");
        let another = permit.split(1).expect("it is for two");
        [Self::start_with(permit, windows[0]).await, Self::start_with(another, windows[1]).await]
    }

    async fn start_with(permit: SemaphorePermit<'static>, window: Window) -> Self {
        let driver = Driver::start();
        let profile = tempfile::tempdir().expect("there is room for a profile");
        let user_data_dir = format!("--user-data-dir={}", profile.path().display());
        let mut options = json!({
            "binary": installed(&["chromium", "chromium-browser", "google-chrome"], "chromium"),
            "args": [
                "--headless=new",
                "--window-size=1280,900",
                user_data_dir,
                // Containers and CI run as root, and with little shared memory.
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                // Nothing but the page is to use the network, and nothing is to be between it and the relay.
                "--disable-quic",
                "--no-proxy-server",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        });
        if let Window::Phone { width } = window {
            options["mobileEmulation"] =
                json!({ "deviceMetrics": { "width": width, "height": 844, "pixelRatio": 2, "touch": true } });
        }
        let capabilities =
            json!({ "goog:chromeOptions": options, "timeouts": { "pageLoad": 20_000, "script": 20_000 } });
        let Value::Object(capabilities) = capabilities else { unreachable!("written as an object") };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://{}", driver.address))
            .await
            .expect("Chromium starts; does its version match chromedriver's?");
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

#[derive(Debug)]
struct Driver {
    process: Process,
    address: SocketAddr,
}

impl Driver {
    fn start() -> Self {
        let mut command = Command::new(installed(&["chromedriver"], "chromium-driver"));
        let (process, port) = Process::start(command.arg("--port=0"), |line| {
            let (_, port) = line.split_once("successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Asks it to end. It ends its Chromium first, which would go on if it was killed.
    fn shut_down(&self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /shutdown HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.shut_down().is_ok() {
            self.process.ended_within(Duration::from_secs(5));
        }
    }
}
