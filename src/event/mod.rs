//! Server-sent events and their encoding. An [`EventName`] or [`EventId`] that would break the
//! format cannot be constructed.

mod decode;
mod encode;
mod encoded;
mod error;
mod field;
mod item;
mod scratch;
#[cfg(feature = "json")]
mod serde;
#[cfg(feature = "json")]
pub(crate) mod tagged;

pub(crate) use encode::{comment_lines, is_visible, retry_line};
pub use encoded::EncodedEvents;
pub(crate) use error::Shortened;
pub use error::{FieldError, FieldErrorKind};
pub use field::{EventId, EventName, IntoEventId, IntoEventName};
pub use item::SseItem;
#[cfg(feature = "json")]
pub(crate) use scratch::with_scratch;

use bytes::Bytes;
use encode::{COMMENT, DATA, ID, NAME, RETRY, Wire};
use std::{fmt, time::Duration};

/// One server-sent event.
///
/// An event is built from its data. Data can be any text, and a client gets the same text: see
/// [what a client sees](#what-a-client-sees). A second call of a setter replaces the previous
/// value. The exception is [`comment`](Self::comment), which adds another comment.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::Event;
///
/// let event = Event::new("Anna: hello\nBob: hi").event("chat").id(7).retry(Duration::from_secs(3));
/// assert_eq!(
///     event.encode(),
///     "retry: 3000\nid: 7\nevent: chat\ndata: Anna: hello\ndata: Bob: hi\n\n",
/// );
/// ```
///
/// # What a client sees
///
/// A parser that follows the [HTML standard, "Interpreting an event stream"][standard] dispatches
/// exactly one message for each event that has data or a name, with the same fields. Leading
/// spaces, empty lines, a trailing line end, NUL and every Unicode character survive. The format
/// does not preserve the *kind* of line end: CRLF, CR and LF in data each end one line, and a
/// client sees each as one LF.
///
/// An event with neither data nor a name dispatches no message. Its id still becomes the id that
/// the client sends when it reconnects ([`checkpoint`](Self::checkpoint)). Its `retry` sets the
/// reconnection time, and its comment is invisible.
///
/// # Cost
///
/// An event is stored as its wire bytes, in one allocation. [`encode`](Self::encode) allocates
/// nothing more. There are further allocations in these cases:
///
/// - Data or a comment is set first, and all that is set later needs more than 64 bytes.
/// - Another field is set first, and then data of more than about 200 bytes.
/// - A field is set twice.
/// - [`display`](Self::display) or [`json`](Self::json) writes more than 64 KiB.
///
/// [standard]: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
#[derive(Clone, Default)]
#[must_use = "an event does nothing until a stream yields it"]
pub struct Event {
    wire: Wire,
    /// The fields of this event that are set, as a union of the `HAS_…` flags. The type has the
    /// size of a register (`usize`), because the compiler then keeps the event in registers.
    fields: usize,
}

const HAS_DATA: usize = 1;
const HAS_NAME: usize = 2;
const HAS_ID: usize = 4;
const HAS_RETRY: usize = 8;

impl Event {
    /// Creates an event with this data.
    ///
    /// With empty data, a client dispatches a message whose `data` is `""`.
    #[inline]
    pub fn new(data: impl AsRef<str>) -> Self {
        Self { wire: Wire::new(DATA, data.as_ref().as_bytes()), fields: HAS_DATA }
    }

    /// Creates an event from a value that implements `Display`: a number, a template,
    /// `format_args!`.
    ///
    /// The value is formatted into a thread-local buffer, so no `String` is allocated. If the `fmt`
    /// method of `data` returns an error, the event contains the text before the error. Format a
    /// value that can fail into a `String` yourself, and check the result.
    ///
    /// `format_args!` is not `Send`. In `publish(Event::display(format_args!(..))).await`, it lives
    /// until the end of the `await`. The future of an axum handler is then not `Send`, and the
    /// handler does not compile: `Handler<_, _>` is not implemented. Store the event in a variable
    /// first.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::Event;
    /// let (done, all) = (3, 8);
    /// assert_eq!(Event::display(format_args!("{done}/{all}")).encode(), "data: 3/8\n\n");
    /// ```
    pub fn display(data: impl fmt::Display) -> Self {
        scratch::with_scratch(|text| {
            let _ended_early = fmt::write(&mut scratch::Text(text), format_args!("{data}"));
            Self::from_utf8_bytes(text)
        })
    }

    /// Creates an event with an `id` alone. A client dispatches no message for it, and sends this
    /// id when it reconnects.
    ///
    /// Send a checkpoint now and then if most events are filtered out for a client. After a
    /// reconnect, the handler then does not have to filter the same events again.
    ///
    /// By the standard (§9.2.6), an `id` alone is enough. Chromium implements that. WebKit applies
    /// the id with the next event that has data, and Firefox ignores the id. For all browsers, add
    /// an event name: `Event::checkpoint(id).event("cursor")`. The event is then sent with an empty
    /// `data` line, so that browsers apply its id. A page without a listener for this name does not
    /// notice the event.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::Event;
    /// assert_eq!(Event::checkpoint(1_000_000).encode(), "id: 1000000\n\n");
    /// ```
    pub fn checkpoint(id: impl IntoEventId) -> Self {
        Self::default().id(id)
    }

    /// Creates an event with this data, like [`new`](Self::new). `data` must be the bytes of a
    /// `str`.
    pub(crate) fn from_utf8_bytes(data: &[u8]) -> Self {
        Self { wire: Wire::new(DATA, data), fields: HAS_DATA }
    }

    /// Sets the data, which can be any text with any number of lines.
    #[inline]
    pub fn data(self, data: impl AsRef<str>) -> Self {
        let this = self.replace(HAS_DATA, DATA);
        Self { wire: this.wire.append(DATA, data.as_ref().as_bytes()), ..this }
    }

    /// Sets the type of the event, which a page passes to `addEventListener`. Default: `message`.
    ///
    /// If an event has a name and no data, an empty `data` line is added. A client would drop the
    /// event without a `data` line.
    ///
    /// # Panics
    ///
    /// Panics if the name is a literal that [`EventName::from_static`] rejects: an empty text, or a
    /// text with CR, LF or NUL.
    // Inlined, like `id`, to keep the event in registers between the setters. Without inlining, the
    // setters cost twice as much.
    #[inline(always)]
    pub fn event(
        self,
        // rustc quotes the next line in the error for text that is borrowed.
        name: impl IntoEventName, // a `&str` has to be a literal; check other text with `EventName::new`
    ) -> Self {
        let name = name.into_event_name();
        let this = self.replace(HAS_NAME, NAME);
        Self { wire: this.wire.prepend(NAME, name.as_bytes()), ..this }
    }

    /// Sets the id, which the client sends back as `Last-Event-ID` when it reconnects.
    ///
    /// # Panics
    ///
    /// Panics if the id is a literal that [`EventId::from_static`] rejects: a text with a control
    /// character, such as CR, LF or NUL.
    #[inline(always)]
    pub fn id(
        self,
        // rustc quotes the next line in the error for text that is borrowed.
        id: impl IntoEventId, // a `&str` has to be a literal; check other text with `EventId::new`
    ) -> Self {
        let id = id.into_event_id();
        let this = self.replace(HAS_ID, ID);
        Self { wire: this.wire.prepend(ID, id.as_bytes()), ..this }
    }

    /// Sets how long the client waits before it reconnects, in whole milliseconds (a fraction is
    /// cut off).
    ///
    /// The delay applies to all later reconnections of the client, until another `retry` changes
    /// it.
    pub fn retry(self, delay: Duration) -> Self {
        let this = self.replace(HAS_RETRY, RETRY);
        let milliseconds = delay.as_millis();
        Self { wire: this.wire.prepend(RETRY, itoa::Buffer::new().format(milliseconds).as_bytes()), ..this }
    }

    /// Adds a comment, which can be any text with any number of lines. Clients ignore comments, and
    /// `curl -N` shows them.
    pub fn comment(self, text: impl AsRef<str>) -> Self {
        Self { wire: self.wire.append(COMMENT, text.as_ref().as_bytes()), ..self }
    }

    /// Returns the wire bytes of this event, including its blank line.
    ///
    /// Clones of the returned [`Bytes`] share their memory, so an event for many clients has to be
    /// encoded only once.
    #[inline]
    #[must_use]
    pub fn encode(self) -> Bytes {
        self.with_what_a_name_needs().wire.into_bytes()
    }

    /// Removes the id of this event. The event then does not change the id that the client sends
    /// when it reconnects.
    pub(crate) fn without_id(mut self) -> Self {
        if self.fields & HAS_ID != 0 {
            self.wire = self.wire.remove(ID);
            self.fields &= !HAS_ID;
        }
        self
    }

    #[inline]
    fn replace(mut self, field: usize, prefix: &[u8]) -> Self {
        if self.fields & field != 0 {
            self.wire = self.wire.remove(prefix);
        }
        self.fields |= field;
        self
    }

    /// Adds an empty `data` line to an event that has a name but no data. Without a `data` line, a
    /// client resets the event type and dispatches no message (HTML standard, §9.2.6).
    #[inline]
    fn with_what_a_name_needs(self) -> Self {
        if self.fields & (HAS_NAME | HAS_DATA) == HAS_NAME { self.data("") } else { self }
    }
}

/// Methods for a hub, which encodes an event in two steps. Before the hub appends the event to its
/// log, it encodes everything except the id. When the log has assigned an id to the event, the hub
/// adds the id.
#[cfg(feature = "hub")]
impl Event {
    /// Returns the name of this event if it was set with [`event`](Self::event). Unlike
    /// [`name`](Self::name), this method does not search the wire bytes. So an event that was
    /// parsed from wire bytes has the result `None` until [`with_fields`](Self::with_fields) has
    /// detected its fields.
    pub(crate) fn name_if_set(&self) -> Option<&str> {
        if self.fields & HAS_NAME == 0 { None } else { self.name() }
    }

    /// Adds an empty `data` line to an event that has a name and no data, because a client would
    /// drop the event. The id can still be set afterwards.
    pub(crate) fn complete(self) -> Self {
        self.with_what_a_name_needs()
    }

    /// Parses the wire bytes of one complete event without an id. Returns `None` if the bytes are
    /// not exactly one event as this crate writes it.
    pub(crate) fn from_wire(bytes: &[u8]) -> Option<Self> {
        Some(Self { wire: Wire::read(bytes)?, fields: 0 })
    }

    /// Detects the fields of an event that was parsed from wire bytes. After that, a setter
    /// replaces an existing field instead of adding a second one.
    #[cfg(feature = "hub")]
    pub(crate) fn with_fields(mut self) -> Self {
        let fields = [
            (HAS_DATA, self.event_data().is_some()),
            (HAS_NAME, self.name().is_some()),
            (HAS_ID, self.event_id().is_some()),
            (HAS_RETRY, self.retry_digits().is_some()),
        ];
        self.fields = fields.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field).sum();
        self
    }

    /// Returns the wire bytes of this event without consuming it. They are the bytes that
    /// [`encode`](Self::encode) returns. Call [`complete`](Self::complete) first: it adds an empty
    /// `data` line to an event that has a name and no data.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.wire.as_bytes()
    }
}

/// Returns an iterator with this event as its only item. So a method with a parameter for several
/// events also accepts a single event.
///
/// # Examples
///
/// ```
/// use tower_sse::{Event, hub::{Hub, Start}};
///
/// # #[cfg(feature = "hub")]
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
/// let subscription = Hub::new().topic("scores").subscribe(Start::Latest).await?;
/// let with_score = subscription.begin_with(Event::new("0 : 0"));
/// # Ok(()) }
/// # #[cfg(not(feature = "hub"))] fn main() {}
/// ```
impl IntoIterator for Event {
    type Item = Self;
    type IntoIter = std::iter::Once<Self>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(event: Event) -> String {
        String::from_utf8(event.encode().to_vec()).unwrap()
    }

    #[test]
    fn fields_come_before_the_data_whatever_the_order_of_the_setters() {
        let fields_first = Event::default().event("e").id(1).data("d");
        let data_first = Event::new("d").event("e").id(1);
        assert_eq!(wire(fields_first), "id: 1\nevent: e\ndata: d\n\n");
        assert_eq!(wire(data_first), "id: 1\nevent: e\ndata: d\n\n");
    }

    #[test]
    fn each_kind_of_line_end_ends_one_line() {
        assert_eq!(wire(Event::new("a\r\nb")), "data: a\ndata: b\n\n");
        assert_eq!(wire(Event::new("a\rb\nc")), "data: a\ndata: b\ndata: c\n\n");
        assert_eq!(wire(Event::new("\n\r\r\n\r\n\n")), "data: \ndata: \ndata: \ndata: \ndata: \ndata: \n\n");
        assert_eq!(wire(Event::new("a\n")), "data: a\ndata: \n\n");
        assert_eq!(wire(Event::new("a\r")), "data: a\ndata: \n\n");
        assert_eq!(wire(Event::new("a\r\n")), "data: a\ndata: \n\n");
        assert_eq!(wire(Event::new("a\u{2028}b\u{85}c\0")), "data: a\u{2028}b\u{85}c\0\n\n");
    }

    #[test]
    fn a_setter_replaces_and_a_comment_adds() {
        let event = Event::new("a\nb").id(1).event("x").comment("one").retry(Duration::from_secs(1));
        let event = event.data("c").id(2).event("y").comment("two\r\nlines").retry(Duration::from_millis(5));
        assert_eq!(wire(event), "retry: 5\nevent: y\nid: 2\n: one\ndata: c\n: two\n: lines\n\n");
    }

    #[test]
    fn text_that_looks_like_a_field_stays_data_when_another_is_replaced() {
        let event = Event::new("id: 7\nevent: no\ndata: x").id(1).id(2);
        assert_eq!(wire(event), "id: 2\ndata: id: 7\ndata: event: no\ndata: data: x\n\n");
    }

    #[test]
    fn what_is_too_long_for_the_room_makes_room() {
        let long = "x".repeat(1000);
        let id = EventId::new(&long).unwrap();
        let name = EventName::new(&long).unwrap();
        let expected = format!("event: {long}\nid: {long}\ndata: {long}\ndata: {long}\n\n");
        let data = format!("{long}\n{long}");
        assert_eq!(wire(Event::new(&data).id(id.clone()).event(name.clone())), expected);
        assert_eq!(wire(Event::default().id(id.clone()).data(&data).event(name.clone())), expected);
        assert_eq!(wire(Event::default().id(id).event(name).data(&data)), expected);
    }

    #[test]
    fn an_event_with_nothing_set_is_a_blank_line() {
        assert_eq!(wire(Event::default()), "\n");
        assert_eq!(wire(Event::default().comment("c")), ": c\n\n");
        assert_eq!(wire(Event::checkpoint(7)), "id: 7\n\n");
        assert_eq!(wire(Event::new("")), "data: \n\n");
    }

    #[test]
    fn a_name_alone_is_sent_with_empty_data() {
        assert_eq!(wire(Event::default().event("close")), "event: close\ndata: \n\n");
    }

    #[test]
    fn retry_is_in_milliseconds() {
        assert_eq!(wire(Event::default().retry(Duration::from_micros(1999))), "retry: 1\n\n");
        assert_eq!(wire(Event::default().retry(Duration::ZERO)), "retry: 0\n\n");
        assert_eq!(wire(Event::default().retry(Duration::MAX)), "retry: 18446744073709551615999\n\n");
    }

    #[test]
    fn without_its_id_an_event_keeps_the_rest() {
        assert_eq!(wire(Event::new("d").id(1).event("e").without_id()), "event: e\ndata: d\n\n");
        assert_eq!(wire(Event::new("d").without_id().id(2)), "id: 2\ndata: d\n\n");
    }

    #[test]
    fn display_keeps_what_was_written_before_an_error() {
        struct Fails;
        impl fmt::Display for Fails {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("half\n")?;
                Err(fmt::Error)
            }
        }
        assert_eq!(wire(Event::display(Fails)), "data: half\ndata: \n\n");
    }

    #[test]
    fn display_can_make_another_event_while_it_is_displayed() {
        struct Nested;
        impl fmt::Display for Nested {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "outer ")?;
                write!(f, "{:?}", Event::display("inner"))
            }
        }
        assert_eq!(wire(Event::display(Nested)), "data: outer Event { data: \"inner\" }\n\n");
    }
}
