//! The frames of HTTP/2 (RFC 9113, §4 and §6), as far as a client of event streams needs them.

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

/// The flag of the last frame of a stream, and of an answer to settings or a ping.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const HEAD: usize = 9;
/// `:status: 200` in the static table (RFC 7541, appendix A).
const STATUS_200: u8 = 0x88;

/// A frame whose payload has arrived completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Removes the first frame from the front of `bytes`.
    pub fn next(bytes: &mut &'a [u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, d, e, f, g] = bytes.first_chunk::<HEAD>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = bytes.get(HEAD..HEAD + length)?;
        *bytes = &bytes[HEAD + length..];
        Some(Self { kind, flags, stream: u32::from_be_bytes([d, e, f, g]) & 0x7fff_ffff, payload })
    }

    /// Returns whether this is the head of a response with the status 200.
    pub fn is_ok(&self) -> bool {
        // Before the first field, the size of the dynamic table may change (RFC 7541, §6.3).
        self.payload.iter().find(|&&byte| byte & 0xe0 != 0x20) == Some(&STATUS_200)
    }
}

pub fn write(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    to.extend_from_slice(&u32::try_from(payload.len()).unwrap_or_default().to_be_bytes()[1..]);
    to.extend_from_slice(&[kind, flags]);
    to.extend_from_slice(&stream.to_be_bytes());
    to.extend_from_slice(payload);
}

/// Returns the first bytes of a client: the preface, a window that is never full, and requests.
pub fn requests(path: &str, streams: u32) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    write(&mut bytes, SETTINGS, 0, 0, &[]);
    write(&mut bytes, WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    // :method: GET and :scheme: http are in the static table, and so are the names of the others.
    let mut fields = vec![0x82, 0x86];
    for (name, value) in [(&[0x04][..], path), (&[0x01], "load"), (&[0x0f, 0x04], "text/event-stream")] {
        fields.extend_from_slice(name);
        fields.push(value.len() as u8);
        fields.extend_from_slice(value.as_bytes());
    }
    for stream in 0..streams {
        write(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 2 * stream + 1, &fields);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_frames_are_read_back() {
        let mut bytes = Vec::new();
        write(&mut bytes, HEADERS, END_HEADERS, 5, &[0x20, STATUS_200, 1]);
        write(&mut bytes, DATA, 0, 7, &[1; 70_000]);
        let mut rest = &bytes[..];
        let head = Frame::next(&mut rest).unwrap();
        assert!(head.is_ok());
        assert_eq!((head.kind, head.flags, head.stream), (HEADERS, END_HEADERS, 5));
        assert_eq!(Frame::next(&mut rest).unwrap().payload.len(), 70_000);
        assert!(rest.is_empty());
        let mut partial = &bytes[..11];
        assert_eq!(Frame::next(&mut partial), None);
        assert_eq!(partial.len(), 11);
    }
}
