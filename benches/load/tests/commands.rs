//! The commands with few clients, for a short time.

use std::process::Command;

#[track_caller]
fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_load")).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn streams_of_http2_get_an_event_heartbeats_and_an_end() {
    for contestant in ["serve", "axum-serve"] {
        let contestant = format!("--contestant={contestant}");
        let text = run(&["million", &contestant, "--connections=20", "--streams=50", "--heartbeat=1"]);
        assert!(text.contains("shutdown:  1000 streams"), "{text}");
    }
}

#[test]
fn connections_of_http1_get_an_event_heartbeats_and_an_end() {
    let text = run(&["million", "--http1", "--connections=100", "--heartbeat=1"]);
    assert!(text.contains("shutdown:  100 streams"), "{text}");
}

#[test]
fn clients_that_reconnect_and_stall_lose_nothing() {
    let text = run(&["everything", "--clients=200", "--seconds=4", "--stall-seconds=1", "--retain=2000"]);
    assert!(text.contains("0 lost, 0 repeated, 0 reordered, 0 gaps"), "{text}");
}

#[test]
fn everything_fails_if_the_hub_retains_too_little() {
    // More than the buffers of the sockets can hold while a client does not read.
    let events = ["everything", "--clients=100", "--seconds=6", "--size=8000", "--retain=20"];
    let stalls = ["--stall-seconds=5", "--stall=10"];
    let output = Command::new(env!("CARGO_BIN_EXE_load")).args(events).args(stalls).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && text.contains(" gaps") && !text.contains(" 0 gaps"), "{text}");
}
