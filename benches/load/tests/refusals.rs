//! Servers with a fault on purpose: the table has no figures for them.

use std::process::{Command, Output};

fn table(options: &[&str]) -> Output {
    let rows = ["table", "--rows=bursts", "--rounds=1", "--seconds=0.2", "--clients=20", "--contestants=hyper"];
    Command::new(env!("CARGO_BIN_EXE_load")).args(rows).args(options).output().unwrap()
}

#[track_caller]
fn check_refused(fault: &str, reason: &str) {
    let output = table(&[&format!("--fault={fault}")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("refused") && text.contains(reason), "{text}");
}

#[test]
fn figures_are_refused_if_events_are_lost() {
    check_refused("lost", "events did not arrive");
}

#[test]
fn figures_are_refused_if_events_are_repeated() {
    check_refused("repeated", " repeated");
}

#[test]
fn figures_are_refused_if_events_are_reordered() {
    check_refused("reordered", " reordered");
}

#[test]
fn figures_without_faults_are_printed() {
    let output = table(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !text.contains("refused"), "{text}");
}
