//! The `protocols` example with the clients of its protocols, from npm and PyPI. Each client that
//! can resume leaves its answer, and then reads the whole answer.

use e2e::{Browser, Client, Example, Relay, Window, eventually, installed, stays};
use serde_json::{Value, json};
use std::{path::PathBuf, process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(60);
/// Milliseconds between two words. A client that leaves must do so before the end of the answer,
/// even on a busy machine, so an answer takes four seconds.
const PACE: &str = "300";
/// The answer to "What is new?".
const ANSWER: &str = "You asked: What is new?\nThis  answer has two lines, and 日本 🦀.";

/// A file that `tests/e2e/clients/install` has put into cargo's target folder.
fn installed_client(path: &str) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("e2e-clients").join(path);
    assert!(file.exists(), "{} does not exist: run scripts/test, which installs it", file.display());
    file
}

fn script(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(path)
}

fn node(name: &str) -> Command {
    let mut command = Command::new(installed(&["node", "nodejs"], "nodejs"));
    command.env("NODE_PATH", installed_client("node/node_modules")).arg(script(&format!("node/{name}")));
    command
}

/// Runs a script with the URL of the example, and returns what it writes.
fn run(mut command: Command) -> Vec<Value> {
    let example = Example::start("protocols", &[PACE]);
    let mut client = Client::start(command.arg(format!("http://{}", example.address())));
    let status = client.wait_for_exit(SOON);
    assert!(status.is_some_and(|status| status.success()), "{status:?}: {:?}", client.lines());
    client.lines().iter().map(|line| serde_json::from_str(line).expect("the script writes JSON")).collect()
}

#[test]
fn ai_resumes_an_answer_until_it_is_complete() {
    let lines = run(node("resume_with_ai.cjs"));
    let expected = [
        json!({ "left": "You " }),
        json!({ "name": "AbortError" }),
        json!({ "resumed": ANSWER }),
        json!({ "complete": null }),
        json!({ "unknown": null }),
    ];
    assert_eq!(lines, expected);
}

/// The lines of both openai packages.
fn resumed_with_openai() -> [Value; 3] {
    let words = ANSWER.split_inclusive(' ').count();
    [
        json!({ "chunks": words + 1, "text": ANSWER, "finish_reason": "stop" }),
        json!({ "numbers": true, "text": ANSWER, "last": "response.completed" }),
        json!({ "status": 404 }),
    ]
}

#[test]
fn openai_for_node_resumes_completions_and_responses() {
    assert_eq!(run(node("resume_with_openai.cjs")), resumed_with_openai());
}

#[test]
fn openai_for_python_resumes_completions_and_responses() {
    let mut python = Command::new(installed_client("python/bin/python"));
    python.arg(script("python/resume_with_openai.py"));
    assert_eq!(run(python), resumed_with_openai());
}

#[test]
fn graphql_sse_reads_results_until_complete() {
    assert_eq!(run(node("subscribe_with_graphql_sse.cjs")), [json!({ "text": ANSWER })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn htmx_appends_html_and_resumes_once() {
    let packages = installed_client("node/node_modules");
    let example = Example::start("protocols", &[PACE, packages.to_str().expect("the path is UTF-8")]);
    let relay = Relay::to(example.address()).await.expect("there is a free port");
    let browser = Browser::start(Window::Desktop).await;
    browser.client().goto(&format!("http://{}", relay.address())).await.expect("the page loads");
    let text = async || browser.eval("document.querySelector('#answer').textContent").await;
    let has = async |words: &str| {
        eventually(SOON, words, async || match text().await {
            Value::String(text) if text.contains(words) => Ok(()),
            other => Err(other),
        })
        .await;
    };
    has("asked").await;
    relay.cut();
    relay.mend();
    has("🦀").await;
    assert_eq!(text().await, ANSWER);
    browser.assert_accessible().await;
    stays(Duration::from_secs(2), "the requests after the end", async || relay.heads().len()).await;
    let requests: Vec<_> = relay.heads().into_iter().filter(|head| head.target() == "/words").collect();
    assert_eq!(requests.len(), 2, "it reconnects after the cut, and not after the end: {requests:?}");
    assert!(requests[1].header("last-event-id").is_some_and(|id| id.parse::<usize>().is_ok()), "{requests:?}");
}
