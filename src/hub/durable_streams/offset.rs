//! Offsets of the Durable Streams protocol: positions of the log as text. Their order as text is
//! the order of the positions.

use super::super::{
    backend::{IdFormat, Position},
    id::Epoch,
};

/// The number of decimal digits of an offset of the Durable Streams protocol. The greatest position
/// has as many digits, and smaller positions get leading zeros. So offsets can be compared as text.
const DIGITS: usize = 20;

/// The reason why a text is not an offset of the current log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InvalidOffset {
    /// The text does not have the format of an offset.
    Malformed,
    /// The offset is from another log, such as the log in memory before a restart.
    OtherEpoch,
}

/// Returns `position` as an offset of the Durable Streams protocol: `<epoch>_<position with 20
/// digits>`. A client reads the events after this position. The epoch identifies the log. It is
/// left out if the event ids of the log contain no epoch.
pub(super) fn format(epoch: Epoch, position: Position) -> String {
    let number = position.get();
    match prefix(&epoch) {
        Some(prefix) => format!("{prefix}_{number:0DIGITS$}"),
        None => format!("{number:0DIGITS$}"),
    }
}

/// Returns the position of `offset`, an offset of the Durable Streams protocol, in the log that
/// `epoch` identifies. Returns an error if the text is no offset, or if the offset is from another
/// log.
pub(super) fn parse(epoch: Epoch, offset: &str) -> Result<Position, InvalidOffset> {
    let (letters, number) = match offset.split_once('_') {
        Some((letters, number)) => (Some(letters), number),
        None => (None, offset),
    };
    if letters.is_some_and(|letters| !Epoch::has_valid_letters(letters))
        || number.len() != DIGITS
        || !number.bytes().all(|digit| digit.is_ascii_digit())
    {
        return Err(InvalidOffset::Malformed);
    }
    let position = number.parse().map_err(|_| InvalidOffset::Malformed)?;
    if letters == prefix(&epoch) { Ok(Position::new(position)) } else { Err(InvalidOffset::OtherEpoch) }
}

fn prefix(epoch: &Epoch) -> Option<&str> {
    (epoch.ids != IdFormat::Times).then(|| epoch.letters())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbtest::{
        arbitrary::{Result, Unstructured},
        arbtest,
    };

    fn epoch(ids: IdFormat) -> Epoch {
        Epoch::of(7, ids)
    }

    fn any_ids(u: &mut Unstructured<'_>) -> Result<IdFormat> {
        Ok(*u.choose(&[IdFormat::Positions, IdFormat::Messages, IdFormat::Times])?)
    }

    #[test]
    fn offset_denotes_its_position() {
        arbtest(|u| {
            let (epoch, position) = (epoch(any_ids(u)?), Position::new(u.arbitrary()?));
            assert_eq!(parse(epoch, &format(epoch, position)), Ok(position));
            Ok(())
        });
    }

    /// Tests that any position can be formatted as an id, because a client can send any position in
    /// an offset. Parsing this id returns the same position or an error.
    #[test]
    fn every_position_has_an_id() {
        arbtest(|u| {
            let (epoch, number): (_, u64) = (epoch(any_ids(u)?), u.arbitrary()?);
            for number in [number, u64::MAX - number % IdFormat::MESSAGE] {
                let id = epoch.id(Position::new(number));
                let position = epoch.position(&id);
                assert!(position.is_err() || position == Ok(Position::new(number)), "{id:?}");
            }
            Ok(())
        });
    }

    #[test]
    fn offsets_are_ordered_like_positions() {
        arbtest(|u| {
            let epoch = epoch(any_ids(u)?);
            let (one, other): (u64, u64) = u.arbitrary()?;
            let texts = format(epoch, Position::new(one)).cmp(&format(epoch, Position::new(other)));
            assert_eq!(texts, one.cmp(&other));
            Ok(())
        });
    }

    #[test]
    fn no_text_panics_and_valid_offsets_are_canonical() {
        arbtest(|u| {
            let ids = any_ids(u)?;
            let text = if u.arbitrary()? {
                u.arbitrary()?
            } else {
                let mut text = String::new();
                for _ in 0..u.int_in_range(0..=32)? {
                    text.push(*u.choose(b"abcdefgh0123456789_-")? as char);
                }
                text
            };
            if let Ok(position) = parse(epoch(ids), &text) {
                assert_eq!(format(epoch(ids), position), text);
            }
            Ok(())
        });
    }

    #[test]
    fn invalid_offset_has_a_reason() {
        let positions = Epoch::of(0, IdFormat::Positions);
        let times = Epoch::of(0, IdFormat::Times);
        for (epoch, offset, reason) in [
            (positions, "", InvalidOffset::Malformed),
            (positions, "-1", InvalidOffset::Malformed),
            (positions, "aaaaaaaa-7", InvalidOffset::Malformed),
            (positions, "aaaaaaaa_7", InvalidOffset::Malformed),
            (positions, "aaaaaaaa_+0000000000000000007", InvalidOffset::Malformed),
            (positions, "aaaaaaaa_99999999999999999999", InvalidOffset::Malformed),
            (positions, "AAAAAAAA_00000000000000000007", InvalidOffset::Malformed),
            (positions, "aaaaaaa_00000000000000000007", InvalidOffset::Malformed),
            (positions, "_00000000000000000007", InvalidOffset::Malformed),
            (positions, "bbbbbbbb_00000000000000000007", InvalidOffset::OtherEpoch),
            (positions, "00000000000000000007", InvalidOffset::OtherEpoch),
            (times, "aaaaaaaa_00000000000000000007", InvalidOffset::OtherEpoch),
        ] {
            assert_eq!(parse(epoch, offset), Err(reason), "{offset:?}");
        }
    }
}
