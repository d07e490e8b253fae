//! The servers that store the logs. Each run starts its own.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
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
        let scheme = match self.engine {
            Engine::Redis => "redis",
            Engine::Nats => "nats",
        };
        format!("{scheme}://127.0.0.1:{}", self.port)
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

/// Returns the path of the first installed program of these.
fn installed(names: &[&str], package: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian installs servers in a folder that is only in root's PATH.
    let folders: Vec<_> = env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    let mut files = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    files.find(|file| file.is_file()).ok_or_else(|| {
        format!("{} is not installed: `apt-get install {package}`, or run scripts/test", names.join(" or "))
    })
}
