//! Connections to Redis: URLs, sentinels, cluster redirects, and the classification of errors.

#[cfg(feature = "redis-tls")]
use crate::hub::backend::tls::Tls;
use crate::{BoxError, hub::backend::fnv::fnv, random};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cmd,
    io::tcp::socket2::{SockRef, TcpKeepalive},
};
#[cfg(unix)]
use std::path::PathBuf;
use std::{
    error::Error,
    fmt, io,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
    time::timeout,
};

/// The client name (`CLIENT SETNAME`) of the connection to Redis that all requests of this process
/// share, except requests that wait for new entries.
pub(super) const COMMANDS: &str = "tower-sse-commands";

/// The range of the regions of all Redis servers. The region of a server is the sequence number
/// that this crate gives to the first entry of each millisecond on this server. (An entry id is a
/// time in milliseconds and a sequence number.) The region is a hash of the server's `run_id`, so
/// two masters of a split brain hardly ever issue the same id.
///
/// The first entry of a new stream is an exception: its sequence number is smaller than all regions
/// (`BEGINNINGS` in `log.lua`). Above the region of each server, at least 65,535 sequence numbers
/// remain for further entries of the same millisecond.
const REGIONS: Range<u64> = 5 << 16..15 << 16;

/// The maximum time for a connection attempt to a sentinel, and for the response of the sentinel.
/// After this time, the backend tries the next sentinel.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(500);

/// A Redis server: its address, or the name of a master whose address the sentinels know, and the
/// settings for connections to it. All clones share the index of the last successful sentinel and
/// the address of the last redirect.
#[derive(Clone)]
pub(super) struct Server {
    address: Address,
    settings: RedisConnectionInfo,
    #[cfg(feature = "redis-tls")]
    pub(super) tls: Option<Arc<Tls>>,
    /// The sentinels that know the address of the master. If there are sentinels, `address`
    /// contains the name of the master instead of an address.
    pub(super) sentinels: Vec<Server>,
    /// The index of the sentinel whose address of the master last led to a connection. The next
    /// connection attempt begins with this sentinel.
    sentinel: Arc<AtomicUsize>,
    /// The address of the cluster node that has the Redis stream, as a server has reported it in a
    /// `MOVED` error. `None` before the first such error.
    moved: Arc<Mutex<Option<Address>>>,
}

#[derive(Clone)]
enum Address {
    Tcp(String, u16),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl Server {
    pub(super) fn parse(url: &str) -> Result<Self, BoxError> {
        let is_tls = |scheme: &str| ["rediss", "valkeys"].iter().any(|tls| tls.eq_ignore_ascii_case(scheme));
        let secured = url.split_once("://").filter(|(scheme, _)| is_tls(scheme));
        if secured.is_some() && !cfg!(feature = "redis-tls") {
            return Err("rediss:// takes TLS: enable the feature `redis-tls` of tower-sse".into());
        }
        if secured.is_some_and(|(_, rest)| rest.contains('#')) {
            return Err("a rediss:// URL has no fragment: certificates are always checked".into());
        }
        // The crate `redis` would set up TLS with the default crypto provider of the process, and
        // would panic if no provider is installed. So it gets the URL without TLS.
        let info = match secured {
            Some((_, rest)) => format!("redis://{rest}").into_connection_info(),
            None => url.into_connection_info(),
        };
        let info = info.map_err(|source| RequestError::new("this is no URL of Redis", source))?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp(host.clone(), *port),
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err("this is no URL of Redis that can be used here".into()),
        };
        Ok(Self {
            address,
            settings: info.redis_settings().clone(),
            #[cfg(feature = "redis-tls")]
            tls: secured.map(|_| Arc::default()),
            sentinels: Vec::new(),
            sentinel: Arc::default(),
            moved: Arc::default(),
        })
    }

    /// Connects to the Redis server that has the stream now. `name` is the client name of the
    /// connection. `time` is the time limit of each connection attempt. `wait` is the maximum
    /// blocking time of a command on the connection, such as `XREAD`. A request on the connection
    /// fails after `time` plus `wait` without a response.
    pub(super) async fn connect(&self, name: &str, time: Duration, wait: Duration) -> Result<Connection, RequestError> {
        if !self.sentinels.is_empty() {
            return self.connect_by_sentinels(name, time, wait).await;
        }
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(address) = moved {
            match self.connect_to(&address, name, time, wait).await {
                Ok(connection) => return Ok(connection),
                // The configured address is tried next: another cluster node knows the new address.
                Err(_) => self.set_address(None),
            }
        }
        self.connect_to(&self.address, name, time, wait).await
    }

    async fn connect_by_sentinels(
        &self,
        name: &str,
        time: Duration,
        wait: Duration,
    ) -> Result<Connection, RequestError> {
        let count = self.sentinels.len();
        let begin = self.sentinel.load(Relaxed);
        let mut failed = None;
        for n in (0..count).map(|n| (begin + n) % count) {
            match self.connect_by(&self.sentinels[n], name, time, wait).await {
                Ok(connection) => {
                    self.sentinel.store(n, Relaxed);
                    return Ok(connection);
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| RequestError::because("there is no sentinel")))
    }

    async fn connect_by(
        &self,
        sentinel: &Self,
        name: &str,
        time: Duration,
        wait: Duration,
    ) -> Result<Connection, RequestError> {
        let master = self.address.to_string();
        let mut connection_to_sentinel =
            sentinel.connect_to(&sentinel.address, name, time.min(SENTINEL_TIMEOUT), Duration::ZERO).await?;
        let request = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&master).to_owned();
        let answer: Option<(String, u16)> = request
            .query_async(&mut connection_to_sentinel.commands)
            .await
            .map_err(|source| RequestError::new(format!("the sentinel at {}", sentinel.address), source))?;
        drop(connection_to_sentinel);
        let Some((host, port)) = answer else {
            return Err(RequestError::because(format!(
                "the sentinel at {} knows no master {master:?}",
                sentinel.address
            )));
        };
        let address = Address::Tcp(host, port);
        let mut connection = self.connect_to(&address, name, time, wait).await?;
        // The address that a sentinel reports can be outdated, so the server itself confirms its
        // role.
        let role: Vec<Value> = cmd("ROLE")
            .query_async(&mut connection.commands)
            .await
            .map_err(|source| RequestError::new(format!("Redis at {address}"), source))?;
        let is_master =
            role.first().is_some_and(|role| String::from_redis_value_ref(role).is_ok_and(|role| role == "master"));
        if is_master {
            Ok(connection)
        } else {
            Err(RequestError::because(format!("Redis at {address} is said to be the master {master:?}, and is none")))
        }
    }

    async fn connect_to(
        &self,
        address: &Address,
        name: &str,
        time: Duration,
        wait: Duration,
    ) -> Result<Connection, RequestError> {
        let connected = timeout(time, self.open(address, name, time + wait)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        connected.map_err(|source| RequestError::new(format!("Redis at {address} cannot be used"), source))
    }

    async fn open(&self, address: &Address, name: &str, response: Duration) -> Result<Connection, RedisError> {
        match address {
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((&**host, *port)).await?;
                stream.set_nodelay(true)?;
                // TCP keepalive detects a dead connection while no command is in flight.
                let keepalive =
                    TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                #[cfg(feature = "redis-tls")]
                if let Some(tls) = &self.tls {
                    return self.greet(tls.connect(host, stream).await?, name, response).await;
                }
                self.greet(stream, name, response).await
            }
            #[cfg(unix)]
            Address::Unix(path) => self.greet(UnixStream::connect(path).await?, name, response).await,
        }
    }

    async fn greet<S>(&self, stream: S, name: &str, response: Duration) -> Result<Connection, RedisError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(response));
        let (mut commands, driver) = MultiplexedConnection::new_with_config(&self.settings, stream, config).await?;
        let driver = Arc::new(Driver(tokio::spawn(driver).abort_handle()));
        let named = cmd("CLIENT").arg("SETNAME").arg(name).to_owned();
        match commands.req_packed_command(&named).await {
            Err(error) if is_connection_error(&error) => Err(error),
            // The name is optional: the user may have no permission for `CLIENT SETNAME`.
            _ => {
                let region = if name == COMMANDS { region(&mut commands).await? } else { 0 };
                Ok(Connection { commands, region, driver })
            }
        }
    }

    /// Remembers the address in a `MOVED` error of a Redis cluster. The next connection attempt
    /// tries this address first. Other errors have no effect.
    pub(super) fn follow_redirect(&self, error: &RedisError) {
        if error.kind() != ErrorKind::Server(ServerErrorKind::Moved) {
            return;
        }
        let Some((host, port)) = error.redirect_node().and_then(|(address, _)| address.rsplit_once(':')) else {
            return;
        };
        let Ok(port) = port.parse() else { return };
        let host = match &self.address {
            // An empty host in a `MOVED` error means the host of the server that sent the error.
            Address::Tcp(same, _) if host.is_empty() => same,
            _ => host,
        };
        self.set_address(Some(Address::Tcp(host.trim_matches(['[', ']']).to_owned(), port)));
    }

    fn set_address(&self, address: Option<Address>) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Port 0 means that the address is the name of a master, for sentinels.
            Self::Tcp(host, port) if *port == 0 => f.write_str(host),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            #[cfg(unix)]
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Server {
    /// Sets the sentinels, the servers that know the address of the master. The host in the address
    /// of this server becomes the name of the master. Returns an error if `sentinels` is empty, or
    /// if the address of this server is the path of a socket.
    pub(super) fn set_sentinels(&mut self, sentinels: Vec<Server>) -> Result<(), BoxError> {
        match &mut self.address {
            Address::Tcp(_, port) => *port = 0,
            #[cfg(unix)]
            Address::Unix(_) => return Err("a URL for sentinels is redis://<the name of the master>".into()),
        }
        if sentinels.is_empty() {
            return Err("at least one sentinel has to be known".into());
        }
        self.sentinels = sentinels;
        Ok(())
    }
}

/// A connection to Redis. Dropping the last clone closes the connection immediately, even if the
/// response to a command is outstanding.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    region: u64,
    driver: Arc<Driver>,
}

impl Connection {
    /// Returns the region of this Redis server: the sequence number that this crate gives to the
    /// first entry of each millisecond on this server. Each server has its own region, so that two
    /// masters hardly ever issue the same entry id. 0 if the connection is not for publishing.
    pub(super) fn region(&self) -> u64 {
        self.region
    }

    /// Returns `true` if both values are clones of one connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }
}

/// Returns the region of a Redis server: the sequence number that this crate gives to the first
/// entry of each millisecond on this server. It is one of the 655,360 numbers in [`REGIONS`],
/// derived from the `run_id` of the server. It is random if the server does not report its
/// `run_id`.
async fn region(commands: &mut MultiplexedConnection) -> Result<u64, RedisError> {
    let bits = match cmd("INFO").arg("server").query_async::<String>(commands).await {
        Err(error) if is_connection_error(&error) => return Err(error),
        info => info.ok().as_deref().and_then(identity).unwrap_or_else(random::bits),
    };
    Ok(REGIONS.start + bits % (REGIONS.end - REGIONS.start))
}

/// Returns a hash of the `run_id` in the response of Redis to `INFO`, or `None` if there is no
/// `run_id`. A server gets another `run_id` each time it starts.
fn identity(info: &str) -> Option<u64> {
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:"))?.trim();
    (!id.is_empty()).then(|| fnv(id))
}

struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns `true` if, after this error, the connection or the server cannot be used any more. The
/// caller then has to open another connection. Returns `false` if only one command failed.
pub(super) fn is_connection_error(error: &RedisError) -> bool {
    match error.kind() {
        _ if is_redirect(error) => true,
        ErrorKind::Server(kind) => kind == ServerErrorKind::MasterDown,
        // A master that becomes a replica ends blocking commands with `UNBLOCKED`.
        ErrorKind::Extension => matches!(error.code(), Some("UNBLOCKED" | "NOAUTH")),
        _ => true,
    }
}

/// Returns `true` if the server has refused the command without running it, and another server can
/// run the command. Examples are `MOVED` and `READONLY`.
pub(super) fn is_redirect(error: &RedisError) -> bool {
    use ServerErrorKind::{ClusterDown, Moved, ReadOnly};
    // Redis before version 7 sends the code of an error in a script as a part of the text.
    let is_read_only_script = || error.detail().is_some_and(|detail| detail.contains("-READONLY "));
    matches!(error.kind(), ErrorKind::Server(Moved | ReadOnly | ClusterDown)) || is_read_only_script()
}

/// The error of a request to Redis or of a connection attempt: what failed, and the cause.
#[derive(Clone, Debug)]
pub(super) struct RequestError {
    what: Arc<str>,
    source: Option<RedisError>,
}

impl RequestError {
    pub(super) fn new(what: impl Into<Arc<str>>, source: RedisError) -> Self {
        Self { what: what.into(), source: Some(source) }
    }

    fn because(what: impl Into<Arc<str>>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// Returns `true` if the request failed because no complete response arrived within the
    /// timeout.
    pub(super) fn is_timeout(&self) -> bool {
        self.source.as_ref().is_some_and(RedisError::is_timeout)
    }

    /// Returns `true` if the server has refused the request because it has no memory left. If the
    /// request is a script, the code `OOM` is only in the detail of the error.
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.source.as_ref().is_some_and(|error| {
            error.code() == Some("OOM") || error.detail().is_some_and(|detail| detail.contains("OOM "))
        })
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl From<&'static str> for RequestError {
    fn from(what: &'static str) -> Self {
        Self::because(what)
    }
}

/// The text of the error contains its cause. So [`Error::source`] returns `None`, and a report of
/// the whole chain of errors does not repeat the cause.
impl Error for RequestError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_regions_of_their_own() {
        let info = |id| format!("# Server\r\nredis_version:7.0.15\r\nrun_id:{id}\r\ntcp_port:6379\r\n");
        assert_eq!(identity(&info("0123abcd")), identity(&info("0123abcd")));
        assert_ne!(identity(&info("0123abcd")), identity(&info("0123abce")));
        assert_eq!(identity(&info("")), None);
        assert_eq!(identity("# Server\r\n"), None);
    }

    #[test]
    fn script_on_replica_of_redis_6_is_redirect() {
        let error = |line: &str| {
            redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).and_then(redis::Value::extract_error)
        };
        let replica = "ERR Error running script (call to f_1): @user_script:9: -READONLY You can't write against a read only replica.";
        for (line, expected) in
            [(replica, true), ("READONLY You can't write against a read only replica.", true), ("ERR no", false)]
        {
            let error = error(line).expect_err("it is an error");
            assert_eq!((is_redirect(&error), is_connection_error(&error)), (expected, expected), "{error}");
        }
    }

    fn refused(url: &str) -> String {
        Server::parse(url).err().expect("it is none").to_string()
    }

    #[cfg(not(feature = "redis-tls"))]
    #[test]
    fn tls_without_its_feature_is_an_error_that_names_it() {
        for url in ["rediss://localhost", "valkeys://localhost", "REDISS://me:secret@localhost:6380/1"] {
            let error = refused(url);
            assert!(error.contains("`redis-tls`") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_is_no_url_is_an_error_without_the_password() {
        for url in
            ["", "localhost", "http://me:secret@localhost", "redis://me:secret@localhost:x", "redis://me:secret@"]
        {
            let error = refused(url);
            assert!(error.starts_with("this is no URL of Redis") && !error.contains("secret"), "{url}: {error}");
        }
    }
}
