//! Access to NATS: URLs, TLS, credentials and permissions.

use crate::{
    nats::{backend, connect, publish, publish_retrying, read_until, reason, try_connect},
    setup::certificates,
    unchanged::{DEFAULT_TIMEOUT, append_if_unchanged},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use e2e::{Port, Store, StoreKind};
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tower_sse::{
    Event,
    hub::{Hub, Start, backend::Backend},
};

#[tokio::test(flavor = "multi_thread")]
async fn connection_without_a_greeting_is_an_error() {
    // A listener that accepts connections, and never sends a byte.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let dead = listener.local_addr().expect("the listener has an address");
    let begin = Instant::now();
    let url = format!("nats://{dead}");
    let error = try_connect(backend(&url).timeout(Duration::from_millis(300))).await.expect_err("the server is silent");
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    println!("{:?}: {}", begin.elapsed(), reason(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_reachable_server_is_enough() {
    let store = Store::start(StoreKind::Nats, &["--auth", "s3cret"]).await;
    let unused = Port::free().expect("there is a free port");
    for _ in 0..10 {
        let hub = connect(backend(&format!("nats://{},nats://s3cret@{}", unused.address(), store.address()))).await;
        publish(&hub, "x").await;
    }
    let wrong = format!("nats://wr0ng@{},nats://{}", store.address(), unused.address());
    for _ in 0..5 {
        let why = reason(&try_connect(backend(&wrong)).await.expect_err("the token is wrong"));
        assert!(!why.contains("wr0ng"), "{why}");
    }
    let shown = format!("{:?} {:?}", backend(&wrong), Hub::builder().backend(backend(&wrong)));
    assert!(!shown.contains("wr0ng"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn url_can_contain_any_password() {
    let store = Store::start(StoreKind::Nats, &["--user", "m@il", "--pass", "p/a:s,s%w ö"]).await;
    connect(backend(&store.url_with("m%40il:p%2Fa%3As%2Cs%25w%20%C3%B6@"))).await;
    let error =
        try_connect(backend(&store.url_with("m%40il:p%2Fa%3As%2Cs%25w%20@"))).await.expect_err("the password is wrong");
    assert!(reason(&error).contains("authorization"), "{}", reason(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_checks_the_certificate_of_the_server() {
    let [folder, others] = [(); 2].map(|()| certificates("IP:127.0.0.1"));
    let path = |folder: &TempDir, name: &str| folder.path().join(name).to_str().expect("the path is UTF-8").to_owned();
    let (cert, key) = (path(&folder, "server.pem"), path(&folder, "server.key"));
    let mut store = Store::start(StoreKind::Nats, &["--tls", "--tlscert", &cert, "--tlskey", &key]).await;
    let url = store.url().replace("nats://", "tls://");
    let node = connect(backend(&url).root_certificates(path(&folder, "ca.pem"))).await;
    let mut client = node.topic("news").subscribe(Start::Latest).await.expect("the hub accepts the subscription");
    publish(&node, "secret").await;
    read_until(&mut client, "data: secret\n").await;
    store.kill();
    store.restart().await;
    publish_retrying(&node, "again").await;
    read_until(&mut client, "data: again\n").await;

    for untrusting in [backend(&url), backend(&url).root_certificates(path(&others, "ca.pem"))] {
        let why = reason(&try_connect(untrusting).await.expect_err("the certificate is not trusted"));
        assert!(why.contains("certificate"), "{why}");
    }
    let missing = backend(&url).root_certificates(path(&folder, "no.pem"));
    let why = reason(&try_connect(missing).await.expect_err("there is no such file"));
    assert!(why.contains("No such file"), "{why}");

    // A `tls` URL does not fall back to plain text.
    let plain = Store::start(StoreKind::Nats, &[]).await;
    let url = plain.url().replace("nats://", "tls://");
    try_connect(backend(&url).root_certificates(path(&folder, "ca.pem"))).await.expect_err("the server has no TLS");
}

/// Signs the claims of a key with the key of its issuer, in the format of `nsc`.
fn claim(issuer: &KeyPair, subject: &KeyPair, claims: Value) -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (issued_by, subject) = (issuer.public_key(), subject.public_key());
    let payload = json!({ "jti": subject, "iat": 1_700_000_000, "iss": issued_by, "sub": subject, "nats": claims });
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(payload.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).expect("the key has a seed");
    format!("{signed}.{}", encode(&signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_file_opens_an_account() {
    let folder = tempfile::tempdir().expect("the folder can be created");
    let (operator, user) = (KeyPair::new_operator(), KeyPair::new_user());
    let [system, account] = [(); 2].map(|()| KeyPair::new_account());
    let without_limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let of_account = |limits: &Value| json!({ "type": "account", "version": 2, "limits": limits });
    let no_storage = json!({ "subs": -1, "data": -1, "payload": -1, "conn": -1, "wildcards": true });
    let config = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}: {}\n{}: {}\n}}\n",
        claim(&operator, &operator, json!({ "type": "operator", "version": 2 })),
        system.public_key(),
        system.public_key(),
        claim(&operator, &system, of_account(&no_storage)),
        account.public_key(),
        claim(&operator, &account, of_account(&without_limits)),
    );
    let file = folder.path().join("nats.conf");
    fs::write(&file, config).expect("the file can be written");
    let store = Store::start(StoreKind::Nats, &["-c", file.to_str().expect("the path is UTF-8")]).await;

    let credentials = |name: &str, issuer: &KeyPair, seed: &KeyPair| {
        let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let (claim, seed) = (claim(issuer, &user, claims), seed.seed().expect("the key has a seed"));
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{claim}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let path = folder.path().join(name);
        fs::write(&path, text).expect("the file can be written");
        path
    };
    let right = credentials("right.creds", &account, &user);
    let hub = connect(backend(&store.url()).credentials_file(&right)).await;
    publish(&hub, "x").await;

    let unknown = credentials("unknown.creds", &KeyPair::new_account(), &user);
    let stolen = credentials("stolen.creds", &account, &KeyPair::new_user());
    let none = folder.path().join("none.creds");
    for (path, part) in [(&unknown, "authorization"), (&stolen, "authorization"), (&none, "none.creds")] {
        let error =
            try_connect(backend(&store.url()).credentials_file(path)).await.expect_err("the credentials are wrong");
        assert!(reason(&error).contains(part), "{}", reason(&error));
    }
    fs::write(&none, "SUAsecret").expect("the file can be written");
    let error =
        try_connect(backend(&store.url()).credentials_file(&none)).await.expect_err("the file has no credentials");
    assert!(reason(&error).contains("cannot be used") && !reason(&error).contains("SUA"), "{}", reason(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_permissions_are_enough() {
    let folder = tempfile::tempdir().expect("the folder can be created");
    let file = folder.path().join("nats.conf");
    let permissions = r#"
        publish: ["tower-sse.>", "$JS.API.STREAM.INFO.tower-sse", "$JS.API.STREAM.MSG.GET.tower-sse",
            "$JS.API.CONSUMER.CREATE.tower-sse",
            "$JS.API.CONSUMER.*.tower-sse.>", "$JS.API.CONSUMER.MSG.NEXT.tower-sse.>"]
        subscribe: ["_INBOX.>"]"#;
    let config = format!(
        "authorization {{ users: [{{ user: root, password: r }}, {{ user: app, password: a, permissions: {{ {permissions} }} }}] }}"
    );
    fs::write(&file, config).expect("the file can be written");
    let mut store = Store::start(StoreKind::Nats, &["-c", file.to_str().expect("the path is UTF-8")]).await;
    // Creating the stream needs one more permission. The server does not respond without it.
    let denied = backend(&store.url_with("app:a@")).timeout(DEFAULT_TIMEOUT);
    let error = try_connect(denied).await.expect_err("there is no stream");
    assert!(reason(&error).contains("cannot be created"), "{}", reason(&error));
    connect(backend(&store.url_with("root:r@"))).await;
    let hub = connect(backend(&store.url_with("app:a@"))).await;
    let first = publish(&hub, "first").await;
    for n in 0..200 {
        hub.topic(format!("news/{}", n % 2)).publish(Event::display(n)).await.expect("the server responds");
    }
    publish(&hub, "last").await;
    let log = backend(&store.url_with("app:a@"));
    let end = log.bounds().await.expect("the server responds").last;
    append_if_unchanged(&log, "other", "x", end).await.expect("the topic has not changed");
    // The node retains fewer events, so it reads the log, also after a restart.
    let topics = ["news", "news/0", "news/1"];
    let late = connect(backend(&store.url_with("app:a@"))).await;
    store.kill();
    store.restart().await;
    publish_retrying(&hub, "after it").await;
    let mut client = late.subscribe(topics, first).await.expect("the hub accepts the subscription");
    let got = read_until(&mut client, "data: after it\n").await;
    assert_eq!((got.matches("data: ").count(), client.gap()), (202, None), "{got}");
}
