//! What a benchmark prints at its end: how two of its measurements stand to each other.
//!
//! Absolute times differ between machines and between runs; a ratio of two medians of one run can be compared.

use criterion::Criterion;
use std::path::{Path, PathBuf};

/// A criterion that keeps its measurements where [`Ratios`] finds them, and its baselines between runs.
pub fn criterion() -> Criterion {
    Criterion::default().output_directory(&directory()).configure_from_args()
}

fn directory() -> PathBuf {
    // A bench runs in `…/release/deps`.
    let executable = std::env::current_exe().expect("a bench has a path");
    executable.ancestors().nth(3).unwrap_or(Path::new(".")).join("criterion")
}

/// Prints the rows of a table.
pub struct Ratios;

impl Ratios {
    pub fn head() -> Self {
        println!("\n{:<52} {:>12} {:>12} {:>8}  target", "", "ns", "against, ns", "ratio");
        Self
    }

    /// One measurement against another, each divided by what it did in one go.
    pub fn ratio(&self, what: &str, ours: &str, theirs: &str, per: usize, target: &str) {
        if let (Some(ours), Some(theirs)) = (median(ours, per), median(theirs, per)) {
            println!("{what:<52} {ours:>12.1} {theirs:>12.1} {:>8.2}  {target}", ours / theirs);
        }
    }

    /// What something adds.
    pub fn difference(&self, what: &str, with: &str, without: &str, per: usize, target: &str) {
        if let (Some(with), Some(without)) = (median(with, per), median(without, per)) {
            println!("{what:<52} {with:>12.1} {without:>12.1} {:>+7.1}+  {target}", with - without);
        }
    }
}

/// In nanoseconds. `None` for a measurement that this run was told to leave out and no other has made.
fn median(id: &str, per: usize) -> Option<f64> {
    let estimates = std::fs::read(directory().join(id).join("new/estimates.json")).ok()?;
    let estimates: serde_json::Value = serde_json::from_slice(&estimates).ok()?;
    Some(estimates["median"]["point_estimate"].as_f64()? / per as f64)
}
