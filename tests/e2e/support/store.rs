//! Servers of Redis and NATS for the log of a hub.

use crate::{
    port::Port,
    process::{Process, installed},
    wire::Wire,
};
use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// Redis, with an append-only file that is written before each answer.
    Redis,
    /// NATS, with JetStream in files.
    Nats,
}

impl StoreKind {
    /// Returns the option of the `cluster` example for the URL of such a server.
    pub fn option(self) -> &'static str {
        match self {
            Self::Redis => "--redis",
            Self::Nats => "--nats",
        }
    }
}

/// A server, killed on drop. Its data survives [`kill`](Self::kill), and is removed on drop.
#[derive(Debug)]
pub struct Store {
    kind: StoreKind,
    port: Port,
    folder: TempDir,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Store {
    /// Starts a server on a free port, with these additional arguments.
    ///
    /// # Panics
    ///
    /// If the server is not installed, or does not start.
    pub async fn start(kind: StoreKind, arguments: &[&str]) -> Self {
        let port = Port::free().expect("there is a free port");
        let folder = tempfile::tempdir().expect("the folder can be created");
        let arguments = arguments.iter().map(|arg| (*arg).to_owned()).collect();
        let mut store = Self { kind, port, folder, arguments, process: None };
        store.restart().await;
        store
    }

    /// Returns the kind of server.
    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// Returns the URL for clients, without a password.
    pub fn url(&self) -> String {
        self.url_with("")
    }

    /// Returns the URL with this text before the address, such as `user:password@`.
    pub fn url_with(&self, user: &str) -> String {
        let scheme = match self.kind {
            StoreKind::Redis => "redis",
            StoreKind::Nats => "nats",
        };
        format!("{scheme}://{user}{}", self.port.address())
    }

    /// Returns the URL for clients that connect through this wire.
    pub fn url_through(&self, wire: &Wire) -> String {
        self.url().replace(&self.address().to_string(), &wire.address().to_string())
    }

    /// Starts the server again, with the data that it has stored.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub async fn restart(&mut self) {
        let port = self.port.address().port().to_string();
        let mut command = match self.kind {
            StoreKind::Redis => {
                let mut command = Command::new(installed(&["redis-server", "valkey-server"], "redis-server"));
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "yes"]);
                command.args(["--appendfsync", "always", "--dir"]).arg(self.folder.path());
                command
            }
            StoreKind::Nats => {
                let mut command = Command::new(installed(&["nats-server"], "nats-server"));
                command.args(["-a", "127.0.0.1", "-p", &port, "-js", "-sd"]).arg(self.folder.path());
                command
            }
        };
        command.args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process::spawn(&mut command));
        let begin = std::time::Instant::now();
        while TcpStream::connect(self.port.address()).await.is_err() {
            assert!(begin.elapsed() < START_TIMEOUT, "{command:?} does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns the folder of the server's data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends a signal, such as `STOP` or `CONT`.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn signal(&self, name: &str) {
        self.process.as_ref().expect("the server runs").signal(name);
    }

    /// Returns the address of the server.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Returns the answer of Redis to a command, as it is on the wire.
    ///
    /// # Panics
    ///
    /// If there is no answer within 20 seconds.
    pub async fn redis(&self, command: &str) -> String {
        self.ask(&format!("{command}\r\nPING\r\n"), "+PONG\r\n").await
    }

    /// Returns the answer of NATS to a request.
    ///
    /// # Panics
    ///
    /// If there is no answer within 20 seconds.
    pub async fn nats(&self, subject: &str, json: &str) -> String {
        let request = format!("PUB {subject} answers {}\r\n{json}\r\n", json.len());
        let answer = self.ask(&format!("CONNECT {{\"verbose\":false}}\r\nSUB answers 1\r\n{request}"), "}\r\n").await;
        answer[answer.find("MSG ").expect("an answer")..].to_owned()
    }

    /// Sends a request, and reads until the answer ends with `end`. Skips the greeting of NATS.
    async fn ask(&self, request: &str, end: &str) -> String {
        let ask = async {
            let mut stream = TcpStream::connect(self.address()).await.expect("the server listens");
            stream.write_all(request.as_bytes()).await.expect("the server reads");
            let mut answer = Vec::new();
            loop {
                let n = stream.read_buf(&mut answer).await.expect("the server answers");
                assert!(n > 0, "the server has closed the connection");
                let text = String::from_utf8_lossy(&answer);
                let rest = match self.kind {
                    StoreKind::Redis => Some(&*text),
                    StoreKind::Nats => text.split_once("MSG ").map(|(_, rest)| rest),
                };
                if rest.is_some_and(|rest| rest.ends_with(end)) {
                    return text.into_owned();
                }
            }
        };
        timeout(START_TIMEOUT, ask).await.unwrap_or_else(|_| panic!("{:?} does not answer {request:?}", self.kind))
    }
}
