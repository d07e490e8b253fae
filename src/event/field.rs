//! [`EventName`] and [`EventId`]: the types for the name and the id of an event. Their constructors
//! reject text that would break the format of an event stream, such as a line end.

use super::{FieldError, FieldErrorKind};
use std::{borrow::Borrow, fmt, hash, str::FromStr, sync::Arc};

/// The text of an event name or id, without CR, LF and NUL. A text of up to 22 bytes, such as a
/// numeric id, is stored inline.
#[derive(Clone)]
enum Text {
    Static(&'static str),
    Inline { len: u8, bytes: [u8; Self::INLINE] },
    Shared(Arc<str>),
}

impl Text {
    /// The maximum length in bytes of a text that is stored inline, without an allocation. With
    /// this length, a [`Text`] has the size of three words on 64-bit systems.
    const INLINE: usize = 22;

    fn new(text: &str, what: &'static str, bad: Option<(usize, FieldErrorKind)>) -> Result<Self, FieldError> {
        match bad {
            None => Ok(Self::checked(text)),
            Some((position, kind)) => Err(FieldError::new(kind, what, position, text)),
        }
    }

    fn checked(text: &str) -> Self {
        let mut bytes = [0; Self::INLINE];
        match bytes.get_mut(..text.len()) {
            Some(inline) => {
                inline.copy_from_slice(text.as_bytes());
                // The length is at most `INLINE`, so it fits into a `u8`.
                Self::Inline { len: text.len() as u8, bytes }
            }
            None => Self::Shared(text.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Static(text) => text.as_bytes(),
            Self::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Self::Shared(text) => text.as_bytes(),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Static(text) => text,
            Self::Inline { .. } => std::str::from_utf8(self.as_bytes()).expect("it was copied from a str"),
            Self::Shared(text) => text,
        }
    }
}

/// Returns the byte index of the first CR, LF or NUL in `text`, an event name or id, and the kind
/// of error. Returns `None` if the text is valid. The search is a loop instead of `memchr`, so that
/// it also works in a `const`.
const fn find_bad(text: &[u8]) -> Option<(usize, FieldErrorKind)> {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'\n' | b'\r' => return Some((at, FieldErrorKind::LineBreak)),
            0 => return Some((at, FieldErrorKind::Nul)),
            _ => at += 1,
        }
    }
    None
}

/// Returns the byte index of the first control character in an id (U+0000 to U+001F and U+007F to
/// U+009F), and the kind of error. Returns `None` if the id is valid.
const fn find_bad_in_id(text: &[u8]) -> Option<(usize, FieldErrorKind)> {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'\n' | b'\r' => return Some((at, FieldErrorKind::LineBreak)),
            0 => return Some((at, FieldErrorKind::Nul)),
            ..0x20 | 0x7F => return Some((at, FieldErrorKind::Control)),
            // The two bytes of U+0080 to U+009F in UTF-8.
            0xC2 if at + 1 < text.len() && text[at + 1] < 0xA0 => return Some((at, FieldErrorKind::Control)),
            _ => at += 1,
        }
    }
    None
}

/// The type of an event, which a web page passes to `addEventListener`.
///
/// An event name is never empty and contains no CR, LF or NUL, so it cannot break the line of an
/// [`Event`](crate::Event). [`EventName::new`] checks text that is known only at run time. A string
/// literal can be passed directly. The trait [`IntoEventName`] lists the types that an event
/// accepts as its name.
///
/// # Examples
///
/// ```
/// use tower_sse::{Event, EventName};
///
/// const CREATED: EventName = EventName::from_static("created");
///
/// Event::new("order 7").event(CREATED);
/// Event::new("order 7").event("created");
///
/// let kind = String::from("created");
/// Event::new("order 7").event(EventName::new(&kind)?);
/// # Ok::<_, tower_sse::FieldError>(())
/// ```
///
/// Unchecked text does not compile:
///
/// ```compile_fail,E0277
/// # use tower_sse::Event;
/// let kind = String::from("created");
/// Event::new("order 7").event(kind);
/// ```
///
/// ```compile_fail,E0597
/// # use tower_sse::Event;
/// let kind = String::from("created");
/// Event::new("order 7").event(kind.as_str());
/// ```
#[derive(Clone)]
pub struct EventName(Text);

impl EventName {
    /// Creates an event name from a text that is known only at run time.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is empty, or contains CR, LF or NUL.
    pub fn new(text: impl AsRef<str>) -> Result<Self, FieldError> {
        let text = text.as_ref();
        if text.is_empty() {
            return Err(FieldError::new(FieldErrorKind::Empty, Self::WHAT, 0, text));
        }
        Text::new(text, Self::WHAT, find_bad(text.as_bytes())).map(Self)
    }

    /// Creates an event name from a literal. In a `const`, the literal is checked at compile time.
    ///
    /// # Panics
    ///
    /// Panics if the text is empty, or contains CR, LF or NUL.
    #[must_use]
    pub const fn from_static(text: &'static str) -> Self {
        assert!(!text.is_empty(), "an event name cannot be empty");
        assert!(find_bad(text.as_bytes()).is_none(), "an event name cannot hold CR, LF or NUL");
        Self(Text::Static(text))
    }

    const WHAT: &str = "event name";
}

/// The id of an event, which a client sends back as `Last-Event-ID` when it reconnects.
///
/// An event id contains no control character (U+0000 to U+001F and U+007F to U+009F), such as CR,
/// LF or NUL. The client sends the id back in a header, and servers reject a header with a control
/// character. Servers also remove white space at the ends of a header value, so an id should not
/// begin or end with a space.
///
/// [`EventId::new`] checks text that is known only at run time. String literals and integers can be
/// passed directly ([`IntoEventId`]). An empty id is legal: it makes the client forget its last id.
///
/// With the feature `json`, an id implements the serde traits as a string, so an application can
/// store a cursor, such as the id after which a worker continues. An invalid string is an error.
/// Ids have no order: those of a hub are positions in a log, and cannot be compared across logs.
///
/// # Examples
///
/// ```
/// use tower_sse::{Event, EventId};
///
/// Event::new("order 7").id(7);
/// Event::new("order 7").id("2026-11-20/7");
///
/// let id = String::from("order-7");
/// Event::new("order 7").id(EventId::new(&id)?);
/// # Ok::<_, tower_sse::FieldError>(())
/// ```
///
/// Unchecked text does not compile:
///
/// ```compile_fail,E0277
/// # use tower_sse::Event;
/// let id = String::from("order-7");
/// Event::new("order 7").id(id);
/// ```
///
/// ```compile_fail,E0597
/// # use tower_sse::Event;
/// let id = String::from("order-7");
/// Event::new("order 7").id(id.as_str());
/// ```
#[derive(Clone)]
pub struct EventId(Text);

impl EventId {
    /// Creates an event id from a text that is known only at run time.
    ///
    /// # Errors
    ///
    /// Returns an error if the text contains a control character, such as CR, LF or NUL.
    pub fn new(text: impl AsRef<str>) -> Result<Self, FieldError> {
        let text = text.as_ref();
        Text::new(text, Self::WHAT, find_bad_in_id(text.as_bytes())).map(Self)
    }

    /// Creates an event id from a literal. In a `const`, the literal is checked at compile time.
    ///
    /// # Panics
    ///
    /// Panics if the text contains a control character, such as CR, LF or NUL.
    #[must_use]
    pub const fn from_static(text: &'static str) -> Self {
        assert!(find_bad_in_id(text.as_bytes()).is_none(), "an event id cannot hold a control character");
        Self(Text::Static(text))
    }

    const WHAT: &str = "event id";
}

/// A value that [`Event::event`](crate::Event::event) takes as the name of an event: an
/// [`EventName`] or a string literal.
///
/// Implement this trait for your own types that stand for event names, such as an enum.
///
/// # Examples
///
/// ```
/// use tower_sse::{Event, EventName, IntoEventName};
///
/// enum Kind { Created, Deleted }
///
/// impl IntoEventName for Kind {
///     fn into_event_name(self) -> EventName {
///         match self {
///             Self::Created => EventName::from_static("created"),
///             Self::Deleted => EventName::from_static("deleted"),
///         }
///     }
/// }
///
/// assert_eq!(Event::new("order 7").event(Kind::Created).name(), Some("created"));
/// # let _ = Kind::Deleted;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not checked to be an event name",
    label = "this text could break the event stream: a line feed in it would begin another field",
    note = "check text that is known at run time with `EventName::new(text)?`; a literal needs no check"
)]
pub trait IntoEventName {
    /// Converts this value into an event name.
    fn into_event_name(self) -> EventName;
}

/// A value that [`Event::id`](crate::Event::id) takes as the id of an event: an [`EventId`], an
/// integer or a string literal.
///
/// Implement this trait for your own types that stand for ids, such as a database key.
///
/// # Examples
///
/// ```
/// use tower_sse::{Event, EventId, IntoEventId};
///
/// struct OrderId(u64);
///
/// impl IntoEventId for OrderId {
///     fn into_event_id(self) -> EventId {
///         self.0.into_event_id()
///     }
/// }
///
/// assert_eq!(Event::new("shipped").id(OrderId(7)).event_id(), Some("7"));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not checked to be an event id",
    label = "this text could break the event stream: a line feed in it would begin another field",
    note = "check text that is known at run time with `EventId::new(text)?`; literals and integers need no check"
)]
pub trait IntoEventId {
    /// Converts this value into an event id.
    fn into_event_id(self) -> EventId;
}

macro_rules! into_field {
    ($Into:ident, $into:ident, $Field:ident) => {
        impl $Into for $Field {
            #[inline]
            fn $into(self) -> $Field {
                self
            }
        }

        /// Converts a string literal into an event name or id.
        ///
        /// # Panics
        ///
        /// Panics if the text is invalid, as `from_static` does.
        impl $Into for &'static str {
            #[inline]
            fn $into(self) -> $Field {
                $Field::from_static(self)
            }
        }
    };
}

into_field!(IntoEventName, into_event_name, EventName);
into_field!(IntoEventId, into_event_id, EventId);

macro_rules! field {
    ($Field:ident) => {
        impl $Field {
            /// Returns the text of this event name or id.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// Returns the text of this event name or id as UTF-8 bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        impl FromStr for $Field {
            type Err = FieldError;

            fn from_str(text: &str) -> Result<Self, FieldError> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $Field {
            type Error = FieldError;

            fn try_from(text: &str) -> Result<Self, FieldError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $Field {
            type Error = FieldError;

            fn try_from(text: String) -> Result<Self, FieldError> {
                Self::new(text)
            }
        }

        impl From<$Field> for String {
            fn from(field: $Field) -> Self {
                field.as_str().to_owned()
            }
        }

        impl AsRef<str> for $Field {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl Borrow<str> for $Field {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }

        impl fmt::Display for $Field {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self.as_str(), f)
            }
        }

        impl fmt::Debug for $Field {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl PartialEq for $Field {
            fn eq(&self, other: &Self) -> bool {
                self.as_bytes() == other.as_bytes()
            }
        }

        impl Eq for $Field {}

        impl PartialEq<str> for $Field {
            fn eq(&self, other: &str) -> bool {
                self.as_bytes() == other.as_bytes()
            }
        }

        impl PartialEq<&str> for $Field {
            fn eq(&self, other: &&str) -> bool {
                self.as_bytes() == other.as_bytes()
            }
        }

        impl PartialEq<String> for $Field {
            fn eq(&self, other: &String) -> bool {
                self.as_bytes() == other.as_bytes()
            }
        }

        impl PartialEq<$Field> for str {
            fn eq(&self, other: &$Field) -> bool {
                other == self
            }
        }

        impl PartialEq<$Field> for &str {
            fn eq(&self, other: &$Field) -> bool {
                other == self
            }
        }

        impl PartialEq<$Field> for String {
            fn eq(&self, other: &$Field) -> bool {
                other == self
            }
        }

        /// Hashes the event name or id like a `str` with the same text, as `Borrow<str>` requires.
        impl hash::Hash for $Field {
            fn hash<H: hash::Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
            }
        }
    };
}

field!(EventName);
field!(EventId);

impl EventId {
    /// Creates an event id from the bytes of a client's `Last-Event-ID`. If they are not a valid
    /// id, returns `Err` with a substitute: the first 64 bytes, with U+FFFD in place of control
    /// characters and bytes that are not UTF-8.
    pub(crate) fn from_client(bytes: &[u8]) -> Result<Self, Self> {
        let text = std::str::from_utf8(bytes).ok();
        if let Some(id) = text.and_then(|text| Self::new(text).ok()) {
            return Ok(id);
        }
        let (text, _rest) = bytes.split_at(bytes.len().min(Self::MAX_MALFORMED));
        let text = String::from_utf8_lossy(text).replace(char::is_control, "\u{fffd}");
        Err(Self(Text::checked(&text)))
    }

    /// The maximum number of bytes that are kept of an invalid id from a client, and of an id that
    /// a hub sends back in a `gap` event, which reports missed events. Every id that a hub issues
    /// is shorter.
    const MAX_MALFORMED: usize = 64;
}

#[cfg(feature = "hub")]
impl EventId {
    /// Cuts an id that is longer than 64 bytes, and appends `…`. Used for an id from a client that
    /// a hub sends back in a `gap` event. Clients can send ids of any length. Ids that a hub issues
    /// are always shorter.
    pub(crate) fn shortened(self) -> Self {
        let text = self.as_str();
        if text.len() <= Self::MAX_MALFORMED {
            return self;
        }
        let end = (0..=Self::MAX_MALFORMED).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        Self(Text::checked(&format!("{}…", &text[..end])))
    }

    /// Creates an event id from printable ASCII bytes without spaces. The caller must pass no other
    /// bytes.
    pub(crate) fn from_ascii(bytes: &[u8]) -> Self {
        debug_assert!(bytes.iter().all(u8::is_ascii_graphic));
        Self(Text::checked(std::str::from_utf8(bytes).unwrap_or_default()))
    }
}

macro_rules! id_from_integer {
    ($($Integer:ty)*) => {$(
        impl From<$Integer> for EventId {
            #[inline]
            fn from(number: $Integer) -> Self {
                Self(Text::checked(itoa::Buffer::new().format(number)))
            }
        }

        impl IntoEventId for $Integer {
            #[inline]
            fn into_event_id(self) -> EventId {
                self.into()
            }
        }
    )*};
}

id_from_integer!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_keeps_short_static_and_long_texts_alike() {
        let long = "x".repeat(100);
        for text in ["a", "1234567890123456789012", "12345678901234567890123", "é日本", long.as_str()] {
            assert_eq!(EventId::new(text).unwrap(), text);
            assert_eq!(EventName::new(text).unwrap().as_str(), text);
            assert_eq!(String::from(EventId::new(text).unwrap()), text);
        }
        assert_eq!(EventId::from_static("a"), EventId::new("a").unwrap());
        assert_eq!(size_of::<EventId>(), 24);
    }

    #[test]
    fn a_field_refuses_what_would_end_its_line_or_be_ignored() {
        for (text, kind) in [
            ("a\nb", FieldErrorKind::LineBreak),
            ("a\rb", FieldErrorKind::LineBreak),
            ("\r\n", FieldErrorKind::LineBreak),
            ("a\0", FieldErrorKind::Nul),
        ] {
            assert_eq!(EventId::new(text).unwrap_err().kind(), kind);
            assert_eq!(EventName::new(text).unwrap_err().kind(), kind);
            assert_eq!(text.parse::<EventId>().unwrap_err().kind(), kind);
            assert_eq!(EventId::try_from(text).unwrap_err().kind(), kind);
            assert_eq!(EventId::try_from(text.to_owned()).unwrap_err().kind(), kind);
            assert_eq!(EventName::try_from(text).unwrap_err().kind(), kind);
        }
        assert_eq!(EventName::new("").unwrap_err().kind(), FieldErrorKind::Empty);
        assert_eq!(EventId::new("").unwrap(), "");
    }

    #[test]
    fn field_and_text_compare_in_both_directions() {
        let (id, name) = (EventId::from_static("a"), EventName::from_static("a"));
        for (text, is_equal) in [("a", true), ("A", false), ("", false), ("ab", false)] {
            let string = text.to_owned();
            assert_eq!([id == *text, id == text, id == string, *text == id, text == id, string == id], [is_equal; 6]);
            assert_eq!(
                [name == *text, name == text, name == string, *text == name, text == name, string == name],
                [is_equal; 6]
            );
        }
    }

    #[test]
    fn every_integer_is_an_id() {
        assert_eq!(EventId::from(0u8), "0");
        assert_eq!(EventId::from(i64::MIN), "-9223372036854775808");
        assert_eq!(EventId::from(u64::MAX), "18446744073709551615");
        assert_eq!(EventId::from(u128::MAX), "340282366920938463463374607431768211455");
    }
}
