use std::{error::Error, fmt};

/// Why a text cannot be an [`EventName`](crate::EventName) or an [`EventId`](crate::EventId).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FieldErrorKind {
    /// The text has a line feed (`\n`) or a carriage return (`\r`), which would end the field and
    /// begin another one.
    LineBreak,
    /// The text has a NUL, for which a client ignores the whole `id` field (HTML standard, §9.2.6).
    Nul,
    /// An event name is empty, which a client cannot tell from no name.
    Empty,
}

/// A text that cannot be an [`EventName`](crate::EventName) or an [`EventId`](crate::EventId).
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
    text: Box<str>,
}

impl FieldError {
    pub(super) fn new(kind: FieldErrorKind, what: &'static str, position: usize, text: &str) -> Self {
        Self { kind, what, position, text: text.into() }
    }

    /// What is wrong with the text.
    #[must_use]
    pub fn kind(&self) -> FieldErrorKind {
        self.kind
    }

    /// The byte at which the text goes wrong; 0 for an empty one.
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
        };
        write!(f, "an {what} cannot hold {bad}: {}, at byte {position}; remove it or encode it", Shortened(text))
    }
}

impl Error for FieldError {}

/// A text as a message quotes it: a client can send a long one.
pub(crate) struct Shortened<'a>(pub(crate) &'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(64) {
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}
