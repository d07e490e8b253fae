//! The buffer of a thread, where what is written at once is gathered. A connection that waits has
//! no buffer.

use std::cell::Cell;

/// The maximum capacity in bytes of a buffer that a thread keeps for reuse.
const MAX_KEPT: usize = 512 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Takes the buffer of this thread, which is always empty.
pub(super) fn take() -> Vec<u8> {
    SCRATCH.take()
}

/// Gives a buffer back to this thread for reuse. A buffer of more than 512 KiB is freed.
pub(super) fn put_back(mut buffer: Vec<u8>) {
    if buffer.capacity() <= MAX_KEPT {
        buffer.clear();
        SCRATCH.set(buffer);
    }
}
