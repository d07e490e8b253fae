//! The servers without a browser.

use serde_json::Value;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// By then whatever an example does has ended, on a machine that has much else to do.
const TO_THE_END: Duration = Duration::from_secs(40);

/// What a client is to dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id, opaque.
    pub id: String,
    /// Its type: `message` for one without a name.
    pub kind: String,
    /// Its data.
    pub data: String,
}

impl Message {
    /// From the object that a page has made of it.
    pub fn from_page(value: &Value) -> Option<Self> {
        let field = |name: &str| Some(value[name].as_str()?.to_owned());
        Some(Self { id: field("id")?, kind: field("type")?, data: field("data")? })
    }
}

/// Reads the feed from the oldest event that the server holds, until and with the event of this id.
///
/// # Panics
///
/// If the server ends the feed before, or does not come to the event in ten seconds.
pub async fn read_until(server: SocketAddr, id: &str) -> Vec<Message> {
    let mut messages = read(server, |messages| messages.iter().any(|message| message.id == id)).await;
    let through = messages.iter().position(|message| message.id == id).expect("it was read until there");
    messages.truncate(through + 1);
    messages
}

/// Reads the feed from the oldest event that the server holds, as a newcomer, until that is enough.
///
/// It asks in HTTP/1.0, so that the body is nothing but the event stream.
///
/// # Panics
///
/// If the server ends the feed before, or does not send enough in ten seconds.
pub async fn read(server: SocketAddr, is_enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
    let mut response = Vec::new();
    let read = async {
        let mut stream = TcpStream::connect(server).await.expect("the server listens");
        let request = format!("GET /events HTTP/1.0\r\nHost: {server}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        loop {
            let n = stream.read_buf(&mut response).await.expect("the server writes");
            assert!(n > 0, "the feed ended: {}", String::from_utf8_lossy(&response));
            let messages = messages(&response);
            if is_enough(&messages) {
                return messages;
            }
        }
    };
    let read = timeout(Duration::from_secs(10), read).await;
    read.unwrap_or_else(|_| panic!("that is not enough: {}", String::from_utf8_lossy(&response)))
}

/// The whole events of a response, written apart from the library for one feed: lines end in LF, data is one line.
fn messages(response: &[u8]) -> Vec<Message> {
    let text = String::from_utf8_lossy(response);
    let Some((_, body)) = text.split_once("\r\n\r\n") else { return Vec::new() };
    let Some((whole, _)) = body.rsplit_once("\n\n") else { return Vec::new() };
    let event = |lines: &str| {
        let field = |name: &str| lines.lines().find_map(|line| line.strip_prefix(name));
        let kind = field("event: ").unwrap_or("message").to_owned();
        Some(Message { id: field("id: ")?.to_owned(), kind, data: field("data: ")?.to_owned() })
    };
    // The place with which the stream of a newcomer begins is for its browser: no page listens to it.
    whole.split("\n\n").filter_map(event).filter(|message| message.kind != "hub-cursor").collect()
}

/// Sends a request in HTTP/1.0, so that a body is nothing but what was written, and reads the response to its end.
///
/// # Panics
///
/// If there is no server, or no end.
pub async fn request(server: SocketAddr, request: &str) -> String {
    request_until(server, request, |_| false).await
}

/// Posts JSON to have something made, and returns its id, below which it is to be found; the response if this has another
/// status.
///
/// # Panics
///
/// If there is no server, no end, or neither an id nor the place that goes with it.
pub async fn create(server: SocketAddr, path: &str, body: &Value, status: u16) -> Result<String, String> {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    let response = request(server, &format!("{head}\r\n\r\n{body}")).await;
    if !response.starts_with(&format!("HTTP/1.0 {status} ")) {
        return Err(response);
    }
    let (head, body) = response.split_once("\r\n\r\n").expect("a response has a head");
    let body: Value = serde_json::from_str(body).expect("its body is JSON");
    let id = body["id"].as_str().expect("it has an id");
    assert!(head.contains(&format!("\r\nlocation: {path}/{id}\r\n")), "{head}");
    Ok(id.to_owned())
}

/// Sends a request in HTTP/1.0, and reads the response to its end, or as far as it is enough.
///
/// # Panics
///
/// If there is no server, no end, and never enough.
pub async fn request_until(server: SocketAddr, request: &str, is_enough: impl Fn(&str) -> bool) -> String {
    let read = async {
        let mut stream = TcpStream::connect(server).await.expect("the server listens");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut response = Vec::new();
        while stream.read_buf(&mut response).await.expect("the server writes") > 0
            && !is_enough(&String::from_utf8_lossy(&response))
        {}
        // It may end in the middle of a character.
        String::from_utf8_lossy(&response).into_owned()
    };
    timeout(TO_THE_END, read).await.unwrap_or_else(|_| panic!("the response does not end: {request}"))
}
