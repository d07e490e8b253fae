//! Published client libraries, and each fact of their table in docs/clients.md.
//!
//! Scripts in `tests/e2e/clients` read one scenario after the other. They write each event that the
//! library dispatches. Each test lists the differences of its library from the HTML standard, by
//! scenario.

mod npm;
mod python;
mod server;

use e2e::{Browser, Client, Window, eventually};
use serde_json::Value;
use server::{Lab, Sent};
use std::{collections::BTreeMap, ops::Range, process::Command, time::Duration};

/// All scenarios of a library run in this time.
const SOON: Duration = Duration::from_secs(60);

/// The events for libraries that read any text.
fn news() -> Vec<Sent> {
    let of = |kind, data: &str| (kind, data.to_owned());
    vec![of("message", "Grüße, 日本, 🦀"), of("news", "two\nlines"), of("end", "end")]
}

/// The lines that a script writes for [`news`].
const NEWS: &[&str] = &["message: Grüße, 日本, 🦀", "news: two\nlines", "end: end"];

/// Scenarios for every library.
const SCENARIOS: [&str; 15] = [
    "raw/lf",
    "raw/crlf",
    "raw/cr",
    "raw/charset",
    "raw/bytes",
    "raw/heartbeats",
    "raw/half",
    "layer/hub",
    "layer/hub-cursor",
    "layer/gap",
    "layer/end",
    "layer/broken",
    "layer/204",
    "retry",
    "shutdown",
];
/// Scenarios for libraries that read any text.
const SYNTAX: [&str; 5] = ["raw/separators", "raw/spaces", "raw/empty-data", "raw/empty-first-line", "raw/id-alone"];

/// A library, and how it differs from the standard.
struct Library {
    name: &'static str,
    run: Run,
    answer: Vec<Sent>,
    /// The lines that its script writes for the answer.
    dispatches: &'static [&'static str],
    /// Set for libraries that reconnect by themselves.
    reconnects: bool,
    /// Scenarios with other lines, and with the `Last-Event-ID` of each request.
    differs: &'static [(&'static str, &'static [&'static str], &'static [&'static str])],
    /// Scenarios with the milliseconds before the library reconnects.
    waits: &'static [(&'static str, Range<u128>)],
}

enum Run {
    Node(&'static str),
    /// A script, and a folder of packages that only this script needs.
    Python(&'static str, Option<&'static str>),
    Page(&'static str),
}

/// Everything that a library did in a scenario.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    lines: Vec<String>,
    /// The `Last-Event-ID` of each request, `-` without one.
    ids: Vec<String>,
}

impl Library {
    async fn check(self) {
        let lab = Lab::start(self.answer.clone());
        let syntax: &[_] = if self.dispatches.last() == NEWS.last() { &SYNTAX } else { &[] };
        let scenarios: Vec<_> = SCENARIOS.iter().chain(syntax).copied().collect();
        let mut written = self.run(&lab, &scenarios).await;

        let mut wrong = Vec::new();
        for scenario in &scenarios {
            let ids = lab.visits(scenario).into_iter().map(|visit| visit.last_event_id.unwrap_or_else(|| "-".into()));
            let outcome = Outcome { lines: written.remove(*scenario).unwrap_or_default(), ids: ids.collect() };
            let expected = self.expected(scenario);
            if outcome != expected {
                wrong.push(format!("{scenario}: {outcome:?}\n    but expected {expected:?}"));
            }
        }
        for (scenario, range) in self.waits {
            let visits = lab.visits(scenario);
            match *visits {
                [ref first, ref second, ..] => {
                    let waited = second.at.duration_since(first.at).as_millis();
                    println!("{} waits {waited} ms in {scenario}", self.name);
                    if !range.contains(&waited) {
                        wrong.push(format!("{scenario}: reconnects after {waited} ms, but expected {range:?}"));
                    }
                }
                _ => wrong.push(format!("{scenario}: does not reconnect")),
            }
        }
        assert!(wrong.is_empty(), "the row of {} in docs/clients.md is out of date:\n{}", self.name, wrong.join("\n"));
    }

    /// Returns the lines that its script writes, by scenario.
    async fn run(&self, lab: &Lab, scenarios: &[&str]) -> BTreeMap<String, Vec<String>> {
        let mut command = match self.run {
            Run::Node(script) => {
                let mut command = Command::new(e2e::installed(&["node", "nodejs"], "nodejs"));
                command.env("NODE_PATH", server::installed("node/node_modules")).arg(server::script(script));
                command
            }
            Run::Python(script, packages) => {
                let mut command = Command::new(server::installed("python/bin/python"));
                if let Some(packages) = packages {
                    command.env("PYTHONPATH", server::installed(packages));
                }
                command.arg(server::script(script));
                command
            }
            Run::Page(page) => return read_in_browser(lab, page, scenarios).await,
        };
        let urls = scenarios.iter().map(|scenario| lab.url(scenario));
        let mut client = Client::start(command.args(urls));
        let status = tokio::task::block_in_place(|| client.wait_for_exit(SOON));
        assert!(status.is_some_and(|status| status.success()), "{}: {status:?}, {:?}", self.name, client.lines());

        let mut written = BTreeMap::<_, Vec<_>>::new();
        let mut scenario = String::new();
        for line in client.lines() {
            let value: Value = serde_json::from_str(line).expect("the script writes JSON");
            if let Some(url) = value["url"].as_str() {
                let is_its = |scenario: &&&str| lab.url(scenario) == url;
                scenario = (*scenarios.iter().find(is_its).expect("a scenario of its arguments")).to_owned();
                continue;
            }
            written.entry(scenario.clone()).or_default().push(event_line(&value));
        }
        written
    }

    /// Returns the outcome by the standard, or the one in [`differs`](Self::differs).
    fn expected(&self, scenario: &str) -> Outcome {
        let strings = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        if let Some((_, lines, ids)) = self.differs.iter().find(|(differs, ..)| *differs == scenario) {
            return Outcome { lines: strings(lines), ids: strings(ids) };
        }
        let all = self.dispatches;
        let with_end = |line: &'static [&'static str]| [line, &["end: end"]].concat();
        let once: &[&str] = &["-"];
        let resumed: &[&str] = if self.reconnects { &["-", "1"] } else { &["-"] };
        let first_or_all = if self.reconnects { all } else { &all[..1] };
        let (lines, ids) = match scenario {
            "layer/hub-cursor" => ([&["hub-cursor: "], all].concat(), once),
            "layer/gap" => ([&["gap: …"], all].concat(), once),
            "layer/end" | "layer/broken" | "raw/half" | "retry" => (first_or_all.to_vec(), resumed),
            "layer/204" if self.reconnects => ([&all[..1], &["closed: "]].concat(), resumed),
            "layer/204" => (all[..1].to_vec(), once),
            "shutdown" => ([&all[..1], &["shutdown: restart"], &first_or_all[1..]].concat(), resumed),
            "raw/separators" => (with_end(&["message: 1\u{2028}2\u{2029}3\u{85}4\u{b}5\u{c}6\u{1c}7"]), once),
            "raw/spaces" => (with_end(&["message:   before and after  "]), once),
            "raw/empty-data" => (with_end(&["message: "]), once),
            "raw/empty-first-line" => (with_end(&["message: \nx"]), once),
            "raw/id-alone" => (with_end(&[]), once),
            _ => (all.to_vec(), once),
        };
        Outcome { lines: strings(&lines), ids: strings(ids) }
    }
}

async fn read_in_browser(lab: &Lab, page: &str, scenarios: &[&str]) -> BTreeMap<String, Vec<String>> {
    let browser = Browser::start(Window::Desktop).await;
    let mut written = BTreeMap::new();
    for scenario in scenarios {
        browser.client().goto(&lab.page(page, scenario)).await.expect("the page is there");
        eventually(SOON, &format!("the page has read {scenario}"), async || match browser.eval("isClosed").await {
            Value::Bool(true) => Ok(()),
            _ => Err(browser.eval("reports").await),
        })
        .await;
        let reports = browser.eval("reports").await;
        let reports = reports.as_array().expect("the page keeps them in an array");
        written.insert((*scenario).to_owned(), reports.iter().map(event_line).collect());
    }
    written
}

/// An event that a script has written. The JSON of a gap is left out.
fn event_line(event: &Value) -> String {
    match event["type"].as_str() {
        Some("gap") if event["data"].as_str().is_some_and(|data| !data.is_empty()) => "gap: …".into(),
        kind => format!("{}: {}", kind.unwrap_or_default(), event["data"].as_str().unwrap_or_default()),
    }
}
