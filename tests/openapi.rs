//! The OpenAPI description of event streams. `tests/e2e/tests/openapi.rs` validates a document.

use serde::Serialize;
use serde_json::{Value, json};
use tower_sse::{
    Event, JsonError, LastEventId, LastEventIdRejection, StopReconnecting, hub,
    openapi::{SubscriptionEvents, TaggedEvents},
};
use utoipa::{IntoParams, IntoResponses, ToSchema};

#[derive(Serialize, ToSchema)]
struct Point {
    x: i32,
}

macro_rules! message {
    ($Name:ident $(, $representation:meta)?) => {
        #[derive(Serialize, ToSchema)]
        $(#[$representation])?
        #[serde(rename_all = "kebab-case")]
        enum $Name {
            /// The board is empty again.
            Reset,
            PointMoved(Point),
            Said { text: String, to: Option<String> },
        }

        impl $Name {
            fn all() -> [Self; 3] {
                [Self::Reset, Self::PointMoved(Point { x: 1 }), Self::Said { text: "hi".into(), to: None }]
            }
        }
    };
}

message!(External);
message!(Adjacent, serde(tag = "t", content = "c"));
message!(Internal, serde(tag = "kind"));

/// Returns the schemas of the events.
fn events<T: IntoResponses>() -> Vec<Value> {
    let responses = serde_json::to_value(T::responses()).unwrap();
    let stream = &responses["200"]["content"]["text/event-stream"];
    assert!(stream.get("schema").is_none(), "a stream is not one value");
    stream["itemSchema"]["oneOf"].as_array().unwrap().clone()
}

/// Returns the names of the events, each with the schema of its JSON.
fn contents<T: IntoResponses>() -> Vec<(String, Value)> {
    let content = |event: Value| {
        assert_eq!(event["required"], json!(["event", "data"]));
        let properties = &event["properties"];
        let [name] = &properties["event"]["enum"].as_array().unwrap()[..] else { panic!("{event}") };
        assert_eq!(properties["event"]["type"], "string");
        assert_eq!(properties["data"]["type"], "string");
        assert_eq!(properties["data"]["contentMediaType"], "application/json");
        assert_eq!(properties["id"], json!({ "type": "string" }));
        (name.as_str().unwrap().to_owned(), properties["data"]["contentSchema"].clone())
    };
    events::<T>().into_iter().map(content).collect()
}

fn said() -> Value {
    json!({
        "type": "object",
        "required": ["text"],
        "properties": { "text": { "type": "string" }, "to": { "type": ["string", "null"] } },
    })
}

const POINT: &str = "#/components/schemas/Point";

#[test]
fn variants_of_external_enum_are_described() {
    let expected = [
        ("reset".to_owned(), json!({ "type": "null" })),
        ("point-moved".to_owned(), json!({ "$ref": POINT })),
        ("said".to_owned(), said()),
    ];
    assert_eq!(contents::<TaggedEvents<External>>(), expected);
    assert_eq!(events::<TaggedEvents<External>>()[0]["description"], "The board is empty again.");
}

#[test]
fn variants_of_internal_enum_are_described_without_the_tag() {
    let expected = [
        ("reset".to_owned(), json!({ "type": "object" })),
        ("point-moved".to_owned(), json!({ "$ref": POINT })),
        ("said".to_owned(), said()),
    ];
    assert_eq!(contents::<TaggedEvents<Internal>>(), expected);
    assert_eq!(events::<TaggedEvents<Internal>>()[0]["description"], "The board is empty again.");
}

#[test]
fn variants_of_adjacent_enum_are_described_in_both_forms() {
    let both = |content: Value| {
        let whole = json!({ "type": "object", "required": ["c"], "properties": { "c": &content } });
        json!({ "anyOf": [content, whole] })
    };
    let expected = [
        ("reset".to_owned(), json!({ "anyOf": [{ "type": "null" }, { "type": "object" }] })),
        ("point-moved".to_owned(), both(json!({ "$ref": POINT }))),
        ("said".to_owned(), both(said())),
    ];
    assert_eq!(contents::<TaggedEvents<Adjacent>>(), expected);
}

#[test]
fn described_names_are_those_on_the_wire() {
    fn assert_names<T: ToSchema + Serialize>(values: impl IntoIterator<Item = T>) {
        let described = contents::<TaggedEvents<T>>().into_iter().map(|(name, _)| name);
        let sent = values.into_iter().map(|value| Event::tagged(&value).unwrap().name().unwrap().to_owned());
        assert!(described.eq(sent));
    }
    assert_names(External::all());
    assert_names(Adjacent::all());
    assert_names(Internal::all());
}

#[test]
fn enum_of_units_is_described() {
    #[derive(Serialize, ToSchema)]
    enum External {
        A,
        B,
    }
    #[derive(Serialize, ToSchema)]
    #[serde(tag = "type")]
    enum Internal {
        A,
        B,
    }
    let unit = json!({ "type": "null" });
    assert_eq!(contents::<TaggedEvents<External>>(), ["A", "B"].map(|name| (name.to_owned(), unit.clone())));
    let either = json!({ "anyOf": [unit, { "type": "object" }] });
    assert_eq!(contents::<TaggedEvents<Internal>>(), ["A", "B"].map(|name| (name.to_owned(), either.clone())));
    let _ = [External::A, External::B].map(|value| Event::tagged(&value).unwrap());
    let _ = [Internal::A, Internal::B].map(|value| Event::tagged(&value).unwrap());
}

/// An adjacently tagged enum has one name for all contents, and requires the content.
#[test]
fn one_field_of_different_names_or_optional_is_not_adjacent() {
    #[derive(Serialize, ToSchema)]
    #[serde(tag = "type")]
    enum Different {
        A { a: u8 },
        B { b: u8 },
    }
    #[derive(Serialize, ToSchema)]
    #[serde(tag = "type")]
    enum Optional {
        A { value: Option<u8> },
        B { value: Option<u8> },
    }
    for (_, content) in [contents::<TaggedEvents<Different>>(), contents::<TaggedEvents<Optional>>()].concat() {
        assert_eq!(content["type"], "object", "{content}");
    }
    let _ = [Different::A { a: 1 }, Different::B { b: 1 }];
    let _ = [Optional::A { value: None }, Optional::B { value: None }];
}

/// Every variant has the same constant in addition to the tag.
#[test]
fn tag_is_found_next_to_another_constant() {
    #[derive(Serialize, ToSchema)]
    enum Version {
        V1,
    }
    #[derive(Serialize, ToSchema)]
    #[serde(tag = "type")]
    enum Internal {
        A {
            #[schema(inline)]
            a_version: Version,
            a: u8,
        },
        B {
            #[schema(inline)]
            a_version: Version,
            b: u8,
        },
    }
    let names: Vec<_> = contents::<TaggedEvents<Internal>>().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["A", "B"]);
    let _ = [Internal::A { a_version: Version::V1, a: 1 }, Internal::B { a_version: Version::V1, b: 1 }];
}

#[test]
fn other_types_are_described_without_names() {
    let [event] = &events::<TaggedEvents<Point>>()[..] else { panic!() };
    assert_eq!(event["required"], json!(["data"]));
    assert!(event["properties"].get("event").is_none());
    assert_eq!(event["properties"]["data"]["contentSchema"]["properties"]["x"]["type"], "integer");
}

#[test]
fn subscription_has_events_of_the_hub_and_204() {
    let events = events::<SubscriptionEvents<External>>();
    let names: Vec<_> = events.iter().map(|event| event["properties"]["event"]["enum"][0].as_str().unwrap()).collect();
    assert_eq!(names, ["reset", "point-moved", "said", "hub-cursor", "gap"]);
    assert_eq!(events[3]["properties"]["data"], json!({ "type": "string", "maxLength": 0 }));
    let gap = &events[4]["properties"]["data"]["contentSchema"];
    assert_eq!(gap["properties"]["reason"]["enum"], json!(["evicted", "ahead", "other_epoch", "malformed", "lagged"]));
    assert!(SubscriptionEvents::<External>::responses().contains_key("204"));
}

#[test]
fn parameters_and_errors_are_described() {
    let params = serde_json::to_value(LastEventId::into_params(|| None)).unwrap();
    assert_eq!(params[0]["name"], "Last-Event-ID");
    assert_eq!(params[0]["in"], "header");
    assert_eq!(params[0]["required"], false);

    fn statuses<T: IntoResponses>() -> Vec<String> {
        T::responses().into_keys().collect()
    }
    assert_eq!(statuses::<StopReconnecting>(), ["204"]);
    assert_eq!(statuses::<LastEventIdRejection>(), ["400"]);
    assert_eq!(statuses::<JsonError>(), ["500"]);
    assert_eq!(statuses::<hub::Error>(), ["400", "410", "500", "503"]);
}
