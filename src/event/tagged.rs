//! Splits a variant of an enum into the name of an event, and the JSON that is the data of the
//! event.
//!
//! The variant serializes in one pass: its content is written directly as JSON, and no
//! `serde_json::Value` is created. For a variant `V` of an enum `E`, the code that `serde_derive`
//! generates calls these methods of the `Serializer`:
//!
//! | representation | calls |
//! |---|---|
//! | external | one of the `serialize_…_variant` methods, with `"V"` |
//! | adjacent | `serialize_struct(E, …)`, then a field whose value calls `serialize_unit_variant(E, …, "V")`, then the content as a second field |
//! | internal | `serialize_struct` or `serialize_map`, then a field or an entry with the `str` `"V"`, then the content as more fields |
//!
//! A struct whose first field is a text serializes with the same calls as an internally tagged
//! variant. There is one difference, the type of the value that the derived code passes to
//! `serialize_field` or `serialize_entry`. For a tag, this type is the unsized type `str`. For a
//! field, it is a sized type, such as `String` or `&str` (see [`Literal`]).

use super::{EventName, FieldError};
use serde_core::{
    Serialize, Serializer,
    ser::{self, Impossible, SerializeMap, SerializeSeq},
};
use std::{fmt, mem};

/// Appends the content of a variant to `json` as JSON, and returns the name of the variant as the
/// name of an event.
pub(crate) fn write(value: &(impl Serialize + ?Sized), json: &mut Vec<u8>) -> Result<EventName, TaggedError> {
    value.serialize(VariantSerializer { json: &mut serde_json::Serializer::new(json) })
}

/// The reason why a value cannot be converted into an event with the name of an enum variant.
#[derive(Debug)]
pub(crate) enum TaggedError {
    /// The content of the enum variant, which becomes the data of the event, cannot be serialized
    /// to JSON.
    Json(serde_json::Error),
    /// The value is not a variant of an enum, or its enum is untagged. So there is no name for the
    /// event.
    NotTagged,
    /// The name of the variant is not valid as the name of an event.
    Name(FieldError),
}

impl ser::Error for TaggedError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Json(serde_json::Error::custom(message))
    }
}

impl fmt::Display for TaggedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(error) => error.fmt(f),
            Self::NotTagged => f.write_str("the value is not a variant of a tagged enum"),
            Self::Name(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TaggedError {}

impl From<serde_json::Error> for TaggedError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

fn name_of(variant: &str) -> Result<EventName, TaggedError> {
    EventName::new(variant).map_err(TaggedError::Name)
}

type Json<'b> = serde_json::Serializer<&'b mut Vec<u8>>;
type JsonArray<'a, 'b> = <&'a mut Json<'b> as Serializer>::SerializeSeq;
type JsonObject<'a, 'b> = <&'a mut Json<'b> as Serializer>::SerializeMap;

/// A serializer that accepts only variants of enums. It writes the content of the variant to
/// `json`, and returns the name of the variant. Other values fail with [`TaggedError::NotTagged`].
struct VariantSerializer<'a, 'b> {
    json: &'a mut Json<'b>,
}

macro_rules! not_tagged {
    ($($method:ident($($argument:ty),*))*) => {$(
        fn $method(self $(, _: $argument)*) -> Result<Self::Ok, TaggedError> {
            Err(TaggedError::NotTagged)
        }
    )*};
}

/// Implements the `Serializer` methods for numbers, booleans, bytes, and values without a content.
/// These values are not enum variants, so the methods return [`TaggedError::NotTagged`].
macro_rules! scalars_are_not_tagged {
    () => {
        not_tagged! {
            serialize_bool(bool)
            serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64) serialize_i128(i128)
            serialize_u8(u8) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64) serialize_u128(u128)
            serialize_f32(f32) serialize_f64(f64) serialize_char(char) serialize_bytes(&[u8])
            serialize_none() serialize_unit() serialize_unit_struct(&'static str)
        }
    };
}

impl<'a, 'b> Serializer for VariantSerializer<'a, 'b> {
    type Ok = EventName;
    type Error = TaggedError;
    type SerializeSeq = Impossible<EventName, TaggedError>;
    type SerializeTuple = Impossible<EventName, TaggedError>;
    type SerializeTupleStruct = Impossible<EventName, TaggedError>;
    type SerializeTupleVariant = TupleContent<'a, 'b>;
    type SerializeMap = TaggedFields<'a, 'b>;
    type SerializeStruct = TaggedFields<'a, 'b>;
    type SerializeStructVariant = StructContent<'a, 'b>;

    scalars_are_not_tagged! {}
    not_tagged! { serialize_str(&str) }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<EventName, TaggedError> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<EventName, TaggedError> {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<EventName, TaggedError> {
        self.json.serialize_unit()?;
        name_of(variant)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<EventName, TaggedError> {
        value.serialize(self.json)?;
        name_of(variant)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<TupleContent<'a, 'b>, TaggedError> {
        Ok(TupleContent { name: name_of(variant)?, array: self.json.serialize_seq(Some(len))? })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<StructContent<'a, 'b>, TaggedError> {
        Ok(StructContent { name: name_of(variant)?, object: self.json.serialize_map(None)? })
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<TaggedFields<'a, 'b>, TaggedError> {
        // serde_json passes a raw value and a number of any precision as structs with such a name.
        if name.starts_with("$serde_json::") {
            return Err(TaggedError::NotTagged);
        }
        Ok(TaggedFields { struct_name: Some(name), state: State::Tag(self.json) })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<TaggedFields<'a, 'b>, TaggedError> {
        Ok(TaggedFields { struct_name: None, state: State::Tag(self.json) })
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, TaggedError> {
        Err(TaggedError::NotTagged)
    }
}

/// The content of a tuple variant, which is written as a JSON array.
struct TupleContent<'a, 'b> {
    name: EventName,
    array: JsonArray<'a, 'b>,
}

impl ser::SerializeTupleVariant for TupleContent<'_, '_> {
    type Ok = EventName;
    type Error = TaggedError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TaggedError> {
        Ok(self.array.serialize_element(value)?)
    }

    fn end(self) -> Result<EventName, TaggedError> {
        SerializeSeq::end(self.array)?;
        Ok(self.name)
    }
}

/// The content of a struct variant, which is written as a JSON object.
struct StructContent<'a, 'b> {
    name: EventName,
    object: JsonObject<'a, 'b>,
}

impl ser::SerializeStructVariant for StructContent<'_, '_> {
    type Ok = EventName;
    type Error = TaggedError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), TaggedError> {
        Ok(self.object.serialize_entry(key, value)?)
    }

    fn end(self) -> Result<EventName, TaggedError> {
        SerializeMap::end(self.object)?;
        Ok(self.name)
    }
}

/// Receives the fields of a struct or the entries of a map. If the first of them is the tag of an
/// enum, the others are the content of the variant. Otherwise serialization fails with
/// [`TaggedError::NotTagged`].
struct TaggedFields<'a, 'b> {
    struct_name: Option<&'static str>,
    state: State<'a, 'b>,
}

/// The progress of serializing an enum variant that serde passes as a struct or a map: first the
/// tag with the name of the variant, and then its content. The progress determines whether the next
/// field of the struct, or entry of the map, has to be the tag or a part of the content.
enum State<'a, 'b> {
    /// The first field or entry is still missing. It has to be the tag, which contains the name of
    /// the variant.
    Tag(&'a mut Json<'b>),
    /// The enum is adjacently tagged. The next field is the content, if the variant has a content.
    Content(EventName, &'a mut Json<'b>),
    /// The content of an adjacently tagged variant was written. No further field may follow.
    Complete(EventName),
    /// The enum is internally tagged, and the tag was read. All further fields are the content of
    /// the variant.
    Fields(EventName, JsonObject<'a, 'b>),
    /// The struct or map is not an enum variant, or one of its fields or entries could not be
    /// serialized. All further fields and entries fail, too.
    Failed,
}

impl TaggedFields<'_, '_> {
    /// Serializes the value of the next struct field or map entry of an enum variant. The first
    /// value has to be the tag of the variant, and the further values are its content. `key` is the
    /// name of the field. It is `None` for a map entry, whose key `serialize_key` has already
    /// handled.
    fn value<T: Serialize + ?Sized>(&mut self, key: Option<&'static str>, value: &T) -> Result<(), TaggedError> {
        if let State::Fields(_, object) = &mut self.state {
            match key {
                Some(key) => object.serialize_entry(key, value)?,
                None => object.serialize_value(value)?,
            }
            return Ok(());
        }
        self.state = match mem::replace(&mut self.state, State::Failed) {
            State::Tag(json) => {
                match value.serialize(TagSerializer { struct_name: self.struct_name, literal: Literal::of(value) })? {
                    Tag::Adjacent(name) => State::Content(name, json),
                    Tag::Internal(name) => State::Fields(name, json.serialize_map(None)?),
                }
            }
            State::Content(name, json) => {
                value.serialize(json)?;
                State::Complete(name)
            }
            State::Complete(_) | State::Fields(..) | State::Failed => return Err(TaggedError::NotTagged),
        };
        Ok(())
    }

    fn finish(self) -> Result<EventName, TaggedError> {
        match self.state {
            State::Content(name, json) => {
                json.serialize_unit()?;
                Ok(name)
            }
            State::Complete(name) => Ok(name),
            State::Fields(name, object) => {
                SerializeMap::end(object)?;
                Ok(name)
            }
            State::Tag(_) | State::Failed => Err(TaggedError::NotTagged),
        }
    }
}

impl ser::SerializeStruct for TaggedFields<'_, '_> {
    type Ok = EventName;
    type Error = TaggedError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), TaggedError> {
        self.value(Some(key), value)
    }

    fn end(self) -> Result<EventName, TaggedError> {
        self.finish()
    }
}

impl ser::SerializeMap for TaggedFields<'_, '_> {
    type Ok = EventName;
    type Error = TaggedError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), TaggedError> {
        // The key of the tag is not written, because the tag is the name of the event.
        if let State::Fields(_, object) = &mut self.state {
            object.serialize_key(key)?;
        }
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TaggedError> {
        self.value(None, value)
    }

    fn end(self) -> Result<EventName, TaggedError> {
        self.finish()
    }
}

/// The address and the size in bytes of the first value in a struct or map, if its type is unsized.
/// They show whether the value is the tag of an internally tagged enum, or the first field of an
/// ordinary struct or map.
///
/// Derived code passes a tag as a string literal, so the type of the value is `str`. Derived code
/// passes any other field with its own type, which is sized, such as `String`. An unsized value
/// that is not a `str`, such as a `dyn Serialize`, can serialize as a text, too. But its address or
/// size usually differs from that of the text. So a text from a user in the first field of a struct
/// does not become the name of an event. There are two exceptions: a struct whose first field is a
/// `str`, and a hand-written `Serialize` that passes a text from a user as a `str`. The
/// documentation of `Event::tagged` warns of both.
#[derive(Clone, Copy)]
struct Literal {
    start: *const u8,
    size: usize,
}

impl Literal {
    fn of<T: ?Sized>(value: &T) -> Option<Self> {
        let has_size = size_of::<&T>() == size_of::<&()>();
        (!has_size).then(|| Self { start: std::ptr::from_ref(value).cast(), size: size_of_val(value) })
    }

    /// Returns `true` if the value is a `str` and `text` is this `str`, with the same address and
    /// size. Returns `false` if the value is another unsized value that serializes as `text`, such
    /// as a `dyn Serialize`.
    fn is(&self, text: &str) -> bool {
        self.start == text.as_ptr() && self.size == text.len()
    }
}

/// A serializer that accepts only the tag of a variant: the literal `str` of an internally tagged
/// enum, or the unit variant of an adjacently tagged enum. `struct_name` is the name of the struct
/// that contains the tag, and `None` for a map.
struct TagSerializer {
    struct_name: Option<&'static str>,
    literal: Option<Literal>,
}

enum Tag {
    Adjacent(EventName),
    Internal(EventName),
}

impl Serializer for TagSerializer {
    type Ok = Tag;
    type Error = TaggedError;
    type SerializeSeq = Impossible<Tag, TaggedError>;
    type SerializeTuple = Impossible<Tag, TaggedError>;
    type SerializeTupleStruct = Impossible<Tag, TaggedError>;
    type SerializeTupleVariant = Impossible<Tag, TaggedError>;
    type SerializeMap = Impossible<Tag, TaggedError>;
    type SerializeStruct = Impossible<Tag, TaggedError>;
    type SerializeStructVariant = Impossible<Tag, TaggedError>;

    scalars_are_not_tagged! {}

    fn serialize_str(self, text: &str) -> Result<Tag, TaggedError> {
        match self.literal {
            Some(literal) if literal.is(text) => Ok(Tag::Internal(name_of(text)?)),
            _ => Err(TaggedError::NotTagged),
        }
    }

    fn serialize_unit_variant(
        self,
        enum_name: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<Tag, TaggedError> {
        // The first field of an ordinary struct can be a variant of an enum, too. Then the names of
        // the struct and of the enum differ.
        if self.struct_name == Some(enum_name) {
            Ok(Tag::Adjacent(name_of(variant)?))
        } else {
            Err(TaggedError::NotTagged)
        }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<Tag, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, _: &T) -> Result<Tag, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Tag, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct, TaggedError> {
        Err(TaggedError::NotTagged)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, TaggedError> {
        Err(TaggedError::NotTagged)
    }
}
