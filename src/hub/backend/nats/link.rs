//! The connection of this process to the NATS servers. The client library `async_nats` reconnects
//! by itself.

use crate::{BoxError, random};
use async_nats::{
    Client, ConnectOptions, Event, ServerAddr,
    connection::State,
    jetstream::context::{Context, ContextBuilder},
};
use percent_encoding::percent_decode_str;
use std::{
    future::{poll_fn, ready},
    path::PathBuf,
    pin::{Pin, pin},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    task::Poll,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::watch, time::timeout};

/// The interval of the pings that the NATS client sends. The client closes a connection after three
/// unanswered pings, so it also detects a network that silently drops all packets.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// A NATS client that has lost its connection counts as stuck if it has not tried to connect for
/// this time. The backend then replaces the client. A stuck client waits forever for a server that
/// has accepted the connection and sends nothing. Newer versions of `async_nats` have a timeout for
/// this case.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The maximum time that a read of messages waits for the NATS client to reconnect. After a
/// reconnect, the messages are requested one by one. If the client does not reconnect in this time,
/// the read returns an error.
const RECONNECTION: Duration = Duration::from_secs(1);

/// The time to wait for a response of JetStream before a read-only request is sent again.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The addresses of the NATS servers, and the credentials for them. The type does not implement
/// `Debug`, because it contains secrets.
#[derive(Clone, Default)]
pub(super) struct Servers {
    addresses: Vec<ServerAddr>,
    login: Login,
    pub(super) credentials_file: Option<PathBuf>,
    pub(super) root_certificates: Option<PathBuf>,
    is_tls: bool,
}

#[derive(Clone, Default, PartialEq, Eq)]
enum Login {
    #[default]
    Anonymous,
    Token(String),
    Password(String, String),
}

impl Servers {
    /// Parses the URLs of one or more NATS servers, separated by commas. The user and password, or
    /// the token, come from the first URL that has them. They apply to all servers. Returns an
    /// error if a URL is invalid.
    pub(super) fn parse(urls: &str) -> Result<Self, BoxError> {
        let mut servers = Self::default();
        for url in urls.split(',') {
            let server = ServerAddr::from_str(url.trim())?;
            let (scheme, host, port) = (server.scheme(), server.host(), server.port());
            if !matches!(scheme, "nats" | "tls") {
                return Err(format!("the scheme {scheme:?} is not one of NATS; use nats:// or tls://").into());
            }
            if host.is_empty() {
                return Err("the address of a NATS server has no host; it is such as nats://nats.internal:4222".into());
            }
            servers.is_tls |= scheme == "tls";
            if servers.login == Login::Anonymous {
                servers.login = Login::of(&server)?;
            }
            // The address is built without credentials, because `async_nats` logs addresses.
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            servers.addresses.push(ServerAddr::from_str(&format!("{scheme}://{host}:{port}"))?);
        }
        Ok(servers)
    }

    /// Connects to the first NATS server that responds. Tries each address once. The time limit for
    /// connecting is `timeout_per_request`, multiplied by the number of addresses. Afterwards,
    /// `timeout_per_request` is the time limit of each request over the connection.
    pub(super) async fn connect(&self, timeout_per_request: Duration) -> Result<Link, BoxError> {
        let health = Arc::new(Health::default());
        let (noticed, tried) = (Arc::clone(&health), Arc::clone(&health));
        let mut options = ConnectOptions::new()
            .name("tower-sse")
            .connection_timeout(timeout_per_request)
            // This module applies its own timeout to each request.
            .request_timeout(None)
            .ping_interval(PING_INTERVAL)
            .require_tls(self.is_tls)
            .event_callback(move |event| {
                noticed.notice(&event);
                ready(())
            })
            .reconnect_delay_callback(move |attempt| {
                tried.set_trouble_since(Some(Instant::now()));
                Duration::from_millis(50 * attempt.saturating_sub(1).min(3) as u64)
                    .mul_f64(0.5 + random::fraction() / 2.0)
            });
        match &self.login {
            Login::Anonymous => {}
            Login::Token(token) => options = options.token(token.clone()),
            Login::Password(user, password) => options = options.user_and_password(user.clone(), password.clone()),
        }
        if let Some(path) = &self.credentials_file {
            let read = options.credentials_file(path).await;
            options = read.map_err(|error| format!("the credentials in {} cannot be used: {error}", path.display()))?;
        }
        if let Some(path) = &self.root_certificates {
            options = options.add_root_certificates(path.clone());
        }
        let count = self.addresses.len().try_into().unwrap_or(u32::MAX);
        let connect = timeout(timeout_per_request.saturating_mul(count), options.connect(&self.addresses[..]));
        let client = connect.await.map_err(|_| "the NATS server has not said anything")??;
        // The `Connected` event of the client may arrive later, so the state is set here.
        health.notice(&Event::Connected);
        let context = ContextBuilder::new()
            .timeout(timeout_per_request * 4)
            .ack_timeout(timeout_per_request * 4)
            .build(client.clone());
        Ok(Link { client, context, health, timeout_per_request, runtime: Handle::current() })
    }
}

impl Login {
    fn of(server: &ServerAddr) -> Result<Self, BoxError> {
        let decode = |text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) => Ok(text.into_owned()),
            Err(_) => Err("the user or the password of the NATS server is not UTF-8"),
        };
        Ok(match (server.username(), server.password()) {
            (None, None) => Self::Anonymous,
            (Some(token), None) => Self::Token(decode(token)?),
            (user, Some(password)) => Self::Password(decode(user.unwrap_or_default())?, decode(password)?),
        })
    }
}

/// A handle to the connection to the NATS servers. Clones share the connection.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) context: Context,
    health: Arc<Health>,
    timeout_per_request: Duration,
    /// The tokio runtime of the client's tasks, which is that of the hub.
    pub(super) runtime: Handle,
}

#[derive(Default)]
struct Health {
    /// A pair: the number of times that the connection to NATS was lost, and a `bool` that is
    /// `true` while there is a connection.
    losses: watch::Sender<(u64, bool)>,
    /// The time of the latest sign that the connection to NATS does not work: it was lost, the
    /// client tried to reconnect, or the backend forced a reconnect because no response arrived.
    /// `None` while the connection works. A forced reconnect does not replace an earlier time,
    /// because it does not show that the client itself still tries to connect.
    trouble: Mutex<Option<Instant>>,
}

impl Health {
    fn notice(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.set_trouble_since(None);
                self.losses.send_modify(|(_, is_connected)| *is_connected = true);
            }
            Event::Disconnected | Event::Closed => {
                self.set_trouble_since(Some(Instant::now()));
                self.losses.send_modify(|(losses, is_connected)| (*losses, *is_connected) = (*losses + 1, false));
            }
            _ => {}
        }
    }

    fn set_trouble_since(&self, when: Option<Instant>) {
        *self.trouble() = when;
    }

    /// Stores the current time, unless an earlier time is stored. Returns the time if it was
    /// stored.
    fn note_trouble(&self) -> Option<Instant> {
        let mut trouble = self.trouble();
        let since = trouble.is_none().then(Instant::now);
        *trouble = trouble.or(since);
        since
    }

    /// Removes a time that [`note_trouble`](Self::note_trouble) has stored.
    fn forget_trouble(&self, since: Option<Instant>) {
        let _removed = self.trouble().take_if(|current| Some(*current) == since);
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Instant>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch on the connection to NATS. It detects each loss of the connection since the watch was
/// created.
pub(super) struct Losses {
    losses: watch::Receiver<(u64, bool)>,
    before: u64,
}

impl Losses {
    /// Awaits a future and returns its output. Returns an error if the connection to NATS is lost
    /// first, or was lost after this [`Losses`] value was created.
    pub(super) async fn unless_lost<T>(&mut self, future: impl Future<Output = T>) -> Result<T, BoxError> {
        let mut future = pin!(future);
        // `wait_for` fails if the sender was dropped. The connection was then dropped, too.
        let mut lost = pin!(self.losses.wait_for(|(losses, _)| *losses != self.before));
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => lost.as_mut().poll(cx).map(|_| Err("the connection to NATS was lost".into())),
        })
        .await
    }

    /// Waits until the NATS client is connected again. Returns an error if this takes longer than
    /// one second ([`RECONNECTION`]).
    pub(super) async fn reconnected_soon(&mut self) -> Result<(), BoxError> {
        Ok(timeout(RECONNECTION, self.reconnected()).await?)
    }

    /// Waits until the NATS client is connected again. Also returns, without a connection, if the
    /// NATS client is dropped.
    pub(super) async fn reconnected(&mut self) {
        // `wait_for` fails if the sender was dropped. The next request then fails.
        drop(self.losses.wait_for(|(_, is_connected)| *is_connected).await);
    }
}

impl Link {
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Returns `true` if the NATS client has no connection and has not tried to connect for 15
    /// seconds ([`RECONNECT_TIMEOUT`]). The caller has to replace such a client, because it does
    /// not recover by itself.
    pub(super) fn is_stuck(&self) -> bool {
        self.health.trouble().is_some_and(|since| since.elapsed() > RECONNECT_TIMEOUT)
    }

    /// Returns a [`Losses`] value, which detects each loss of the connection to NATS from now on.
    pub(super) fn losses(&self) -> Losses {
        let losses = self.health.losses.subscribe();
        let before = losses.borrow().0;
        Losses { losses, before }
    }

    /// Awaits the response to a request to NATS. Returns an error if the request timeout of the
    /// backend passes, or if the connection is lost.
    pub(super) async fn request<T, E>(&self, request: impl Future<Output = Result<T, E>>) -> Result<T, BoxError>
    where
        BoxError: From<E>,
    {
        let mut losses = self.losses();
        // The request futures of `async_nats` take kilobytes. Boxing keeps the futures that contain
        // them small.
        let request = Box::pin(request);
        Ok(self.soon(losses.unless_lost(request)).await??)
    }

    /// Sends a request to NATS and awaits the response. Calls `request` to send the request again
    /// after each `interval` without a response, and returns the first response to any of these
    /// requests. A response can be missing because the server died, or because the JetStream stream
    /// had no leader. Returns an error if the request timeout of the backend passes, or if the
    /// connection is lost.
    pub(super) async fn request_repeatedly<T, E, A>(
        &self,
        interval: Duration,
        request: impl Fn() -> A,
    ) -> Result<T, BoxError>
    where
        BoxError: From<E>,
        A: Future<Output = Result<T, E>>,
    {
        let again = async {
            let mut attempts = Vec::new();
            loop {
                attempts.push(Box::pin(request()));
                if let Ok(answer) = timeout(interval, next_output(&mut attempts)).await {
                    return answer;
                }
            }
        };
        self.request(again).await
    }

    /// Returns the interval between two attempts of a request for a large message: half of the
    /// request timeout of the backend. A shorter interval would waste bandwidth: a large message
    /// may arrive slowly, and each request makes the server send it again.
    pub(super) fn large_message_interval(&self) -> Duration {
        self.timeout_per_request / 2
    }

    /// Awaits a future. Returns an error if the future takes longer than the request timeout of the
    /// backend. If no byte has arrived from the NATS server in this time, the connection may be
    /// dead and never report an error. In this case, the function also forces the client to
    /// reconnect.
    pub(super) async fn soon<T>(&self, future: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        let received = || self.client.statistics().in_bytes.load(Relaxed);
        let before = received();
        if let Ok(answer) = timeout(self.timeout_per_request, future).await {
            return answer;
        }
        if received() == before && self.is_connected() {
            // The time is set first, because the client resets it after the reconnect.
            let since = self.health.note_trouble();
            if timeout(Duration::ZERO, self.client.force_reconnect()).await.is_err() {
                // The client's command queue is full, so it does not reconnect now. Its own pings
                // detect a dead connection.
                self.health.forget_trouble(since);
            }
        }
        Err(format!("NATS has not answered in {:?}", self.timeout_per_request).into())
    }
}

/// Waits until one of these attempts of a request has ended, removes it, and returns its output.
/// Without attempts, waits forever. Cancel safe.
pub(super) async fn next_output<F: Future>(attempts: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|cx| {
        for index in 0..attempts.len() {
            if let Poll::Ready(output) = attempts[index].as_mut().poll(cx) {
                drop(attempts.swap_remove(index));
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::FutureExt;
    use std::future::pending;
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::TcpListener,
    };

    /// Greets one client, and then reads nothing.
    async fn stop_reading_after_greeting(listener: TcpListener) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        stream
            .write_all(b"INFO {\"server_id\":\"a\",\"version\":\"2.9.10\",\"max_payload\":1048576}\r\n")
            .await
            .unwrap();
        let mut line = String::new();
        while line != "PING\r\n" {
            line.clear();
            assert!(stream.read_line(&mut line).await.unwrap() > 0);
        }
        stream.write_all(b"PONG\r\n").await.unwrap();
        pending().await
    }

    /// The client may recover without a reconnect, which would be the sign that it works again.
    #[tokio::test]
    async fn client_with_a_full_queue_does_not_become_stuck() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let servers = Servers::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let server = tokio::spawn(stop_reading_after_greeting(listener));
        let mut link = servers.connect(Duration::from_secs(5)).await.unwrap();
        // Shorter than the time after which the client closes a connection without responses.
        link.timeout_per_request = Duration::from_millis(500);
        let payload = Bytes::from(vec![b'x'; 1 << 20]);
        let publish = || link.client.publish("subject", payload.clone());
        // On a busy machine, the client may pause before its buffers are full.
        while let Ok(published) = timeout(Duration::from_secs(1), publish()).await {
            published.unwrap();
        }
        assert!(publish().now_or_never().is_none(), "the queue is full");
        link.soon(pending::<Result<(), BoxError>>()).await.unwrap_err();
        assert!(link.is_connected());
        assert_eq!(*link.health.trouble(), None);
        server.abort();
    }

    fn urls(servers: &Servers) -> Vec<String> {
        servers.addresses.iter().map(|address| address.as_url_str().to_owned()).collect()
    }

    #[test]
    fn servers_are_read_with_what_is_to_log_in_with() {
        let password = |user: &str, password: &str| Login::Password(user.to_owned(), password.to_owned());
        for (text, addresses, login) in [
            ("nats.internal", &["nats://nats.internal:4222"][..], Login::Anonymous),
            ("nats://a:1, tls://[::1]", &["nats://a:1", "tls://[::1]:4222"], Login::Anonymous),
            ("nats://s3cret@a", &["nats://a:4222"], Login::Token("s3cret".to_owned())),
            ("nats://me:p%40s%2Cs@a,b", &["nats://a:4222", "nats://b:4222"], password("me", "p@s,s")),
            ("nats://a,nats://me:pass@b,nats://you:word@c", &["nats://a:4222", "nats://b:4222", "nats://c:4222"], {
                password("me", "pass")
            }),
        ] {
            let servers = Servers::parse(text).unwrap();
            assert_eq!(urls(&servers), addresses, "{text}");
            assert!(servers.login == login, "{text}");
            assert_eq!(servers.is_tls, text.contains("tls://"), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_of_nats_is_an_error_without_the_password() {
        for text in ["", "nats://", "nats://a,", "http://me:secret@a", "ws://me:secret@a", "nats://me:secret@a:port"] {
            let Err(error) = Servers::parse(text) else { panic!("{text:?} is one") };
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
