//! The feed without a browser.

use serde_json::Value;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// What a client is to dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id, a number that rises.
    pub id: u64,
    /// Its type: `message` for one without a name.
    pub kind: String,
    /// Its data.
    pub data: String,
}

impl Message {
    /// From the object that a page has made of it.
    pub fn from_page(value: &Value) -> Option<Self> {
        let field = |name: &str| Some(value[name].as_str()?.to_owned());
        Some(Self { id: field("id")?.parse().ok()?, kind: field("type")?, data: field("data")? })
    }
}

/// Reads the feed from its beginning, until and with the event of this id.
///
/// It asks in HTTP/1.0, so that the body is nothing but the event stream.
///
/// # Panics
///
/// If the server ends the feed before, or does not come to the event in ten seconds.
pub async fn read_until(server: SocketAddr, id: u64) -> Vec<Message> {
    let read = async {
        let mut stream = TcpStream::connect(server).await.expect("the server listens");
        let request = format!("GET /events HTTP/1.0\r\nHost: {server}\r\nLast-Event-ID: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut response = Vec::new();
        loop {
            let n = stream.read_buf(&mut response).await.expect("the server writes");
            assert!(n > 0, "the feed ended before the event {id}: {}", String::from_utf8_lossy(&response));
            let messages = messages(&response);
            if messages.last().is_some_and(|last| last.id >= id) {
                return messages.into_iter().filter(|message| message.id <= id).collect();
            }
        }
    };
    timeout(Duration::from_secs(10), read).await.unwrap_or_else(|_| panic!("the feed does not come to the event {id}"))
}

/// The whole events of a response, written apart from the library for one feed: lines end in LF, data is one line.
fn messages(response: &[u8]) -> Vec<Message> {
    let text = String::from_utf8_lossy(response);
    let Some((_, body)) = text.split_once("\r\n\r\n") else { return Vec::new() };
    let Some((whole, _)) = body.rsplit_once("\n\n") else { return Vec::new() };
    let event = |lines: &str| {
        let field = |name: &str| lines.lines().find_map(|line| line.strip_prefix(name));
        let kind = field("event: ").unwrap_or("message").to_owned();
        Some(Message { id: field("id: ")?.parse().ok()?, kind, data: field("data: ")?.to_owned() })
    };
    whole.split("\n\n").filter_map(event).collect()
}
