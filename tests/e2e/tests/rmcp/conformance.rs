//! The published conformance suite of the protocol, with and without the layer.
//!
//! conformance.json has the constant results that the suite asks for.

#![expect(deprecated, reason = "the suite sets the level of log messages")]

use crate::{HEARTBEAT, RETRY};
use axum::{Router, http::request::Parts};
use e2e::{Client, installed};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestParams, CompleteResult,
        GetPromptRequestParams, GetPromptResponse, GetPromptResult, ListPromptsResult, ListResourcesResult,
        ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
        ServerCapabilities, ServerConfig, SetLevelRequestParams, SubscribeRequestParams, UnsubscribeRequestParams,
    },
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, time::sleep};
use tower_sse::{Heartbeat, SseLayer};

/// The number of scenarios of the suite, and of their checks. docs/clients.md states both.
const SCENARIOS: usize = 32;
const CHECKS: usize = 47;
/// The pauses of the tools that send notifications.
const PAUSE: Duration = Duration::from_millis(100);

/// The suite limits the time of each scenario. A busy machine can exceed these limits, so both suites
/// run again after a failure.
const RUNS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn conformance_suite_has_same_outcomes_under_layer() {
    for run in 1..=RUNS {
        let [bare, layered] = run_suites().await;
        let is_success = |(_, status): &(String, String)| status == "SUCCESS";
        let failed: Vec<_> = layered.iter().filter(|(_, checks)| !checks.iter().all(is_success)).collect();
        if (bare != layered || !failed.is_empty()) && run < RUNS {
            println!("run {run} has failed: {failed:#?}");
            continue;
        }
        assert_eq!(bare, layered);
        assert!(failed.is_empty(), "{failed:#?}");
        let checks = layered.values().map(Vec::len).sum::<usize>();
        assert_eq!((layered.len(), checks), (SCENARIOS, CHECKS), "update docs/clients.md");
        return;
    }
}

/// Runs the suite against a bare server, and against a server with the layer.
async fn run_suites() -> [BTreeMap<String, Vec<(String, String)>>; 2] {
    let closed = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&closed);
    let layer = SseLayer::new()
        .heartbeat(Heartbeat::every(HEARTBEAT))
        .on_close(move |summary| into.lock().expect("no holder panics").push(summary));
    let mut bare = Suite::start(serve(service()).await);
    let mut layered = Suite::start(serve(service().layer(layer)).await);
    let outcomes = tokio::task::block_in_place(|| [bare.finish(), layered.finish()]);

    let closed = closed.lock().expect("no holder panics");
    let with_heartbeats = closed.iter().filter(|summary| summary.heartbeats > 0).count();
    println!("{} streams went through the layer, {with_heartbeats} of them with heartbeats", closed.len());
    assert!(with_heartbeats > 0, "{closed:?}");
    outcomes
}

/// A run of the suite.
struct Suite {
    program: Client,
    results: tempfile::TempDir,
}

impl Suite {
    fn start(server: SocketAddr) -> Self {
        let program = clients().join("node_modules/@modelcontextprotocol/conformance/dist/index.js");
        let results = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(installed(&["node", "nodejs"], "nodejs"));
        command.arg(program).args(["server", "--suite", "all", "--url", &format!("http://{server}/mcp"), "-o"]);
        command.arg(results.path());
        Self { program: Client::start(&mut command), results }
    }

    /// Returns the checks of each scenario with their outcomes.
    fn finish(&mut self) -> BTreeMap<String, Vec<(String, String)>> {
        // The exit status is a failure if any check fails. The test compares the checks instead.
        let status = self.program.wait_for_exit(Duration::from_secs(120));
        assert!(status.is_some(), "the suite does not end: {:#?}", self.program.lines());
        let mut scenarios = BTreeMap::new();
        for folder in fs::read_dir(self.results.path()).expect("results") {
            let folder = folder.expect("results");
            let name = folder.file_name().into_string().expect("ASCII");
            // The name also has the start time of the scenario.
            let scenario = &name[..name.len() - "-2026-11-30T01-02-03-456Z".len()];
            let checks = File::open(folder.path().join("checks.json")).expect("the checks of a scenario");
            let checks: Vec<Value> = serde_json::from_reader(checks).expect("a list of checks");
            for check in checks.iter().filter(|check| check.get("errorMessage").is_some()) {
                println!("{scenario}: {}", check["errorMessage"]);
            }
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            // An entry with the status INFO is a log line, and not a check.
            let checks = checks.iter().filter(|check| check["status"] != "INFO");
            let checks = checks.map(|check| (text(&check["id"]), text(&check["status"]))).collect();
            scenarios.insert(scenario.to_owned(), checks);
        }
        scenarios
    }
}

/// Returns the folder with the clients from npm.
fn clients() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("e2e-clients/node");
    assert!(folder.exists(), "{} does not exist: run scripts/test, which installs it", folder.display());
    folder
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("the port");
    tokio::spawn(async { axum::serve(listener, app).await.expect("the server runs") });
    address
}

fn service() -> Router {
    // Without an event store: the suite expects that a resumed stream waits for the result of its call.
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.sse_retry = Some(RETRY);
    let sessions = Arc::new(sessions);
    let config = StreamableHttpServerConfig::default().with_sse_keep_alive(None).with_sse_retry(Some(RETRY));
    let tools = Tools { sessions: Arc::clone(&sessions) };
    Router::new().route_service("/mcp", StreamableHttpService::new(move || Ok(tools.clone()), sessions, config))
}

static CONSTANTS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("conformance.json")).expect("JSON"));

/// The tools, resources and prompts that the suite expects.
#[derive(Clone)]
struct Tools {
    sessions: Arc<LocalSessionManager>,
}

impl Tools {
    /// Calls a tool with an outcome that is not constant, and returns its text.
    async fn call(&self, request: &CallToolRequestParams, context: &RequestContext<RoleServer>) -> String {
        let name = &*request.name;
        let argument = |key: &str| request.arguments.as_ref().and_then(|arguments| arguments.get(key)).cloned();
        if let Some(schema) = CONSTANTS["elicitations"].get(name) {
            let message = argument("message").unwrap_or_else(|| "A question".into());
            let params = json!({ "mode": "form", "message": message, "requestedSchema": schema });
            return ask(context, "elicitation/create", params).await;
        }
        match name {
            "test_sampling" => {
                let content = json!({ "type": "text", "text": argument("prompt") });
                let params = json!({ "messages": [{ "role": "user", "content": content }], "maxTokens": 100 });
                ask(context, "sampling/createMessage", params).await
            }
            "test_tool_with_logging" => {
                for step in ["started", "continues", "ended"] {
                    notify(context, "notifications/message", json!({ "level": "info", "data": step })).await;
                    sleep(PAUSE).await;
                }
                "logged".to_owned()
            }
            "test_tool_with_progress" => {
                let token = context.meta.get_progress_token();
                for progress in [0, 50, 100] {
                    let params = json!({ "progressToken": token, "progress": progress, "total": 100 });
                    notify(context, "notifications/progress", params).await;
                    sleep(PAUSE).await;
                }
                "reported".to_owned()
            }
            "test_reconnection" => {
                let parts = context.extensions.get::<Parts>().expect("the head of the request");
                let session = parts.headers["mcp-session-id"].to_str().expect("ASCII");
                let session = self.sessions.sessions.read().await[session].clone();
                // The call is the first request of its session.
                session.close_sse_stream(0, Some(RETRY)).await.expect("the stream is open");
                sleep(PAUSE).await;
                "reconnected".to_owned()
            }
            _ => "unused".to_owned(),
        }
    }
}

/// Sends a request to the client, and returns its result as text.
async fn ask(context: &RequestContext<RoleServer>, method: &str, params: Value) -> String {
    let request = json!({ "method": method, "params": params });
    let answer = context.peer.send_request(typed(request)).await.expect("an answer");
    serde_json::to_string(&answer).expect("JSON")
}

async fn notify(context: &RequestContext<RoleServer>, method: &str, params: Value) {
    let notification = json!({ "method": method, "params": params });
    context.peer.send_notification(typed(notification)).await.expect("a client");
}

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the model of rmcp has all fields")
}

fn names(object: &Value) -> impl Iterator<Item = &String> {
    object.as_object().expect("an object").keys()
}

fn unknown(name: &str) -> ErrorData {
    ErrorData::invalid_params(format!("{name} does not exist"), None)
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        let capabilities: ServerCapabilities = typed(json!({
            "completions": {}, "logging": {}, "prompts": {}, "resources": { "subscribe": true }, "tools": {},
        }));
        ServerConfig::new(capabilities)
    }

    async fn set_level(&self, _: SetLevelRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn complete(
        &self,
        _: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        Ok(typed(json!({ "completion": { "values": ["test value"] } })))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let other = ["test_sampling", "test_tool_with_logging", "test_tool_with_progress", "test_reconnection"];
        let groups = ["tools", "schemas", "elicitations"].map(|group| &CONSTANTS[group]);
        let names = groups.into_iter().flat_map(names).map(String::as_str).chain(other);
        let tools = names.map(|name| {
            let schema = CONSTANTS["schemas"].get(name).cloned().unwrap_or_else(|| json!({ "type": "object" }));
            json!({ "name": name, "description": "A tool", "inputSchema": schema })
        });
        Ok(typed(json!({ "tools": tools.collect::<Vec<_>>() })))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(result) = CONSTANTS["tools"].get(&*request.name) {
            return Ok(typed::<CallToolResult>(result.clone()).into());
        }
        let text = self.call(&request, &context).await;
        Ok(typed::<CallToolResult>(json!({ "content": [{ "type": "text", "text": text }] })).into())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let resources = names(&CONSTANTS["resources"]).map(|uri| json!({ "uri": uri, "name": uri }));
        Ok(typed(json!({ "resources": resources.collect::<Vec<_>>() })))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let mut content = CONSTANTS["resources"].get(&request.uri).cloned().ok_or_else(|| unknown(&request.uri))?;
        content["uri"] = request.uri.into();
        Ok(typed::<ReadResourceResult>(json!({ "contents": [content] })).into())
    }

    async fn subscribe(&self, _: SubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(&self, _: UnsubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let prompts = names(&CONSTANTS["prompts"]).map(|name| json!({ "name": name, "description": "A prompt" }));
        Ok(typed(json!({ "prompts": prompts.collect::<Vec<_>>() })))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let messages = CONSTANTS["prompts"].get(&request.name).ok_or_else(|| unknown(&request.name))?;
        let mut text = json!({ "messages": messages }).to_string();
        for (name, value) in request.arguments.into_iter().flatten() {
            text = text.replace(&format!("{{{name}}}"), value.as_str().unwrap_or_default());
        }
        let result: GetPromptResult = serde_json::from_str(&text).expect("the arguments have no quotation marks");
        Ok(result.into())
    }
}
