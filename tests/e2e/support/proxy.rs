//! Reverse proxies in front of a server, with the configurations that the documentation recommends.

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

/// Varnish compiles its configuration with a C compiler.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Another program can take the free port before the proxy listens on it.
const ATTEMPTS: usize = 3;

/// Values in the recommended configurations that a test replaces.
const LISTEN_ADDRESS: &str = "127.0.0.1:8080";
const SERVER_ADDRESS: &str = "127.0.0.1:3000";
const TIMEOUT: &str = "60s";

/// A reverse proxy program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
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

/// A configuration of the folder `proxies`, with the changes of a test.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    kind: ProxyKind,
    text: String,
    /// Parameters of varnishd, which are arguments and not in its file.
    parameters: Vec<String>,
    http2: bool,
}

impl ProxyConfig {
    /// Loads the configuration from the folder.
    pub fn new(kind: ProxyKind) -> Self {
        let text = match kind {
            ProxyKind::Apache => include_str!("../proxies/apache.conf"),
            ProxyKind::Caddy => include_str!("../proxies/Caddyfile"),
            ProxyKind::HaProxy => include_str!("../proxies/haproxy.cfg"),
            ProxyKind::Nginx => include_str!("../proxies/nginx.conf"),
            ProxyKind::Varnish => include_str!("../proxies/varnish.vcl"),
        };
        Self { kind, text: text.to_owned(), parameters: Vec::new(), http2: false }
    }

    /// Replaces the timeouts of 60 seconds.
    ///
    /// # Panics
    ///
    /// If the configuration has no such timeouts.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        assert!(self.text.contains(TIMEOUT), "{self:?} has no timeout of {TIMEOUT}");
        let seconds = timeout.as_secs();
        let config = Self { text: self.text.replace(TIMEOUT, &format!("{seconds}s")), ..self };
        if config.kind == ProxyKind::Varnish { config.parameter(&format!("pipe_timeout={seconds}")) } else { config }
    }

    /// Adds a parameter of varnishd.
    #[must_use]
    pub fn parameter(mut self, parameter: &str) -> Self {
        self.parameters.push(parameter.to_owned());
        self
    }

    /// Replaces a part of the configuration.
    ///
    /// # Panics
    ///
    /// If the configuration does not contain the part exactly once.
    #[must_use]
    pub fn replace(self, part: &str, replacement: &str) -> Self {
        assert_eq!(self.text.matches(part).count(), 1, "{part:?} in {self:?}");
        Self { text: self.text.replace(part, replacement), ..self }
    }

    /// Serves HTTP/2 with prior knowledge, as to a browser after its TLS handshake.
    #[must_use]
    pub fn http2(self) -> Self {
        let config = Self { http2: true, ..self };
        match config.kind {
            // These have the setting outside of the file in the folder.
            ProxyKind::Apache | ProxyKind::Caddy | ProxyKind::Varnish => config,
            ProxyKind::HaProxy => config.replace(LISTEN_ADDRESS, &format!("{LISTEN_ADDRESS} proto h2")),
            ProxyKind::Nginx => config.replace(LISTEN_ADDRESS, &format!("{LISTEN_ADDRESS} http2")),
        }
    }

    /// Returns the whole file: with the addresses, and with the settings that differ from machine
    /// to machine.
    fn file(&self, folder: &Path, address: SocketAddr, server: SocketAddr) -> String {
        let config = self.clone();
        let Self { text, .. } = match self.kind {
            ProxyKind::Caddy => {
                config.replace(SERVER_ADDRESS, &server.to_string()).replace(":8080", &format!(":{}", address.port()))
            }
            ProxyKind::Varnish => config.replace("\"3000\"", &format!("\"{}\"", server.port())),
            _ => config.replace(SERVER_ADDRESS, &server.to_string()).replace(LISTEN_ADDRESS, &address.to_string()),
        };
        let folder = folder.display();
        match self.kind {
            ProxyKind::Apache => {
                let protocol = if self.http2 { "h2c" } else { "http/1.1" };
                let load = ["mpm_event", "authz_core", "filter", "deflate", "proxy", "proxy_http", "http2"]
                    .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
                    .concat();
                format!(
                    "ServerRoot {folder}\nPidFile pid\nMutex pthread\nErrorLog error.log\nServerName localhost\n\
                     User nobody\nGroup nogroup\n{load}Listen {address}\nProtocols {protocol}\n{text}"
                )
            }
            ProxyKind::Caddy => {
                let protocols = if self.http2 { "h1 h2c" } else { "h1" };
                format!("{{\nadmin off\nauto_https off\nservers {{\nprotocols {protocols}\n}}\n}}\n{text}")
            }
            ProxyKind::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
                    .concat();
                format!(
                    "daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n\
                     http {{\naccess_log off;\n{temporary}{text}}}\n"
                )
            }
            ProxyKind::HaProxy | ProxyKind::Varnish => text,
        }
    }

    /// Returns the command that starts the proxy with this file: in the foreground, as one process
    /// if possible, and with all its own files in the folder.
    fn command(&self, folder: &Path, file: &Path, address: SocketAddr) -> Command {
        let mut command;
        match self.kind {
            ProxyKind::Apache => {
                command = Command::new(installed(&["apache2"], "apache2-bin"));
                command.arg("-X").arg("-f").arg(file);
            }
            ProxyKind::Caddy => {
                command = Command::new(installed(&["caddy"], "caddy"));
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
                command.envs(["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"].map(|name| (name, folder)));
            }
            ProxyKind::HaProxy => {
                command = Command::new(installed(&["haproxy"], "haproxy"));
                // -dR disables SO_REUSEPORT. Otherwise a second process could listen on the same
                // port, and get half of the connections.
                command.args(["-db", "-dR", "-f"]).arg(file);
            }
            ProxyKind::Nginx => {
                command = Command::new(installed(&["nginx"], "nginx"));
                command.args(["-e", "stderr", "-p"]).arg(folder).arg("-c").arg(file);
            }
            ProxyKind::Varnish => {
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

/// A running proxy, killed on drop. If the test panics, it prints its log.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    address: SocketAddr,
    kind: ProxyKind,
    folder: TempDir,
}

impl Proxy {
    /// Starts a proxy on a free port, in front of this server.
    ///
    /// # Panics
    ///
    /// If the proxy is not installed, or does not start. The message contains its log.
    pub async fn start(config: &ProxyConfig, server: SocketAddr) -> Self {
        for _ in 1..ATTEMPTS {
            if let Ok(proxy) = Self::try_start(config, server).await {
                return proxy;
            }
        }
        let started = Self::try_start(config, server).await;
        started.unwrap_or_else(|log| panic!("{:?} does not start: {log}\nwith {}", config.kind, config.text))
    }

    /// Returns the address of the proxy.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn try_start(config: &ProxyConfig, server: SocketAddr) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("the folder can be created");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("there is a free port");
        let file = folder.path().join("configuration");
        fs::write(&file, config.file(folder.path(), address, server)).expect("the file can be written");
        let mut command = config.command(folder.path(), &file, address);
        let log = File::create(folder.path().join("log")).expect("the log can be created");
        command.stdout(log.try_clone().expect("the log is open")).stderr(log);
        let process = Process::spawn(&mut command);
        let mut proxy = Self { process, address, kind: config.kind, folder };
        let begin = Instant::now();
        loop {
            let is_listening = TcpStream::connect(address).await.is_ok();
            // Checked after the connection attempt: if another program listens on the port, the
            // proxy exits.
            if let Some(status) = proxy.process.wait_for_exit(Duration::from_millis(1)) {
                return Err(format!("{status}: {}", proxy.log()));
            }
            if is_listening {
                return Ok(proxy);
            }
            if begin.elapsed() > START_TIMEOUT {
                return Err(format!("not listening: {}", proxy.log()));
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
            eprintln!("the log of {:?} at {}: {}", self.kind, self.address, self.log());
        }
    }
}
