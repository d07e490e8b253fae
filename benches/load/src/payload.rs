//! The data of each event: its sequence number, and the time when it was sent.
//!
//! Both are six digits to the base of 64, so that a token of 12 bytes has room for them. The rest
//! is padding.

use nix::time::{ClockId, clock_gettime};

const DIGITS: usize = 6;
/// The number of bytes that a payload has at least.
pub const MIN: usize = 2 * DIGITS;
/// Sequence numbers and times are smaller.
pub const LIMIT: u64 = 1 << (6 * DIGITS);
/// The time of an event that is not measured.
pub const NO_TIME: u64 = 0;

/// Returns the microseconds of the monotonic clock, which all processes share, modulo [`LIMIT`]
/// (19 hours).
pub fn micros() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    let micros = now.tv_sec().unsigned_abs() * 1_000_000 + now.tv_nsec().unsigned_abs() / 1000;
    (micros % LIMIT).max(1)
}

/// Returns the microseconds from `sent` to `now`, or `None` if the event is not measured.
pub fn latency(sent: u64, now: u64) -> Option<u64> {
    (sent != NO_TIME).then(|| (now + LIMIT - sent) % LIMIT)
}

/// Returns whether a time is not before another one.
pub fn is_since(time: u64, begin: u64) -> bool {
    (time + LIMIT - begin) % LIMIT < LIMIT / 2
}

/// A buffer that is filled with the payloads of one stream.
#[derive(Clone, Debug)]
pub struct Payload(String);

impl Payload {
    /// Creates a buffer for payloads of this size in bytes.
    pub fn new(size: usize) -> Self {
        Self("x".repeat(size.max(MIN)))
    }

    /// Returns the payload of this event.
    pub fn of(&mut self, sequence: u64, sent: u64) -> &str {
        let mut digits = [0; MIN];
        write(&mut digits[..DIGITS], sequence);
        write(&mut digits[DIGITS..], sent);
        let digits = std::str::from_utf8(&digits).expect("the digits are ASCII");
        self.0.replace_range(..MIN, digits);
        &self.0
    }
}

/// The digits are `0` to `o` in the order of ASCII. None of them is special in an event stream.
fn write(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 64) as u8;
        number /= 64;
    }
}

/// Reads a sequence number and a time.
pub fn read(payload: &[u8; MIN]) -> (u64, u64) {
    let number =
        |digits: &[u8]| digits.iter().fold(0, |number, digit| number * 64 + u64::from(digit.wrapping_sub(b'0')));
    (number(&payload[..DIGITS]), number(&payload[DIGITS..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_read_back() {
        let mut payload = Payload::new(20);
        for (sequence, sent) in [(0, NO_TIME), (63, 64), (LIMIT - 1, 1), (123_456_789, LIMIT - 1)] {
            let text = payload.of(sequence, sent);
            assert_eq!(text.len(), 20);
            assert!(!text.contains(char::is_control), "{text}");
            assert_eq!(read(text.as_bytes().first_chunk().unwrap()), (sequence, sent));
        }
    }

    #[test]
    fn latency_spans_the_wrap_of_the_clock() {
        assert_eq!(latency(LIMIT - 2, 3), Some(5));
        assert_eq!(latency(NO_TIME, 3), None);
        assert!(is_since(3, LIMIT - 2) && is_since(3, 3) && !is_since(LIMIT - 2, 3));
    }
}
