//! A wire between browser and server that can be looked at, and cut.

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

/// A TCP relay to one server. It is gone on drop, with its connections.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    wire: Arc<Wire>,
    accepts: JoinHandle<()>,
}

#[derive(Debug)]
struct Wire {
    server: SocketAddr,
    is_cut: AtomicBool,
    /// Ends the connections that are open.
    cuts: watch::Sender<u64>,
    /// The bytes on their way to the browser behind which nothing is to pass.
    stop_after: Mutex<Option<Vec<u8>>>,
    has_stopped: AtomicBool,
    heads: Mutex<Vec<RequestHead>>,
    connections: AtomicU64,
    bytes_to_browser: AtomicU64,
}

/// The head of a request that came by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead(String);

impl RequestHead {
    /// Whether an `EventSource` has sent it: the page's own `fetch` accepts anything.
    fn is_of_event_source(&self) -> bool {
        self.header("accept") == Some("text/event-stream")
    }

    /// What it is to do.
    pub fn method(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// Whether a browser asks by it for the permission to send another one.
    pub fn is_preflight(&self) -> bool {
        self.method() == "OPTIONS"
    }

    /// The path and query it asks for.
    pub fn target(&self) -> &str {
        self.0.split(' ').nth(1).unwrap_or_default()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.0.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl Relay {
    /// Listens on a free port, and passes on to the server, whether it is there yet or not.
    ///
    /// # Errors
    ///
    /// If there is no port.
    pub async fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let wire = Arc::new(Wire {
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
        let accepts = tokio::spawn(Arc::clone(&wire).accept(listener));
        Ok(Self { address, wire, accepts })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and each new one at once, until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.wire.is_cut.store(true, SeqCst);
        self.wire.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Passes this text on to the browser when it comes, and then nothing more on that connection.
    pub fn stop_after(&self, text: &str) {
        *self.wire.stop_after.lock().expect("no holder panics") = Some(text.into());
        self.wire.has_stopped.store(false, SeqCst);
    }

    /// Whether that text has passed.
    pub fn has_stopped(&self) -> bool {
        self.wire.has_stopped.load(SeqCst)
    }

    /// Passes on again.
    pub fn mend(&self) {
        self.wire.is_cut.store(false, SeqCst);
    }

    /// The heads of all requests so far, in order.
    pub fn heads(&self) -> Vec<RequestHead> {
        self.wire.heads.lock().expect("no holder panics").clone()
    }

    /// Those of them that an `EventSource` has sent.
    pub fn event_sources(&self) -> Vec<RequestHead> {
        self.heads().into_iter().filter(RequestHead::is_of_event_source).collect()
    }

    /// How many connections the browser has made so far, those that were refused included.
    pub fn connections(&self) -> u64 {
        self.wire.connections.load(SeqCst)
    }

    /// How many bytes have gone to the browser so far.
    pub fn bytes_to_browser(&self) -> u64 {
        self.wire.bytes_to_browser.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepts.abort();
        self.cut();
    }
}

impl Wire {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((browser, _)) = listener.accept().await {
            self.connections.fetch_add(1, SeqCst);
            // Before the look at `is_cut`: a cut between the two is then seen by one of them.
            let mut cuts = self.cuts.subscribe();
            if self.is_cut.load(SeqCst) {
                continue;
            }
            let wire = Arc::clone(&self);
            tokio::spawn(async move {
                tokio::select! {
                    _ = wire.pass(browser) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
    }

    /// Until either side ends: what an HTTP/1 connection is over with.
    async fn pass(&self, browser: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(self.server).await?;
        let (from_browser, to_browser) = browser.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            ended = self.requests(from_browser, to_server) => ended,
            ended = self.responses(from_server, to_browser) => ended,
        }
    }

    /// Their heads are kept. Their bodies, which all have a length, are passed on.
    async fn requests(&self, mut browser: OwnedReadHalf, mut server: OwnedWriteHalf) -> io::Result<()> {
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

    async fn responses(&self, mut server: OwnedReadHalf, mut browser: OwnedWriteHalf) -> io::Result<()> {
        let mut bytes = vec![0; 16 * 1024];
        let mut passed = Vec::new();
        loop {
            let n = server.read(&mut bytes).await?;
            if n == 0 {
                return Ok(());
            }
            let stop = self.place_of_stop(&mut passed, &bytes[..n]);
            let through = stop.unwrap_or(n);
            browser.write_all(&bytes[..through]).await?;
            self.bytes_to_browser.fetch_add(through as u64, SeqCst);
            if stop.is_some() {
                self.has_stopped.store(true, SeqCst);
                return pending().await;
            }
        }
    }

    /// Where in these bytes the text ends behind which nothing is to pass; it may begin in those before.
    fn place_of_stop(&self, passed: &mut Vec<u8>, bytes: &[u8]) -> Option<usize> {
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
