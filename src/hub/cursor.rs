//! Ids: what a number of the log is to a client.

use super::GapReason;
use crate::{EventId, random};

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const LENGTH: usize = 8;

/// What tells the log of one hub from that of any other, above all from that of the same server before it was restarted:
/// 40 random bits, as eight characters.
#[derive(Debug)]
pub(super) struct Epoch([u8; LENGTH]);

impl Epoch {
    pub(super) fn random() -> Self {
        let bits = random::bits();
        Self(std::array::from_fn(|i| ALPHABET[(bits >> (5 * i)) as usize % ALPHABET.len()]))
    }

    /// `<epoch>-<number>`.
    pub(super) fn id(&self, number: u64) -> EventId {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(number).as_bytes();
        let mut id = [b'-'; LENGTH + 1 + 20];
        id[..LENGTH].copy_from_slice(&self.0);
        let end = LENGTH + 1 + digits.len();
        id[LENGTH + 1..end].copy_from_slice(digits);
        EventId::from_ascii(&id[..end])
    }

    /// The number that an id says, if it is one of this epoch.
    pub(super) fn number(&self, id: &EventId) -> Result<u64, GapReason> {
        let id = id.as_bytes();
        let Some((epoch, [b'-', digits @ ..])) = id.split_at_checked(LENGTH) else { return Err(GapReason::Malformed) };
        // As it is written here and in no other way: no sign, no zero in front.
        let is_canonical = matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.iter().all(u8::is_ascii_digit);
        if !is_canonical || !epoch.iter().all(|byte| ALPHABET.contains(byte)) {
            return Err(GapReason::Malformed);
        }
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        match number {
            _ if epoch != self.0 => Err(GapReason::OtherEpoch),
            Some(number) => Ok(number),
            None => Err(GapReason::Future),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let epoch = Epoch::random();
        for number in [0, 1, 9, 10, 1_234_567, u64::MAX] {
            let id = epoch.id(number);
            assert_eq!(epoch.number(&id).unwrap(), number, "{id}");
            assert_eq!(EventId::new(id.as_str()).unwrap(), id);
        }
    }

    #[test]
    fn what_is_no_id_of_this_epoch_says_why() {
        let epoch = Epoch(*b"abcdefgh");
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
            ("abcdefgh-99999999999999999999", GapReason::Future),
        ] {
            assert_eq!(epoch.number(&EventId::new(id).unwrap()), Err(reason), "{id:?}");
        }
    }

    #[test]
    fn epochs_differ() {
        let epochs: std::collections::HashSet<_> = (0..100).map(|_| Epoch::random().0).collect();
        assert_eq!(epochs.len(), 100);
    }
}
