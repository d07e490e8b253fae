//! The `gateway` example in front of actix-web and warp servers: added heartbeats and limits, and
//! unchanged responses.

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::ServerHandle,
    http::{StatusCode, header},
    web,
};
use e2e::{Browser, Example, Page, Window, eventually};
use std::{
    collections::HashMap,
    convert::Infallible,
    io::Error,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use support::{
    client::{Answer, Http1, Protocol, within},
    whatwg,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};
use warp::{Filter, Reply};

const SOON: Duration = Duration::from_secs(10);
/// The stream limit of the gateway for each client address.
const MAX_STREAMS: usize = 20;
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const EVENT_STREAM: (&str, &str) = ("accept", "text/event-stream");

#[tokio::test(flavor = "multi_thread")]
async fn actix_events_pass_unchanged_with_heartbeats_between_them() {
    // The cuts are inside a line, a character, and a CRLF CRLF, and between two CR.
    const TEXT: &str =
        "id: 1\r\nevent: wide\r\ndata: né 日本 🦀\r\ndata\r\n\r\n: theirs\n\nretry: 9\ndata:two\r\rid\ndata: x\n\n";
    const CUTS: [usize; 7] = [0, 4, 31, 42, 50, 79, TEXT.len()];
    let mut upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    for protocol in Protocol::ALL {
        let mut answer = protocol.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
        let stream = upstream.next_stream().await;
        assert_eq!(answer.status, 200);
        for (name, expected) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-cache, no-transform"),
            ("x-accel-buffering", "no"),
        ] {
            assert_eq!(answer.headers.get_all(name).into_iter().collect::<Vec<_>>(), [expected], "{name}");
        }
        answer.read_until(":\n:\n").await;
        for cut in CUTS.windows(2) {
            let before = answer.body.len();
            stream.send(&TEXT.as_bytes()[cut[0]..cut[1]]);
            // Wait for all these bytes. A heartbeat may come before them, but only at the start of
            // a line.
            while answer.body.len() < before + cut[1] - cut[0] {
                assert_eq!(answer.more().await, Ok(true));
            }
        }
        answer.read_until("data: x\n\n:\n:\n").await;
        drop(stream);

        let mut through = whatwg::parse(&answer.complete().await.body);
        assert!(through.comments.iter().filter(|comment| comment.is_empty()).count() >= 4, "{through:?}");
        through.comments.retain(|comment| !comment.is_empty());
        let direct = whatwg::parse(TEXT.as_bytes());
        assert_eq!((direct.messages.len(), &*direct.comments), (3, &[" theirs".to_owned()][..]));
        assert_eq!(through, direct, "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warp_stream_has_heartbeats_and_ends_with_client() {
    for keeps_alive in [false, true] {
        let (events, receiver) = unbounded_channel::<&'static str>();
        let receiver = Arc::new(Mutex::new(Some(receiver)));
        let stream = move || {
            let receiver = receiver.lock().expect("no holder panics").take().expect("there is one request");
            let events = UnboundedReceiverStream::new(receiver);
            events.map(|data| Ok::<_, Infallible>(warp::sse::Event::default().data(data)))
        };
        let every = Duration::from_millis(300);
        let filter = warp::path("events").map(move || match keeps_alive {
            true => warp::sse::reply(warp::sse::keep_alive().interval(every).text("theirs").stream(stream()))
                .into_response(),
            false => warp::sse::reply(stream()).into_response(),
        });
        let listener = TcpListener::bind(ANY_PORT).await.expect("a free port");
        let upstream = listener.local_addr().expect("the port");
        tokio::spawn(warp::serve(filter).incoming(listener).run());

        let gateway = Example::start("gateway", &[&format!("http://{upstream}")]);
        let mut answer = Protocol::Http1.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
        let heartbeat = if keeps_alive { ":theirs\n\n" } else { ":\n:\n" };
        answer.read_until(heartbeat).await;
        events.send("one\ntwo").expect("warp has not dropped the stream");
        answer.read_until("data:one\ndata:two\n\n").await;
        answer.body.clear();
        answer.read_until(heartbeat).await;
        drop(answer);
        within("the stream to be dropped", events.closed()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_pass_within_100_ms() {
    let mut upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    for protocol in Protocol::ALL {
        assert_short(&format!("{protocol:?}, the first and a later event"), async || {
            let mut answer = protocol.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
            let stream = upstream.next_stream().await;
            let mut longest = Duration::ZERO;
            for event in ["data: one\n\n", "data: two\n\n"] {
                let sent = Instant::now();
                stream.send(event);
                answer.read_until(event).await;
                longest = longest.max(sent.elapsed());
            }
            longest
        })
        .await;
    }
}

/// Measures a time in up to three rounds of five, until the median of a round is below 100 ms. A
/// busy machine can make a round slower.
async fn assert_short(what: &str, mut measure: impl AsyncFnMut() -> Duration) {
    for round in 1.. {
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(measure().await);
        }
        times.sort();
        println!("{what}: {times:.1?}");
        if times[times.len() / 2] < Duration::from_millis(100) {
            return;
        }
        assert!(round < 3, "{what}: {times:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_disconnect_drops_actix_stream_immediately() {
    let mut upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    for protocol in Protocol::ALL {
        // Earlier than the next heartbeat, which would fail.
        assert_short(&format!("{protocol:?}, from the disconnect to the drop of the stream"), async || {
            let mut answer = protocol.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
            let stream = upstream.next_stream().await;
            stream.send("data: one\n\n");
            answer.read_until("data: one\n\n").await;
            let disconnected = Instant::now();
            drop(answer);
            within("the stream to be dropped", stream.events.closed()).await;
            disconnected.elapsed()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_disconnect_drops_handler_before_its_response() {
    let mut upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    let mut client = TcpStream::connect(gateway.address()).await.unwrap();
    client.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let stream = upstream.next_stream().await;
    assert!(!stream.events.is_closed());
    drop(client);
    within("the handler to be dropped", stream.events.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closed_actix_notices_disconnect_at_next_event() {
    let mut upstream = Upstream::start_at(ANY_PORT, Config { allows_half_closed: true });
    let gateway = upstream.behind_gateway();
    let mut answer = Protocol::Http1.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
    let stream = upstream.next_stream().await;
    stream.send("data: one\n\n");
    answer.read_until("data: one\n\n").await;
    drop(answer);
    eventually(SOON, "the stream is dropped", async || match stream.events.send(Ok("data: two\n\n".into())) {
        Ok(()) => Err("it accepts events"),
        Err(_) => Ok(()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hop_by_hop_headers_are_removed_both_ways() {
    let mut upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    let sent = [
        EVENT_STREAM,
        ("last-event-id", "41-é"),
        ("authorization", "Bearer x"),
        ("cookie", "a=1; b=2"),
        ("x-own", "one"),
        ("x-forwarded-for", "192.0.2.1"),
        ("accept-encoding", "gzip, br"),
        ("connection", "keep-alive, X-Of-This-Connection"),
        ("x-of-this-connection", "secret"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("proxy-connection", "keep-alive"),
    ];
    let _answer = Protocol::Http1.get(gateway.address(), "/events?a=%2F&b", &sent).await;
    let stream = upstream.next_stream().await;
    let header = |name: &str| stream.headers.get(name).map(String::as_str);
    assert_eq!(stream.target, "/events?a=%2F&b");
    for (name, value) in &sent[..5] {
        assert_eq!(header(name), Some(*value), "{name}");
    }
    for (name, _) in &sent[7..] {
        assert_eq!(header(name), None, "{name}");
    }
    // A compressor would delay events.
    assert_eq!(header("accept-encoding"), Some("identity"));
    assert_eq!(header("x-forwarded-for"), Some("192.0.2.1, 127.0.0.1"));
    assert_eq!(header("x-forwarded-host"), Some("localhost"));
    assert_eq!(header("x-forwarded-proto"), Some("http"));
    assert_eq!(header("host"), Some(&*upstream.address.to_string()));
    assert_eq!(header("via"), Some("1.1 gateway"));

    // The same in a response. actix cannot set these headers.
    let upstream = respond_once(
        "HTTP/1.1 200 OK\r\nConnection: close, X-Of-This-Connection\r\nX-Of-This-Connection: secret\r\n\
         Keep-Alive: timeout=5\r\nX-Own: one\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = Example::start("gateway", &[&format!("http://{upstream}")]);
    let answer = Protocol::Http1.get(gateway.address(), "/", &[]).await.complete().await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-own"], &*answer.body),
        (200, &"one".parse().unwrap(), &b"ok"[..])
    );
    for name in ["connection", "x-of-this-connection", "keep-alive"] {
        assert_eq!(answer.headers.get(name), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_responses_pass_unchanged() {
    let upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    for (method, path) in [
        ("GET", "/page"),
        ("HEAD", "/page"),
        ("GET", "/json"),
        ("GET", "/gzip"),
        ("GET", "/elsewhere"),
        ("GET", "/unchanged"),
        ("DELETE", "/nothing"),
        ("GET", "/teapot"),
        ("GET", "/there/is/none"),
        ("HEAD", "/events"),
    ] {
        let get = async |address: SocketAddr| {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n");
            let mut answer = Http1::connect(address).await.request(request).await.complete().await;
            answer.headers.remove("date");
            (answer.status, answer.headers, answer.body)
        };
        assert_eq!(get(gateway.address()).await, get(upstream.address).await, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_body_streams_through_the_gateway() {
    let upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    let mut client = TcpStream::connect(gateway.address()).await.unwrap();
    let head =
        "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/x-own\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write_all(format!("{head}3\r\none\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut read_until = async |client: &mut TcpStream, text: &str| {
        while !String::from_utf8_lossy(&answer).contains(text) {
            let n = within(text, client.read_buf(&mut answer)).await.unwrap();
            assert!(n > 0, "{:?} has no {text:?}", String::from_utf8_lossy(&answer));
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    // The response begins before the request body has ended.
    let text = read_until(&mut client, "one").await;
    assert!(text.starts_with("HTTP/1.1 201 "), "{text}");
    assert!(text.contains("content-type: text/x-own\r\n"), "{text}");
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut client, "two").await;

    // A body with a length keeps it.
    let request = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nthree";
    let answer = Http1::connect(gateway.address()).await.request(request).await.complete().await;
    assert_eq!((answer.text(), &answer.headers["x-length"]), ("three".into(), &"5".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_actix_stream_breaks_response_after_its_events() {
    let mut upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    for protocol in Protocol::ALL {
        let mut answer = protocol.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
        let stream = upstream.next_stream().await;
        stream.send("data: one\n\ndata: tw");
        answer.read_until("data: tw").await;
        stream.events.send(Err(Error::other("broken"))).expect("actix reads the stream");
        let end = within("the end", answer.end()).await;
        assert!(end.is_err(), "{protocol:?}: the response ended cleanly");
        assert_eq!(answer.data(), ["one"]);
        assert!(answer.text().ends_with("data: one\n\ndata: tw"), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_upstream_is_502_until_it_returns() {
    // No program listens on a reserved port.
    let reserved = TcpSocket::new_v4().expect("a socket");
    reserved.bind(ANY_PORT).expect("a free port");
    let gateway = Example::start("gateway", &[&format!("http://{}", reserved.local_addr().expect("the port"))]);
    for protocol in Protocol::ALL {
        let answer = protocol.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
        let answer = within("the whole answer", answer.complete()).await;
        assert_eq!(answer.status, 502);
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(answer.text(), "the server behind this gateway cannot be reached; try again later\n");
    }

    let upstream = respond_once("").await;
    let gateway = Example::start("gateway", &[&format!("http://{upstream}")]);
    let answer = Protocol::Http1.get(gateway.address(), "/", &[]).await.complete().await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.text(), "the server behind this gateway did not send a response; try again later\n");

    // No other test can get the port while the server is down, because they use another address.
    let address = SocketAddr::from(([127, 0, 0, 2], 0));
    let mut upstream = Upstream::start_at(address, Config { allows_half_closed: false });
    let gateway = upstream.behind_gateway();
    let mut answer = Protocol::Http1.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
    let _stream = upstream.next_stream().await;
    upstream.handle.stop(false).await;
    assert!(within("the end", answer.end()).await.is_err(), "a killed server does not end its streams cleanly");
    let answer = Protocol::Http1.get(gateway.address(), "/page", &[]).await;
    assert_eq!(answer.status, 502);
    let again = Upstream::start_at(upstream.address, Config { allows_half_closed: false });
    let answer = Protocol::Http1.get(gateway.address(), "/page", &[]).await;
    assert_eq!(answer.status, 200);
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_the_address_limit_get_429() {
    let mut upstream = Upstream::start();
    let gateway = upstream.behind_gateway();
    // A client that is no `EventSource`.
    let accept = ("accept", "application/json, text/event-stream");
    let get = async || Protocol::Http1.get(gateway.address(), "/events", &[accept]).await;
    let mut open: Vec<(Answer, Stream)> = Vec::new();
    for _ in 0..MAX_STREAMS {
        open.push((get().await, upstream.next_stream().await));
        assert_eq!(open[open.len() - 1].0.status, 200);
    }
    let rejection = get().await;
    assert_eq!(rejection.status, 429);
    assert!(rejection.headers.contains_key("retry-after"), "{:?}", rejection.headers);
    assert!(rejection.complete().await.text().contains("your limit of open event streams is reached"));
    let rejected_stream = upstream.next_stream().await;
    within("the rejected stream to be dropped", rejected_stream.events.closed()).await;
    // Other responses and open streams are not affected.
    assert_eq!(Protocol::Http1.get(gateway.address(), "/page", &[]).await.status, 200);
    for (answer, stream) in &mut open {
        stream.send("data: still here\n\n");
        answer.read_until("data: still here\n\n").await;
    }

    open.pop();
    eventually(SOON, "another stream is accepted", async || match get().await.status.as_u16() {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_upstream_streams_and_exits() {
    let mut upstream = Upstream::start();
    let mut gateway = upstream.behind_gateway();
    let mut answer = Protocol::Http1.get(gateway.address(), "/events", &[EVENT_STREAM]).await;
    let stream = upstream.next_stream().await;
    stream.send("data: one\n\n");
    answer.read_until("data: one\n\n").await;
    gateway.terminate();
    let answer = within("the end of the stream", answer.complete()).await;
    assert!(whatwg::parse(&answer.body).reconnection_time.is_some(), "{}", answer.text());
    within("the stream to be dropped", stream.events.closed()).await;
    let status = gateway.wait_for_exit(Duration::from_secs(5)).expect("the gateway does not wait for clients");
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn page_and_screenshot_show_silence_and_heartbeats() {
    let gateway = Example::start("gateway", &[]);
    let page = Page::open(Browser::start(Window::Desktop).await, gateway.address(), SOON).await;
    let [direct, through] =
        eventually(Duration::from_secs(30), "the direct stream was silent for 8 seconds", async || {
            let ways =
                "[ways.direct, ways.gateway].map(({ events, heartbeats, longest }) => [events, heartbeats, longest])";
            let ways: [[f64; 3]; 2] = serde_json::from_value(page.eval(ways).await).expect("numbers");
            if ways[0][2] > 8000.0 { Ok(ways) } else { Err(ways) }
        })
        .await;
    // Events, heartbeats, and the longest silence in milliseconds.
    assert!(direct[0] >= 4.0 && through[0] >= 3.0, "{direct:?} {through:?}");
    assert_eq!(direct[1], 0.0, "{direct:?}");
    assert!(through[1] >= 6.0, "{through:?}");
    assert!(through[2] < direct[2] / 2.0, "{through:?}");

    let wire = page.text("#gateway .wire").await;
    assert!(wire.contains(":") && wire.contains("data: This is event 1."), "{wire}");
    let head = page.text("#gateway .head").await;
    assert!(head.starts_with("200 OK") && head.contains("cache-control: no-cache, no-transform"), "{head}");
    assert!(!page.text("#direct .head").await.contains("cache-control"), "the upstream does not set the header");
    page.browser().assert_fits("gateway", Window::Desktop).await;
    page.browser().screenshot("gateway").await;

    page.click("#toggle").await;
    eventually(SOON, "both streams are closed", async || {
        let states = [page.text("#direct .state").await, page.text("#gateway .state").await];
        if states == ["closed", "closed"] { Ok(()) } else { Err(states) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_fits_phone() {
    let gateway = Example::start("gateway", &[]);
    for phone in [360, 390].map(|width| Window::Phone { width }) {
        let page = Page::open(Browser::start(phone).await, gateway.address(), SOON).await;
        eventually(SOON, "both streams have an event", async || {
            let events = page.eval("[ways.direct.events, ways.gateway.events]").await;
            if events[0].as_u64() > Some(0) && events[1].as_u64() > Some(0) { Ok(()) } else { Err(events) }
        })
        .await;
        page.browser().assert_fits("gateway", phone).await;
    }
}

/// Starts a server that sends these bytes to the first client, whatever its request, and closes the
/// connection.
async fn respond_once(bytes: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(ANY_PORT).await.expect("a free port");
    let address = listener.local_addr().expect("the port");
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.expect("the gateway connects");
        let _head = connection.read(&mut [0; 4096]).await.expect("the gateway sends a request");
        connection.write_all(bytes.as_bytes()).await.expect("the gateway reads the response");
    });
    address
}

/// An actix-web server with some responses, and with event streams that a test controls.
struct Upstream {
    address: SocketAddr,
    handle: ServerHandle,
    streams: UnboundedReceiver<Stream>,
}

/// An event stream that a client has requested from the upstream. Dropping it ends the stream.
struct Stream {
    target: String,
    headers: HashMap<String, String>,
    /// Closed after actix has dropped the stream.
    events: UnboundedSender<Result<web::Bytes, Error>>,
}

impl Stream {
    fn send(&self, text: impl AsRef<[u8]>) {
        self.events.send(Ok(web::Bytes::copy_from_slice(text.as_ref()))).expect("actix has not dropped the stream");
    }

    fn open(request: &HttpRequest, opened: &Opened) -> UnboundedReceiver<Result<web::Bytes, Error>> {
        let mut headers = HashMap::<String, String>::new();
        for (name, value) in request.headers() {
            let value = String::from_utf8_lossy(value.as_bytes());
            let values = headers.entry(name.as_str().to_owned()).or_default();
            *values = if values.is_empty() { value.into_owned() } else { format!("{values}, {value}") };
        }
        let (events, receiver) = unbounded_channel();
        let stream = Self { target: request.uri().to_string(), headers, events };
        let _test_has_ended = opened.lock().expect("no holder panics").send(stream);
        receiver
    }
}

type Opened = Mutex<UnboundedSender<Stream>>;

impl Upstream {
    /// Starts a server that notices when its client, the gateway, closes the connection.
    fn start() -> Self {
        Self::start_at(ANY_PORT, Config { allows_half_closed: false })
    }

    fn start_at(address: SocketAddr, config: Config) -> Self {
        let (opened, streams) = unbounded_channel();
        let opened = web::Data::new(Opened::new(opened));
        let app = move || {
            App::new()
                .app_data(opened.clone())
                .route("/events", web::get().to(events))
                .route("/slow", web::get().to(slow))
                .route("/echo", web::post().to(echo))
                .default_service(web::to(answer))
        };
        let server = HttpServer::new(app)
            .workers(1)
            .disable_signals()
            .h1_allow_half_closed(config.allows_half_closed)
            // Otherwise an event can wait about 40 milliseconds for an acknowledgement.
            .tcp_nodelay(true)
            .bind(address)
            .expect("the address is free");
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { address, handle, streams }
    }

    fn behind_gateway(&self) -> Example {
        Example::start("gateway", &[&format!("http://{}", self.address)])
    }

    /// Waits for the next request for a stream.
    async fn next_stream(&mut self) -> Stream {
        within("a request for a stream", self.streams.recv()).await.expect("the server runs")
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // Starts the shutdown, and does not wait for its end.
        drop(self.handle.stop(false));
    }
}

struct Config {
    /// The default of actix-web: a client that has closed its sending side may still read.
    allows_half_closed: bool,
}

async fn events(request: HttpRequest, opened: web::Data<Opened>) -> HttpResponse {
    let events = UnboundedReceiverStream::new(Stream::open(&request, &opened));
    HttpResponse::Ok().content_type("text/event-stream").streaming(events)
}

/// Responds when the test ends the stream.
async fn slow(request: HttpRequest, opened: web::Data<Opened>) -> HttpResponse {
    let _item = Stream::open(&request, &opened).recv().await;
    HttpResponse::Ok().finish()
}

async fn echo(request: HttpRequest, body: web::Payload) -> HttpResponse {
    let mut answer = HttpResponse::Created();
    for (from, to) in [("content-type", "content-type"), ("content-length", "x-length")] {
        if let Some(value) = request.headers().get(from) {
            answer.insert_header((to, value.clone()));
        }
    }
    answer.streaming(body)
}

async fn answer(request: HttpRequest) -> HttpResponse {
    match request.path() {
        "/page" => HttpResponse::Ok()
            .append_header((header::SET_COOKIE, "a=1"))
            .append_header((header::SET_COOKIE, "b=2"))
            .content_type("text/html; charset=utf-8")
            .body("<!doctype html><title>A page</title>"),
        "/json" => HttpResponse::Ok()
            .insert_header((header::ETAG, "\"one\""))
            .insert_header((header::CACHE_CONTROL, "max-age=60"))
            .content_type("application/json")
            .body(r#"{"text/event-stream":["data: one\n\n"]}"#),
        "/gzip" => {
            HttpResponse::Ok().insert_header((header::CONTENT_ENCODING, "gzip")).content_type("text/plain").body(GZIP)
        }
        "/elsewhere" => HttpResponse::Found().insert_header((header::LOCATION, "/page")).finish(),
        "/unchanged" => HttpResponse::NotModified().insert_header((header::ETAG, "\"one\"")).finish(),
        "/nothing" => HttpResponse::NoContent().finish(),
        "/teapot" => HttpResponse::build(StatusCode::IM_A_TEAPOT).content_type("text/plain").body("short and stout"),
        "/events" => HttpResponse::Ok().content_type("text/event-stream").finish(),
        path => HttpResponse::NotFound().body(format!("there is no {path}")),
    }
}

/// A line of text, compressed with gzip.
const GZIP: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\x02\x03KI,I\xb4R(HL\xceNM\xe1\xe2\x02\0?\x91\x96d\x0e\0\0\0";
