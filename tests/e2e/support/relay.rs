//! An HTTP/1 relay between browser and server. It records requests, and can cut connections.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// A TCP relay to one server. Dropping it closes its connections.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    accept: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    is_cut: AtomicBool,
    /// Closes the open connections when it changes.
    cuts: watch::Sender<u64>,
    /// No byte after this text passes to the browser.
    stop_after: Mutex<Option<Vec<u8>>>,
    has_stopped: AtomicBool,
    heads: Mutex<Vec<RequestHead>>,
    connections: AtomicU64,
    bytes_to_browser: AtomicU64,
}

/// The head of a request that passed the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead(String);

impl RequestHead {
    /// Returns whether an `EventSource` sent the request. A `fetch` accepts any media type.
    fn is_from_event_source(&self) -> bool {
        self.header("accept") == Some("text/event-stream")
    }

    /// Returns the method.
    pub fn method(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// Returns whether the request is a CORS preflight.
    pub fn is_preflight(&self) -> bool {
        self.method() == "OPTIONS"
    }

    /// Returns the path and the query.
    pub fn target(&self) -> &str {
        self.0.split(' ').nth(1).unwrap_or_default()
    }

    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.0.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl Relay {
    /// Listens on a free port, and connects to the server for each connection. The server does not
    /// have to run yet.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let shared = Arc::new(Shared {
            server,
            is_cut: AtomicBool::new(false),
            cuts: watch::Sender::new(0),
            stop_after: Mutex::default(),
            has_stopped: AtomicBool::new(false),
            heads: Mutex::default(),
            connections: AtomicU64::new(0),
            bytes_to_browser: AtomicU64::new(0),
        });
        let address = listener.local_addr()?;
        let accept = tokio::spawn(Arc::clone(&shared).accept(listener));
        Ok(Self { address, shared, accept })
    }

    /// Returns the address of the relay.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections, and each new connection immediately, until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.shared.is_cut.store(true, SeqCst);
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Passes responses on to the end of this text, and then no more bytes on that connection.
    pub fn stop_after(&self, text: &str) {
        *self.shared.stop_after.lock().expect("no holder panics") = Some(text.into());
        self.shared.has_stopped.store(false, SeqCst);
    }

    /// Returns whether that text has passed.
    pub fn has_stopped(&self) -> bool {
        self.shared.has_stopped.load(SeqCst)
    }

    /// Accepts connections again after a cut.
    pub fn mend(&self) {
        self.shared.is_cut.store(false, SeqCst);
    }

    /// Returns the heads of all requests until now, in order.
    pub fn heads(&self) -> Vec<RequestHead> {
        self.shared.heads.lock().expect("no holder panics").clone()
    }

    /// Returns the heads of the requests that an `EventSource` sent.
    pub fn event_sources(&self) -> Vec<RequestHead> {
        self.heads().into_iter().filter(RequestHead::is_from_event_source).collect()
    }

    /// Returns the number of connections until now, refused connections included.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(SeqCst)
    }

    /// Returns the number of open connections. After a [cut](Self::cut), a connection can pass bytes
    /// for a moment.
    pub fn open_connections(&self) -> usize {
        self.shared.cuts.receiver_count()
    }

    /// Returns the number of bytes that were sent to the browser until now.
    pub fn bytes_to_browser(&self) -> u64 {
        self.shared.bytes_to_browser.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accept.abort();
        self.cut();
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((browser, _)) = listener.accept().await {
            self.connections.fetch_add(1, SeqCst);
            // Subscribed before `is_cut` is read, so that no cut between the two is missed.
            let mut cuts = self.cuts.subscribe();
            if self.is_cut.load(SeqCst) {
                continue;
            }
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                tokio::select! {
                    _ = shared.pass(browser) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
    }

    /// Passes bytes on until either side closes, which ends an HTTP/1 connection.
    async fn pass(&self, browser: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(self.server).await?;
        let (from_browser, to_browser) = browser.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            ended = self.pass_requests(from_browser, to_server) => ended,
            ended = self.pass_responses(from_server, to_browser) => ended,
        }
    }

    /// Passes requests on, and records their heads. Each body needs a `Content-Length`.
    async fn pass_requests(&self, mut browser: OwnedReadHalf, mut server: OwnedWriteHalf) -> io::Result<()> {
        let mut unread = Vec::new();
        let mut rest_of_body = 0;
        while browser.read_buf(&mut unread).await? > 0 {
            loop {
                let body: Vec<u8> = unread.drain(..rest_of_body.min(unread.len())).collect();
                server.write_all(&body).await?;
                rest_of_body -= body.len();
                if rest_of_body > 0 {
                    break;
                }
                let Some(end) = unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { break };
                let bytes: Vec<u8> = unread.drain(..end + 4).collect();
                let head = RequestHead(String::from_utf8_lossy(&bytes).into_owned());
                rest_of_body = head.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
                self.heads.lock().expect("no holder panics").push(head);
                server.write_all(&bytes).await?;
            }
        }
        Ok(())
    }

    async fn pass_responses(&self, mut server: OwnedReadHalf, mut browser: OwnedWriteHalf) -> io::Result<()> {
        let mut bytes = vec![0; 16 * 1024];
        let mut passed = Vec::new();
        loop {
            let n = server.read(&mut bytes).await?;
            if n == 0 {
                return Ok(());
            }
            let stop = self.stop_position(&mut passed, &bytes[..n]);
            let through = stop.unwrap_or(n);
            browser.write_all(&bytes[..through]).await?;
            self.bytes_to_browser.fetch_add(through as u64, SeqCst);
            if stop.is_some() {
                self.has_stopped.store(true, SeqCst);
                return pending().await;
            }
        }
    }

    /// Returns the position in `bytes` after which no byte may pass. The text of `stop_after` ends
    /// there, and may begin in earlier bytes.
    fn stop_position(&self, passed: &mut Vec<u8>, bytes: &[u8]) -> Option<usize> {
        let mut stop_after = self.stop_after.lock().expect("no holder panics");
        let Some(length) = stop_after.as_ref().map(Vec::len) else {
            passed.clear();
            return None;
        };
        let before = passed.len();
        passed.extend_from_slice(bytes);
        let at = passed.windows(length).position(|window| Some(window) == stop_after.as_deref());
        if at.is_some() {
            *stop_after = None;
        } else {
            passed.drain(..passed.len() - (length - 1).min(passed.len()));
        }
        at.map(|at| at + length - before)
    }
}
