//! Clients that show the bytes on the wire: HTTP/1 is written by hand, HTTP/2 is hyper's.

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

/// The time limit of [`within`], long enough for a busy machine. Only a failing test reaches it.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits for a future, and panics after 30 seconds.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {LIMIT:?} for {what}, which did not happen"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    /// Sends a `GET` on a new connection, and reads the head of the response.
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

/// A connection of HTTP/1.0 or HTTP/1.1. The bytes of the request select the version.
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

    /// Sends the bytes of a complete request, and reads the head of its response.
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
                Framing::UntilClose
            };
        let source = Source::Http1 { connection: self, framing };
        Answer { version, status, headers, body: Vec::new(), trailers: None, source }
    }

    /// Returns whether the server closes the connection without sending another byte.
    pub async fn is_closed(mut self) -> bool {
        self.received.is_empty() && !self.receive("the server to close the connection").await.unwrap_or(false)
    }

    /// Reads more bytes. Returns `false` at the end of the connection.
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
            Framing::UntilClose => {
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
        other => panic!("not a version of HTTP/1: {other:?}"),
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

/// A connection of HTTP/2 with prior knowledge (RFC 9113, section 3.3).
///
/// The connection closes when its last clone and its last answer are dropped.
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

    /// Sends a request, and reads the head of its response.
    ///
    /// Fails if the stream is reset before the head.
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

/// A response whose body is still arriving.
///
/// Dropping it closes the connection of HTTP/1, and resets the stream of HTTP/2.
#[derive(Debug)]
pub struct Answer {
    pub version: Version,
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The bytes received so far.
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
    UntilClose,
}

impl Answer {
    /// Reads until the body contains `text`. Stops after the piece that completes the text.
    pub async fn read_until(&mut self, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        while !self.body.windows(text.len()).any(|window| window == text) {
            let more = within(&format!("{:?}", String::from_utf8_lossy(text)), self.more()).await;
            assert_eq!(more, Ok(true), "{:?} ended too early", String::from_utf8_lossy(&self.body));
        }
    }

    /// Reads the next piece of the body. Returns `false` at the end of the message.
    ///
    /// Fails if the transfer breaks.
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

    /// Returns the rest of the body as a stream of its pieces.
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

    /// Reads to the end of the message. Fails if the transfer breaks.
    pub async fn end(&mut self) -> Result<(), String> {
        while self.more().await? {}
        Ok(())
    }

    /// Reads to the end of the message, and panics if the transfer breaks.
    pub async fn complete(mut self) -> Self {
        let end = self.end().await;
        assert_eq!(end, Ok(()), "the transfer broke after {:?}", self.text());
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the data of the events received so far.
    pub fn data(&self) -> Vec<String> {
        crate::whatwg::parse(&self.body).messages.into_iter().map(|message| message.data).collect()
    }

    /// Returns the connection of HTTP/1 for its next request. Panics for HTTP/2.
    pub fn into_connection(self) -> Http1 {
        match self.source {
            Source::Http1 { connection, .. } => connection,
            Source::Http2 { .. } => panic!("an HTTP/2 connection takes requests at any time: clone it"),
        }
    }
}

fn with_sources(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_sources(source)),
        None => error.to_string(),
    }
}
