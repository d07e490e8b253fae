//! Finds the variants of an enum in its JSON Schema, as utoipa derives it.
//!
//! An externally tagged enum of unit variants has one schema, which lists the names of the
//! variants. Other schemas are a `oneOf` with one item for each variant. In this table, `V` is the
//! name of the variant. `tag` and `content` stand for the values of serde's attributes `tag` and
//! `content`.
//!
//! | representation | struct or newtype variant | unit variant |
//! |---|---|---|
//! | external | `{ properties: { V: content }, required: [V] }` | `{ type: string, enum: [V] }` |
//! | internal | `{ properties: { tag: { enum: [V] }, fields… } }`, or an `allOf` of that and a reference | `{ properties: { tag: { enum: [V] } } }` |
//! | adjacent | `{ properties: { tag: { enum: [V] }, content: … } }` | as internal |

use serde_json::{Map, Value, json};

/// A variant of an enum, which a stream sends as an event. The event has the name of the variant.
#[derive(Debug, PartialEq)]
pub(super) struct Variant {
    pub(super) name: String,
    pub(super) description: Option<String>,
    /// The JSON Schema of the data of this event: the content of the variant, as
    /// [`Event::tagged`](crate::Event::tagged) writes it.
    pub(super) content: Value,
}

/// Returns the variants of the enum with this schema. Returns `None` if the schema is not that of a
/// tagged enum.
pub(super) fn of(schema: &Value) -> Option<Vec<Variant>> {
    if let Some(names) = names(schema) {
        return Some(names.into_iter().map(|name| unit(name, schema)).collect());
    }
    let items = schema.get("oneOf")?.as_array()?;
    match tag(items) {
        Some(tag) => tagged(items, &tag),
        None => items.iter().map(external).collect(),
    }
}

/// Returns the strings in a schema of the form `{ type: string, enum: […] }`, which allows these
/// strings only. Returns `None` for other schemas.
fn names(schema: &Value) -> Option<Vec<&str>> {
    let is_text = schema.get("type")? == "string";
    schema.get("enum").filter(|_| is_text)?.as_array()?.iter().map(Value::as_str).collect()
}

/// Returns the string in a schema that allows a single string: `{ type: string, enum: [V] }`.
/// Returns `None` for other schemas.
fn only_name(schema: &Value) -> Option<&str> {
    match names(schema)?[..] {
        [name] => Some(name),
        _ => None,
    }
}

fn description(schema: &Value) -> Option<String> {
    schema.get("description")?.as_str().map(str::to_owned)
}

fn unit(name: &str, schema: &Value) -> Variant {
    Variant { name: name.to_owned(), description: description(schema), content: json!({ "type": "null" }) }
}

fn external(item: &Value) -> Option<Variant> {
    if let Some(name) = only_name(item) {
        return Some(unit(name, item));
    }
    let properties = item.get("properties")?.as_object()?;
    let (name, content) = properties.iter().next().filter(|_| properties.len() == 1)?;
    Some(Variant { name: name.clone(), description: description(item), content: content.clone() })
}

/// Returns the parts of a variant's schema that can contain the tag of the variant: the schemas in
/// its `allOf` list, if it has such a list, and the schema itself.
fn parts(item: &Value) -> impl Iterator<Item = &Map<String, Value>> {
    let parts = item.get("allOf").and_then(Value::as_array);
    parts.into_iter().flatten().chain([item]).filter_map(Value::as_object)
}

/// Returns the properties that can be the tag of a variant, with their values. These are the
/// required properties that allow only one string. The last required property comes first, because
/// utoipa lists the tag last.
fn candidates(item: &Value) -> impl Iterator<Item = (&str, &str)> {
    parts(item).flat_map(|part| {
        let required = part.get("required").and_then(Value::as_array).into_iter().flatten().rev();
        required.filter_map(|key| Some((key.as_str()?, only_name(part.get("properties")?.get(key.as_str()?)?)?)))
    })
}

/// Returns the name of the tag: the property that allows a single string in each of the variants
/// `items`. Returns `None` if the variants have no such property, because the enum is externally
/// tagged. utoipa lists the tag as the last required property, so the last such property is taken.
fn tag(items: &[Value]) -> Option<String> {
    let is_tag = |key: &str| items.iter().all(|item| candidates(item).any(|(other, _)| other == key));
    candidates(items.first()?).map(|(key, _)| key).find(|key| is_tag(key)).map(str::to_owned)
}

/// Returns the variants of an internally or adjacently tagged enum, from the schemas `items` of its
/// variants. Returns `None` if a variant has no tag of the name `tag`.
fn tagged(items: &[Value], tag: &str) -> Option<Vec<Variant>> {
    let contents: Vec<_> = items.iter().map(|item| without_tag(item, tag)).collect();
    let can_be_adjacent = {
        let mut keys = contents.iter().filter(|content| !is_empty(content)).map(only_property);
        match keys.next() {
            Some(first) => first.is_some() && keys.all(|key| key == first),
            // All variants are units: the data is `null` or `{}`.
            None => true,
        }
    };
    let variants = items.iter().zip(contents).map(|(item, internal)| {
        let name = candidates(item).find(|(key, _)| *key == tag)?.1.to_owned();
        let content = if can_be_adjacent {
            let adjacent = only_property(&internal).and_then(|key| internal["properties"].get(key).cloned());
            json!({ "anyOf": [adjacent.unwrap_or_else(|| json!({ "type": "null" })), internal] })
        } else {
            internal
        };
        Some(Variant { name, description: description(item), content })
    });
    variants.collect()
}

/// Returns the schema of the content of a variant: its schema without the property `tag`, the
/// description and the title. The name of the event replaces the tag.
fn without_tag(item: &Value, tag: &str) -> Value {
    let mut item = item.clone();
    remove(&mut item, tag);
    if let Some(object) = item.as_object_mut() {
        object.remove("description");
        object.remove("title");
    }
    let Some(parts) = item.get_mut("allOf").and_then(Value::as_array_mut) else {
        return item;
    };
    for part in parts.iter_mut() {
        remove(part, tag);
    }
    parts.retain(|part| !is_empty(part));
    match &mut parts[..] {
        [only] => only.take(),
        _ => item,
    }
}

/// Removes the property `key` from the JSON Schema of an object.
fn remove(object: &mut Value, key: &str) {
    let is_empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    };
    let Some(object) = object.as_object_mut() else { return };
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.remove(key);
    }
    if let Some(Value::Array(required)) = object.get_mut("required") {
        required.retain(|name| name != key);
    }
    object.retain(|name, value| !(matches!(&**name, "properties" | "required") && is_empty(value)));
}

/// Returns `true` if a JSON Schema specifies nothing but the type of the value, so that it
/// describes no content of a variant.
fn is_empty(schema: &Value) -> bool {
    schema.as_object().is_some_and(|schema| schema.keys().all(|key| key == "type"))
}

/// Returns the name of the only property in the schema of an object. Returns `None` if the object
/// has no property or several, or if the property is optional.
fn only_property(schema: &Value) -> Option<&str> {
    let schema = schema.as_object()?;
    let properties = schema.get("properties")?.as_object()?;
    let key = properties.keys().next().filter(|_| properties.len() == 1)?;
    // Without its tag, an object with one optional property has no `required`.
    schema.contains_key("required").then_some(key)
}
