//! The boundaries between the frames of an HTTP/2 client. Only at a boundary can the server insert
//! a frame that hyper reads as if the client had sent it.

/// The length in bytes of the connection preface, which an HTTP/2 client sends before its first
/// frame (RFC 9113, §3.4).
const PREFACE_LENGTH: u32 = 24;
/// The length of the header of an HTTP/2 frame, in bytes (RFC 9113, §4.1).
const HEADER_LENGTH: u8 = 9;

/// The types of the HTTP/2 frames of a header block: HEADERS and CONTINUATION (RFC 9113, §6.2 and
/// §6.10).
const BLOCK_TYPES: [u8; 2] = [1, 9];
/// END_HEADERS, the flag of the last HTTP/2 frame of a header block (RFC 9113, §6.2).
const END_HEADERS: u8 = 0x4;

/// A position in the bytes of an HTTP/2 client: within the preface, within a frame, between the
/// frames of a header block, or between two other frames.
#[derive(Debug)]
pub(super) struct Frames {
    /// The number of bytes of the connection preface, or of the current frame's payload, that hyper
    /// has not read yet.
    missing: u32,
    /// The number of bytes of the next frame's header that were already read, up to 9.
    header: u8,
    /// The length of the next frame's payload, as far as it was read. It is complete after three
    /// bytes of the frame's header.
    length: u32,
    /// The type of the next frame, once four bytes of the frame's header were read. Not used
    /// before.
    kind: u8,
    /// Set from a HEADERS frame without END_HEADERS until the frame with END_HEADERS. Between these
    /// frames, no other frame is allowed (RFC 9113, §4.3).
    is_in_block: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self { missing: PREFACE_LENGTH, header: 0, length: 0, kind: 0, is_in_block: false }
    }
}

impl Frames {
    /// Moves the position in the client's HTTP/2 frames past `bytes`, the bytes that were read from
    /// the client next.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = bytes.len().min(self.missing as usize);
            self.missing -= skipped as u32;
            bytes = &bytes[skipped..];
            let Some((byte, rest)) = bytes.split_first() else { return };
            bytes = rest;
            // The header has the length of the payload (three bytes), the type, the flags, and the
            // number of the stream.
            match self.header {
                0..3 => self.length = self.length << 8 | u32::from(*byte),
                3 => self.kind = *byte,
                4 if BLOCK_TYPES.contains(&self.kind) => self.is_in_block = *byte & END_HEADERS == 0,
                _ => {}
            }
            self.header += 1;
            if self.header == HEADER_LENGTH {
                *self = Self { missing: self.length, header: 0, length: 0, ..*self };
            }
        }
    }

    /// Returns `true` if the position is within the connection preface, within a frame, or between
    /// two frames of a header block. Elsewhere, the server can insert a frame for hyper to read.
    pub(super) fn is_within_frame(&self) -> bool {
        self.missing > 0 || self.header > 0 || self.is_in_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_is_between_frames_after_complete_frames_only() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut ends = vec![bytes.len()];
        // The length of the payload, the type, the flags, and whether another frame may follow.
        let all = [
            (0, 6, 1, true),
            (1, 6, 1, true),
            (8, 6, 1, true),
            (300, 1, 0x5, true),
            (70_000, 0, 0, true),
            // A header block of three frames. The second is empty.
            (300, 1, 0x1, false),
            (0, 9, 0, false),
            (20, 9, 0x4, true),
            (8, 6, 0, true),
        ];
        for (payload, kind, flags, is_end) in all {
            bytes.extend_from_slice(&u32::to_be_bytes(payload)[1..]);
            bytes.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
            bytes.resize(bytes.len() + payload as usize, 0xff);
            if is_end {
                ends.push(bytes.len());
            }
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
