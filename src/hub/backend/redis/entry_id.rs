//! Conversion between Redis entry ids (`<ms>-<sequence>`) and positions, which are 64-bit numbers.

use crate::{
    BoxError,
    hub::backend::{IdFormat, Position},
};

/// The number of low bits of a position that contain the sequence number of an entry id. The other
/// bits contain its time.
pub(super) const SEQUENCE_BITS: u32 = IdFormat::SEQUENCE_BITS;

/// The greatest sequence number that fits into a position. If an entry id has a greater sequence
/// number, its position contains this number instead. So several ids can have the same position.
/// Only other software chooses such ids.
pub(super) const OVERFLOW_SEQUENCE: u64 = IdFormat::MAX_SEQUENCE;

/// The position of every entry id whose time (milliseconds since 1970) does not fit into the upper
/// bits of a position. Only other software chooses such ids.
pub(super) const TOO_LATE: Position = Position::MAX;

/// The maximum lead of the time in an entry id over the clock of the Redis server: one day, in
/// milliseconds. A later id is considered a mistake of other software. After the stream is deleted,
/// the new log continues after the greatest known id. If this id is a mistake, the new log ignores
/// it, and begins at the current time. The Lua scripts use the same limit.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Returns the position of a Redis entry id, or `None` if the text is not an entry id. All ids
/// after the year 2527 have the position [`Position::MAX`].
pub(super) fn position(id: &[u8]) -> Option<Position> {
    let dash = memchr::memchr(b'-', id)?;
    let (ms, sequence) = (number(&id[..dash])?, number(&id[dash + 1..])?);
    let fits = ms >> (64 - SEQUENCE_BITS) == 0;
    Some(if fits { Position::new(ms << SEQUENCE_BITS | sequence.min(OVERFLOW_SEQUENCE)) } else { TOO_LATE })
}

/// Returns the position of a Redis entry id, or an error if the text is not an entry id.
pub(super) fn expect_position(id: &[u8]) -> Result<Position, BoxError> {
    position(id).ok_or_else(|| format!("the server calls {:?} an id", String::from_utf8_lossy(id)).into())
}

/// Returns the Redis entry id with this position. Several ids have the same position if their times
/// or sequence numbers are too great for a position. In this case, returns the greatest of them.
pub(super) fn id(position: Position) -> String {
    if position == TOO_LATE {
        return format!("{0}-{0}", u64::MAX);
    }
    let (ms, sequence) = (ms(position), position.get() & OVERFLOW_SEQUENCE);
    format!("{ms}-{}", if sequence == OVERFLOW_SEQUENCE { u64::MAX } else { sequence })
}

/// Returns the time in the upper bits of a position, in milliseconds since 1970.
pub(super) fn ms(position: Position) -> u64 {
    position.get() >> SEQUENCE_BITS
}

/// Returns `true` if the time in the upper bits of a position is more than a day after `time_ms`,
/// the current time of the Redis server in milliseconds since 1970.
pub(super) fn is_far_ahead(position: Position, time_ms: u64) -> bool {
    ms(position) > time_ms.saturating_add(DAY_MS)
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbtest::{
        arbitrary::{self, Unstructured},
        arbtest,
    };

    fn at(ms: u64, sequence: u64) -> Position {
        Position::new(ms << SEQUENCE_BITS | sequence)
    }

    /// Generates a position that a hub can issue. The generated time and sequence number fit into
    /// the position, so only one entry id has this position.
    fn issued(u: &mut Unstructured<'_>) -> arbitrary::Result<Position> {
        Ok(at(u.int_in_range(0..=(u64::MAX >> SEQUENCE_BITS) - 1)?, u.int_in_range(0..=OVERFLOW_SEQUENCE - 1)?))
    }

    #[test]
    fn ids_and_positions_have_one_order() {
        arbtest(|u| {
            let (one, other) = (issued(u)?, issued(u)?);
            assert_eq!(position(id(one).as_bytes()), Some(one));
            let parts = |position| {
                let id = id(position);
                let (ms, sequence) = id.split_once('-').unwrap();
                (ms.parse::<u64>().unwrap(), sequence.parse::<u64>().unwrap())
            };
            assert_eq!(one.cmp(&other), parts(one).cmp(&parts(other)));
            Ok(())
        });
    }

    #[test]
    fn foreign_ids_keep_their_order_and_are_passed() {
        arbtest(|u| {
            // Without the shift, nearly all numbers would be too late for a position.
            let ms = u.arbitrary::<u64>()? >> u.int_in_range(0..=SEQUENCE_BITS)?;
            let sequence = u.arbitrary::<u64>()? >> u.int_in_range(0..=63)?;
            let at = position(format!("{ms}-{sequence}").as_bytes()).unwrap();
            if ms >> (64 - SEQUENCE_BITS) > 0 {
                assert_eq!(at, TOO_LATE);
                return Ok(());
            }
            let through = id(at);
            let (through_ms, through_sequence) = through.split_once('-').unwrap();
            let through = (through_ms.parse::<u64>().unwrap(), through_sequence.parse::<u64>().unwrap());
            assert!(through >= (ms, sequence), "a reader that continues there does not get it again");
            Ok(())
        });
    }

    #[test]
    fn arbitrary_ids_do_not_panic() {
        arbtest(|u| {
            let _any_result = position(u.arbitrary()?);
            Ok(())
        });
    }
}
