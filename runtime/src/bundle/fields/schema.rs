//! The table beside the types of oci-spec, which read what the table keeps. The field names come from the derived
//! `Deserialize` of those types: each one tells its deserializer which fields it has.

use std::{cell::RefCell, collections::BTreeSet};

use oci_spec::runtime::Spec;
use serde::{
    Deserialize,
    de::{
        DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{Error, StrDeserializer},
    },
};

use super::{CONFIG, Key, Rule};

/// A deserializer without input: it gives every field of every type a value, and writes the paths of the fields down.
struct Fields<'a> {
    path: String,
    found: &'a RefCell<Vec<String>>,
}

impl Fields<'_> {
    fn below(&self, name: &str) -> Fields<'_> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Fields { path, found: self.found }
    }

    /// A text that the type of the field takes: names of capabilities and lists of processors are checked there.
    fn text(&self) -> &'static str {
        if self.path.contains("capabilities") { "CAP_KILL" } else { "0" }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => { $(
        fn $method<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_u64(1)
        }
    )* };
}

macro_rules! strings {
    ($($method:ident)*) => { $(
        fn $method<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_str(self.text())
        }
    )* };
}

impl Deserializer<'static> for Fields<'_> {
    type Error = Error;

    numbers! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
    deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 }

    strings! { deserialize_any deserialize_char deserialize_str deserialize_string deserialize_bytes
    deserialize_byte_buf deserialize_identifier deserialize_ignored_any }

    fn deserialize_bool<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(true)
    }

    fn deserialize_option<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'static>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'static>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Once(Some(self)))
    }

    fn deserialize_tuple<V: Visitor<'static>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Once(Some(self)))
    }

    fn deserialize_tuple_struct<V: Visitor<'static>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Once(Some(self)))
    }

    fn deserialize_map<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Members { names: &["*"], of: self, at: 0, record: false })
    }

    fn deserialize_struct<V: Visitor<'static>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Members { names, of: self, at: 0, record: true })
    }

    fn deserialize_enum<V: Visitor<'static>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let first: StrDeserializer<'static, Error> = variants[0].into_deserializer();
        visitor.visit_enum(first)
    }
}

struct Once<'a>(Option<Fields<'a>>);

impl SeqAccess<'static> for Once<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'static>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|item| seed.deserialize(item)).transpose()
    }
}

struct Members<'a> {
    names: &'static [&'static str],
    of: Fields<'a>,
    at: usize,
    /// True for fields of a type, false for keys of a map.
    record: bool,
}

impl MapAccess<'static> for Members<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'static>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.names.get(self.at) else { return Ok(None) };
        let key: StrDeserializer<'static, Error> = name.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'static>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let below = self.of.below(self.names[self.at]);
        self.at += 1;
        if self.record {
            below.found.borrow_mut().push(below.path.clone());
        }
        seed.deserialize(below)
    }
}

fn oci_spec_fields() -> Vec<String> {
    let found = RefCell::new(Vec::new());
    Spec::deserialize(Fields { path: String::new(), found: &found }).expect("every field has a value");
    found.into_inner()
}

/// True if the table has a rule for the key, or for a key above it that is not an object of known keys.
fn is_in_table(path: &str) -> bool {
    let mut keys = CONFIG;
    for name in path.split('.') {
        match keys.iter().find(|key| key.name == name).map(|key| &key.rule) {
            Some(Rule::Keys(below)) => keys = below,
            Some(_) => return true,
            None => return false,
        }
    }
    true
}

fn carried_out(keys: &[Key], at: &str, list: &mut Vec<String>) {
    for key in keys {
        let path = if at.is_empty() { key.name.to_owned() } else { format!("{at}.{}", key.name) };
        match key.rule {
            Rule::Done => list.push(path),
            Rule::Keys(below) => carried_out(below, &path, list),
            _ => {}
        }
    }
}

/// Fields of oci-spec's own: the specification has no id maps at the top level.
const NOT_IN_THE_SPECIFICATION: [&str; 2] = ["uidMappings", "gidMappings"];

fn is_below(field: &str, name: &str) -> bool {
    field.split('.').next() == Some(name)
}

#[test]
fn every_field_that_oci_spec_knows_is_in_the_table() {
    let fields = oci_spec_fields();
    for known in ["ociVersion", "linux.resources.blockIO.throttleReadIOPSDevice.rate", "hooks.poststop.path"] {
        assert!(fields.iter().any(|field| field == known), "the walk misses {known}: {fields:#?}");
    }
    let missing: BTreeSet<&str> = fields
        .iter()
        .filter(|field| !is_in_table(field))
        .map(|field| NOT_IN_THE_SPECIFICATION.into_iter().find(|name| is_below(field, name)).unwrap_or(field))
        .collect();
    assert_eq!(missing, BTreeSet::from(NOT_IN_THE_SPECIFICATION));
}

/// oci-spec passes over a key that it does not know, so a key of the table that it does not know would be lost.
#[test]
fn oci_spec_reads_every_key_that_the_table_carries_out() {
    let fields = oci_spec_fields();
    let mut list = Vec::new();
    carried_out(CONFIG, "", &mut list);
    let lost: Vec<&String> = list.iter().filter(|path| !fields.contains(path)).collect();
    assert!(lost.is_empty(), "oci-spec does not read: {lost:#?}");
}
