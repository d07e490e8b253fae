//! Timeouts for the connections of stalled and vanished clients.

use crate::random;
use socket2::{SockRef, TcpKeepalive};
#[cfg(not(windows))]
use std::os::fd::AsFd as AsSocket;
#[cfg(windows)]
use std::os::windows::io::AsSocket;
use std::{io, time::Duration};

/// Closes TCP connections whose client has stopped reading or is gone. Default: after 30 seconds.
///
/// A response body cannot detect such a client. hyper does not poll the body while the socket is
/// full, so no timer in the body runs: neither a heartbeat nor
/// [`SseLayer::max_lifetime`](crate::SseLayer::max_lifetime). By default, the kernel waits about 15
/// minutes for a client that acknowledges nothing. It waits forever for a client that acknowledges
/// data and does not read it. This type sets the socket options that limit both waits.
///
/// After the timeout, the kernel closes the connection. hyper gets the error immediately and drops
/// the body. [`SseStream::on_close`](crate::SseStream::on_close) reports
/// [`CloseReason::ClientGone`](crate::CloseReason::ClientGone), and all resources of the stream are
/// released. An `EventSource` that is still running reconnects with its last id.
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
#[cfg_attr(not(doctest), doc = include_str!("socket/tonic.md"))] // `tests/guides.rs` compiles it
///
/// # Socket options
///
/// | option | applies to a connection | value |
/// |---|---|---|
/// | `TCP_USER_TIMEOUT` | with unacknowledged data, or with a zero window | the timeout, in milliseconds |
/// | `SO_KEEPALIVE` with `TCP_KEEPIDLE`, `TCP_KEEPINTVL` and `TCP_KEEPCNT` | with nothing in flight | the last probe fails at the timeout, rounded up to whole seconds: for 30 seconds, one probe per second after a random time of 15 to 23 seconds of silence |
/// | `TCP_NOTSENT_LOWAT` | with data that the client does not read | 128 KiB |
/// | `TCP_NODELAY` | of any kind | on: an event does not wait for the acknowledgement of the previous one |
///
/// - *A stalled client*, such as a page that hangs or a stopped program, still acknowledges what
///   its kernel receives, with a window of zero. [RFC 9293][persist] (§3.8.6.1) keeps the
///   connection open as long as the client acknowledges probes of the window. [RFC 6429][stuck]
///   says that an application may close it nevertheless. The timeout begins with the first probe,
///   one retransmission timeout (200 milliseconds or more) after the window was full. The kernel's
///   timers are up to an eighth late.
/// - *A vanished client*, without a network, acknowledges nothing. The kernel retransmits until the
///   timeout. If nothing is sent, keep-alive detects it. With a [`Heartbeat`](crate::Heartbeat),
///   something is always sent, and the timeout counts from the first lost heartbeat.
/// - *A slow client* stays connected as long as there is progress within the timeout. The kernel of
///   the client reports progress with a larger window: it opens a zero window again when its
///   receive buffer has room for one more packet. A Linux client waits until a sixteenth of the
///   buffer is free.
/// - *A client that closes its connection*, or whose process ends, is noticed at once without these
///   options. There is one exception: hyper does not notice the close of an HTTP/1 connection on
///   which the client has sent more bytes, such as a second request, until it writes.
///
/// The kernel sends probes only to clients that are silent for half of the timeout or longer (for
/// timeouts under 12 seconds, for a shorter time). With the default heartbeats, there are usually
/// no probes. Without heartbeats, an event to all makes all clients silent from the same moment on.
/// On loopback and in containers, Linux queues at most 1,000 packets per processor
/// (`net.core.netdev_max_backlog`), and drops the others. So the first probes are sent at random
/// times, and lost probes are soon repeated.
///
/// [RFC 9293][r2] (§3.8.3) proposes at least 100 seconds before a connection is closed. A shorter
/// timeout is right for streams that clients resume. Use a longer timeout if the same listener
/// receives uploads, or if clients are often without a network.
///
/// # Memory per stalled client
///
/// By default, Linux queues up to 4 MiB (`net.ipv4.tcp_wmem`) for a client that does not read, in
/// memory that does not count as the process's. With `TCP_NOTSENT_LOWAT` it queues 128 KiB and the
/// last write, of at most 64 KiB, in addition to the data in flight. Further events stay in their
/// source. With a `hub`, that is the topic, which stores them once for all clients.
///
/// The option limits only data that was not sent yet, so it does not slow a connection down. Large
/// responses are written in smaller pieces. To use another limit, set the option again after
/// [`apply`](Self::apply).
///
/// # Proxies
///
/// The timeout applies to the peer of the connection. Behind a reverse proxy, the peer is the
/// proxy. The proxy stops reading when its buffers for the client are full, and it has its own
/// timeouts (`send_timeout` in nginx).
///
/// # Limits
///
/// The shortest timeout is one second (two seconds for keep-alive). The longest is 24 days (9 hours
/// for keep-alive). Values outside this range are set to the nearest limit.
///
/// `TCP_USER_TIMEOUT` is set on Linux, Android and Fuchsia, and `TCP_NOTSENT_LOWAT` on Linux and
/// Android. Linux before 5.11 may wait longer while the window is zero, unless the fix was
/// backported to its stable series.
///
/// Other systems get `TCP_NODELAY` and the keep-alive options that they have. On these systems, the
/// system's own timeout applies to a client that does not read, or that vanishes with data in
/// flight. To shorten it, wrap the connection in a type with a timeout for writes.
///
/// # HTTP/2
///
/// When a connection is closed, all of its streams end. A socket option cannot detect a client that
/// reads the connection but not one of its streams. Such a stream has used up its window (the
/// client's `SETTINGS_INITIAL_WINDOW_SIZE`, [RFC 9113][window] §6.9.2, by default 65,535 bytes),
/// and its body is not polled. It stays open until the client resets it or the connection ends. Its
/// cost is small: one frame of the body waits for the window.
///
/// If the connection itself is stuck, h2 buffers up to hyper's `http2().max_send_buf_size` for each
/// stream, by default 400 KiB. `Serve` of this crate sets 64 KiB. `http2().max_concurrent_streams`
/// limits the number of streams. `initial_stream_window_size` limits what clients send, and has no
/// effect here.
///
/// hyper's `http2().keep_alive_interval` and `keep_alive_timeout` (which need a `timer`) send
/// pings. They detect a client whose kernel responds but whose program does not. `Serve` of this
/// crate has `http2_keep_alive` and `max_concurrent_streams`.
///
/// # HTTP/1
///
/// hyper treats a client that shuts down only its own direction (`shutdown(SHUT_WR)`) like a client
/// that has closed the connection. It drops the response, unless its `http1().half_close(true)` is
/// set. `axum::serve` has no such setting, and browsers do not need it.
///
/// # See also
///
/// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html);
/// [RFC 5482](https://www.rfc-editor.org/rfc/rfc5482), an option that announces the user timeout to
/// the peer, and that Linux does not send; RFC 9293, [§3.8.4][keep-alive] on keep-alive.
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
    /// The longest timeout for stalled and vanished clients, about 24 days. `TCP_USER_TIMEOUT` is a
    /// C `int` of milliseconds, and Linux accepts no negative values.
    const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);
    /// The maximum number of unsent bytes in the kernel per connection. It is large enough to keep
    /// a fast connection busy, and small enough for thousands of stalled connections.
    #[cfg(any(target_os = "android", target_os = "linux"))]
    const UNSENT: u32 = 128 * 1024;
    /// The maximum of `TCP_KEEPIDLE` (the silence before the first keep-alive probe) on Linux, in
    /// seconds.
    const LONGEST_KEEP_ALIVE: u64 = 32_767;

    /// Creates a timeout. A connection ends when its client has not read, or has been unreachable,
    /// for this time. The shortest timeout is one second, and the longest is 24 days. Other values
    /// are set to the nearest limit.
    pub fn after(timeout: Duration) -> Self {
        Self { after: timeout.clamp(Self::SHORTEST, Self::LONGEST) }
    }

    /// Sets the options of one connection: a `TcpStream` of tokio or std, or another type that
    /// implements `AsFd` (on Windows `AsSocket`).
    ///
    /// # Errors
    ///
    /// Returns the error of the system if the socket is not a TCP socket or, on some systems, if
    /// the client has closed the connection already. The error concerns this connection only, so a
    /// server should log it and continue.
    pub fn apply(&self, connection: &impl AsSocket) -> io::Result<()> {
        let socket = SockRef::from(connection);
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        socket.set_tcp_user_timeout(Some(self.after))?;
        #[cfg(any(target_os = "android", target_os = "linux"))]
        socket.set_tcp_notsent_lowat(Self::UNSENT)?;
        socket.set_tcp_keepalive(&self.keep_alive())?;
        socket.set_tcp_nodelay(true)
    }

    /// Returns the keep-alive options of one connection.
    fn keep_alive(&self) -> TcpKeepalive {
        let probes = self.probes(random::fraction());
        let keep_alive = TcpKeepalive::new().with_time(Duration::from_secs(probes.idle));
        // Other systems use their global settings for the probes.
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
        let keep_alive =
            keep_alive.with_interval(Duration::from_secs(probes.interval)).with_retries(probes.count as u32);
        keep_alive
    }

    /// Returns the times of the keep-alive probes that the kernel sends to detect a vanished
    /// client. `random` is at least 0 and below 1. With a timeout of 30 seconds, the first probe is
    /// sent after 15 to 23 seconds of silence, and the next ones each second.
    ///
    /// If all connections sent their probes at the same moment, Linux would drop most of them (see
    /// "Socket options"), also when they are repeated. The kernel would close the connections of
    /// healthy clients. So the time of the first probe is random, and lost probes are soon
    /// repeated.
    ///
    /// The first probe is not sent before half of the timeout, which is the default interval of
    /// heartbeats. Earlier probes would wake the radios of mobile clients between two heartbeats.
    /// Timeouts under 12 seconds have no time for that. They have three to six probes, and a timeout
    /// of two or three seconds has one or two.
    fn probes(&self, random: f64) -> Probes {
        let round_up = u64::from(self.after.subsec_nanos() > 0);
        // One second of silence and one second for the probe are the minimum.
        let seconds = (self.after.as_secs() + round_up).clamp(2, Self::LONGEST_KEEP_ALIVE);
        let interval = (seconds / 60).max(1);
        let intervals = seconds / interval;
        let fewest = (intervals / 4).max(3).min(intervals - 1);
        let most = (intervals / 2).max(6).min(intervals - 1);
        let count = fewest + ((most - fewest + 1) as f64 * random) as u64;
        Probes { idle: seconds - count * interval, interval, count }
    }
}

/// The keep-alive probes of one connection. Times are in seconds, as in the options of sockets.
#[derive(Clone, Copy, Debug)]
struct Probes {
    /// The silence of the connection before the first keep-alive probe, in seconds.
    idle: u64,
    /// The time between two keep-alive probes, and after the last one until the connection is
    /// closed, in seconds.
    interval: u64,
    count: u64,
}

impl Default for ClientTimeout {
    /// Returns the default timeout of 30 seconds for clients that do not read or have vanished.
    fn default() -> Self {
        Self { after: Duration::from_secs(30) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest values of the keep-alive options that Linux accepts.
    const MAX_SECONDS: u64 = 32_767;
    const MAX_PROBES: u64 = 127;

    /// The largest random number that the calculation of the probes gets: just below 1.
    const ALMOST_ONE: f64 = 1.0 - f64::EPSILON / 2.0;

    fn probes(seconds: u64, random: f64) -> Probes {
        ClientTimeout::after(Duration::from_secs(seconds)).probes(random)
    }

    #[test]
    fn last_probe_fails_at_timeout() {
        for seconds in 1..=MAX_SECONDS {
            for random in [0.0, 0.25, 0.5, 0.75, ALMOST_ONE] {
                let probes = probes(seconds, random);
                let Probes { idle, interval, count } = probes;
                assert_eq!(idle + count * interval, seconds.max(2), "{probes:?}");
                assert!((1..=MAX_SECONDS).contains(&idle), "{seconds}: {probes:?}");
                assert!((1..=MAX_SECONDS).contains(&interval), "{seconds}: {probes:?}");
                assert!((1..=MAX_PROBES).contains(&count), "{seconds}: {probes:?}");
            }
        }
    }

    #[test]
    fn probes_begin_at_random_times_after_half_of_timeout() {
        for seconds in 12..=MAX_SECONDS {
            let (latest, earliest) = (probes(seconds, 0.0), probes(seconds, ALMOST_ONE));
            assert!(earliest.idle >= seconds / 2, "{seconds}: {earliest:?}");
            assert!(latest.idle - earliest.idle >= seconds / 5, "{seconds}: {earliest:?} to {latest:?}");
            assert!(latest.count >= (seconds / 5).min(15), "{seconds}: {latest:?}");
        }
    }
}
