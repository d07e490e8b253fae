//! Conversion between positions of the log and event ids, which clients send as `Last-Event-ID`.

use super::{
    backend::{IdFormat, Position},
    gap::GapReason,
};
use crate::{EventId, random};

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const LENGTH: usize = 8;

/// An epoch identifies one lifetime of a log. A log in memory has another epoch after a restart.
/// This type also contains the format of the event ids in the log.
///
/// An epoch has 40 bits, and most formats of ids contain them as eight letters or digits. The bits
/// are random for a log in memory, and otherwise come from the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    letters: [u8; LENGTH],
    pub(super) ids: IdFormat,
}

impl Epoch {
    pub(super) fn random() -> Self {
        Self::of(random::bits(), IdFormat::Positions)
    }

    /// Creates an epoch, the identity of one lifetime of a log, from the lower 40 bits of `bits`.
    /// `ids` is the format of the event ids in this log, which the epoch also contains.
    pub(super) fn of(bits: u64, ids: IdFormat) -> Self {
        Self { letters: std::array::from_fn(|i| ALPHABET[(bits >> (5 * i)) as usize % ALPHABET.len()]), ids }
    }

    pub(super) fn from_bits(bits: u64, ids: IdFormat) -> Self {
        Self { letters: bits.to_ne_bytes(), ids }
    }

    pub(super) fn into_bits(self) -> u64 {
        u64::from_ne_bytes(self.letters)
    }

    /// Returns the eight letters and digits that stand for this epoch in ids. The epoch identifies
    /// one lifetime of the log.
    #[cfg(feature = "durable-streams")]
    pub(super) fn letters(&self) -> &str {
        std::str::from_utf8(&self.letters).unwrap_or_default()
    }

    /// Returns `true` if an event id can contain this text as its epoch, the part that identifies
    /// one lifetime of the log: eight letters from `a` to `z` or digits from `2` to `7`.
    pub(super) fn has_valid_letters(letters: &str) -> bool {
        letters.len() == LENGTH && letters.bytes().all(|letter| ALPHABET.contains(&letter))
    }

    pub(super) fn id(&self, position: Position) -> EventId {
        let number = position.get();
        let mut id = Text { bytes: [0; 48], length: 0 };
        match self.ids {
            IdFormat::Positions => id.add(&self.letters).add(b"-").number(number),
            IdFormat::Messages => {
                let message = number.div_ceil(IdFormat::MESSAGE);
                id.add(&self.letters).add(b"-").number(message);
                // Offsets of clients can be so large that a multiplication would overflow.
                match (IdFormat::MESSAGE - number % IdFormat::MESSAGE) % IdFormat::MESSAGE {
                    0 => &mut id,
                    following => id.add(b"-").number(following),
                }
            }
            IdFormat::Times => {
                id.number(number >> IdFormat::SEQUENCE_BITS).add(b"-").number(number & IdFormat::MAX_SEQUENCE)
            }
        };
        EventId::from_ascii(id.as_bytes())
    }

    /// Parses an event id, and returns its position in the log. Returns an error if the text is not
    /// an id, contains the epoch of another log (the part that identifies the log), or contains a
    /// number that is too large. The error is the reason in the gap event that the client gets.
    pub(super) fn position(&self, id: &EventId) -> Result<Position, GapReason> {
        let id = id.as_str();
        if self.ids == IdFormat::Times {
            let (time, sequence) = id.split_once('-').ok_or(GapReason::Malformed)?;
            let (time, sequence) = (digits(time)?, digits(sequence)?);
            if sequence.is_none_or(|sequence| sequence > IdFormat::MAX_SEQUENCE) {
                return Err(GapReason::Malformed);
            }
            let time = time.filter(|time| *time <= u64::MAX >> IdFormat::SEQUENCE_BITS).ok_or(GapReason::Ahead)?;
            return Ok(Position::new(time << IdFormat::SEQUENCE_BITS | sequence.unwrap_or(0)));
        }

        let (letters, rest) = id.split_once('-').ok_or(GapReason::Malformed)?;
        let (number, following) = match rest.split_once('-') {
            Some((number, following)) if self.ids == IdFormat::Messages => (number, Some(following)),
            _ => (rest, None),
        };
        let number = digits(number)?;
        let following = following.map(digits).transpose()?;
        if !Self::has_valid_letters(letters) {
            return Err(GapReason::Malformed);
        }
        if letters.as_bytes() != self.letters {
            return Err(GapReason::OtherEpoch);
        }
        let number = number.ok_or(GapReason::Ahead)?;
        if self.ids == IdFormat::Positions {
            return Ok(Position::new(number));
        }
        let last = number.checked_mul(IdFormat::MESSAGE).ok_or(GapReason::Ahead)?;
        match following {
            None => Ok(Position::new(last)),
            Some(Some(following @ 1..IdFormat::MESSAGE)) if last > 0 => Ok(Position::new(last - following)),
            Some(_) => Err(GapReason::Malformed),
        }
    }
}

/// Parses a decimal number. Returns `Ok(None)` if the number exceeds `u64`. Returns an error if the
/// text contains anything but digits, such as a sign, has leading zeros, or is empty.
fn digits(text: &str) -> Result<Option<u64>, GapReason> {
    let is_canonical =
        matches!(text.as_bytes(), [b'0'] | [b'1'..=b'9', ..]) && text.bytes().all(|b| b.is_ascii_digit());
    if is_canonical { Ok(text.parse().ok()) } else { Err(GapReason::Malformed) }
}

/// A fixed-size buffer for the text of an id.
struct Text {
    bytes: [u8; 48],
    length: usize,
}

impl Text {
    fn add(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes[self.length..][..bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.add(itoa::Buffer::new().format(number).as_bytes())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let epoch = Epoch::random();
        for number in [0, 1, 9, 10, 1_234_567, u64::MAX] {
            let id = epoch.id(Position::new(number));
            assert_eq!(epoch.position(&id).unwrap().get(), number, "{id}");
            assert_eq!(EventId::new(id.as_str()).unwrap(), id);
        }
    }

    #[test]
    fn invalid_id_gives_the_reason_of_the_gap() {
        let epoch = Epoch { letters: *b"abcdefgh", ids: IdFormat::Positions };
        for (id, reason) in [
            ("", GapReason::Malformed),
            ("7", GapReason::Malformed),
            ("abcdefgh", GapReason::Malformed),
            ("abcdefgh-", GapReason::Malformed),
            ("abcdefgh-+7", GapReason::Malformed),
            ("abcdefgh--7", GapReason::Malformed),
            ("abcdefgh-07", GapReason::Malformed),
            ("abcdefgh-7 ", GapReason::Malformed),
            ("abcdefgh_7", GapReason::Malformed),
            ("ABCDEFGH-7", GapReason::Malformed),
            ("abcdefé-7", GapReason::Malformed),
            ("hgfedcba-7", GapReason::OtherEpoch),
            ("hgfedcba-99999999999999999999", GapReason::OtherEpoch),
            ("abcdefgh-99999999999999999999", GapReason::Ahead),
        ] {
            assert_eq!(epoch.position(&EventId::new(id).unwrap()), Err(reason), "{id:?}");
        }
    }

    #[test]
    fn the_ids_of_a_log_are_written_as_it_wants_them() {
        let messages = Epoch { letters: *b"abcdefgh", ids: IdFormat::Messages };
        let times = Epoch { ids: IdFormat::Times, ..messages };
        for (epoch, number, id) in [
            (messages, 0, "abcdefgh-0"),
            (messages, 65_536, "abcdefgh-1"),
            (messages, 65_537, "abcdefgh-2-65535"),
            (messages, 131_071, "abcdefgh-2-1"),
            (messages, u64::MAX - 65_535, "abcdefgh-281474976710655"),
            (times, 0, "0-0"),
            (times, 1_700_000_000_000 << 20, "1700000000000-0"),
            (times, 1_700_000_000_000 << 20 | 7, "1700000000000-7"),
            (times, u64::MAX, "17592186044415-1048575"),
        ] {
            let position = Position::new(number);
            assert_eq!(epoch.id(position).as_str(), id);
            assert_eq!(epoch.position(&EventId::new(id).unwrap()), Ok(position), "{id}");
        }
    }

    #[test]
    fn invalid_id_of_a_backend_gives_the_reason() {
        let messages = Epoch { letters: *b"abcdefgh", ids: IdFormat::Messages };
        let times = Epoch { ids: IdFormat::Times, ..messages };
        for (epoch, id, reason) in [
            (messages, "abcdefgh-0-1", GapReason::Malformed),
            (messages, "abcdefgh-7-0", GapReason::Malformed),
            (messages, "abcdefgh-7-65536", GapReason::Malformed),
            (messages, "abcdefgh-7-01", GapReason::Malformed),
            (messages, "abcdefgh-7-", GapReason::Malformed),
            (messages, "abcdefgh-7-99999999999999999999", GapReason::Malformed),
            (messages, "1700000000000-7", GapReason::Malformed),
            (messages, "hgfedcba-7-1", GapReason::OtherEpoch),
            (messages, "abcdefgh-281474976710656", GapReason::Ahead),
            (messages, "abcdefgh-99999999999999999999", GapReason::Ahead),
            (times, "", GapReason::Malformed),
            (times, "1700000000000", GapReason::Malformed),
            (times, "1700000000000-", GapReason::Malformed),
            (times, "1700000000000-07", GapReason::Malformed),
            (times, "1700000000000-1048576", GapReason::Malformed),
            (times, "abcdefgh-7", GapReason::Malformed),
            (times, "17592186044416-0", GapReason::Ahead),
            (times, "99999999999999999999-0", GapReason::Ahead),
        ] {
            assert_eq!(epoch.position(&EventId::new(id).unwrap()), Err(reason), "{id:?}");
        }
    }

    #[test]
    fn epochs_differ() {
        let epochs: std::collections::HashSet<_> = (0..100).map(|_| Epoch::random().letters).collect();
        assert_eq!(epochs.len(), 100);
    }
}
