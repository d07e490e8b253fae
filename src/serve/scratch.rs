//! The buffer of a thread, where what is written at once is gathered. A connection that waits has
//! no buffer.

use std::cell::Cell;

/// The largest buffer that a thread keeps.
const MAX_KEPT: usize = 512 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Takes the buffer of this thread. It is empty.
pub(super) fn take() -> Vec<u8> {
    SCRATCH.take()
}

/// Gives a buffer to this thread.
pub(super) fn put_back(mut buffer: Vec<u8>) {
    if buffer.capacity() <= MAX_KEPT {
        buffer.clear();
        SCRATCH.set(buffer);
    }
}
