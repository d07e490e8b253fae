//! Proxies in front of a server, each with the configuration that users are given as a model.

use crate::process::{Process, installed};
use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

/// Varnish has a C compiler at work.
const TO_START: Duration = Duration::from_secs(30);
/// A free port may be taken by somebody else before the proxy takes it.
const ATTEMPTS: usize = 3;

/// What the models say, and the test has to say otherwise.
const LISTENS_AT: &str = "127.0.0.1:8080";
const SERVER: &str = "127.0.0.1:3000";
const TIMEOUT: &str = "60s";

/// A program that passes requests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Apache httpd, with mod_proxy_http and mod_deflate.
    Apache,
    /// Caddy 2.
    Caddy,
    /// HAProxy.
    HaProxy,
    /// nginx.
    Nginx,
    /// Varnish.
    Varnish,
}

/// A configuration: that of the folder `proxies`, with what a test changes of it.
#[derive(Clone, Debug)]
pub struct Model {
    program: Program,
    text: String,
    /// Of varnishd, which are not in its file.
    parameters: Vec<String>,
    http2: bool,
}

impl Model {
    /// As it is in the folder.
    pub fn of(program: Program) -> Self {
        let text = match program {
            Program::Apache => include_str!("../proxies/apache.conf"),
            Program::Caddy => include_str!("../proxies/Caddyfile"),
            Program::HaProxy => include_str!("../proxies/haproxy.cfg"),
            Program::Nginx => include_str!("../proxies/nginx.conf"),
            Program::Varnish => include_str!("../proxies/varnish.vcl"),
        };
        Self { program, text: text.to_owned(), parameters: Vec::new(), http2: false }
    }

    /// With other timeouts than its 60 seconds.
    ///
    /// # Panics
    ///
    /// If it has no timeouts.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        assert!(self.text.contains(TIMEOUT), "the timeouts of {self:?} are as the test knows them");
        let seconds = timeout.as_secs();
        let model = Self { text: self.text.replace(TIMEOUT, &format!("{seconds}s")), ..self };
        if model.program == Program::Varnish { model.parameter(&format!("pipe_timeout={seconds}")) } else { model }
    }

    /// With this parameter of varnishd.
    #[must_use]
    pub fn parameter(mut self, parameter: &str) -> Self {
        self.parameters.push(parameter.to_owned());
        self
    }

    /// With something else in place of a part of it.
    ///
    /// # Panics
    ///
    /// If that part is not there exactly once.
    #[must_use]
    pub fn with(self, part: &str, instead: &str) -> Self {
        assert_eq!(self.text.matches(part).count(), 1, "{part:?} in {self:?}");
        Self { text: self.text.replace(part, instead), ..self }
    }

    /// For clients that speak HTTP/2 from the first byte on, as browsers do once TLS is done.
    #[must_use]
    pub fn http2(self) -> Self {
        let program = self.program;
        let model = Self { http2: true, ..self };
        match program {
            // The others are told outside of their models.
            Program::Apache | Program::Caddy | Program::Varnish => model,
            Program::HaProxy => model.with(LISTENS_AT, &format!("{LISTENS_AT} proto h2")),
            Program::Nginx => model.with(LISTENS_AT, &format!("{LISTENS_AT} http2")),
        }
    }

    /// The whole of it: with the addresses, and with what the model does not say as it is another one on each machine.
    fn configuration(&self, folder: &Path, address: SocketAddr, server: SocketAddr) -> String {
        let model = self.clone();
        let Self { text: model, .. } = match self.program {
            Program::Caddy => model.with(SERVER, &server.to_string()).with(":8080", &format!(":{}", address.port())),
            Program::Varnish => model.with("\"3000\"", &format!("\"{}\"", server.port())),
            _ => model.with(SERVER, &server.to_string()).with(LISTENS_AT, &address.to_string()),
        };
        let folder = folder.display();
        match self.program {
            Program::Apache => {
                let protocol = if self.http2 { "h2c" } else { "http/1.1" };
                let load = ["mpm_event", "authz_core", "filter", "deflate", "proxy", "proxy_http", "http2"]
                    .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
                    .concat();
                format!(
                    "ServerRoot {folder}\nPidFile pid\nMutex pthread\nErrorLog error.log\nServerName localhost\n\
                     User nobody\nGroup nogroup\n{load}Listen {address}\nProtocols {protocol}\n{model}"
                )
            }
            Program::Caddy => {
                let protocols = if self.http2 { "h1 h2c" } else { "h1" };
                format!("{{\nadmin off\nauto_https off\nservers {{\nprotocols {protocols}\n}}\n}}\n{model}")
            }
            Program::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
                    .concat();
                format!(
                    "daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n\
                     http {{\naccess_log off;\n{temporary}{model}}}\n"
                )
            }
            Program::HaProxy | Program::Varnish => model,
        }
    }

    /// How it is started with this file: in the foreground, as one process if it can, and with all that it writes in the
    /// folder.
    fn command(&self, folder: &Path, file: &Path, address: SocketAddr) -> Command {
        let mut command;
        match self.program {
            Program::Apache => {
                command = Command::new(installed(&["apache2"], "apache2-bin"));
                command.arg("-X").arg("-f").arg(file);
            }
            Program::Caddy => {
                command = Command::new(installed(&["caddy"], "caddy"));
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
                command.envs(["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"].map(|name| (name, folder)));
            }
            Program::HaProxy => {
                command = Command::new(installed(&["haproxy"], "haproxy"));
                // -dR: another one cannot listen at the same port then, and get half of the connections.
                command.args(["-db", "-dR", "-f"]).arg(file);
            }
            Program::Nginx => {
                command = Command::new(installed(&["nginx"], "nginx"));
                command.args(["-e", "stderr", "-p"]).arg(folder).arg("-c").arg(file);
            }
            Program::Varnish => {
                command = Command::new(installed(&["varnishd"], "varnish"));
                command.args(["-F", "-j", "none", "-T", "none", "-s", "malloc,16m", "-a", &address.to_string()]);
                command.args(self.parameters.iter().flat_map(|parameter| ["-p", parameter]));
                command.args(["-p", if self.http2 { "feature=+http2" } else { "feature=-http2" }]);
                command.arg("-n").arg(folder.join("work")).arg("-f").arg(file);
            }
        }
        command
    }
}

/// A running proxy, killed on drop. If that is because a test fails, it shows its log.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    address: SocketAddr,
    program: Program,
    folder: TempDir,
}

impl Proxy {
    /// Starts it on a port that is free, in front of this server.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start: with its log.
    pub async fn start(model: &Model, server: SocketAddr) -> Self {
        for _ in 1..ATTEMPTS {
            if let Ok(proxy) = Self::attempt(model, server).await {
                return proxy;
            }
        }
        let attempt = Self::attempt(model, server).await;
        attempt.unwrap_or_else(|log| panic!("{:?} does not start: {log}\nwith {}", model.program, model.text))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn attempt(model: &Model, server: SocketAddr) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("there is room for its files");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("there is a free port");
        let file = folder.path().join("configuration");
        fs::write(&file, model.configuration(folder.path(), address, server)).expect("its folder can be written to");
        let mut command = model.command(folder.path(), &file, address);
        let log = File::create(folder.path().join("log")).expect("its folder can be written to");
        command.stdout(log.try_clone().expect("it is open")).stderr(log);
        let process = Process::spawn(&mut command);
        let mut proxy = Self { process, address, program: model.program, folder };
        let begin = Instant::now();
        loop {
            let listens = TcpStream::connect(address).await.is_ok();
            // In this order: if somebody else listens there, it has not started.
            if let Some(status) = proxy.process.ended_within(Duration::from_millis(1)) {
                return Err(format!("{status}: {}", proxy.log()));
            }
            if listens {
                return Ok(proxy);
            }
            if begin.elapsed() > TO_START {
                return Err(format!("it does not listen: {}", proxy.log()));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        let logs = ["log", "error.log"].map(|name| fs::read_to_string(self.folder.path().join(name)));
        logs.into_iter().flatten().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the log of {:?} at {}: {}", self.program, self.address, self.log());
        }
    }
}
