//! A buffer that each thread keeps, for data whose length is known only once it is written.

use std::{cell::Cell, fmt};

/// A longer buffer is given back to the allocator after its use.
const KEPT: usize = 64 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends an empty buffer. A nested use gets one of its own, as does one while the thread ends.
pub(crate) fn with_scratch<T>(write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut buffer = SCRATCH.try_with(Cell::take).unwrap_or_default();
    buffer.clear();
    let written = write(&mut buffer);
    if buffer.capacity() <= KEPT {
        // The thread ends: the buffer goes with it.
        let _no_longer_kept = SCRATCH.try_with(|kept| kept.set(buffer));
    }
    written
}

/// As `String` does it, and unlike `std::io::Write`, which panics where a `Display` reports an
/// error.
pub(super) struct Text<'a>(pub(super) &'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}
