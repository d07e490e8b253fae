//! Reads the entries of a stream of Redis, which any other software can write to.
//!
//! Reading never panics. It returns the records of the first entries that have a topic and an
//! event, unchanged and in order. It returns each record that the hub has written, without a gap,
//! from any position.
//!
//! An input is lines. The first line is the form of the answer, and the id after which the hub
//! reads. A line is then an entry: its id, and fields `name=value`, with TABs between them. An
//! entry without a TAB has no fields, as if it was deleted. Some first bytes have a meaning:
//!
//! | first byte | the entry |
//! |---|---|
//! | `=` | is written by a hub: topic, name of the kind, and event, with TABs between them |
//! | `>` | the same, in the next millisecond |
//! | `!` | is an answer of another form |

#![no_main]

use fuzz::split_line;
use libfuzzer_sys::fuzz_target;
use tower_sse::hub::backend::{
    Page, Position, RecordKind,
    fuzzing::{
        event,
        redis::{Value, evicted_through, id, name, position, read},
    },
};

/// A record as the entry has it: position, topic, kind, and event.
type Record = (Position, String, RecordKind, Vec<u8>);

/// An entry as a hub has to read it.
#[derive(Clone, Default)]
struct Written {
    position: Position,
    /// The position of the entry before it, if the entry contains or implies it.
    previous: Option<Position>,
    record: Option<Record>,
}

fuzz_target!(|input: &[u8]| {
    let (first, lines) = split_line(input);
    let (form, after) = first.split_at(first.len().min(1));
    check_id(after);
    let after = position(after).unwrap_or_default();
    let Entries { values, written, are_all_ours } = read_entries(lines, after);

    let whole = read(answer(form, values.clone()), after);
    let _does_not_panic = evicted_through(answer(form, values.clone()));
    if let Ok(page) = whole {
        check(&page, after, &written);
    }
    if are_all_ours {
        for (index, first) in written.iter().enumerate() {
            let after = if index == 0 { after } else { written[index - 1].position };
            let page = read(answer(b"a", values[index..].to_vec()), after).expect("the hub has written it");
            check(&page, after, &written[index..]);
            assert_eq!(page.records.len(), written.len() - index);
            assert_eq!(page.records[0].0, first.position);
            assert_eq!(page.evicted_through, Position::START);
        }
    }
});

/// Checks a page of these entries.
fn check(page: &Page, after: Position, written: &[Written]) {
    let read = page.records.iter().map(|(position, record)| {
        let _does_not_panic = event(record);
        (*position, record.topic.to_string(), record.kind, record.event.to_vec())
    });
    let read: Vec<_> = read.collect();
    let records: Vec<_> = written.iter().filter_map(|entry| entry.record.clone()).collect();
    assert!(records.starts_with(&read), "{read:?} is not the beginning of {records:?}");
    assert!(page.through >= after.max(page.evicted_through));
    assert!(page.evicted_through == Position::START || page.evicted_through > after);
    assert!(page.records.iter().all(|(position, _)| *position <= page.through));

    // A page ends before the first entry that does not follow the one before it.
    let with_records = written.iter().enumerate().filter(|(_, entry)| entry.record.is_some());
    let Some((last, _)) = with_records.take(read.len()).last() else { return };
    let mut through = after.max(written[0].position);
    for entry in &written[1..=last] {
        assert!(entry.previous.is_none_or(|previous| previous == through), "a missing entry was not reported");
        through = through.max(entry.position);
    }
}

/// Checks that the id of the position of an id is the same id, or a later one.
fn check_id(text: &[u8]) {
    let Some(position) = position(text) else { return };
    let later = id(position);
    assert_eq!(self::position(later.as_bytes()), Some(position));
    let parts = |text: &str| {
        let (ms, sequence) = text.split_once('-').expect("an id has two parts");
        (ms.parse::<u64>().expect("a number"), sequence.parse::<u64>().expect("a number"))
    };
    assert!(parts(&later) >= parts(std::str::from_utf8(text).expect("an id is ASCII")));
}

struct Entries {
    values: Vec<Value>,
    written: Vec<Written>,
    are_all_ours: bool,
}

fn read_entries(lines: &[u8], after: Position) -> Entries {
    let mut entries = Entries { values: Vec::new(), written: Vec::new(), are_all_ours: true };
    let mut last = after;
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).take(50) {
        let parts: Vec<_> = line.split(|byte| *byte == b'\t').collect();
        let (value, written) = match (line[0], &*parts) {
            (b'!', _) => (odd(&line[1..]), Written::default()),
            (begin @ (b'=' | b'>'), [topic, kind, event, ..]) => {
                let Some(written) = ours(begin, &mut last, &topic[1..], kind, event) else { continue };
                written
            }
            (b'=' | b'>', _) => continue,
            (_, [id]) => {
                let position = position(id).unwrap_or_default();
                (Value::Array(vec![bulk(id), Value::Nil]), Written { position, ..Written::default() })
            }
            (_, [id, fields @ ..]) => foreign(id, fields),
            (_, []) => continue,
        };
        entries.are_all_ours &= matches!(line[0], b'=' | b'>');
        entries.values.push(value);
        entries.written.push(written);
    }
    entries
}

/// Returns an entry as the script of the hub writes it.
fn ours(begin: u8, last: &mut Position, topic: &[u8], kind: &[u8], event: &[u8]) -> Option<(Value, Written)> {
    let previous = *last;
    let (ms, sequence) = (previous.get() >> 20, previous.get() & 0xF_FFFF);
    // The last sequence number of a millisecond is not used.
    let follows = begin == b'=' && sequence < 0xF_FFFE;
    *last = if follows { previous.next() } else { Position::new((ms + 1).checked_mul(1 << 20)?) };
    let kind = match kind {
        b"s" => RecordKind::State,
        b"f" => RecordKind::Finish,
        b"r" => RecordKind::Remove,
        _ => RecordKind::Event,
    };
    let topic = String::from_utf8_lossy(topic).into_owned();
    let mut fields = Vec::new();
    if !follows {
        fields.extend([bulk(b"p"), bulk(id(previous).as_bytes())]);
    }
    fields.extend([bulk(b"t"), bulk(topic.as_bytes()), bulk(name(kind).as_bytes()), bulk(event)]);
    let value = Value::Array(vec![bulk(id(*last).as_bytes()), Value::Array(fields)]);
    let record = Some((*last, topic, kind, event.to_vec()));
    (*last < Position::MAX).then_some((value, Written { position: *last, previous: Some(previous), record }))
}

/// Returns an entry of other software. It is a record if it has a topic and an event.
fn foreign(id: &[u8], fields: &[&[u8]]) -> (Value, Written) {
    check_id(id);
    let position = position(id);
    let (mut values, mut previous, mut topic, mut event, mut is_odd) = (Vec::new(), None, None, None, false);
    for field in fields {
        let Some(equals) = field.iter().position(|byte| *byte == b'=') else {
            values.push(bulk(field));
            is_odd = true;
            continue;
        };
        let (name, value) = (&field[..equals], &field[equals + 1..]);
        values.extend([bulk(name), bulk(value)]);
        match name {
            b"t" => topic = std::str::from_utf8(value).ok().map(str::to_owned),
            b"p" => previous = self::position(value).filter(|previous| Some(*previous) < position),
            b"e" => event = event.or(Some((RecordKind::Event, value.to_vec()))),
            b"s" => event = event.or(Some((RecordKind::State, value.to_vec()))),
            b"f" => event = event.or(Some((RecordKind::Finish, value.to_vec()))),
            b"r" => event = event.or(Some((RecordKind::Remove, value.to_vec()))),
            _ => {}
        }
    }
    if is_odd {
        // Names and values are not where they belong. The end of it is enough to find panics.
        values.truncate(1);
        (previous, topic, event) = (None, None, None);
    }
    let record = position.filter(|position| *position < Position::MAX).zip(topic).zip(event);
    let record = record.map(|((position, topic), (kind, event))| (position, topic, kind, event));
    let position = position.unwrap_or_default();
    // The hub leaves the field out where it is the number before.
    let implied = (record.is_some() && position.get() & 0xF_FFFF != 0).then(|| position.previous());
    let written = Written { position, previous: previous.or(implied), record };
    (Value::Array(vec![bulk(id), Value::Array(values)]), written)
}

fn odd(text: &[u8]) -> Value {
    match text {
        [b'n', ..] => Value::Nil,
        [b'i', ..] => Value::Int(7),
        [b'a', rest @ ..] => Value::Array(vec![bulk(rest)]),
        [b'v', rest @ ..] => Value::Array(vec![bulk(rest), Value::Array(vec![Value::Int(1), bulk(rest)])]),
        _ => bulk(text),
    }
}

/// Returns the answer to `XREAD`.
fn answer(form: &[u8], entries: Vec<Value>) -> Value {
    let stream = bulk(b"stream");
    match form {
        b"n" => Value::Nil,
        b"m" => Value::Map(vec![(stream, Value::Array(entries))]),
        b"i" => Value::Int(1),
        b"e" => Value::Array(entries),
        _ => Value::Array(vec![Value::Array(vec![stream, Value::Array(entries)])]),
    }
}

fn bulk(bytes: &[u8]) -> Value {
    Value::BulkString(bytes.to_vec())
}
