//! Servers that keep the log of a hub.

use crate::{
    port::Port,
    process::{Process, installed},
};
use std::{
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// How long a server has to listen.
const TO_START: Duration = Duration::from_secs(20);

/// What keeps a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Redis, with an append-only file that is written before it answers.
    Redis,
    /// NATS, with JetStream in files.
    Nats,
}

/// A server, killed on drop. What it has stored stays until then, whether it runs or not.
#[derive(Debug)]
pub struct Store {
    engine: Engine,
    port: Port,
    folder: TempDir,
    more: Vec<String>,
    process: Option<Process>,
}

impl Store {
    /// Starts one on a port that is free, with these arguments beside the usual ones.
    ///
    /// # Panics
    ///
    /// If it is not installed, or does not start.
    pub async fn start(engine: Engine, more: &[&str]) -> Self {
        let port = Port::free().expect("there is a free port");
        let folder = tempfile::tempdir().expect("there is room");
        let more = more.iter().map(|arg| (*arg).to_owned()).collect();
        let mut store = Self { engine, port, folder, more, process: None };
        store.restart().await;
        store
    }

    /// Where it listens, for clients: without a password.
    pub fn url(&self) -> String {
        self.url_with("")
    }

    /// The same with what is before an `@`.
    pub fn url_with(&self, user: &str) -> String {
        let scheme = match self.engine {
            Engine::Redis => "redis",
            Engine::Nats => "nats",
        };
        format!("{scheme}://{user}{}", self.port.address())
    }

    /// Starts it again, with what it has stored.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn restart(&mut self) {
        let port = self.port.address().port().to_string();
        let mut command = match self.engine {
            Engine::Redis => {
                let mut command = Command::new(installed(&["redis-server", "valkey-server"], "redis-server"));
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "yes"]);
                command.args(["--appendfsync", "always", "--dir"]).arg(self.folder.path());
                command
            }
            Engine::Nats => {
                let mut command = Command::new(installed(&["nats-server"], "nats-server"));
                command.args(["-a", "127.0.0.1", "-p", &port, "-js", "-sd"]).arg(self.folder.path());
                command
            }
        };
        command.args(&self.more).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process::spawn(&mut command));
        let begin = std::time::Instant::now();
        while TcpStream::connect(self.port.address()).await.is_err() {
            assert!(begin.elapsed() < TO_START, "{command:?} does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends it a signal: `STOP` and `CONT`.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.port.address()
    }
}

/// A wire to a server that can be cut, whatever is spoken on it.
#[derive(Debug)]
pub struct Wire {
    address: std::net::SocketAddr,
    is_whole: tokio::sync::watch::Sender<bool>,
    accepts: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// One to this server.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn to(server: std::net::SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it listens");
        let is_whole = tokio::sync::watch::Sender::new(true);
        let whole = is_whole.subscribe();
        let accepts = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut whole = whole.clone();
                tokio::spawn(async move {
                    if !*whole.borrow_and_update() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = whole.changed() => {}
                    }
                });
            }
        });
        Self { address, is_whole, accepts }
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Ends all connections, and each new one at once, until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.is_whole.send_replace(false);
    }

    /// Passes on again.
    pub fn mend(&self) {
        self.is_whole.send_replace(true);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepts.abort();
        self.cut();
    }
}
