//! Servers of Redis, NATS and Postgres for the log of a hub.

use crate::{
    port::Port,
    postgres,
    process::{Process, installed},
    wire::Wire,
};
use std::{
    fs::Permissions,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
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
    /// Postgres, which writes each commit to the disk. Its arguments are settings, such as
    /// `-c max_connections=10`.
    Postgres,
}

impl StoreKind {
    /// Returns the option of the `cluster` example for the URL of such a server.
    pub fn option(self) -> &'static str {
        match self {
            Self::Redis => "--redis",
            Self::Nats => "--nats",
            Self::Postgres => "--postgres",
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

impl Drop for Store {
    fn drop(&mut self) {
        self.kill();
        if self.kind == StoreKind::Postgres {
            postgres::remove_shared_memory(self.folder.path());
        }
    }
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
        if kind == StoreKind::Postgres {
            postgres::create(folder.path());
        }
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
        match self.kind {
            StoreKind::Redis => format!("redis://{user}{}", self.port.address()),
            StoreKind::Nats => format!("nats://{user}{}", self.port.address()),
            StoreKind::Postgres => {
                let user = if user.is_empty() { "postgres@" } else { user };
                format!("postgres://{user}{}/postgres", self.port.address())
            }
        }
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
            StoreKind::Postgres => {
                let mut command = postgres::command("postgres");
                command.arg("-D").arg(postgres::data(self.folder.path()));
                command.args(["-h", "127.0.0.1", "-p", &port, "-k", "", "-c", "shared_buffers=32MB"]);
                command
            }
        };
        command.args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process::spawn(&mut command));
        let begin = std::time::Instant::now();
        while !self.answers().await {
            assert!(begin.elapsed() < START_TIMEOUT, "{command:?} does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns whether the server accepts connections. Postgres listens before it has recovered.
    async fn answers(&self) -> bool {
        match self.kind {
            StoreKind::Postgres => {
                let mut ready = postgres::command("pg_isready");
                ready.args(["--quiet", "-d", &self.url()]).status().expect("pg_isready is installed").success()
            }
            _ => TcpStream::connect(self.port.address()).await.is_ok(),
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

    /// Starts the server again if it has crashed, as a service manager does.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub async fn restart_if_crashed(&mut self) {
        if let Some(status) = self.process.as_mut().and_then(Process::exit_status) {
            println!("{:?} has crashed: {status}", self.kind);
            self.restart().await;
        }
    }

    /// Sends a signal, such as `STOP` or `CONT`.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn signal(&self, name: &str) {
        let process = self.process.as_ref().expect("the server runs");
        match self.kind {
            // Each connection has a process.
            StoreKind::Postgres => process.signal_tree(name),
            _ => process.signal(name),
        }
    }

    /// Sets the maximum size of a file that the server writes, in bytes or `unlimited`. At the
    /// limit, writes fail as they do with a full disk.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn limit_file_size(&self, bytes: &str) {
        let ids = self.process.as_ref().expect("the server runs").ids();
        for (n, id) in ids.iter().enumerate() {
            // Only the user of a process may change its limits.
            let mut limit = postgres::command("prlimit");
            limit.args(["--pid", &id.to_string(), &format!("--fsize={bytes}:unlimited")]);
            let is_limited = limit.status().is_ok_and(|status| status.success());
            // A descendant may have ended.
            assert!(is_limited || n > 0, "{limit:?} fails");
        }
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

    /// Runs statements of SQL with `psql`, in one transaction unless they begin and commit their
    /// own. Returns the rows as text.
    ///
    /// # Panics
    ///
    /// If a statement fails.
    pub fn sql(&self, statements: &str) -> String {
        postgres::psql(&self.url(), statements)
    }

    /// Restores a dump of the database of a Postgres server as another database of this server.
    /// Returns its URL.
    ///
    /// # Panics
    ///
    /// If the database exists.
    pub fn copy_database(&self, name: &str) -> String {
        let dump = postgres::run(postgres::command("pg_dump").args(["-d", &self.url()]));
        self.sql(&format!("CREATE DATABASE {name}"));
        let url = format!("postgres://postgres@{}/{name}", self.address());
        let file = self.folder.path().join("dump.sql");
        std::fs::write(&file, dump).expect("the file can be written");
        let mut psql = postgres::command("psql");
        postgres::run(psql.args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-d", &url, "-f"]).arg(file));
        url
    }

    /// Copies the certificate of a server, its key, and the certificate of the authority to the
    /// data of a Postgres server.
    ///
    /// # Panics
    ///
    /// If a file does not exist.
    pub fn add_certificates(&self, folder: &TempDir) {
        for (from, to) in [("server.pem", "server.crt"), ("server.key", "server.key"), ("ca.pem", "ca.pem")] {
            let to = postgres::data(self.folder.path()).join(to);
            std::fs::copy(folder.path().join(from), &to).expect("the file can be copied");
            // The server refuses a key that others can read.
            std::fs::set_permissions(&to, Permissions::from_mode(0o600)).expect("the permissions can be set");
            postgres::give(&to);
        }
    }

    /// Copies the data of a Postgres server that was killed.
    ///
    /// # Panics
    ///
    /// If the server runs.
    pub fn back_up(&self) -> TempDir {
        assert!(self.process.is_none(), "the server does not run");
        let backup = tempfile::tempdir().expect("the folder can be created");
        postgres::copy(&postgres::data(self.folder.path()), &postgres::data(backup.path()));
        backup
    }

    /// Replaces the data of a Postgres server that was killed.
    ///
    /// # Panics
    ///
    /// If the server runs.
    pub fn restore(&self, backup: &TempDir) {
        assert!(self.process.is_none(), "the server does not run");
        let data = postgres::data(self.folder.path());
        std::fs::remove_dir_all(&data).expect("the data can be removed");
        postgres::copy(&postgres::data(backup.path()), &data);
    }

    /// Starts a replica of a Postgres server, which replicates asynchronously.
    ///
    /// # Panics
    ///
    /// If the replica does not start.
    pub async fn replica(&self) -> Self {
        let port = Port::free().expect("there is a free port");
        let folder = tempfile::tempdir().expect("the folder can be created");
        postgres::give(folder.path());
        let mut copy = postgres::command("pg_basebackup");
        copy.args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "-d", &self.url(), "-D"]);
        postgres::run(copy.arg(postgres::data(folder.path())));
        let mut store = Self { kind: self.kind, port, folder, arguments: Vec::new(), process: None };
        store.restart().await;
        store
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
                    StoreKind::Postgres => panic!("use `sql` for Postgres"),
                };
                if rest.is_some_and(|rest| rest.ends_with(end)) {
                    return text.into_owned();
                }
            }
        };
        timeout(START_TIMEOUT, ask).await.unwrap_or_else(|_| panic!("{:?} does not answer {request:?}", self.kind))
    }
}
