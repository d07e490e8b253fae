//! Libraries from PyPI.

use crate::{
    Library, NEWS, Run, news,
    server::{Lab, installed, script},
};
use e2e::{Client, eventually, stays};
use std::{process::Command, time::Duration};

const GRUESSE: &str = "message: Grüße, 日本, 🦀";
/// The same in UTF-8 that was read as Latin-1.
const GARBLED: &str = "message: GrÃ¼Ã\u{9f}e, æ\u{97}¥æ\u{9c}¬, ð\u{9f}¦\u{80}";
const EMPTY: &str = "message: ";
const TWO: &str = "news: two\nlines";
const END: &str = "end: end";

#[tokio::test(flavor = "multi_thread")]
async fn sseclient() {
    Library {
        name: "sseclient",
        run: Run::Python("read_with_sseclient.py", None),
        answer: news(),
        dispatches: &[GARBLED, TWO, END],
        reconnects: true,
        differs: &[
            ("raw/charset", NEWS, &["-"]),
            // It reads the framing of chunks as text.
            (
                "raw/bytes",
                &[EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, "error: HTTPError"],
                &["-", "-"],
            ),
            ("raw/heartbeats", &[EMPTY, GARBLED, TWO, END], &["-"]),
            // Half an event is joined with the next one.
            ("raw/half", &[EMPTY, GARBLED, "news: half\ntwo\nlines", END], &["-", "1"]),
            // The last chunk is an empty event.
            ("layer/end", &[GARBLED, EMPTY, TWO, END], &["-", "1"]),
            ("layer/204", &[GARBLED, EMPTY, TWO, END], &["-", "1", "1", "1"]),
            ("shutdown", &[GARBLED, "shutdown: restart", EMPTY, TWO, END], &["-", "1"]),
            ("raw/separators", &["message: 1â\u{80}¨2â\u{80}©3Â", END], &["-"]),
            ("raw/empty-first-line", &["message: x", END], &["-"]),
            ("raw/id-alone", &[EMPTY, END], &["-"]),
        ],
        waits: &[("layer/end", 190..5000), ("retry", 1990..6000), ("shutdown", 990..5000)],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sseclient_py() {
    Library {
        name: "sseclient-py",
        run: Run::Python("read_with_sseclient_py.py", Some("python/sseclient-py")),
        answer: news(),
        dispatches: NEWS,
        reconnects: false,
        differs: &[
            ("raw/half", &[GRUESSE, "message: half"], &["-"]),
            ("layer/broken", &[GRUESSE, "error: ChunkedEncodingError"], &["-"]),
        ],
        waits: &[],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiosseclient() {
    Library {
        name: "aiosseclient",
        run: Run::Python("read_with_aiosseclient.py", None),
        answer: news(),
        dispatches: NEWS,
        reconnects: false,
        differs: &[
            ("raw/cr", &[], &["-"]),
            ("raw/half", &[EMPTY, GRUESSE], &["-"]),
            ("layer/broken", &[GRUESSE, "error: ClientPayloadError"], &["-"]),
            ("raw/separators", &["message: 1", END], &["-"]),
            ("raw/empty-first-line", &["message: x", END], &["-"]),
            ("raw/id-alone", &[EMPTY, END], &["-"]),
        ],
        waits: &[],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_sse() {
    Library {
        name: "requests-sse",
        run: Run::Python("read_with_requests_sse.py", None),
        answer: news(),
        dispatches: NEWS,
        reconnects: true,
        differs: &[
            ("layer/204", &[GRUESSE, "error: InvalidStatusCodeError"], &["-", "1"]),
            ("raw/spaces", &["message: before and after  ", END], &["-"]),
        ],
        waits: &[
            // Twice the delay that the server sends.
            ("layer/end", 390..5000),
            ("retry", 3990..8000),
            ("shutdown", 1990..6000),
        ],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiohttp_sse_client() {
    Library {
        name: "aiohttp-sse-client",
        run: Run::Python("read_with_aiohttp_sse_client.py", None),
        answer: news(),
        dispatches: NEWS,
        reconnects: true,
        differs: &[
            ("raw/cr", &["error: ConnectionError"], &["-", "-"]),
            ("raw/half", &[GRUESSE, "news: half\ntwo\nlines", END], &["-", "1"]),
            ("layer/broken", &[GRUESSE, "error: ClientPayloadError"], &["-"]),
            ("layer/204", &[GRUESSE, "error: ConnectionAbortedError"], &["-", "1"]),
            ("raw/spaces", &["message: before and after  ", END], &["-"]),
        ],
        waits: &[
            // Twice the delay that the server sends.
            ("layer/end", 390..5000),
            ("retry", 3990..8000),
            ("shutdown", 1990..6000),
        ],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn httpx_sse() {
    Library {
        name: "httpx-sse",
        run: Run::Python("read_with_httpx_sse.py", None),
        answer: news(),
        dispatches: NEWS,
        reconnects: false,
        differs: &[
            ("raw/half", &[EMPTY, GRUESSE], &["-"]),
            ("layer/broken", &[GRUESSE, "error: RemoteProtocolError"], &["-"]),
            ("raw/id-alone", &[EMPTY, END], &["-"]),
        ],
        waits: &[],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sseclient_on_kept_connection_misses_end() {
    let lab = Lab::start(news());
    let mut command = Command::new(installed("python/bin/python"));
    command.arg(script("read_with_sseclient.py")).arg(lab.url("layer/end")).arg("--keep-alive");
    let mut client = Client::start(&mut command);
    let has_ended = async || if client.lines().iter().any(|line| line.contains("data")) { Ok(()) } else { Err("no") };
    eventually(Duration::from_secs(15), "it has read the first event", has_ended).await;
    stays(Duration::from_secs(1), "it does not reconnect", async || lab.visits("layer/end").len()).await;
}
