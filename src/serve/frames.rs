//! The limits between the frames of an HTTP/2 client.

/// The length of the connection preface, which the client sends before its first frame (RFC 9113,
/// §3.4).
const PREFACE_LENGTH: u32 = 24;
/// The length of the header of a frame (RFC 9113, §4.1).
const HEADER_LENGTH: u8 = 9;

/// A position in the bytes of an HTTP/2 client: within the preface, within a frame, or between two
/// frames.
#[derive(Debug)]
pub(super) struct Frames {
    /// The number of bytes that are missing of the preface or of the payload of a frame.
    missing: u32,
    /// The number of bytes of the next frame's header that were read.
    header: u8,
    /// The length of the next frame's payload, as far as its header was read.
    length: u32,
}

impl Default for Frames {
    fn default() -> Self {
        Self { missing: PREFACE_LENGTH, header: 0, length: 0 }
    }
}

impl Frames {
    /// Advances the position by these bytes of the client.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = bytes.len().min(self.missing as usize);
            self.missing -= skipped as u32;
            bytes = &bytes[skipped..];
            let Some((byte, rest)) = bytes.split_first() else { return };
            bytes = rest;
            // The length of the payload is in the first three bytes of the header.
            if self.header < 3 {
                self.length = self.length << 8 | u32::from(*byte);
            }
            self.header += 1;
            if self.header == HEADER_LENGTH {
                *self = Self { missing: self.length, header: 0, length: 0 };
            }
        }
    }

    /// Returns whether the position is within the preface or within a frame.
    pub(super) fn is_within_frame(&self) -> bool {
        self.missing > 0 || self.header > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_is_between_frames_after_each_frame_only() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut ends = vec![bytes.len()];
        for payload in [0, 1, 8, 300, 70_000] {
            bytes.extend_from_slice(&u32::to_be_bytes(payload)[1..]);
            bytes.extend_from_slice(&[6, 1, 0, 0, 0, 0]);
            bytes.resize(bytes.len() + payload as usize, 0xff);
            ends.push(bytes.len());
        }
        for step in [1, 2, 5, 9, 24, 1000, bytes.len()] {
            let (mut frames, mut read) = (Frames::default(), 0);
            assert!(frames.is_within_frame());
            for part in bytes.chunks(step) {
                frames.advance(part);
                read += part.len();
                assert_eq!(frames.is_within_frame(), !ends.contains(&read), "{read} bytes, {step} at a time");
            }
        }
    }
}
