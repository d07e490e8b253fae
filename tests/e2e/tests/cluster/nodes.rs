//! A node for publishers and clients: a hub in this process, or a server in another process.

use std::{error::Error, net::SocketAddr, time::Duration};
use support::whatwg;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_stream::StreamExt;
use tower_sse::{
    Event, EventId,
    hub::{Hub, Start, Subscription},
};

/// The topic of the `cluster` example.
pub(crate) const TOPIC: &str = "news";

/// Longer than any response of a running node takes.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(12);

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Hub(Hub),
    /// A process of the `cluster` example.
    Server(SocketAddr),
}

impl From<&Hub> for Node {
    fn from(hub: &Hub) -> Self {
        Self::Hub(hub.clone())
    }
}

impl Node {
    /// Publishes a batch, and returns the id of its last event.
    pub(crate) async fn publish(&self, data: &[String]) -> Result<String, String> {
        match self {
            Self::Hub(hub) => {
                let events = data.iter().map(Event::new);
                let id = hub.topic(TOPIC).publish_all(events).await.map_err(|error| with_sources(&error))?;
                Ok(id.ok_or("the batch is empty")?.to_string())
            }
            Self::Server(address) => {
                let body = data.join("\n");
                let answer =
                    timeout(RESPONSE_TIMEOUT, post(*address, "/publish", &body)).await.map_err(|_| "no response")?;
                let (head, body) = answer?;
                if head.starts_with("HTTP/1.0 200 ") { Ok(body) } else { Err(body) }
            }
        }
    }

    /// Subscribes after this id. Without an id, the stream has only live events.
    pub(crate) async fn follow(&self, last: Option<&str>) -> Result<NodeStream, String> {
        match self {
            Self::Hub(hub) => {
                let start = match last {
                    Some(last) => Start::After(EventId::new(last).map_err(|error| error.to_string())?),
                    None => Start::Latest,
                };
                let subscription = hub.topic(TOPIC).subscribe(start).await.map_err(|error| with_sources(&error))?;
                Ok(NodeStream::Hub(Box::new(subscription.begin_with_cursor())))
            }
            Self::Server(address) => {
                let response =
                    timeout(RESPONSE_TIMEOUT, Response::get(*address, last)).await.map_err(|_| "no response")?;
                Ok(NodeStream::Server(response.map_err(|error| error.to_string())?))
            }
        }
    }
}

/// Posts a text, and returns the head and the body of the response.
pub(crate) async fn post(node: SocketAddr, path: &str, body: &str) -> Result<(String, String), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(node).await?;
        let length = body.len();
        let request = format!("POST {path} HTTP/1.0\r\nHost: {node}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = exchange.await.map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the response is incomplete")?;
    // Without the length, an incomplete body would look like a complete one.
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).ok_or("no length")?;
    if length == body.len().to_string() { Ok((head.into(), body.into())) } else { Err("the body is incomplete".into()) }
}

/// A stream of events from a node.
#[derive(Debug)]
pub(crate) enum NodeStream {
    Hub(Box<Subscription>),
    Server(Response),
}

impl NodeStream {
    /// Returns the bytes of the next complete events, and `None` at the end or after an error.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Hub(subscription) => Some(subscription.next().await?.ok()?.as_bytes().to_vec()),
            Self::Server(response) => response.next().await,
        }
    }
}

/// An HTTP/1.0 response. Its body is the event stream without chunks.
#[derive(Debug)]
pub(crate) struct Response {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Response {
    async fn get(node: SocketAddr, last: Option<&str>) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(node).await?;
        let last = last.map_or(String::new(), |last| format!("Last-Event-ID: {last}\r\n"));
        stream.write_all(format!("GET /events HTTP/1.0\r\nHost: {node}\r\n{last}\r\n").as_bytes()).await?;
        let mut unread = Vec::new();
        let end = loop {
            if let Some(at) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut unread).await? == 0 {
                return Err(std::io::Error::other("the head is incomplete"));
            }
        };
        let head: Vec<_> = unread.drain(..end).collect();
        assert!(head.starts_with(b"HTTP/1.0 200 "), "{}", String::from_utf8_lossy(&head));
        Ok(Self { stream, unread })
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = end_of_last_event(&self.unread) {
                return Some(self.unread.drain(..at).collect());
            }
            self.unread.reserve(64 << 10);
            let Ok(1..) = self.stream.read_buf(&mut self.unread).await else { return None };
        }
    }
}

/// Returns the position after the last complete event.
fn end_of_last_event(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).rposition(|two| two == b"\n\n").map(|at| at + 2)
}

/// The parser of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parser {
    /// Follows the algorithm of the HTML standard.
    Standard,
    /// Reads only the wire format of a hub whose events have one data line.
    Fast,
}

impl Parser {
    /// Reads complete events, and calls `f` with the id, type and data of each. Returns the last
    /// id.
    pub(crate) fn read(self, bytes: &[u8], mut f: impl FnMut(&str, &str, &str)) -> Option<String> {
        match self {
            Self::Standard => {
                let source = whatwg::parse_after("", bytes);
                for message in source.messages {
                    f(&message.last_event_id, &message.r#type, &message.data);
                }
                Some(source.last_event_id).filter(|id| !id.is_empty())
            }
            Self::Fast => {
                let text = std::str::from_utf8(bytes).expect("the events are ASCII");
                let mut last = None;
                for event in text.split_terminator("\n\n") {
                    let (mut kind, mut id, mut data) = ("message", "", None);
                    for line in event.split('\n') {
                        if let Some(value) = line.strip_prefix("data: ") {
                            data = Some(value);
                        } else if let Some(value) = line.strip_prefix("id: ") {
                            id = value;
                        } else if let Some(value) = line.strip_prefix("event: ") {
                            kind = value;
                        }
                    }
                    if let Some(data) = data {
                        f(id, kind, data);
                    }
                    if !id.is_empty() {
                        last = Some(id);
                    }
                }
                last.map(str::to_owned)
            }
        }
    }
}

/// Formats an error and its sources.
pub(crate) fn with_sources(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_sources(source)),
        None => error.to_string(),
    }
}
