//! The documents of `--json`, as D-Bus says them.

use std::collections::BTreeMap;

use serde_json::Value;
use zbus::{OwnedVariant, Variant};

/// A document: D-Bus has no null, so what is not known is left out.
pub(super) type Document = BTreeMap<String, OwnedVariant>;

/// The same document, key by key: text as `s`, numbers as `t`, `x` or `d`, lists as `av`, or as `as`
/// if all of it is text, and objects as `a{sv}`.
pub(super) fn document(value: Value) -> Document {
    match value {
        Value::Object(entries) => entries
            .into_iter()
            .filter_map(|(key, value)| Some((key, owned(variant(value)?)?)))
            .collect(),
        _ => Document::new(),
    }
}

/// Only descriptors cannot be owned, and there are none.
fn owned(variant: Variant<'_>) -> Option<OwnedVariant> {
    OwnedVariant::try_from(variant).ok()
}

fn variant(value: Value) -> Option<Variant<'static>> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(truth) => truth.into(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64()?.into(),
        },
        Value::String(text) => text.into(),
        Value::Array(values) if values.iter().all(Value::is_string) => {
            let texts: Vec<String> =
                values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            texts.into()
        }
        Value::Array(values) => {
            values.into_iter().filter_map(variant).collect::<Vec<Variant<'static>>>().into()
        }
        object @ Value::Object(_) => document(object).into(),
    })
}
