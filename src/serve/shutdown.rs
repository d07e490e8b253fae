//! The signals that begin a graceful shutdown.

use tokio_util::sync::CancellationToken;

/// A signal that begins a graceful shutdown: a [`CancellationToken`], or a future that completes.
///
/// `M` distinguishes the two kinds of signals, and is always inferred.
pub trait ShutdownSignal<M>: sealed::Sealed<M> {
    #[doc(hidden)]
    fn wait(self) -> impl Future<Output = ()> + Send + 'static;
}

/// The type `M` in [`ShutdownSignal`] if the signal is a [`CancellationToken`]. It has no values,
/// and only distinguishes the token from a future.
#[derive(Debug)]
pub enum Token {}

/// The type `M` in [`ShutdownSignal`] if the signal is a future. It has no values, and only
/// distinguishes the future from a [`CancellationToken`].
#[derive(Debug)]
pub enum Awaited {}

impl ShutdownSignal<Token> for CancellationToken {
    fn wait(self) -> impl Future<Output = ()> + Send + 'static {
        self.cancelled_owned()
    }
}

impl<F: Future<Output = ()> + Send + 'static> ShutdownSignal<Awaited> for F {
    fn wait(self) -> impl Future<Output = ()> + Send + 'static {
        self
    }
}

mod sealed {
    use super::{Awaited, CancellationToken, Token};

    pub trait Sealed<M> {}

    impl Sealed<Token> for CancellationToken {}

    impl<F: Future<Output = ()> + Send + 'static> Sealed<Awaited> for F {}
}
