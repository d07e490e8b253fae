//! The servers that store the logs. Each run starts its own.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// The time limit for the start of a server.
const START_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Redis,
    Nats,
    Postgres { is_synchronous: bool },
}

/// A server on a free port, with its files in its own folder. Dropping it removes both.
pub(crate) struct Store {
    engine: Engine,
    port: u16,
    folder: PathBuf,
    process: Child,
}

impl Store {
    /// Starts a server with the usual settings for events that survive a restart.
    ///
    /// Redis writes an append-only file to the disk every second. NATS stores its stream in files.
    /// Postgres writes each commit to the disk, or the commits of the last 0.2 seconds together.
    pub(crate) fn start(engine: Engine) -> Result<Self, String> {
        // Another program may take the port before the server does.
        let mut attempts = 0..5;
        loop {
            match Self::try_start(engine) {
                Err(error) if attempts.next().is_none() => return Err(error),
                Err(error) if error.contains("apt-get") => return Err(error),
                Err(_) => {}
                Ok(store) => return Ok(store),
            }
        }
    }

    fn try_start(engine: Engine) -> Result<Self, String> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let port = free.map_err(|error| format!("no port is free: {error}"))?.port();
        let folder = env::temp_dir().join(format!("tower-sse-cluster-{port}"));
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut command = match engine {
            Engine::Redis => {
                let mut command = Command::new(installed(&["redis-server", "valkey-server"], "redis-server")?);
                command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]);
                command.args(["--appendfsync", "everysec", "--dir"]).arg(&folder).arg("--port");
                command
            }
            Engine::Nats => {
                let mut command = Command::new(installed(&["nats-server"], "nats-server")?);
                command.args(["-a", "127.0.0.1", "-js", "-sd"]).arg(&folder).arg("-p");
                command
            }
            Engine::Postgres { is_synchronous } => {
                let data = folder.join("data");
                create_postgres(&folder, &data)?;
                let mut command = postgres("postgres")?;
                command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-k", "", "-c"]);
                command.arg(format!("synchronous_commit={}", if is_synchronous { "on" } else { "off" })).arg("-p");
                command
            }
        };
        command.arg(port.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let mut store = Self { engine, port, folder, process };
        let begin = Instant::now();
        while TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_err() {
            let has_ended = !matches!(store.process.try_wait(), Ok(None));
            if has_ended || begin.elapsed() > START_TIMEOUT {
                return Err(format!("{command:?} has ended, or does not listen after {START_TIMEOUT:?}"));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(store)
    }

    pub(crate) fn url(&self) -> String {
        match self.engine {
            Engine::Redis => format!("redis://127.0.0.1:{}", self.port),
            Engine::Nats => format!("nats://127.0.0.1:{}", self.port),
            Engine::Postgres { .. } => format!("postgres://postgres@127.0.0.1:{}/postgres", self.port),
        }
    }

    /// Returns the number of connections to the server, from Linux's `/proc/net/tcp`.
    pub(crate) fn connections(&self) -> usize {
        const ESTABLISHED: &str = "01";
        let remote = format!("0100007F:{:04X}", self.port);
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let is_connection = |line: &&str| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next() == Some(&remote) && fields.next() == Some(ESTABLISHED)
        };
        sockets.lines().filter(is_connection).count()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _already_ended = self.process.kill();
        let _ended = self.process.wait();
        let _removed = fs::remove_dir_all(&self.folder);
    }
}

/// Creates the data of a server of Postgres.
fn create_postgres(folder: &Path, data: &Path) -> Result<(), String> {
    if let Some((user, group)) = postgres_user() {
        chown(folder, Some(user), Some(group)).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let mut initdb = postgres("initdb")?;
    initdb.args(["--no-sync", "--encoding=UTF8", "--auth=trust", "--username=postgres", "--pgdata"]).arg(data);
    let output = initdb.output().map_err(|error| format!("{initdb:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Returns the command of a program of Postgres. Its server refuses to run as root.
pub(crate) fn postgres(program: &str) -> Result<Command, String> {
    let mut command = Command::new(installed(&[program], "postgresql")?);
    if let Some((user, group)) = postgres_user() {
        command.uid(user).gid(group).current_dir("/");
    }
    Ok(command)
}

/// Returns the user and the group of Postgres, if this process runs as root.
fn postgres_user() -> Option<(u32, u32)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1).filter(|id| *id == "0")?;
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut ids = users.lines().find(|line| line.starts_with("postgres:"))?.split(':').skip(2);
    Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
}

/// Returns the path of the first installed program of these.
fn installed(names: &[&str], package: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian installs servers in a folder that is only in root's PATH.
    // Each version of Postgres is in a folder of its own.
    let mut postgres: Vec<_> = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().collect();
    postgres.sort_by_key(|version| std::cmp::Reverse(version.file_name()));
    let postgres = postgres.into_iter().map(|version| version.path().join("bin"));
    let folders: Vec<_> = postgres.chain(env::split_paths(&path)).chain(["/usr/sbin".into()]).collect();
    let mut files = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    files.find(|file| file.is_file()).ok_or_else(|| {
        format!("{} is not installed: `apt-get install {package}`, or run scripts/test", names.join(" or "))
    })
}
