//! Servers that keep the log of a hub.

use crate::{
    port::Port,
    process::{Process, installed},
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

    /// What it is.
    pub fn engine(&self) -> Engine {
        self.engine
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

    /// Returns the folder of the server's data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
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
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// What Redis answers to a command, as it is on the wire.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub async fn redis(&self, command: &str) -> String {
        self.ask(&format!("{command}\r\nPING\r\n"), "+PONG\r\n").await
    }

    /// What NATS answers to a request.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub async fn nats(&self, subject: &str, json: &str) -> String {
        let request = format!("PUB {subject} answers {}\r\n{json}\r\n", json.len());
        let answer = self.ask(&format!("CONNECT {{\"verbose\":false}}\r\nSUB answers 1\r\n{request}"), "}\r\n").await;
        answer[answer.find("MSG ").expect("an answer")..].to_owned()
    }

    /// What it answers until that is enough; what NATS says of itself, in its first line, is not.
    async fn ask(&self, request: &str, end: &str) -> String {
        let ask = async {
            let mut stream = TcpStream::connect(self.address()).await.expect("it listens");
            stream.write_all(request.as_bytes()).await.expect("it reads");
            let mut answer = Vec::new();
            loop {
                assert!(stream.read_buf(&mut answer).await.expect("it answers") > 0, "it has closed the connection");
                let text = String::from_utf8_lossy(&answer);
                let rest = if self.engine == Engine::Nats {
                    text.split_once("MSG ").map(|(_, rest)| rest)
                } else {
                    Some(&*text)
                };
                if rest.is_some_and(|rest| rest.ends_with(end)) {
                    return text.into_owned();
                }
            }
        };
        timeout(TO_START, ask).await.unwrap_or_else(|_| panic!("{:?} does not answer {request:?}", self.engine))
    }
}
