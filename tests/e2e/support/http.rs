//! Plain HTTP requests to a server, without a browser.

use serde_json::Value;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longer than any response of an example takes, even on a busy machine.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(40);

/// An event as a client dispatches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The last event id.
    pub id: String,
    /// The type. It is `message` for an event without a name.
    pub kind: String,
    /// The data.
    pub data: String,
}

impl Message {
    /// Creates a message from an object `{ id, type, data }` of a page.
    pub fn from_page(value: &Value) -> Option<Self> {
        let field = |name: &str| Some(value[name].as_str()?.to_owned());
        Some(Self { id: field("id")?, kind: field("type")?, data: field("data")? })
    }

    /// Creates the messages from an array of such objects.
    ///
    /// # Panics
    ///
    /// If the value is not an array, or an object lacks a field.
    pub fn all_from_page(value: &Value) -> Vec<Self> {
        let values = value.as_array().expect("the page has an array of messages");
        values.iter().map(|value| Self::from_page(value).expect("each has an id, a type and data")).collect()
    }
}

/// Reads the feed from the oldest retained event through the event with this id.
///
/// # Panics
///
/// If the feed ends earlier, or the event does not arrive within ten seconds.
pub async fn read_until(server: SocketAddr, id: &str) -> Vec<Message> {
    let mut messages = read(server, |messages| messages.iter().any(|message| message.id == id)).await;
    let through = messages.iter().position(|message| message.id == id).expect("the event was read");
    messages.truncate(through + 1);
    messages
}

/// Reads the feed at `/events` from the oldest retained event, until `is_enough` returns true.
///
/// The request uses HTTP/1.0, so that the body is the event stream without chunks.
///
/// # Panics
///
/// If the feed ends earlier, or is not enough within ten seconds.
pub async fn read(server: SocketAddr, is_enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
    let mut response = Vec::new();
    let read = async {
        let mut stream = TcpStream::connect(server).await.expect("the server listens");
        let request = format!("GET /events HTTP/1.0\r\nHost: {server}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        loop {
            let n = stream.read_buf(&mut response).await.expect("the server responds");
            assert!(n > 0, "the feed ended: {}", String::from_utf8_lossy(&response));
            let messages = messages(&response);
            if is_enough(&messages) {
                return messages;
            }
        }
    };
    let read = timeout(Duration::from_secs(10), read).await;
    read.unwrap_or_else(|_| panic!("not enough events in ten seconds: {}", String::from_utf8_lossy(&response)))
}

/// Parses the complete events of a response.
///
/// This parser is independent of the library, and knows only the feeds of the examples: lines end
/// in LF, and the data is one line.
fn messages(response: &[u8]) -> Vec<Message> {
    let text = String::from_utf8_lossy(response);
    let Some((_, body)) = text.split_once("\r\n\r\n") else { return Vec::new() };
    let Some((whole, _)) = body.rsplit_once("\n\n") else { return Vec::new() };
    let event = |lines: &str| {
        let field = |name: &str| lines.lines().find_map(|line| line.strip_prefix(name));
        let kind = field("event: ").unwrap_or("message").to_owned();
        Some(Message { id: field("id: ")?.to_owned(), kind, data: field("data: ")?.to_owned() })
    };
    // The cursor at the start of a new client's stream is for the browser. No page listens to it.
    whole.split("\n\n").filter_map(event).filter(|message| message.kind != "hub-cursor").collect()
}

/// Sends an HTTP/1.0 request, and reads the response to its end.
///
/// # Panics
///
/// If the server does not listen, or the response does not end within 40 seconds.
pub async fn request(server: SocketAddr, request: &str) -> String {
    request_until(server, request, |_| false).await
}

/// Creates a resource with a POST of JSON, and returns its id.
///
/// # Errors
///
/// Returns the response if its status is another one.
///
/// # Panics
///
/// If the server does not listen, the response does not end, or it has no id or no matching
/// `Location`.
pub async fn create(server: SocketAddr, path: &str, body: &Value, status: u16) -> Result<String, String> {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    let response = request(server, &format!("{head}\r\n\r\n{body}")).await;
    if !response.starts_with(&format!("HTTP/1.0 {status} ")) {
        return Err(response);
    }
    let (head, body) = response.split_once("\r\n\r\n").expect("a response has a head");
    let body: Value = serde_json::from_str(body).expect("the body is JSON");
    let id = body["id"].as_str().expect("the body has an id");
    assert!(head.contains(&format!("\r\nlocation: {path}/{id}\r\n")), "{head}");
    Ok(id.to_owned())
}

/// Sends an HTTP/1.0 request, and reads the response to its end, or until `is_enough` returns true.
///
/// # Panics
///
/// If the server does not listen, or neither happens within 40 seconds.
pub async fn request_until(server: SocketAddr, request: &str, is_enough: impl Fn(&str) -> bool) -> String {
    let read = async {
        let mut stream = TcpStream::connect(server).await.expect("the server listens");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut response = Vec::new();
        while stream.read_buf(&mut response).await.expect("the server responds") > 0
            && !is_enough(&String::from_utf8_lossy(&response))
        {}
        // The response may end in the middle of a character.
        String::from_utf8_lossy(&response).into_owned()
    };
    timeout(RESPONSE_TIMEOUT, read).await.unwrap_or_else(|_| panic!("the response does not end: {request}"))
}
