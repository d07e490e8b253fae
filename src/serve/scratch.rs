//! A buffer per thread, where a connection gathers the bytes of one write. So a connection that
//! waits needs no buffer of its own.

use std::cell::Cell;

/// The maximum capacity in bytes of a write buffer that a thread keeps for reuse.
const MAX_KEPT: usize = 512 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Takes the empty write buffer of the current thread. Returns a new buffer if the buffer of the
/// thread is already taken.
pub(super) fn take() -> Vec<u8> {
    SCRATCH.take()
}

/// Gives a write buffer back to the current thread for reuse. A buffer of more than 512 KiB is
/// freed instead.
pub(super) fn put_back(mut buffer: Vec<u8>) {
    if buffer.capacity() <= MAX_KEPT {
        buffer.clear();
        SCRATCH.set(buffer);
    }
}
