//! How long a connection waits for a client that does not read, or is not there any more.

use socket2::{SockRef, TcpKeepalive};
#[cfg(not(windows))]
use std::os::fd::AsFd as AsSocket;
#[cfg(windows)]
use std::os::windows::io::AsSocket;
use std::{io, time::Duration};

/// How long a TCP connection lasts whose client does not read, or has vanished: 30 seconds, if not
/// set.
///
/// A body cannot see either. hyper does not poll the body of a response as long as the socket takes
/// no more, so no timer in it runs then, neither a heartbeat nor
/// [`SseLayer::max_lifetime`](crate::SseLayer::max_lifetime). The kernel sees both, and waits for a
/// long time: for a client that acknowledges nothing about a quarter of an hour, for one that
/// acknowledges but does not read forever. This sets the options of the socket that make it wait
/// for less.
///
/// When the time is up the kernel closes the connection. hyper finds the error at once, even where
/// it waits for nothing but room in the socket, and drops the body:
/// [`SseStream::on_close`](crate::SseStream::on_close) tells
/// [`CloseReason::ClientGone`](crate::CloseReason::ClientGone), and what the stream held is free
/// again. An `EventSource` that is still there comes back, with the last id it has seen.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::get, serve::ListenerExt};
/// use tokio::net::TcpListener;
/// use tower_sse::{ClientTimeout, Event, SseStream};
///
/// async fn events() -> SseStream<impl tokio_stream::Stream<Item = Event>> {
///     SseStream::new(tokio_stream::once(Event::new("hello")))
/// }
///
/// # async fn bind() -> std::io::Result<()> {
/// let app = Router::new().route("/events", get(events));
/// let timeout = ClientTimeout::default();
/// let listener = TcpListener::bind("127.0.0.1:0").await?.tap_io(move |tcp| {
///     if let Err(error) = timeout.apply(tcp) {
///         eprintln!("a connection without a timeout: {error}");
///     }
/// });
/// let server = axum::serve(listener, app);
/// # let _started = server;
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(bind()).unwrap();
/// # }
/// ```
///
/// In an accept loop for hyper, before any TLS handshake:
///
/// ```no_run
/// # use std::{io, time::Duration};
/// # use tokio::net::TcpListener;
/// # use tower_sse::ClientTimeout;
/// # async fn accept(listener: TcpListener) -> io::Result<()> {
/// let timeout = ClientTimeout::after(Duration::from_secs(20));
/// loop {
///     let (tcp, _) = listener.accept().await?;
///     if let Err(error) = timeout.apply(&tcp) {
///         eprintln!("a connection without a timeout: {error}");
///     }
///     // … tokio::spawn(builder.serve_connection(TokioIo::new(tcp), service))
/// }
/// # }
/// ```
///
/// With tonic, on the connections that its server is given:
///
/// ```no_run
/// # use tokio::net::TcpListener;
/// # use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
/// # use tonic::{service::Routes, transport::Server};
/// # use tower_sse::ClientTimeout;
/// # async fn serve(listener: TcpListener, routes: Routes) -> Result<(), Box<dyn std::error::Error>> {
/// let timeout = ClientTimeout::default();
/// let connections = TcpListenerStream::new(listener).map(move |accepted| {
///     accepted.inspect(|tcp| {
///         if let Err(error) = timeout.apply(tcp) {
///             eprintln!("a connection without a timeout: {error}");
///         }
///     })
/// });
/// Server::builder().add_routes(routes).serve_with_incoming(connections).await?;
/// # Ok(())
/// # }
/// ```
///
/// # What is set
///
/// | option | for which connection | |
/// |---|---|---|
/// | `TCP_USER_TIMEOUT` | one with data that is not acknowledged, or that waits for a window that is zero | the timeout, in milliseconds |
/// | `SO_KEEPALIVE` with `TCP_KEEPIDLE`, `TCP_KEEPINTVL` and `TCP_KEEPCNT` | one on which nothing is under way | the last probe has failed when the timeout is over, in whole seconds: with 30 seconds after 15, and 3 probes that are 5 apart |
/// | `TCP_NOTSENT_LOWAT` | one with data that is not sent yet, because the client does not read | 128 KiB |
/// | `TCP_NODELAY` | each | an event does not wait for the acknowledgement of the one before |
///
/// - *A client that does not read*, a page that hangs or a program that is stopped, still
///   acknowledges what its kernel receives, with a window of zero. [RFC 9293][persist] (§3.8.6.1)
///   has the connection stay open as long as it does; [RFC 6429][stuck] says that an application
///   may end it nevertheless. The time begins with the first probe, which is a retransmission
///   timeout (from 200 milliseconds on) after the window was full, and the kernel's timers are up
///   to an eighth late.
/// - *A client that has vanished*, whose network is gone, acknowledges nothing. What is sent to it
///   is repeated until the time is over. If nothing is sent, keep-alive notices it. With a
///   [`Heartbeat`](crate::Heartbeat) something always is, and the connection ends the timeout after
///   the first heartbeat that was lost.
/// - *A client that is slow* stays, as long as there is any progress within the time. Progress is
///   what its kernel says: it opens a window again when a packet fits, and on Linux when a
///   sixteenth of its receive buffer is free.
/// - *A client that closes its connection*, or whose process ends, is noticed at once without any
///   of this.
///
/// [RFC 9293][r2] (§3.8.3) proposes 100 seconds or more before a connection is given up. Less is
/// right for streams that clients come back to; for uploads on the same listener, or clients that
/// are often in tunnels, take more.
///
/// # What a client costs until then
///
/// By itself Linux queues megabytes for a client that does not read (up to 4 MiB, by
/// `net.ipv4.tcp_wmem`), in memory that is not counted as the process's. With `TCP_NOTSENT_LOWAT`
/// it queues 128 KiB and what was written last, at most 64 KiB, beside what is under way. The rest
/// stays where it is: with a `hub` that is the topic, which has it once for all.
///
/// It is about what waits to be sent, so it does not slow a connection down. Large responses are
/// written in smaller pieces. To have another limit, set the option again after this.
///
/// # Proxies
///
/// The peer of the connection is what counts. Behind a reverse proxy that is the proxy, which stops
/// reading when its own buffers for the client are full, and has timeouts of its own (nginx's
/// `send_timeout`).
///
/// # Limits
///
/// The shortest timeout is a second (two for keep-alive), the longest is 24 days (9 hours for
/// keep-alive). What is beyond these is taken for the nearest of them.
///
/// `TCP_USER_TIMEOUT` is set on Linux, Android and Fuchsia, and `TCP_NOTSENT_LOWAT` on Linux and
/// Android. Linux before 5.11 (without the correction that its stable series have) may wait longer
/// for a window that is zero.
///
/// Other systems get keep-alive, as far as they have its options, and `TCP_NODELAY`. There a client
/// that does not read, or vanishes with data under way, is held for as long as the system does.
/// What helps is a wrapper of the connection whose writes have a timeout.
///
/// # HTTP/2
///
/// All streams of a connection end with it. And there are clients that no option of a socket sees:
/// those that read their connection, but not one of its streams. Such a stream has used up its
/// window (the client's `SETTINGS_INITIAL_WINDOW_SIZE`, [RFC 9113][window] §6.9.2, 65,535 bytes if
/// not set), and its body is not polled. It stays open until the client resets it or the connection
/// ends, and costs little: one frame of the body waits for the window.
///
/// When it is the connection that is stuck, h2 buffers up to hyper's `http2().max_send_buf_size`
/// for each stream, 400 KiB if not set; `http2().max_concurrent_streams` bounds how many of these
/// there are. `initial_stream_window_size` is about what clients send, and bounds nothing here.
///
/// hyper's `http2().keep_alive_interval` and `keep_alive_timeout` (which need a `timer`) send
/// pings, and see what the socket cannot: a client whose kernel answers, but whose program does
/// not.
///
/// # HTTP/1
///
/// A client that shuts down its own direction only (`shutdown(SHUT_WR)`) is taken for one that has
/// closed: hyper drops the response, unless its `http1().half_close(true)` is set. `axum::serve`
/// has no such setting, and browsers do not need it.
///
/// # See also
///
/// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html);
/// [RFC 5482](https://www.rfc-editor.org/rfc/rfc5482), whose option tells the peer about a user
/// timeout, which Linux does not; RFC 9293, [§3.8.4][keep-alive] on keep-alive.
///
/// [persist]: https://www.rfc-editor.org/rfc/rfc9293#section-3.8.6.1
/// [r2]: https://www.rfc-editor.org/rfc/rfc9293#section-3.8.3
/// [keep-alive]: https://www.rfc-editor.org/rfc/rfc9293#section-3.8.4
/// [stuck]: https://www.rfc-editor.org/rfc/rfc6429
/// [window]: https://www.rfc-editor.org/rfc/rfc9113#section-6.9.2
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "it does nothing until it is applied to a connection"]
pub struct ClientTimeout {
    after: Duration,
}

impl ClientTimeout {
    const SHORTEST: Duration = Duration::from_secs(1);
    /// The option is a C `int` of milliseconds, of which Linux takes those that are not negative.
    const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);
    /// Enough for a connection to be never out of data, and little enough for thousands of them.
    #[cfg(any(target_os = "android", target_os = "linux"))]
    const UNSENT: u32 = 128 * 1024;
    /// As many seconds as Linux takes for `TCP_KEEPIDLE`.
    const LONGEST_KEEP_ALIVE: u64 = 32_767;

    /// Connections end when their client has not read, or has not been there, for this long. The
    /// shortest is a second.
    pub fn after(timeout: Duration) -> Self {
        Self { after: timeout.clamp(Self::SHORTEST, Self::LONGEST) }
    }

    /// Sets the options of one connection: a `TcpStream` of tokio, of std, or of whatever lends its
    /// socket.
    ///
    /// # Errors
    ///
    /// Those of the system: it is no TCP socket, or, on some systems, a connection that its client
    /// has closed already. They are about this connection, so a server should log them and go on.
    pub fn apply(&self, connection: &impl AsSocket) -> io::Result<()> {
        let socket = SockRef::from(connection);
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        socket.set_tcp_user_timeout(Some(self.after))?;
        #[cfg(any(target_os = "android", target_os = "linux"))]
        socket.set_tcp_notsent_lowat(Self::UNSENT)?;
        socket.set_tcp_keepalive(&self.keep_alive())?;
        socket.set_tcp_nodelay(true)
    }

    /// Silence for about half of the time, and then up to three probes.
    fn keep_alive(&self) -> TcpKeepalive {
        let round_up = u64::from(self.after.subsec_nanos() > 0);
        // A second of silence and a second for the probe: there is nothing shorter.
        let seconds = (self.after.as_secs() + round_up).clamp(2, Self::LONGEST_KEEP_ALIVE);
        let interval = (seconds / 6).max(1);
        let retries = if seconds > 3 { 3 } else { seconds as u32 - 1 };
        let idle = seconds - u64::from(retries) * interval;
        let keep_alive = TcpKeepalive::new().with_time(Duration::from_secs(idle));
        // Elsewhere the probes are as the system has them for all connections.
        #[cfg(any(
            target_os = "android",
            target_os = "dragonfly",
            target_os = "freebsd",
            target_os = "fuchsia",
            target_os = "illumos",
            target_os = "ios",
            target_os = "linux",
            target_os = "macos",
            target_os = "netbsd",
            target_os = "tvos",
            target_os = "visionos",
            target_os = "watchos",
            windows,
        ))]
        let keep_alive = keep_alive.with_interval(Duration::from_secs(interval)).with_retries(retries);
        keep_alive
    }
}

impl Default for ClientTimeout {
    /// 30 seconds.
    fn default() -> Self {
        Self { after: Duration::from_secs(30) }
    }
}
