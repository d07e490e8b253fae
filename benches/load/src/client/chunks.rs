//! The chunked transfer coding (RFC 9112, §7.1), as far as a client of correct servers needs it.

#[derive(Clone, Copy, Debug)]
enum State {
    /// In the line with the size. `true` after the digits.
    Size(u64, bool),
    Data(u64),
    /// In the line end after the data.
    DataEnd,
    /// After the last chunk. The number of bytes in the current trailer line.
    Trailer(u32),
    End,
}

/// A decoder that returns the data of chunks without a copy.
#[derive(Debug)]
pub struct Chunks {
    state: State,
    /// The number of chunks that began.
    pub count: u64,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { state: State::Size(0, false), count: 0 }
    }
}

impl Chunks {
    /// Returns whether the last chunk has been read.
    pub fn is_end(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Removes the next piece of data from the front of `bytes`. Returns `None` if `bytes` is empty
    /// or the body has ended.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        loop {
            if let State::Data(left) = self.state {
                let length = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let (data, rest) = bytes.split_at(length);
                *bytes = rest;
                let left = left - length as u64;
                self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                return (length > 0).then_some(data);
            }
            let (&byte, rest) = bytes.split_first()?;
            self.state = match (self.state, byte) {
                (State::End, _) => return None,
                (State::Size(0, _), b'\n') => State::Trailer(0),
                (State::Size(size, _), b'\n') => {
                    self.count += 1;
                    State::Data(size)
                }
                (State::Size(size, false), digit) if digit.is_ascii_hexdigit() => {
                    State::Size(size * 16 + u64::from((digit as char).to_digit(16).unwrap_or(0)), false)
                }
                (State::Size(size, _), _) => State::Size(size, true),
                (State::DataEnd, b'\n') => State::Size(0, false),
                (State::Trailer(0), b'\n') => State::End,
                (State::Trailer(_), b'\n') => State::Trailer(0),
                (State::Trailer(length), byte) => State::Trailer(length + u32::from(byte != b'\r')),
                (state, _) => state,
            };
            *bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_decoded_however_they_are_split() {
        let wire = b"5\r\nhello\r\n1a;name=value\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nx: y\r\n\r\nnext";
        for size in 1..wire.len() {
            let mut chunks = Chunks::default();
            let mut body = Vec::new();
            for mut piece in wire.chunks(size) {
                while let Some(data) = chunks.next(&mut piece) {
                    body.extend_from_slice(data);
                }
            }
            assert_eq!(body, b"helloabcdefghijklmnopqrstuvwxyz");
            assert_eq!(chunks.count, 2);
            assert!(chunks.is_end());
        }
    }
}
