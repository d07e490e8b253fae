//! The servers that keep a log, started for the run.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// How long a server has to listen.
const TO_START: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Redis,
    Nats,
}

/// A server on a port that was free, with its files in a folder of its own. Both are gone on drop.
pub(crate) struct Store {
    engine: Engine,
    port: u16,
    folder: PathBuf,
    process: Child,
}

impl Store {
    /// Starts one as it is set up where events are to survive a restart: Redis with an append-only file that is written to
    /// the disk every second, NATS with a stream in files.
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
        let port = free.map_err(|error| format!("there is no free port: {error}"))?.port();
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
            if has_ended || begin.elapsed() > TO_START {
                return Err(format!("{command:?} does not listen"));
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

    /// How many connections there are to it, from what Linux tells of them.
    pub(crate) fn connections(&self) -> usize {
        const ESTABLISHED: &str = "01";
        let remote = format!("0100007F:{:04X}", self.port);
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let is_one = |line: &&str| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next() == Some(&remote) && fields.next() == Some(ESTABLISHED)
        };
        sockets.lines().filter(is_one).count()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _already_ended = self.process.kill();
        let _nothing_to_do_about_it = self.process.wait();
        let _nor_about_this = fs::remove_dir_all(&self.folder);
    }
}

/// Where the first of these programs is.
fn installed(names: &[&str], package: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root looks for programs.
    let folders: Vec<_> = env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    let mut files = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    files.find(|file| file.is_file()).ok_or_else(|| {
        format!("{} is not installed: `apt-get install {package}`, or run scripts/test", names.join(" or "))
    })
}
