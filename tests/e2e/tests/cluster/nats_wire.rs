//! A TCP connection to NATS that reads the protocol, and loses single messages.

use std::{
    io, mem,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// A relay to one server.
pub(crate) struct NatsWire {
    address: SocketAddr,
    faults: Arc<Faults>,
    accept: JoinHandle<()>,
}

#[derive(Default)]
struct Faults {
    /// The number of acknowledgements to lose from now on.
    acknowledgements_to_lose: AtomicUsize,
    /// The number of acknowledgements, after those to lose, that get the sequence 0.
    acknowledgements_without_sequence: AtomicUsize,
    /// Set if the next acknowledgement is late: it follows the response to the second copy of the
    /// message, which becomes an error.
    is_next_late: AtomicBool,
    late: Mutex<Vec<u8>>,
    /// The number of messages of consumers until the one to lose. 0 if no message is to lose.
    deliveries_until_loss: AtomicUsize,
    /// Holds the messages to the stream while this is set.
    is_holding: watch::Sender<bool>,
    held: AtomicUsize,
    /// Holds the responses with this text while it is set, and then replaces them by errors.
    refusing: watch::Sender<Option<&'static str>>,
    refused: AtomicUsize,
    bytes_from_server: AtomicUsize,
    /// The minimum size of messages from the server that are late, and their delay.
    slow: Mutex<Option<(usize, Duration)>>,
}

impl NatsWire {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("the listener has an address");
        let faults = Arc::<Faults>::default();
        let shared = faults.clone();
        let accept = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, shared.clone()));
                tokio::spawn(pass(from_server, to_client, shared.clone()));
            }
        });
        Self { address, faults, accept }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Loses the next acknowledgements of stored messages.
    pub(crate) fn lose_acknowledgements(&self, count: usize) {
        self.faults.acknowledgements_to_lose.store(count, SeqCst);
    }

    /// Removes the sequence from the next acknowledgements, after those to lose. nats-server 2.10
    /// responds so to another copy of a message, while the servers of a cluster store the first.
    pub(crate) fn remove_sequences(&self, count: usize) {
        self.faults.acknowledgements_without_sequence.store(count, SeqCst);
    }

    /// Delays the next acknowledgement until the message is sent again. The second copy gets the
    /// error of nats-server 2.11 while the servers of a cluster store the first copy.
    pub(crate) fn delay_acknowledgement(&self) {
        self.faults.is_next_late.store(true, SeqCst);
    }

    /// Returns the number of acknowledgements that are still to lose.
    pub(crate) fn acknowledgements_to_lose(&self) -> usize {
        self.faults.acknowledgements_to_lose.load(SeqCst)
    }

    /// Loses one message that a consumer delivers: the `nth` from now on.
    pub(crate) fn lose_delivery(&self, nth: usize) {
        self.faults.deliveries_until_loss.store(nth, SeqCst);
    }

    /// Returns the number of bytes in messages from the server.
    pub(crate) fn bytes_from_server(&self) -> usize {
        self.faults.bytes_from_server.load(SeqCst)
    }

    /// Delays each message from the server of at least this size, and everything after it.
    pub(crate) fn slow_down(&self, bytes: usize, delay: Duration) {
        *self.faults.slow.lock().expect("no thread panics with the lock") = Some((bytes, delay));
    }

    /// Delivers no message to the stream until `hold(false)`, and then all of them.
    pub(crate) fn hold(&self, is_holding: bool) {
        self.faults.is_holding.send_replace(is_holding);
    }

    /// Returns the number of messages to the stream that were held.
    pub(crate) fn held(&self) -> usize {
        self.faults.held.load(SeqCst)
    }

    /// Holds the responses that contain `text`, until `refuse(None)`. The client then receives
    /// errors instead of the held responses.
    pub(crate) fn refuse(&self, text: Option<&'static str>) {
        self.faults.refusing.send_replace(text);
    }

    /// Returns the number of responses that were held, to be replaced by errors.
    pub(crate) fn refused(&self) -> usize {
        self.faults.refused.load(SeqCst)
    }
}

impl Drop for NatsWire {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// Passes the protocol on in one direction, until either side ends.
async fn pass(from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: Arc<Faults>) {
    let mut from = BufReader::new(from);
    while let Ok(Some(mut bytes)) = read(&mut from).await {
        if ["MSG ", "HMSG "].iter().any(|name| bytes.starts_with(name.as_bytes())) {
            faults.bytes_from_server.fetch_add(bytes.len(), SeqCst);
            let slow = *faults.slow.lock().expect("no thread panics with the lock");
            if let Some((_, delay)) = slow.filter(|(least, _)| bytes.len() >= *least) {
                sleep(delay).await;
            }
        }
        let is_acknowledgement = bytes.starts_with(b"MSG ") && memory_contains(&bytes, b"\r\n{\"stream\":");
        let lose_one = |count: usize| count.checked_sub(1);
        let losing = &faults.acknowledgements_to_lose;
        if is_acknowledgement && losing.fetch_update(SeqCst, SeqCst, lose_one).is_ok() {
            continue;
        }
        let without_sequence = &faults.acknowledgements_without_sequence;
        if is_acknowledgement && without_sequence.fetch_update(SeqCst, SeqCst, lose_one).is_ok() {
            remove_sequence(&mut bytes);
        }
        if is_acknowledgement && faults.is_next_late.swap(false, SeqCst) {
            *faults.late.lock().expect("no thread panics with the lock") = bytes;
            continue;
        }
        if is_acknowledgement {
            let late = mem::take(&mut *faults.late.lock().expect("no thread panics with the lock"));
            if !late.is_empty() {
                if to.write_all(&error_response(&bytes, IN_PROCESS)).await.is_err() {
                    break;
                }
                // The client handles the error before the acknowledgement arrives.
                sleep(Duration::from_millis(100)).await;
                bytes = late;
            }
        }
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let is_delivery = line.starts_with(b"HMSG ") && memory_contains(line, b" $JS.ACK.");
        let until_loss = &faults.deliveries_until_loss;
        if is_delivery && until_loss.fetch_update(SeqCst, SeqCst, lose_one) == Ok(1) {
            continue;
        }
        let refused = *faults.refusing.borrow();
        if bytes.starts_with(b"MSG ") && refused.is_some_and(|text| memory_contains(&bytes, text.as_bytes())) {
            faults.refused.fetch_add(1, SeqCst);
            // `wait_for` fails if the relay was dropped.
            drop(faults.refusing.subscribe().wait_for(Option::is_none).await);
            bytes = error_response(&bytes, UNAVAILABLE);
        }
        if bytes.starts_with(b"HPUB tower-sse.") && *faults.is_holding.borrow() {
            faults.held.fetch_add(1, SeqCst);
            // `wait_for` fails if the relay was dropped.
            drop(faults.is_holding.subscribe().wait_for(|is_holding| !is_holding).await);
        }
        if to.write_all(&bytes).await.is_err() {
            break;
        }
    }
}

/// Returns the next line, with the payload of a message.
async fn read(from: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if from.read_until(b'\n', &mut bytes).await? == 0 {
        return Ok(None);
    }
    let line = String::from_utf8_lossy(&bytes).into_owned();
    if ["PUB ", "HPUB ", "MSG ", "HMSG "].iter().any(|name| line.starts_with(name)) {
        let size: usize = line.split_whitespace().last().and_then(|size| size.parse().ok()).unwrap_or(0);
        let begin = bytes.len();
        bytes.resize(begin + size + 2, 0);
        from.read_exact(&mut bytes[begin..]).await?;
    }
    Ok(Some(bytes))
}

const UNAVAILABLE: &str =
    r#"{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}"#;
const IN_PROCESS: &str = r#"{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"},"stream":"tower-sse","seq":0}"#;

/// Replaces the sequence of an acknowledgement by 0, without a change of its length.
fn remove_sequence(bytes: &mut [u8]) {
    const NAME: &[u8] = b"\"seq\":";
    let begin = bytes.windows(NAME.len()).position(|window| window == NAME).expect("it has a sequence") + NAME.len();
    let digits = bytes[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    bytes[begin..begin + digits].fill(b' ');
    bytes[begin + digits - 1] = b'0';
}

/// Returns the error that a server sends instead of `response`, to the same request.
fn error_response(response: &[u8], error: &str) -> Vec<u8> {
    let line = String::from_utf8_lossy(response.split(|byte| *byte == b'\n').next().unwrap_or_default()).into_owned();
    let (head, _size) = line.trim_end().rsplit_once(' ').expect("the line has a size");
    format!("{head} {}\r\n{error}\r\n", error.len()).into_bytes()
}

fn memory_contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
