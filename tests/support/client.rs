//! Clients that see what is on the wire: of HTTP/1 written by hand, of HTTP/2 by hyper.

use bytes::Bytes;
use futures_util::stream::{Stream, unfold};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{error::Error, io, mem, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::AbortHandle,
    time::timeout,
};

/// Long enough for a machine that is busy with something else. No test waits for it unless it fails.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits, but not forever.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {LIMIT:?} in vain for {what}"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    /// A `GET` on a connection of its own.
    pub async fn get(self, address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
        match self {
            Self::Http1 => {
                let fields: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
                Http1::connect(address).await.request(request).await
            }
            Self::Http2 => Http2::connect(address).await.get(path, headers).await,
        }
    }
}

/// A connection that speaks HTTP/1.0 or HTTP/1.1, as the bytes of the request say.
#[derive(Debug)]
pub struct Http1 {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Http1 {
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = within("a connection", TcpStream::connect(address)).await.expect("a connection");
        Self { socket, received: Vec::new() }
    }

    /// Sends the bytes of a whole request, and reads the head of its response.
    pub async fn request(mut self, request: impl AsRef<[u8]>) -> Answer {
        let request = request.as_ref();
        within("the request to be sent", self.socket.write_all(request)).await.expect("an open connection");
        let head = loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                break self.received.drain(..end + 4).collect::<Vec<_>>();
            }
            let more = self.receive("the head of a response").await.expect("an open connection");
            assert!(more, "closed before the head of the response: {:?}", String::from_utf8_lossy(&self.received));
        };
        let (version, status, headers) = parse_head(&head[..head.len() - 4]);
        let framing =
            if request.starts_with(b"HEAD ") || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
                Framing::Ended
            } else if headers.contains_key(header::TRANSFER_ENCODING) {
                assert_eq!(headers[header::TRANSFER_ENCODING], "chunked");
                Framing::Chunked
            } else if let Some(length) = headers.get(header::CONTENT_LENGTH) {
                Framing::Length(length.to_str().expect("digits").parse().expect("digits"))
            } else {
                Framing::ToTheClose
            };
        let source = Source::Http1 { connection: self, framing };
        Answer { version, status, headers, body: Vec::new(), trailers: None, source }
    }

    /// Whether the server has closed the connection, and sent nothing before it.
    pub async fn is_closed(mut self) -> bool {
        self.received.is_empty() && !self.receive("the server to close the connection").await.unwrap_or(false)
    }

    /// Answers whether there was more.
    async fn receive(&mut self, what: &str) -> io::Result<bool> {
        Ok(within(what, self.socket.read_buf(&mut self.received)).await? > 0)
    }

    async fn body(&mut self, framing: &mut Framing) -> io::Result<Option<Vec<u8>>> {
        match framing {
            Framing::Ended => Ok(None),
            Framing::Chunked => {
                let line = self.line().await?;
                let length = usize::from_str_radix(&line, 16).map_err(|_| io::Error::other("no chunk length"))?;
                let chunk = self.exactly(length).await?;
                if !self.line().await?.is_empty() {
                    return Err(io::Error::other("no line end behind a chunk"));
                }
                if chunk.is_empty() {
                    *framing = Framing::Ended;
                }
                Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
            }
            Framing::Length(0) => {
                *framing = Framing::Ended;
                Ok(None)
            }
            Framing::Length(length) => {
                if self.received.is_empty() && !self.receive("the body").await? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let available = self.received.len().min(*length);
                *length -= available;
                Ok(Some(self.received.drain(..available).collect()))
            }
            Framing::ToTheClose => {
                if self.received.is_empty() && !self.receive("the body").await? {
                    *framing = Framing::Ended;
                    return Ok(None);
                }
                Ok(Some(mem::take(&mut self.received)))
            }
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(io::Error::other);
            }
            if !self.receive("a chunk").await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < length {
            if !self.receive("the rest of a chunk").await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.received.drain(..length).collect())
    }
}

fn parse_head(head: &[u8]) -> (Version, StatusCode, HeaderMap) {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let status_line = lines.next().expect("a status line");
    let version = match &status_line[..9] {
        b"HTTP/1.1 " => Version::HTTP_11,
        b"HTTP/1.0 " => Version::HTTP_10,
        other => panic!("no HTTP/1: {other:?}"),
    };
    let status = StatusCode::from_bytes(&status_line[9..12]).expect("a status");
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':').expect("a colon in each header line");
        headers.append(
            HeaderName::from_bytes(&line[..colon]).expect("a header name"),
            HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).expect("a header value"),
        );
    }
    (version, status, headers)
}

/// A connection that speaks HTTP/2 from its first byte. It closes when the last clone and the last answer are dropped.
#[derive(Clone, Debug)]
pub struct Http2 {
    requests: SendRequest<Full<Bytes>>,
    _connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Http2 {
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = within("a connection", TcpStream::connect(address)).await.expect("a connection");
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
        let (requests, connection) = within("the HTTP/2 handshake", handshake).await.expect("HTTP/2");
        let connection = Arc::new(Connection(tokio::spawn(connection).abort_handle()));
        Self { requests, _connection: connection }
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request(Method::GET, path, headers, "").await.expect("a response")
    }

    /// An error is that of a stream that was reset before the head of its response.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("http://localhost{path}"));
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a header value");
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let response = within("the head of a response", self.requests.clone().send_request(request)).await;
        let (head, body) = response.map_err(|error| with_sources(&error))?.into_parts();
        Ok(Answer {
            version: head.version,
            status: head.status,
            headers: head.headers,
            body: Vec::new(),
            trailers: None,
            source: Source::Http2 { body, _connection: self.clone() },
        })
    }
}

/// A response under way. Dropping it closes the connection of HTTP/1, and resets the stream of HTTP/2.
#[derive(Debug)]
pub struct Answer {
    pub version: Version,
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// What has come so far.
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Http1 { connection: Http1, framing: Framing },
    Http2 { body: Incoming, _connection: Http2 },
}

#[derive(Debug)]
enum Framing {
    Ended,
    Chunked,
    Length(usize),
    ToTheClose,
}

impl Answer {
    /// Reads until the body holds this, and not a byte more than has to be read for it.
    pub async fn read_until(&mut self, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        while !self.body.windows(text.len()).any(|window| window == text) {
            let more = within(&format!("{:?}", String::from_utf8_lossy(text)), self.more()).await;
            assert_eq!(more, Ok(true), "{:?} ended too early", String::from_utf8_lossy(&self.body));
        }
    }

    /// Reads one more piece; answers whether there was one. An error is a broken transfer.
    pub async fn more(&mut self) -> Result<bool, String> {
        let piece = match &mut self.source {
            Source::Http1 { connection, framing } => {
                connection.body(framing).await.map_err(|error| error.to_string())?
            }
            Source::Http2 { body, .. } => match within("the body", body.frame()).await {
                None => None,
                Some(Err(error)) => return Err(with_sources(&error)),
                Some(Ok(frame)) => Some(match frame.into_data() {
                    Ok(data) => data.to_vec(),
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        Vec::new()
                    }
                }),
            },
        };
        let is_more = piece.is_some();
        self.body.extend(piece.unwrap_or_default());
        Ok(is_more)
    }

    /// The body, piece by piece as it comes.
    pub fn into_pieces(self) -> impl Stream<Item = Result<Bytes, String>> + Send + 'static {
        unfold(self, |mut answer| async {
            let piece = match answer.more().await {
                Ok(true) => Ok(Bytes::from(mem::take(&mut answer.body))),
                Ok(false) => return None,
                Err(error) => Err(error),
            };
            Some((piece, answer))
        })
    }

    /// Reads to the end, and says which one it is: the end of the message, or a broken transfer.
    pub async fn end(&mut self) -> Result<(), String> {
        while self.more().await? {}
        Ok(())
    }

    /// Reads to the end of a message that has to be complete.
    pub async fn complete(mut self) -> Self {
        let end = self.end().await;
        assert_eq!(end, Ok(()), "broken off after {:?}", self.text());
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The data of the events that have come so far.
    pub fn data(&self) -> Vec<String> {
        crate::whatwg::parse(&self.body).messages.into_iter().map(|message| message.data).collect()
    }

    /// The connection of HTTP/1, for its next request.
    pub fn into_connection(self) -> Http1 {
        match self.source {
            Source::Http1 { connection, .. } => connection,
            Source::Http2 { .. } => panic!("HTTP/2 needs no answer to be over"),
        }
    }
}

fn with_sources(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_sources(source)),
        None => error.to_string(),
    }
}
