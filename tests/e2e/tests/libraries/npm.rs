//! Libraries from npm.

use crate::{Library, NEWS, Run, news};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn undici() {
    Library {
        name: "undici",
        run: Run::Node("read_with_undici.cjs"),
        answer: news(),
        dispatches: NEWS,
        reconnects: true,
        differs: &[],
        waits: &[("raw/half", 190..5000), ("layer/end", 190..5000), ("retry", 1990..6000), ("shutdown", 990..5000)],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eventsource_parser() {
    Library {
        name: "eventsource-parser",
        run: Run::Node("read_with_eventsource_parser.cjs"),
        answer: news(),
        dispatches: NEWS,
        reconnects: false,
        differs: &[
            // The last CR could be the first half of a CRLF.
            ("raw/cr", &["message: Grüße, 日本, 🦀", "news: two\nlines"], &["-"]),
            // The error is that of `fetch`.
            ("layer/broken", &["message: Grüße, 日本, 🦀", "error: TypeError"], &["-"]),
        ],
        waits: &[],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn htmx() {
    Library {
        name: "htmx",
        run: Run::Page("read_with_htmx.html"),
        answer: news(),
        dispatches: NEWS,
        reconnects: true,
        differs: &[
            ("layer/broken", &["message: Grüße, 日本, 🦀", "error: ", "news: two\nlines", "end: end"], &["-", "1"]),
            ("layer/204", NEWS, &["-", "1", "1", "1"]),
        ],
        waits: &[
            // It ignores a delay that stands alone, and waits for 500 ms. Jitter adds or removes up
            // to 30 %.
            ("raw/half", 340..5000),
            ("layer/end", 130..5000),
            ("retry", 1390..6000),
            ("shutdown", 690..5000),
        ],
    }
    .check()
    .await;
}

/// Text with characters that some libraries treat as line ends.
const TEXT: &str = "Grüße\u{2028}日本\u{85}🦀";

#[tokio::test(flavor = "multi_thread")]
async fn ai() {
    Library {
        name: "ai",
        run: Run::Node("read_with_ai.cjs"),
        answer: vec![
            ("message", json!({ "type": "text-delta", "id": "text", "delta": TEXT }).to_string()),
            ("message", json!({ "type": "finish" }).to_string()),
            ("message", "[DONE]".into()),
        ],
        dispatches: &["text-delta: Grüße\u{2028}日本\u{85}🦀", "finish: ", "closed: "],
        reconnects: false,
        differs: &[
            ("raw/half", &["text-delta: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("layer/hub-cursor", &["error: AI_JSONParseError"], &["-"]),
            ("layer/gap", &["error: AI_TypeValidationError"], &["-"]),
            ("layer/end", &["text-delta: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("layer/broken", &["text-delta: Grüße\u{2028}日本\u{85}🦀", "error: TypeError"], &["-"]),
            ("layer/204", &["text-delta: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("retry", &["text-delta: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("shutdown", &["text-delta: Grüße\u{2028}日本\u{85}🦀", "error: AI_JSONParseError"], &["-"]),
        ],
        waits: &[],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tanstack_ai() {
    Library {
        name: "TanStack AI",
        run: Run::Node("read_with_tanstack_ai.cjs"),
        answer: vec![
            ("message", json!({ "type": "TEXT_MESSAGE_CONTENT", "messageId": "text", "delta": TEXT }).to_string()),
            ("message", json!({ "type": "RUN_FINISHED", "threadId": "t", "runId": "r" }).to_string()),
        ],
        dispatches: &["TEXT_MESSAGE_CONTENT: Grüße\u{2028}日本\u{85}🦀", "RUN_FINISHED: ", "closed: "],
        reconnects: true,
        differs: &[
            ("raw/cr", &["error: StreamTruncatedError"], &["-"]),
            ("raw/half", &["TEXT_MESSAGE_CONTENT: Grüße\u{2028}日本\u{85}🦀", "error: SyntaxError"], &["-"]),
            ("layer/hub-cursor", &["error: SyntaxError"], &["-"]),
            (
                "layer/gap",
                &[": ", "TEXT_MESSAGE_CONTENT: Grüße\u{2028}日本\u{85}🦀", "RUN_FINISHED: ", "closed: "],
                &["-"],
            ),
            (
                "layer/204",
                &["TEXT_MESSAGE_CONTENT: Grüße\u{2028}日本\u{85}🦀", "error: UnsupportedResponseStreamError"],
                &["-", "1"],
            ),
            ("shutdown", &["TEXT_MESSAGE_CONTENT: Grüße\u{2028}日本\u{85}🦀", "error: SyntaxError"], &["-"]),
        ],
        waits: &[
            // A delay of its own, whatever the server sends.
            ("layer/end", 240..5000),
            ("retry", 240..1990),
        ],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai() {
    let chunk = json!({
        "id": "answer", "object": "chat.completion.chunk", "created": 0, "model": "any",
        "choices": [{ "index": 0, "delta": { "content": TEXT }, "finish_reason": null }],
    });
    Library {
        name: "openai",
        run: Run::Node("read_with_openai.cjs"),
        answer: vec![("message", chunk.to_string()), ("message", "[DONE]".into())],
        dispatches: &["chunk: Grüße\u{2028}日本\u{85}🦀", "closed: "],
        reconnects: false,
        differs: &[
            ("raw/half", &["chunk: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("layer/hub-cursor", &["error: SyntaxError"], &["-"]),
            ("layer/gap", &["chunk: without choices", "chunk: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("layer/end", &["chunk: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("layer/broken", &["chunk: Grüße\u{2028}日本\u{85}🦀", "error: TypeError"], &["-"]),
            ("layer/204", &["chunk: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("retry", &["chunk: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("shutdown", &["chunk: Grüße\u{2028}日本\u{85}🦀", "error: SyntaxError"], &["-"]),
        ],
        waits: &[],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anthropic() {
    let text = json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": TEXT } });
    Library {
        name: "@anthropic-ai/sdk",
        run: Run::Node("read_with_anthropic.cjs"),
        answer: vec![
            ("content_block_delta", text.to_string()),
            ("message_stop", json!({ "type": "message_stop" }).to_string()),
        ],
        dispatches: &["content_block_delta: Grüße\u{2028}日本\u{85}🦀", "message_stop: ", "closed: "],
        reconnects: false,
        differs: &[
            ("raw/half", &["content_block_delta: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            (
                "layer/hub-cursor",
                &["content_block_delta: Grüße\u{2028}日本\u{85}🦀", "message_stop: ", "closed: "],
                &["-"],
            ),
            (
                "layer/gap",
                &["without type: ", "content_block_delta: Grüße\u{2028}日本\u{85}🦀", "message_stop: ", "closed: "],
                &["-"],
            ),
            ("layer/end", &["content_block_delta: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("layer/broken", &["content_block_delta: Grüße\u{2028}日本\u{85}🦀", "error: TypeError"], &["-"]),
            ("layer/204", &["content_block_delta: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("retry", &["content_block_delta: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-"]),
            ("shutdown", &["content_block_delta: Grüße\u{2028}日本\u{85}🦀", "error: SyntaxError"], &["-"]),
        ],
        waits: &[],
    }
    .check()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn graphql_sse() {
    Library {
        name: "graphql-sse",
        run: Run::Node("read_with_graphql_sse.cjs"),
        answer: vec![("next", json!({ "data": { "news": TEXT } }).to_string()), ("complete", String::new())],
        dispatches: &["next: Grüße\u{2028}日本\u{85}🦀", "closed: "],
        reconnects: false,
        differs: &[
            ("raw/half", &["next: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-", "-"]),
            ("layer/end", &["next: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-", "-"]),
            ("layer/broken", &["next: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-", "-"]),
            ("retry", &["next: Grüße\u{2028}日本\u{85}🦀", "closed: "], &["-", "-"]),
            ("layer/204", &["next: Grüße\u{2028}日本\u{85}🦀", "error: Missing response body"], &["-", "-"]),
            ("layer/hub-cursor", &["error: Invalid stream event \"hub-cursor\""], &["-"]),
            ("layer/gap", &["error: Invalid stream event \"gap\""], &["-"]),
            ("shutdown", &["next: Grüße\u{2028}日本\u{85}🦀", "error: Invalid stream event \"shutdown\""], &["-"]),
        ],
        waits: &[],
    }
    .check()
    .await;
}
