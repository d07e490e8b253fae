//! A thread-local buffer for data whose length is known only after it is written.

use std::{cell::Cell, fmt};

/// The maximum capacity in bytes of the buffer that a thread keeps for reuse. A larger buffer is
/// freed after its use.
const KEPT: usize = 64 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Calls `write` with an empty buffer, which later calls on this thread reuse. A nested call, and a
/// call while the thread ends, get a new buffer.
pub(crate) fn with_scratch<T>(write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut buffer = SCRATCH.try_with(Cell::take).unwrap_or_default();
    buffer.clear();
    let written = write(&mut buffer);
    if buffer.capacity() <= KEPT {
        // `try_with` fails while the thread ends. The buffer is then freed here.
        let _freed_with_the_thread = SCRATCH.try_with(|kept| kept.set(buffer));
    }
    written
}

/// Appends formatted text to a buffer of bytes.
///
/// If a `Display` implementation fails, formatting returns a `fmt::Error`, as for a `String`. The
/// formatting methods of `std::io::Write` would panic instead.
pub(super) struct Text<'a>(pub(super) &'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}
