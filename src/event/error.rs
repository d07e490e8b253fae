use std::{error::Error, fmt};

/// The reason why a text is not an [`EventName`](crate::EventName) or an
/// [`EventId`](crate::EventId).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FieldErrorKind {
    /// The text contains a line feed (`\n`) or a carriage return (`\r`), which would end the field
    /// and begin another.
    LineBreak,
    /// The text contains a NUL. A client ignores an `id` field with a NUL (HTML standard, §9.2.6).
    Nul,
    /// The id contains a control character other than LF, CR and NUL. Servers reject a header with
    /// a control character, so a client could not reconnect with this id.
    Control,
    /// The event name is empty. A client cannot distinguish an empty name from a missing name.
    Empty,
}

/// The error of [`EventName::new`](crate::EventName::new) and
/// [`EventId::new`](crate::EventId::new): the text is not a valid name or id.
///
/// # Examples
///
/// ```
/// use tower_sse::{EventId, FieldErrorKind};
///
/// let error = EventId::new("7\ndata: injected").unwrap_err();
/// assert_eq!(error.kind(), FieldErrorKind::LineBreak);
/// assert_eq!(error.position(), 1);
/// assert_eq!(
///     error.to_string(),
///     r#"an event id cannot hold a line break: "7\ndata: injected", at byte 1; remove it or encode it"#,
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    kind: FieldErrorKind,
    what: &'static str,
    position: usize,
    /// The first 65 characters of the invalid name or id, for the error message, which shows 64 of
    /// them.
    text: Box<str>,
}

impl FieldError {
    pub(super) fn new(kind: FieldErrorKind, what: &'static str, position: usize, text: &str) -> Self {
        Self { kind, what, position, text: Shortened(text).beginning().into() }
    }

    /// Returns the reason why the name or id is invalid.
    #[must_use]
    pub fn kind(&self) -> FieldErrorKind {
        self.kind
    }

    /// Returns the byte index of the first invalid character, or 0 for an empty name.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, what, position, text } = self;
        let bad = match kind {
            FieldErrorKind::Empty => return write!(f, "an {what} cannot be empty; leave it out instead"),
            FieldErrorKind::LineBreak => "a line break",
            FieldErrorKind::Nul => "a NUL",
            FieldErrorKind::Control => "a control character",
        };
        write!(f, "an {what} cannot hold {bad}: {}, at byte {position}; remove it or encode it", Shortened(text))
    }
}

impl Error for FieldError {}

/// Displays the first 64 characters of a text in quotes. `…` follows if the text is longer. So
/// error messages stay short, whatever clients send.
pub(crate) struct Shortened<'a>(pub(crate) &'a str);

impl<'a> Shortened<'a> {
    const CHARACTERS: usize = 64;

    /// Returns at most the first 65 characters of the text. An error stores them instead of a long
    /// text: 64 characters are displayed, and one more shows that the text is longer.
    pub(crate) fn beginning(&self) -> &'a str {
        match self.0.char_indices().nth(Self::CHARACTERS + 1) {
            Some((end, _)) => &self.0[..end],
            None => self.0,
        }
    }
}

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(Self::CHARACTERS) {
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}
