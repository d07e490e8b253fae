//! Descriptions of event streams in the OpenAPI 3.2 document of [utoipa] 6.
//!
//! Use the types in the first column in the attribute `#[utoipa::path]` of a handler.
//! [`TaggedEvents`] and [`SubscriptionEvents`] exist only for this purpose, and have no values.
//!
//! | in `responses(…)` | describes the response |
//! |---|---|
//! | [`TaggedEvents<T>`] | 200 of [`SseStream::tagged`](crate::SseStream::tagged) |
//! | [`SubscriptionEvents<T>`] | 200 and 204 of a [`Subscription`](crate::hub::Subscription) |
//! | [`StopReconnecting`] | 204 |
//! | [`LastEventIdRejection`] | 400 |
//! | [`JsonError`] | 500 |
//! | [`hub::Error`](crate::hub::Error) | 400, 410, 500 and 503 |
//!
//! For the request header `Last-Event-ID`, use [`LastEventId`] in `params(…)`.
//!
//! The description of an event stream contains an [`itemSchema`]: the schema of each event. OpenAPI
//! 3.1 has no such keyword, so set the version of the document to 3.2, as in the example.
//!
//! # Examples
//!
//! ```
//! use serde::Serialize;
//! use tokio_stream::Stream;
//! use tower_sse::{LastEventId, SseStream, StopReconnecting, openapi::TaggedEvents};
//! use utoipa::{OpenApi, ToSchema, openapi::OpenApiVersion};
//!
//! #[derive(Serialize, ToSchema)]
//! #[serde(rename_all = "lowercase")]
//! enum Progress {
//!     Step { percent: u8 },
//!     Done,
//! }
//!
//! /// Reports the progress of a job.
//! #[utoipa::path(get, path = "/progress", params(LastEventId), responses(TaggedEvents<Progress>, StopReconnecting))]
//! async fn progress(last: LastEventId) -> Result<SseStream<impl Stream>, StopReconnecting> {
//! #   let _ = last;
//!     Ok(SseStream::tagged(tokio_stream::iter([Progress::Step { percent: 50 }, Progress::Done])))
//! }
//!
//! #[derive(OpenApi)]
//! #[openapi(paths(progress), components(schemas(Progress)))]
//! struct Api;
//!
//! let mut document = Api::openapi();
//! document.openapi = OpenApiVersion::Version32;
//! let document = serde_json::to_value(&document)?;
//! let stream = &document["paths"]["/progress"]["get"]["responses"]["200"]["content"]["text/event-stream"];
//! assert_eq!(stream["itemSchema"]["oneOf"][0]["properties"]["event"]["enum"][0], "step");
//! # Ok::<_, serde_json::Error>(())
//! ```
//!
//! List the enum `T` in `components(schemas(…))`. utoipa then adds the schemas of the types in its
//! variants, which the description of the stream needs.
//!
//! [utoipa]: https://docs.rs/utoipa/6
//! [`itemSchema`]: https://spec.openapis.org/oas/v3.2.0.html#sequential-media-types

#[cfg(feature = "hub")]
mod subscription;
mod variants;

#[cfg(feature = "hub")]
pub use subscription::SubscriptionEvents;

use crate::{JsonError, LastEventId, LastEventIdRejection, StopReconnecting};
use http::StatusCode;
use serde_json::Value;
use std::{collections::BTreeMap, fmt, marker::PhantomData};
use utoipa::{
    IntoParams, IntoResponses, ToSchema,
    openapi::{
        Content, ContentBuilder, Object, ObjectBuilder, OneOfBuilder, RefOr, Required, Response, ResponseBuilder, Type,
        extensions::Extensions,
        path::{Parameter, ParameterBuilder, ParameterIn},
    },
};
use variants::Variant;

/// Describes the response of a stream of enum values:
/// [`SseStream::tagged`](crate::SseStream::tagged), or a stream of
/// [`Event::tagged`](crate::Event::tagged) events.
///
/// The variants are read from the [schema](ToSchema) of the enum. Each variant is described as an
/// event with the name of the variant, and with the content of the variant as JSON in `data`. If
/// `T` is not a tagged enum, the data of each event is described as JSON of `T`.
///
/// An adjacently tagged enum (`#[serde(tag, content)]`) can have the same schema as an internally
/// tagged enum (`#[serde(tag)]`). This is the case if each variant of the latter has a single
/// field, whose name is the same in all variants. The description then allows the data of both
/// representations (`anyOf`).
pub struct TaggedEvents<T>(PhantomData<fn() -> T>);

impl<T: ToSchema> IntoResponses for TaggedEvents<T> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        [event_stream(events_of::<T>())].into()
    }
}

/// Returns the schemas of the events of a stream of `T`: one schema for each variant if `T` is a
/// tagged enum, and otherwise one schema for all events.
fn events_of<T: ToSchema>() -> Vec<Object> {
    // The conversion fails only for maps whose keys are not strings. A schema contains no such map.
    let schema = serde_json::to_value(T::schema()).unwrap_or_default();
    match variants::of(&schema) {
        Some(variants) => variants
            .into_iter()
            .map(|Variant { name, description, content }| event(&name, json_text(content), description.as_deref()))
            .collect(),
        None => vec![event_without_name(json_text(schema))],
    }
}

/// Returns the OpenAPI schema of an event with the name `name`. `data` is the schema of its data.
fn event(name: &str, data: Object, description: Option<&str>) -> Object {
    let name = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([name]));
    let mut event = event_without_name(data);
    event.properties.insert("event".to_owned(), name.into());
    event.required.insert(0, "event".to_owned());
    event.description = description.map(str::to_owned);
    event
}

fn event_without_name(data: Object) -> Object {
    let id = ObjectBuilder::new().schema_type(Type::String);
    let retry = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("data", data)
        .required("data")
        .property("id", id)
        .property("retry", retry)
        .build()
}

/// Returns the schema of a string that contains JSON. `content` is the schema of that JSON. The
/// schema uses the keywords `contentMediaType` and `contentSchema` of JSON Schema 2020-12. utoipa
/// has no methods for these keywords, so they are added as extensions, which utoipa writes
/// unchanged.
fn json_text(content: Value) -> Object {
    let keywords = [("contentMediaType", "application/json".into()), ("contentSchema", content)];
    ObjectBuilder::new().schema_type(Type::String).extensions(Some(Extensions::from_iter(keywords))).build()
}

/// Returns the OpenAPI description of the response 200 with an event stream. `events` are the
/// schemas of its events.
fn event_stream(events: impl IntoIterator<Item = Object>) -> (String, RefOr<Response>) {
    let events = events.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item);
    let content = ContentBuilder::new().item_schema(Some(events)).build();
    let response = ResponseBuilder::new().description("A stream of events").content("text/event-stream", content);
    (StatusCode::OK.as_str().to_owned(), response.build().into())
}

/// Returns a response with the status `status`, whose body is a text for developers.
fn error(status: StatusCode, description: &str) -> (String, RefOr<Response>) {
    let text = Content::new(Some(ObjectBuilder::new().schema_type(Type::String).build()));
    let response = ResponseBuilder::new().description(description).content("text/plain; charset=utf-8", text);
    (status.as_str().to_owned(), response.build().into())
}

/// Describes the optional request header `Last-Event-ID`.
impl IntoParams for LastEventId {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let id = ObjectBuilder::new().schema_type(Type::String);
        let description = "The id of the last event that the client has received. An `EventSource` sends it when it \
                           reconnects. The stream continues after this event.";
        let header = ParameterBuilder::new()
            .name("Last-Event-ID")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(description))
            .schema(Some(id));
        vec![header.build()]
    }
}

impl IntoResponses for StopReconnecting {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let description = "The stream is over, and the client has all of it. An `EventSource` stops reconnecting.";
        let response = ResponseBuilder::new().description(description).build();
        [(StatusCode::NO_CONTENT.as_str().to_owned(), response.into())].into()
    }
}

impl IntoResponses for LastEventIdRejection {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        [error(StatusCode::BAD_REQUEST, "The header `Last-Event-ID` is not valid")].into()
    }
}

impl IntoResponses for JsonError {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        [error(StatusCode::INTERNAL_SERVER_ERROR, "An event does not serialize")].into()
    }
}

impl<T> fmt::Debug for TaggedEvents<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaggedEvents")
    }
}
