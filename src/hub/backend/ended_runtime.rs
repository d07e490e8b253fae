//! Helpers for tests of tasks whose runtime ends.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};
use tokio::runtime::Builder;

/// Polls a future in a runtime that then shuts down. The runtime drops the tasks that the future
/// has spawned before it polls them for the first time.
///
/// # Panics
///
/// If the future is ready.
pub(super) fn poll_before_the_end(future: Pin<&mut impl Future>) {
    let runtime = Builder::new_current_thread().build().unwrap();
    let entered = runtime.enter();
    assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(entered);
}

/// Returns the output of a future that is ready.
///
/// # Panics
///
/// If the future is not ready.
pub(super) fn output<T>(future: Pin<&mut impl Future<Output = T>>) -> T {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the caller still waits"),
    }
}
