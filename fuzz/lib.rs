//! The parts that several fuzz targets share.

#[path = "../src/test/whatwg.rs"]
pub mod whatwg;

/// Splits an input at its first LF. Without an LF, everything is before it.
pub fn split_line(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, b""),
    }
}

/// Runs a future on a runtime whose time is paused.
pub fn in_paused_time<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O has no reason to fail").block_on(future)
}
