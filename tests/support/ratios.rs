//! The table at the end of a benchmark, which compares pairs of its measurements.
//!
//! Absolute times differ between machines and between runs. The ratio of two medians of the same
//! run can be compared.

use criterion::Criterion;
use std::path::{Path, PathBuf};

/// Creates a `Criterion` that stores its measurements where [`Ratios`] reads them.
///
/// Its baselines survive between runs.
pub fn criterion() -> Criterion {
    Criterion::default().output_directory(&directory()).configure_from_args()
}

fn directory() -> PathBuf {
    // The executable of a benchmark is in `…/release/deps`.
    let executable = std::env::current_exe().expect("a path of the executable");
    executable.ancestors().nth(3).unwrap_or(Path::new(".")).join("criterion")
}

/// A table of ratios and differences. Each method prints a line.
pub struct Ratios;

impl Ratios {
    pub fn head() -> Self {
        println!("\n{:<52} {:>12} {:>12} {:>8}  target", "", "ns", "against, ns", "ratio");
        Self
    }

    /// Prints the ratio of two measurements, each divided by the operations per iteration.
    pub fn ratio(&self, what: &str, ours: &str, theirs: &str, per: usize, target: &str) {
        if let (Some(ours), Some(theirs)) = (median(ours, per), median(theirs, per)) {
            println!("{what:<52} {ours:>12.1} {theirs:>12.1} {:>8.2}  {target}", ours / theirs);
        }
    }

    /// Prints the difference of two measurements, each divided by the operations per iteration.
    pub fn difference(&self, what: &str, with: &str, without: &str, per: usize, target: &str) {
        if let (Some(with), Some(without)) = (median(with, per), median(without, per)) {
            println!("{what:<52} {with:>12.1} {without:>12.1} {:>+7.1}+  {target}", with - without);
        }
    }
}

/// Returns the median of a measurement in nanoseconds.
///
/// Returns `None` if neither this run nor an earlier one made the measurement.
fn median(id: &str, per: usize) -> Option<f64> {
    let estimates = std::fs::read(directory().join(id).join("new/estimates.json")).ok()?;
    let estimates: serde_json::Value = serde_json::from_slice(&estimates).ok()?;
    Some(estimates["median"]["point_estimate"].as_f64()? / per as f64)
}
