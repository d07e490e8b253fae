//! The Model Context Protocol: the layer around the streamable HTTP service of rmcp, with rmcp's
//! own client and the conformance suite.

mod conformance;

use async_trait::async_trait;
use axum::{
    Router, extract,
    http::Method,
    middleware::{Next, from_fn},
};
use e2e::{Example, Relay, eventually, stays};
use rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt, ErrorData, Peer, RoleClient, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ClientRequest, ContentBlock, ListToolsResult,
        PaginatedRequestParams, ProgressNotificationParam, ProtocolVersion, Request, ServerCapabilities, ServerConfig,
        ServerResult, Tool,
    },
    service::{NotificationContext, PeerRequestOptions, RequestContext, RequestHandle, RunningService},
    transport::{
        StreamableHttpClientTransport,
        common::client_side_sse::ExponentialBackoff,
        streamable_http_client::StreamableHttpClientTransportConfig,
        streamable_http_server::{
            StreamableHttpServerConfig, StreamableHttpService,
            session::{
                EventStore, EventStoreError, EventStream, ServerSseMessage,
                local::{LocalSessionManager, SessionConfig},
            },
        },
    },
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use support::{
    client::{Answer, Http1, within},
    whatwg,
};
use tokio::{
    net::TcpListener,
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tower_sse::{CloseReason, Heartbeat, SseLayer, StreamSummary};

const SOON: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_millis(30);
/// The reconnection time that the server of rmcp sets.
const RETRY: Duration = Duration::from_millis(50);
/// The number of steps of a call.
const STEPS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_fill_silences_of_calls_and_notifications() {
    // Without heartbeats of rmcp, and with more and less frequent ones.
    for keep_alive in [None, Some(HEARTBEAT / 3), Some(HEARTBEAT * 3)] {
        let mut server = Server::start_with(Config { keep_alive, ..Config::default() }, |layer| layer).await;
        let relay = Relay::to(server.address).await.expect("a port");
        let mut client = Client::connect(relay.address(), ClientLifecycleMode::Initialize).await;
        let peer = server.next_peer().await;
        converse(&relay, &server.steps, &mut client, Some(peer)).await;
        client.service.cancel().await.expect("the session ends");

        let closed = eventually(SOON, "all streams have ended", async || match server.closed() {
            // The streams of the handshake, the tool list, the call, and the notifications.
            closed if closed.len() >= 4 => Ok(closed),
            closed => Err(closed),
        })
        .await;
        let heartbeats: Vec<_> = closed.iter().map(|summary| summary.heartbeats).collect();
        println!("rmcp's own keep-alive: {keep_alive:?}; heartbeats of the layer in each stream: {heartbeats:?}");
        if keep_alive != Some(HEARTBEAT / 3) {
            assert!(heartbeats.iter().filter(|&&heartbeats| heartbeats >= STEPS as u64).count() >= 2, "{closed:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnect_without_session_cancels_the_call() {
    let mut server = Server::start(|layer| layer).await;
    let relay = Relay::to(server.address).await.expect("a port");
    let lifecycle = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
    let mut client = Client::connect(relay.address(), lifecycle).await;
    converse(&relay, &server.steps, &mut client, None).await;
    server.wait_for_call().await;

    let _call = client.call().await;
    server.wait_for_call().await;
    assert!(server.cancelled.try_recv().is_err(), "the call has not ended");
    drop(client);
    relay.cut();
    within("the tool to be cancelled", server.cancelled.recv()).await.expect("the server runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn call_resumes_after_its_connection_is_cut() {
    // Without an event store, rmcp retains the messages of a call until it ends.
    for (stores_events, while_disconnected) in [(false, 1), (true, 2)] {
        let server = Server::start_with(Config { stores_events, ..Config::default() }, |layer| layer).await;
        let relay = Relay::to(server.address).await.expect("a port");
        let mut client = Client::connect(relay.address(), ClientLifecycleMode::Initialize).await;
        let call = client.call().await;
        server.steps.add_permits(1);
        client.wait_for_steps(1).await;
        relay.cut();
        eventually(SOON, "the connections are closed", async || match relay.open_connections() {
            0 => Ok(()),
            open => Err(open),
        })
        .await;
        server.steps.add_permits(while_disconnected);
        eventually(SOON, "the tool has continued", async || match server.steps.available_permits() {
            0 => Ok(()),
            permits => Err(permits),
        })
        .await;
        relay.mend();
        client.wait_for_steps(1 + while_disconnected).await;
        server.steps.add_permits(STEPS - 1 - while_disconnected);
        client.wait_for_steps(3).await;
        assert_eq!(result(call).await, "counted to 3");
        let resumed: Vec<_> =
            relay.heads().iter().filter_map(|head| head.header("last-event-id").map(str::to_owned)).collect();
        println!("events are stored: {stores_events}; resumed after {resumed:?}");
        assert!(!resumed.is_empty(), "the client reconnects with an id");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn call_survives_max_lifetime_of_its_streams() {
    const LIFETIME: Duration = Duration::from_millis(300);
    let config = Config { stores_events: true, ..Config::default() };
    let mut server = Server::start_with(config, |layer| layer.max_lifetime(LIFETIME)).await;
    let mut client = Client::connect(server.address, ClientLifecycleMode::Initialize).await;
    let call = client.call().await;
    server.wait_for_call().await;
    for step in 1..=STEPS {
        let before = server.lifetimes_reached();
        eventually(SOON, "a stream has reached its lifetime", async || match server.lifetimes_reached() {
            now if now > before => Ok(()),
            now => Err(now),
        })
        .await;
        server.steps.add_permits(1);
        client.wait_for_steps(step).await;
    }
    assert_eq!(result(call).await, "counted to 3");
    client.service.cancel().await.expect("the session ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_shutdown_token_lets_the_server_end() {
    for has_shutdown in [true, false] {
        let shutdown = CancellationToken::new();
        let for_layer = shutdown.clone();
        let mut server = Server::start(|layer| if has_shutdown { layer.shutdown(for_layer) } else { layer }).await;
        let stop = server.stop.clone();
        let mut client = Client::connect(server.address, ClientLifecycleMode::Initialize).await;
        server.next_peer().await;
        let _call = client.call().await;
        server.steps.add_permits(1);
        assert_eq!(client.next_progress().await, 1.0);
        within("a stream of notifications", server.opened.recv()).await.expect("the server runs");

        shutdown.cancel();
        stop.cancel();
        if has_shutdown {
            within("the server to end", &mut server.serving).await.expect("the server does not panic");
            let closed = server.closed();
            let by_shutdown = closed.iter().filter(|summary| summary.reason == CloseReason::Shutdown).count();
            // The streams of the call and of the notifications.
            assert!(by_shutdown >= 2, "{closed:?}");
        } else {
            stays(Duration::from_secs(1), "the server waits for its streams", async || server.serving.is_finished())
                .await;
            assert!(!server.serving.is_finished());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layer_keeps_rmcp_headers_and_other_responses() {
    const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
    let with = Server::start(|layer| layer).await;
    let without = Server::start_without_layer().await;

    let mut answers = Vec::new();
    for server in [&with, &without] {
        let mut answer = post(server.address, &[ACCEPT], INITIALIZE).await;
        answer.read_until("\"serverInfo\"").await;
        assert_eq!(answer.status, 200);
        assert!(answer.headers.remove("mcp-session-id").is_some(), "{:?}", answer.headers);
        answer.headers.remove("date");
        answers.push(answer);
    }
    let [mut through, direct]: [Answer; 2] = answers.try_into().expect("there are two answers");
    assert_eq!(
        through.headers.insert("cache-control", direct.headers["cache-control"].clone()).unwrap(),
        "no-cache, no-transform"
    );
    assert_eq!(through.headers.remove("connection").unwrap(), "keep-alive");
    // The other headers are the same, and the layer repeats none.
    assert_eq!(through.headers, direct.headers);
    let messages = |answer: &Answer| whatwg::parse(&answer.body).messages;
    assert_eq!(messages(&through), messages(&direct));

    for (method, headers, body) in [
        ("POST", "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n", "no JSON"),
        ("POST", "Accept: application/json\r\nContent-Type: application/json\r\n", INITIALIZE),
        ("POST", "Accept: application/json, text/event-stream\r\n", INITIALIZE),
        ("GET", "Accept: text/event-stream\r\n", ""),
        ("GET", "Accept: text/event-stream\r\nMcp-Session-Id: none\r\n", ""),
        ("GET", "", ""),
        ("DELETE", "", ""),
        ("PUT", "Accept: text/event-stream\r\n", ""),
    ] {
        let mut answers = Vec::new();
        for server in [&with, &without] {
            let length = body.len();
            let request =
                format!("{method} /mcp HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
            let mut answer = Http1::connect(server.address).await.request(request).await.complete().await;
            answer.headers.remove("date");
            answers.push((answer.status, answer.headers, answer.body));
        }
        assert!(answers[0].0.is_client_error(), "{answers:?}");
        assert_eq!(answers[0], answers[1], "{method} {headers}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_example_carries_a_whole_session() {
    let mut server = Server::start_without_layer().await;
    let gateway = Example::start("gateway", &[&format!("http://{}", server.address)]);
    let relay = Relay::to(gateway.address()).await.expect("a port");
    let mut client = Client::connect(relay.address(), ClientLifecycleMode::Initialize).await;
    let peer = server.next_peer().await;
    converse(&relay, &server.steps, &mut client, Some(peer)).await;
    client.service.cancel().await.expect("the session ends");
}

/// Runs a whole session of client and server, with silences in between.
async fn converse(relay: &Relay, steps: &Semaphore, client: &mut Client, peer: Option<Peer<RoleServer>>) {
    let tools = within("the tools", client.service.list_tools(None)).await.expect("a list of tools");
    assert_eq!(tools.tools.iter().map(|tool| &*tool.name).collect::<Vec<_>>(), ["count"]);
    // A notification belongs to no request, and has its own stream.
    if let Some(peer) = &peer {
        wait_for_heartbeats(relay).await;
        peer.notify_tool_list_changed().await.expect("a client");
        within("the notification", client.changes.recv()).await.expect("a client");
    }
    let call = client.call().await;
    for step in 1..=STEPS {
        // Without a session, rmcp responds with the first message, so there is no silent stream
        // before.
        if peer.is_some() || step > 1 {
            wait_for_heartbeats(relay).await;
        }
        steps.add_permits(1);
        assert_eq!(client.next_progress().await, step as f64);
    }
    assert_eq!(result(call).await, "counted to 3");
    if let Some(peer) = &peer {
        peer.notify_tool_list_changed().await.expect("a client");
        within("the notification", client.changes.recv()).await.expect("a client");
    }
}

/// Waits for bytes three times, while neither side sends a message.
async fn wait_for_heartbeats(relay: &Relay) {
    for _ in 0..3 {
        let before = relay.bytes_to_browser();
        eventually(SOON, "a heartbeat passes", async || match relay.bytes_to_browser() {
            now if now > before => Ok(()),
            now => Err(now),
        })
        .await;
    }
}

const ACCEPT: (&str, &str) = ("Accept", "application/json, text/event-stream");

async fn post(address: SocketAddr, headers: &[(&str, &str)], body: &str) -> Answer {
    let fields: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    Http1::connect(address).await.request(request).await
}

/// A server with one tool, which counts under the control of the test.
struct Server {
    address: SocketAddr,
    /// Each permit allows one step of a call.
    steps: Arc<Semaphore>,
    /// The peers that have initialized a session.
    peers: UnboundedReceiver<Peer<RoleServer>>,
    calls: UnboundedReceiver<()>,
    cancelled: UnboundedReceiver<()>,
    /// The streams of notifications that were opened: a message for each.
    opened: UnboundedReceiver<()>,
    closed: Arc<Mutex<Vec<StreamSummary>>>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Config {
    /// The heartbeat interval of rmcp.
    keep_alive: Option<Duration>,
    stores_events: bool,
}

impl Server {
    async fn start(set: impl FnOnce(SseLayer) -> SseLayer) -> Self {
        Self::start_with(Config::default(), set).await
    }

    async fn start_with(config: Config, set: impl FnOnce(SseLayer) -> SseLayer) -> Self {
        let closed = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&closed);
        let layer = SseLayer::new()
            .heartbeat(Heartbeat::every(HEARTBEAT))
            .on_close(move |summary| into.lock().expect("no holder panics").push(summary));
        let layer = set(layer);
        Self { closed, ..Self::serve(config, |router| router.layer(layer)).await }
    }

    async fn start_without_layer() -> Self {
        Self::serve(Config::default(), |router| router).await
    }

    async fn serve(config: Config, layer: impl FnOnce(Router) -> Router) -> Self {
        let steps = Arc::new(Semaphore::new(0));
        let (to_peers, peers) = unbounded_channel();
        let (to_calls, calls) = unbounded_channel();
        let (to_cancelled, cancelled) = unbounded_channel();
        let (to_opened, opened) = unbounded_channel();
        let counter = Counter { steps: Arc::clone(&steps), peers: to_peers, calls: to_calls, cancelled: to_cancelled };
        let mut session = SessionConfig::default();
        session.sse_retry = Some(RETRY);
        let mut sessions = LocalSessionManager::default();
        sessions.session_config = session;
        if config.stores_events {
            sessions = sessions.with_event_store(Arc::new(Events::default()));
        }
        let config =
            StreamableHttpServerConfig::default().with_sse_keep_alive(config.keep_alive).with_sse_retry(Some(RETRY));
        let service = StreamableHttpService::new(move || Ok(counter.clone()), Arc::new(sessions), config);
        let note_opened = move |request: extract::Request, next: Next| {
            let to_opened = to_opened.clone();
            async move {
                let is_stream = request.method() == Method::GET;
                let response = next.run(request).await;
                if is_stream && response.status().is_success() {
                    let _test_has_ended = to_opened.send(());
                }
                response
            }
        };
        let app = layer(Router::new().route_service("/mcp", service)).layer(from_fn(note_opened));

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("the port");
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).with_graceful_shutdown(stopped).await.expect("the server runs");
        });
        Self { address, steps, peers, calls, cancelled, opened, closed: Arc::default(), stop, serving }
    }

    async fn next_peer(&mut self) -> Peer<RoleServer> {
        within("a client", self.peers.recv()).await.expect("the server runs")
    }

    /// Waits until a client calls the tool.
    async fn wait_for_call(&mut self) {
        within("a call", self.calls.recv()).await.expect("the server runs");
    }

    fn closed(&self) -> Vec<StreamSummary> {
        self.closed.lock().expect("no holder panics").clone()
    }

    /// Returns the number of streams that have reached their maximum lifetime.
    fn lifetimes_reached(&self) -> usize {
        self.closed().iter().filter(|summary| summary.reason == CloseReason::MaxLifetime).count()
    }
}

/// The messages of all streams, each with the name of its stream.
#[derive(Default)]
struct Events(Mutex<Vec<(String, ServerSseMessage)>>);

#[async_trait]
impl EventStore for Events {
    async fn store_event(&self, stream: &str, event: &ServerSseMessage) -> Result<String, EventStoreError> {
        let mut events = self.0.lock().expect("no holder panics");
        let id = events.len().to_string();
        let mut event = event.clone();
        event.event_id = Some(id.clone());
        events.push((stream.to_owned(), event));
        Ok(id)
    }

    async fn replay_events_after(&self, id: &str) -> Result<EventStream, EventStoreError> {
        let last = id.parse::<usize>()?;
        let events = self.0.lock().expect("no holder panics");
        let (stream, _) = events.get(last).ok_or("there is no such event")?;
        let missed = events[last + 1..].iter().filter(|(of, _)| of == stream).map(|(_, event)| event.clone());
        Ok(Box::pin(tokio_stream::iter(missed.collect::<Vec<_>>())))
    }
}

#[derive(Clone)]
struct Counter {
    steps: Arc<Semaphore>,
    peers: UnboundedSender<Peer<RoleServer>>,
    calls: UnboundedSender<()>,
    cancelled: UnboundedSender<()>,
}

impl ServerHandler for Counter {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tool_list_changed().build())
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let _test_has_ended = self.peers.send(context.peer);
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = serde_json::json!({ "type": "object" }).as_object().cloned().expect("the schema is an object");
        Ok(ListToolsResult::with_all_items(vec![Tool::new("count", "Counts to three", schema)]))
    }

    async fn call_tool(
        &self,
        _request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let _test_has_ended = self.calls.send(());
        let token = context.meta.get_progress_token().expect("the client asks for progress");
        for step in 1..=STEPS {
            tokio::select! {
                permit = self.steps.acquire() => permit.expect("never closed").forget(),
                () = context.ct.cancelled() => {
                    let _test_has_ended = self.cancelled.send(());
                    return Err(ErrorData::internal_error("cancelled", None));
                }
            }
            let progress = ProgressNotificationParam::new(token.clone(), step as f64);
            // Fails while the connection is cut. The client receives the message after it
            // reconnects.
            let _may_be_disconnected = context.peer.notify_progress(progress).await;
        }
        Ok(CallToolResult::success(vec![ContentBlock::text(format!("counted to {STEPS}"))]).into())
    }
}

/// The client of rmcp, and the notifications that it receives.
struct Client {
    service: RunningService<RoleClient, Handler>,
    progress: UnboundedReceiver<f64>,
    /// The received steps of the current call, for [`wait_for_steps`](Self::wait_for_steps).
    steps: BTreeSet<usize>,
    changes: UnboundedReceiver<()>,
}

struct Handler {
    progress: UnboundedSender<f64>,
    changes: UnboundedSender<()>,
}

impl ClientHandler for Handler {
    async fn on_progress(&self, params: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let _test_has_ended = self.progress.send(params.progress);
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        let _test_has_ended = self.changes.send(());
    }
}

impl Client {
    async fn connect(server: SocketAddr, lifecycle: ClientLifecycleMode) -> Self {
        let (to_progress, progress) = unbounded_channel();
        let (to_changes, changes) = unbounded_channel();
        let mut backoff = ExponentialBackoff::default();
        backoff.base_duration = RETRY;
        backoff.max_delay = Some(RETRY);
        let mut config = StreamableHttpClientTransportConfig::with_uri(format!("http://{server}/mcp"));
        config.retry_config = Arc::new(backoff);
        let transport = StreamableHttpClientTransport::from_config(config);
        let handler = Handler { progress: to_progress, changes: to_changes };
        let service = within("the handshake", handler.serve_with_lifecycle(transport, lifecycle)).await;
        Self { service: service.expect("a session"), progress, steps: BTreeSet::new(), changes }
    }

    /// Starts a call.
    async fn call(&self) -> RequestHandle<RoleClient> {
        let request = ClientRequest::CallToolRequest(Request::new(CallToolRequestParams::new("count")));
        let options = PeerRequestOptions::no_options();
        within("the request", self.service.send_cancellable_request(request, options))
            .await
            .expect("the request is sent")
    }

    async fn next_progress(&mut self) -> f64 {
        within("progress", self.progress.recv()).await.expect("the client runs")
    }

    /// Waits for the steps of a call up to this one, and for no later step.
    ///
    /// After a reconnection, a step can arrive again, because the server of rmcp resumes with the
    /// last event of the client, and not after it. Steps that arrive together can be in any order,
    /// because the client of rmcp handles them concurrently.
    async fn wait_for_steps(&mut self, step: usize) {
        let expected: BTreeSet<_> = (1..=step).collect();
        while self.steps != expected {
            let next = self.next_progress().await as usize;
            self.steps.insert(next);
            assert!(self.steps.is_subset(&expected), "{:?}", self.steps);
        }
    }
}

/// Returns the text of the result of a call.
async fn result(call: RequestHandle<RoleClient>) -> String {
    let result = within("the result", call.await_response()).await.expect("a result");
    let ServerResult::CallToolResult(result) = result else { panic!("{result:?} is not the result of a tool call") };
    result.content[0].as_text().expect("a text").text.clone()
}
