//! Access to Redis: URLs, TLS, permissions, sentinels and Redis Cluster.

use crate::{
    redis::{Client, SOON, cli, connect_error, hub, publish},
    setup::certificates,
    unchanged::append_if_unchanged,
};
use e2e::{Port, Store, StoreKind, eventually, installed};
use std::{
    error::Error,
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::time::sleep;
use tower_sse::{
    Event,
    hub::{
        Hub, Start,
        backend::{Backend, RedisBackend},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn tls_checks_certificates_of_server_and_client() {
    let folder = certificates("DNS:localhost");
    let path = |name: &str| folder.path().join(name).to_str().expect("the path is UTF-8").to_owned();
    let store = Store::start(
        StoreKind::Redis,
        &[
            ["--tls-port", "0"],
            ["--tls-cert-file", &path("server.pem")],
            ["--tls-key-file", &path("server.key")],
            ["--tls-ca-cert-file", &path("ca.pem")],
        ]
        .concat(),
    )
    .await;
    let reserved = Port::free().expect("there is a free port");
    let port = reserved.address().port();
    assert_eq!(cli(&store, &["config", "set", "tls-port", &port.to_string()]), "OK");
    let redis = || RedisBackend::new(format!("rediss://localhost:{port}")).expect("the URL is valid");

    let known = redis().root_certificates(path("ca.pem")).client_certificate(path("client.pem"), path("client.key"));
    let hub = Hub::builder().backend(known).connect().await.expect("both certificates are trusted");
    let topic = hub.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "in secret").await;
    client.assert_next("in secret").await;

    for (backend, reason) in [
        (redis(), "UnknownIssuer"),
        (redis().root_certificates(path("client.pem")), "UnknownIssuer"),
        (redis().root_certificates(path("nowhere.pem")), "nowhere.pem: No such file"),
        (redis().root_certificates(path("server.key")), "server.key: there is no certificate"),
        (redis().root_certificates(path("ca.pem")), "Redis at localhost"),
        (
            RedisBackend::new(format!("rediss://127.0.0.1:{port}"))
                .expect("the URL is valid")
                .root_certificates(path("ca.pem")),
            "not valid for name",
        ),
    ] {
        let error = connect_error(backend).await;
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let error =
        RedisBackend::new(format!("rediss://localhost:{port}#insecure")).expect_err("the URL is invalid").to_string();
    assert!(error.contains("always checked"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_read_at_the_next_connection() {
    let (folder, renewed) = (certificates("DNS:localhost"), certificates("DNS:localhost"));
    let path = |name: &str| folder.path().join(name).to_str().expect("the path is UTF-8").to_owned();
    let files = [
        ["--tls-cert-file", &path("server.pem")],
        ["--tls-key-file", &path("server.key")],
        ["--tls-ca-cert-file", &path("ca.pem")],
    ];
    let store = Store::start(StoreKind::Redis, &[&["--tls-port", "0"], &files.concat()[..]].concat()).await;
    let reserved = Port::free().expect("there is a free port");
    let port = reserved.address().port().to_string();
    assert_eq!(cli(&store, &["config", "set", "tls-port", &port]), "OK");
    let backend = RedisBackend::new(format!("rediss://localhost:{port}")).expect("the URL is valid");
    let backend = backend.root_certificates(path("ca.pem")).client_certificate(path("client.pem"), path("client.key"));
    let hub = Hub::builder().backend(backend).connect().await.expect("both certificates are trusted");
    let topic = hub.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;

    for name in ["ca.pem", "server.pem", "server.key", "client.pem", "client.key"] {
        fs::copy(renewed.path().join(name), path(name)).expect("the file can be replaced");
    }
    // Redis reads its files again when one of these settings is set.
    let settings = files.iter().flat_map(|[name, path]| [&name[2..], *path]).collect::<Vec<_>>();
    assert_eq!(cli(&store, &[&["config", "set"], &settings[..]].concat()), "OK");
    cli(&store, &["client", "kill", "type", "normal"]);
    eventually(SOON, "the node publishes again", async || topic.publish(Event::new("renewed")).await).await;
    client.assert_next("renewed").await;
}

/// A sentinel, killed on drop.
struct Sentinel {
    port: Port,
    process: Child,
    _folder: TempDir,
}

impl Sentinel {
    fn start(master: &Store, password: &str) -> Self {
        let folder = tempfile::tempdir().expect("the folder can be created");
        let port = Port::free().expect("there is a free port");
        let master = master.address().port();
        let config = format!(
            "bind 127.0.0.1\nport {}\ndir {}\nrequirepass watchful\nsentinel monitor main 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n\
             sentinel auth-pass main {password}\n",
            port.address().port(),
            folder.path().display()
        );
        let path = folder.path().join("sentinel.conf");
        fs::write(&path, config).expect("the file can be written");
        let mut command = Command::new(installed(&["redis-server", "valkey-server"], "redis-server"));
        let process = command.arg(&path).arg("--sentinel").stdout(Stdio::null()).spawn().expect("redis-server starts");
        Self { port, process, _folder: folder }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _already_ended = self.process.kill();
        let _nothing_to_do_about_it = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_failover_keeps_replicated_events() {
    let auth = ["--requirepass", "secret", "--masterauth", "secret"];
    let mut master = Store::start(StoreKind::Redis, &auth).await;
    let port = master.address().port().to_string();
    let replica = Store::start(StoreKind::Redis, &[&auth[..], &["--replicaof", "127.0.0.1", &port]].concat()).await;
    let authenticated_cli =
        |store: &Store, command: &[&str]| cli(store, &[&["--no-auth-warning", "-a", "secret"], command].concat());
    let wait_for_replica = async || {
        let offset = |store: &Store, name: &str| {
            let info = authenticated_cli(store, &["info", "replication"]);
            info.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
        };
        eventually(SOON, "the replica has received everything", async || {
            match (offset(&master, "master_repl_offset:"), offset(&replica, "slave_repl_offset:")) {
                (Some(one), Some(other)) if one == other => Ok(()),
                other => Err(other),
            }
        })
        .await;
    };
    let sentinel = Sentinel::start(&master, "secret");
    let mut command = vec!["--no-auth-warning", "-a", "watchful"];
    let sentinel_port = sentinel.port.address().port().to_string();
    command.extend(["-p", &sentinel_port, "sentinel", "replicas", "main"]);
    eventually(SOON, "the sentinel knows the replica", async || {
        let known = cli(&master, &command);
        if known.contains(&replica.address().port().to_string()) { Ok(()) } else { Err(known) }
    })
    .await;
    wait_for_replica().await;

    let unused = Port::free().expect("there is a free port");
    let backend = || {
        let urls = [format!("redis://{}", unused.address()), format!("redis://:watchful@{}", sentinel.port.address())];
        RedisBackend::new("redis://:secret@main")
            .expect("the URL is valid")
            .sentinels(urls)
            .expect("the URLs are valid")
    };
    let connect =
        async || Hub::builder().max_events(10).backend(backend()).connect().await.expect("the server responds");
    let nodes = [connect().await, connect().await];
    let topics = nodes.each_ref().map(|node| node.topic("news"));
    let mut clients = [Client::of(&topics[0], Start::Latest).await, Client::of(&topics[1], Start::Latest).await];
    let begin = clients[0].subscription.cursor();
    let mut published = Vec::new();
    for n in 0..100 {
        published.push(n.to_string());
        publish(&topics[n % 2], &n.to_string()).await;
    }
    wait_for_replica().await;
    master.kill();
    let killed = Instant::now();
    let mut unsure = Vec::new();
    for n in 100.. {
        match topics[n % 2].publish(Event::display(n)).await {
            Ok(_) => {
                published.push(n.to_string());
                break;
            }
            Err(_) => unsure.push(n.to_string()),
        }
        assert!(killed.elapsed() < SOON, "there is no new master");
        sleep(Duration::from_millis(20)).await;
    }
    println!("published on the new master after {:?}", killed.elapsed());
    for client in &mut clients {
        for data in &published {
            client.assert_next(data).await;
        }
    }
    let mut late = Client::of(&connect().await.topic("news"), begin).await;
    for data in &published {
        late.assert_next(data).await;
    }
    assert!(late.subscription.gap().is_none() && !unsure.is_empty());

    let unknown = RedisBackend::new("redis://:secret@other").expect("the URL is valid");
    let error = connect_error(
        unknown.sentinels([format!("redis://:watchful@{}", sentinel.port.address())]).expect("the URL is valid"),
    )
    .await;
    assert!(error.contains("knows no master \"other\""), "{error}");
    let no_auth = RedisBackend::new("redis://:secret@main").expect("the URL is valid");
    let error = connect_error(
        no_auth.sentinels([format!("redis://:drowsy@{}", sentinel.port.address())]).expect("the URL is valid"),
    )
    .await;
    assert!(error.contains(&sentinel.port.address().to_string()) && !error.contains("drowsy"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_permissions_are_errors_without_the_password() {
    let store = Store::start(StoreKind::Redis, &["--requirepass", "topsecret"]).await;
    let admin_cli = |command: &[&str]| cli(&store, &[&["--no-auth-warning", "-a", "topsecret"], command].concat());
    let backend = |user: &str| RedisBackend::new(store.url_with(user)).expect("the URL is valid");
    for commands in [
        "",
        "-eval -evalsha",
        "-xadd",
        "-xread",
        "-info",
        "-@all +evalsha +script|load +exists +time +xadd +xinfo +xrange +xread +xrevrange +xtrim",
    ] {
        let rule = format!("acl setuser me reset on >mine ~tower-sse +@all {commands}");
        assert_eq!(admin_cli(&rule.split_whitespace().collect::<Vec<_>>()), "OK", "{rule}");
        let backend = backend("me:mine@");
        assert!(!format!("{backend:?}").contains("mine"), "{backend:?}");
        let connected = Hub::builder().backend(backend).connect().await;
        let assert_reason = |error: tower_sse::hub::Error| {
            let error = error.source().expect("the error has a source").to_string();
            let is_named = error.contains("permission") || error.contains("can't run this command");
            assert!(is_named && !error.contains("mine"), "{commands}: {error}");
        };
        // Without INFO, the node uses a random number to keep the ids of servers apart.
        let is_enough = commands.is_empty() || commands == "-info" || commands.starts_with("-@all");
        match connected {
            Ok(hub) if is_enough => {
                let topic = hub.topic("news");
                let mut client = Client::of(&topic, Start::Latest).await;
                publish(&topic, "allowed").await;
                client.assert_next("allowed").await;
                let log = RedisBackend::new(store.url_with("me:mine@")).expect("the URL is valid");
                let end = log.bounds().await.expect("the server responds").last;
                append_if_unchanged(&log, "news", "allowed too", end).await.expect("the topic has not changed");
                client.assert_next("allowed too").await;
                // The rule permits no other stream.
                let other = RedisBackend::new(store.url_with("me:mine@")).expect("the URL is valid").stream("other");
                let error = connect_error(other).await;
                assert!(error.contains("\"other\"") && error.contains("permission"), "{error}");
            }
            Ok(hub) => {
                // An empty log can be connected to without the permission to read.
                match hub.topic("news").publish(Event::new("forbidden")).await {
                    Err(error) => assert_reason(error),
                    Ok(_) => assert_eq!(commands, "-xread"),
                }
            }
            Err(error) => {
                assert!(!is_enough, "{error}");
                assert_reason(error);
            }
        }
        admin_cli(&["del", "tower-sse"]);
    }
    for user in ["", ":wrongword@", "unknown:wrongword@"] {
        let error = connect_error(backend(user)).await;
        println!("{error}");
        assert!(error.contains("uthentication") && !error.contains("wrongword"), "{error}");
    }
    for url in ["http://:wrongword@localhost", "redis://:wrongword@localhost/x", "redis://:wrongword@localhost:x"] {
        let error = RedisBackend::new(url).expect_err("the URL is invalid").to_string();
        assert!(error.contains("no URL of Redis") && !error.contains("wrongword"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn url_selects_socket_database_and_protocol() {
    let folder = tempfile::tempdir().expect("the folder can be created");
    let path = folder.path().join("redis.sock");
    let store = Store::start(StoreKind::Redis, &["--unixsocket", path.to_str().expect("the path is UTF-8")]).await;
    let socket = path.display();
    for (url, database) in [
        (format!("unix://{socket}?db=1"), "1"),
        (format!("redis+unix://{socket}?db=2&protocol=resp3"), "2"),
        (format!("{}/3?protocol=resp3", store.url()), "3"),
        (format!("{}/4", store.url().replace("redis://", "valkey://")), "4"),
        (format!("{}/5", store.url().replace("127.0.0.1", "localhost")), "5"),
    ] {
        let node = Hub::builder()
            .backend(RedisBackend::new(&url).expect("the URL is valid"))
            .connect()
            .await
            .expect("the server responds");
        let topic = node.topic("news");
        let mut client = Client::of(&topic, Start::Latest).await;
        for data in ["1", "2", "3"] {
            publish(&topic, data).await;
            cli(&store, &["script", "flush"]);
            client.assert_next(data).await;
        }
        assert_eq!(cli(&store, &["-n", database, "xlen", "tower-sse"]), "3", "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cluster_redirects_to_the_right_server() {
    let start = async || {
        let bus = Port::free().expect("there is a free port");
        let port = bus.address().port().to_string();
        (Store::start(StoreKind::Redis, &["--cluster-enabled", "yes", "--cluster-port", &port]).await, bus)
    };
    let (empty, _bus) = start().await;
    let (owner, bus) = start().await;
    let slots: Vec<_> = (0..16_384).map(|slot| slot.to_string()).collect();
    let slots: Vec<_> = ["cluster", "addslots"].into_iter().chain(slots.iter().map(|slot| &**slot)).collect();
    assert_eq!(cli(&owner, &slots), "OK");
    let port = owner.address().port().to_string();
    let bus = bus.address().port().to_string();
    assert_eq!(cli(&empty, &["cluster", "meet", "127.0.0.1", &port, &bus]), "OK");
    eventually(SOON, "both servers know the slots", async || {
        let states = [&empty, &owner].map(|store| cli(store, &["cluster", "info"]));
        if states.iter().all(|state| state.contains("cluster_state:ok")) { Ok(()) } else { Err(states) }
    })
    .await;
    let node = hub(&empty).await;
    let topic = node.topic("news");
    let mut client = Client::of(&topic, Start::Latest).await;
    publish(&topic, "there").await;
    client.assert_next("there").await;
    assert_eq!(cli(&owner, &["xlen", "tower-sse"]), "1");
}
