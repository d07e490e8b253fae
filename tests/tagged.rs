//! Guarantee: a variant of an enum is an event with the name of the variant, and with its content
//! as JSON, in each tagged representation of serde. The name and the data contain the whole value.

use futures_util::stream;
use http_body_util::BodyExt;
use proptest::{collection::vec, prelude::*};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    error::Error as _,
    io,
};
use support::whatwg::{self, Message};
use tower_sse::{Event, FieldError, FieldErrorKind, JsonError, SseStream};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    x: i32,
    label: String,
}

/// The variants that every representation supports.
macro_rules! message {
    ($Name:ident $(, $representation:meta)?) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        $(#[$representation])?
        enum $Name {
            Reset,
            #[serde(rename = "point-moved, or 日本: \u{2028}")]
            Moved(Point),
            Labels(BTreeMap<String, String>),
            Said { text: String, to: Option<String> },
            Empty {},
        }

        impl $Name {
            fn any() -> impl Strategy<Value = Self> {
                prop_oneof![
                    Just(Self::Reset),
                    Just(Self::Empty {}),
                    (any::<i32>(), text()).prop_map(|(x, label)| Self::Moved(Point { x, label })),
                    vec((text(), text()), 0..4).prop_map(|entries| Self::Labels(entries.into_iter().collect())),
                    (text(), proptest::option::of(text())).prop_map(|(text, to)| Self::Said { text, to }),
                ]
            }
        }
    };
}

message!(External);
message!(Adjacent, serde(tag = "t", content = "c"));
message!(Internal, serde(tag = "kind"));

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        Just("data: \r\n\r\nevent: injected\u{2028}\u{85}".to_owned()),
        Just("kind".to_owned())
    ]
}

/// Returns the one message that a client dispatches, and its data as JSON.
fn dispatched(value: &(impl Serialize + ?Sized)) -> (Message, Value) {
    let parsed = whatwg::parse(&Event::tagged(value).unwrap().encode());
    let [message] = parsed.messages.try_into().unwrap();
    let data = serde_json::from_str(&message.data).unwrap();
    (message, data)
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn externally_tagged_value_is_read_back(value in External::any()) {
        let (message, data) = dispatched(&value);
        prop_assert_eq!(read::<External>(json!({ message.r#type: data })), value);
    }

    #[test]
    fn adjacently_tagged_value_is_read_back(value in Adjacent::any()) {
        let (message, data) = dispatched(&value);
        prop_assert_eq!(read::<Adjacent>(json!({ "t": message.r#type, "c": data })), value);
    }

    #[test]
    fn internally_tagged_value_is_read_back(value in Internal::any()) {
        let (message, mut data) = dispatched(&value);
        // A key of a map can have the name of the tag. Then serde writes both, and reads the tag.
        data["kind"] = message.r#type.into();
        let mut expected = value;
        if let Internal::Labels(labels) = &mut expected {
            labels.remove("kind");
        }
        prop_assert_eq!(read::<Internal>(data), expected);
    }

    /// The representation is a detail of the server.
    #[test]
    fn event_is_the_same_in_each_representation(value in External::any()) {
        let whole = serde_json::to_value(&value).unwrap();
        let (name, content) = match &whole {
            Value::Object(entry) => entry.iter().next().map(|(name, content)| (name.clone(), content.clone())).unwrap(),
            name => (name.as_str().unwrap().to_owned(), Value::Null),
        };
        let event = Event::tagged(&value).unwrap();
        prop_assert_eq!(event.name(), Some(&*name));
        prop_assert_eq!(&Event::tagged(&read::<Adjacent>(json!({ "t": &name, "c": &content }))).unwrap(), &event);
        let mut internal = if content.is_null() { json!({}) } else { content.clone() };
        if internal.get("kind").is_none() {
            internal["kind"] = name.clone().into();
            let event = if content.is_null() { event.data("{}") } else { event };
            prop_assert_eq!(&Event::tagged(&read::<Internal>(internal)).unwrap(), &event);
        }
    }
}

/// Returns the wire bytes.
fn wire(value: &(impl Serialize + ?Sized)) -> String {
    String::from_utf8(Event::tagged(value).unwrap().encode().into()).unwrap()
}

#[test]
fn content_of_each_kind_of_variant_is_the_data() {
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    enum Kinds<'a> {
        UnitVariant,
        Newtype(&'a str),
        Tuple(i32, Option<bool>),
        Empty(),
        Struct {
            a: f64,
            #[serde(skip_serializing_if = "Option::is_none")]
            b: Option<()>,
            r#type: &'a str,
        },
    }
    assert_eq!(wire(&Kinds::UnitVariant), "event: unit-variant\ndata: null\n\n");
    assert_eq!(wire(&Kinds::Newtype("two\nlines\u{85}")), "event: newtype\ndata: \"two\\nlines\\u0085\"\n\n");
    assert_eq!(wire(&Kinds::Tuple(-1, None)), "event: tuple\ndata: [-1,null]\n\n");
    assert_eq!(wire(&Kinds::Empty()), "event: empty\ndata: []\n\n");
    let value = Kinds::Struct { a: 1.5, b: None, r#type: "x" };
    assert_eq!(wire(&value), "event: struct\ndata: {\"a\":1.5,\"type\":\"x\"}\n\n");
}

#[test]
fn variants_inside_of_wrappers_are_found() {
    #[derive(Serialize)]
    struct Wrapper<T>(T);
    #[derive(Serialize)]
    enum Inner {
        V(u8),
    }
    #[derive(Serialize)]
    #[serde(tag = "type")]
    enum Outer {
        Nested(Inner),
    }
    let expected = "event: V\ndata: 1\n\n";
    assert_eq!(wire(&Some(Box::new(Inner::V(1)))), expected);
    assert_eq!(wire(&Wrapper(Inner::V(1))), expected);
    assert_eq!(wire(&Outer::Nested(Inner::V(1))), "event: Nested\ndata: {\"V\":1}\n\n");
}

#[test]
fn tagged_and_flattened_structs_count_as_variants() {
    #[derive(Serialize)]
    #[serde(tag = "type")]
    struct Order {
        id: u32,
    }
    #[derive(Serialize)]
    #[serde(tag = "type")]
    enum Kind<'a> {
        Moved { x: &'a str },
    }
    #[derive(Serialize)]
    struct Envelope<'a> {
        #[serde(flatten)]
        kind: Kind<'a>,
        at: u64,
    }
    assert_eq!(wire(&Order { id: 7 }), "event: Order\ndata: {\"id\":7}\n\n");
    let envelope = Envelope { kind: Kind::Moved { x: "1" }, at: 5 };
    assert_eq!(wire(&envelope), "event: Moved\ndata: {\"x\":\"1\",\"at\":5}\n\n");
}

#[test]
fn raw_values_and_separators_of_the_content_are_escaped() {
    #[derive(Serialize)]
    #[serde(tag = "t", content = "c")]
    enum Message {
        Raw(Box<RawValue>),
    }
    let raw = RawValue::from_string("[1,\r\n\"\u{2028}\"\n]".into()).unwrap();
    assert_eq!(wire(&Message::Raw(raw)), "event: Raw\ndata: [1,  \"\\u2028\" ]\n\n");
}

/// A value of a user must never become the name of an event.
#[test]
fn values_without_a_variant_are_errors() {
    #[derive(Serialize)]
    struct Owned {
        name: String,
        age: u8,
    }
    #[derive(Serialize)]
    struct Borrowed<'a> {
        name: &'a str,
        short: Cow<'a, str>,
    }
    #[derive(Serialize)]
    struct Unit;
    #[derive(Serialize)]
    struct Nothing {}
    #[derive(Serialize)]
    struct Tuple(String, u8);
    #[derive(Serialize)]
    enum Kind {
        A,
    }
    #[derive(Serialize)]
    struct StartsWithEnum {
        kind: Kind,
        text: String,
    }
    /// The name of the struct is that of the enum, as for an adjacently tagged variant.
    #[derive(Serialize)]
    #[serde(rename = "Kind")]
    struct Misleading {
        kind: Kind,
        a: u8,
        b: u8,
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Untagged {
        A { name: String },
        B(u8),
        C,
    }

    fn assert_rejected<T: Serialize + ?Sized>(value: &T) {
        let error = Event::tagged(value).map(drop).unwrap_err();
        let name = std::any::type_name::<T>();
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("a value of the type {name} is not a variant of a tagged enum")),
            "{message}"
        );
        assert!(error.source().is_none());
    }
    let anna = || "Anna".to_owned();
    assert_rejected(&Owned { name: anna(), age: 7 });
    assert_rejected(&Borrowed { name: "Anna", short: "A".into() });
    assert_rejected(&StartsWithEnum { kind: Kind::A, text: anna() });
    assert_rejected(&Misleading { kind: Kind::A, a: 1, b: 2 });
    assert_rejected(&Tuple(anna(), 7));
    assert_rejected(&Untagged::A { name: anna() });
    assert_rejected(&Untagged::B(7));
    assert_rejected(&Untagged::C);
    assert_rejected(&(Unit, Nothing {}).0);
    assert_rejected(&Nothing {});
    assert_rejected(&HashMap::from([("type", "Anna")]));
    assert_rejected(&HashMap::from([("type", Box::<str>::from("Anna"))]));
    assert_rejected(&json!({ "type": "Anna" }));
    assert_rejected(&RawValue::from_string("\"Anna\"".into()).unwrap());
    assert_rejected("Anna");
    assert_rejected(&["Anna"][..]);
    assert_rejected(&(1, "Anna"));
    assert_rejected(&None::<Kind>);
    assert_rejected(&'A');
    assert_rejected(&1_u128);
    assert_rejected(&-1_i128);
    assert_rejected(&1.5);
    assert_rejected(&true);
    assert_rejected(&());
}

/// The value behind a `dyn Serialize` has no size, like a tag.
#[test]
fn text_behind_a_trait_object_is_no_tag() {
    trait Text {
        fn text(&self) -> &str;
    }
    impl Text for String {
        fn text(&self) -> &str {
            self
        }
    }
    impl Serialize for dyn Text + '_ {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(self.text())
        }
    }
    struct Person(String);
    impl Serialize for Person {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeStruct;
            let mut person = serializer.serialize_struct("Person", 1)?;
            person.serialize_field::<dyn Text>("name", &self.0)?;
            person.end()
        }
    }
    for name in ["Anna", "a name of twenty-four by"] {
        assert!(Event::tagged(&Person(name.into())).is_err());
    }
}

/// A small text can be stored in the value itself, so its address is that of the value.
#[test]
fn inline_text_is_no_tag() {
    struct Inline([u8; 4]);
    impl Serialize for Inline {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(std::str::from_utf8(&self.0).unwrap())
        }
    }
    #[derive(Serialize)]
    struct Person {
        name: Inline,
    }
    assert!(Event::tagged(&Person { name: Inline(*b"Anna") }).is_err());
}

#[test]
fn invalid_names_are_errors_and_no_injection() {
    macro_rules! renamed {
        ($name:literal) => {{
            #[derive(Serialize)]
            enum External {
                #[serde(rename = $name)]
                Unit,
                #[serde(rename = $name)]
                Newtype(u8),
                #[serde(rename = $name)]
                Tuple(u8, u8),
                #[serde(rename = $name)]
                Struct { a: u8 },
            }
            #[derive(Serialize)]
            #[serde(tag = "t", content = "c")]
            enum Adjacent {
                #[serde(rename = $name)]
                A(u8),
            }
            #[derive(Serialize)]
            #[serde(tag = "t")]
            enum Internal {
                #[serde(rename = $name)]
                A { a: u8 },
            }
            [
                Event::tagged(&External::Unit),
                Event::tagged(&External::Newtype(1)),
                Event::tagged(&External::Tuple(1, 2)),
                Event::tagged(&External::Struct { a: 1 }),
                Event::tagged(&Adjacent::A(1)),
                Event::tagged(&Internal::A { a: 1 }),
            ]
        }};
    }
    let cases = [
        (renamed!("a\ndata: injected\n\n"), FieldErrorKind::LineBreak),
        (renamed!("a\r"), FieldErrorKind::LineBreak),
        (renamed!("a\0"), FieldErrorKind::Nul),
        (renamed!(""), FieldErrorKind::Empty),
    ];
    for (results, kind) in cases {
        for result in results {
            let error = result.unwrap_err();
            assert_eq!(
                error.to_string(),
                "the name of a variant is not valid as the name of an event; rename the variant"
            );
            let source = error.source().unwrap().downcast_ref::<FieldError>().unwrap();
            assert_eq!(source.kind(), kind);
        }
    }
}

#[test]
fn content_that_does_not_serialize_is_an_error_with_its_source() {
    #[derive(Serialize)]
    enum Message {
        Map(HashMap<Vec<u8>, u8>),
        Failing(Failing),
    }
    struct Failing;
    impl Serialize for Failing {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no database"))
        }
    }
    for (value, source) in [
        (Message::Map(HashMap::from([(vec![1], 2)])), "key must be a string"),
        (Message::Failing(Failing), "no database"),
    ] {
        let error = Event::tagged(&value).unwrap_err();
        assert!(error.to_string().starts_with("the data of an event does not serialize to JSON"), "{error}");
        assert_eq!(error.source().unwrap().to_string(), source);
    }
    let error = Event::tagged(&Failing).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "no database");
}

async fn body<S>(response: SseStream<S>) -> Result<String, String>
where
    S: futures_util::Stream + Send + 'static,
    S::Item: tower_sse::SseItem,
{
    let body = response.without_heartbeat().into_http_response().into_body();
    let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok(String::from_utf8(bytes.into()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn streams_of_enums_are_streams_of_events() {
    #[derive(Clone, Serialize)]
    enum Progress {
        Step(u8),
        Done,
    }
    let values = [Progress::Step(50), Progress::Done];
    let expected = "event: Step\ndata: 50\n\nevent: Done\ndata: null\n\n";
    assert_eq!(body(SseStream::tagged(stream::iter(values.clone()))).await.unwrap(), expected);
    let results = values.map(Ok::<_, io::Error>);
    assert_eq!(body(SseStream::try_tagged(stream::iter(results))).await.unwrap(), expected);
    // `json` still writes the whole value.
    assert_eq!(body(SseStream::json(stream::iter([Progress::Done]))).await.unwrap(), "data: \"Done\"\n\n");
    let results = [Ok::<_, io::Error>(Progress::Done)];
    assert_eq!(body(SseStream::try_json(stream::iter(results))).await.unwrap(), "data: \"Done\"\n\n");
}

#[tokio::test(start_paused = true)]
async fn errors_end_streams_of_enums() {
    let message = body(SseStream::tagged(stream::iter(["no enum"]))).await.unwrap_err();
    assert!(message.contains("is not a variant"), "{message}");
    let lost: [Result<External, _>; 1] = [Err(io::Error::other("connection lost"))];
    assert_eq!(body(SseStream::try_tagged(stream::iter(lost))).await.unwrap_err(), "connection lost");
    let no_enum = SseStream::try_tagged(stream::iter([Ok::<_, io::Error>(1)]))
        .on_error(|error| Some(Event::new(error.is::<JsonError>().to_string())));
    assert_eq!(body(no_enum).await.unwrap(), "data: true\n\n");
}
