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

/// The way back.
pub(super) fn value(document: Document) -> Value {
    Value::Object(document.into_iter().map(|(key, value)| (key, plain(&value))).collect())
}

fn plain(variant: &Variant<'_>) -> Value {
    match variant {
        Variant::Bool(truth) => (*truth).into(),
        Variant::U64(number) => (*number).into(),
        Variant::I64(number) => (*number).into(),
        Variant::F64(number) => (*number).into(),
        Variant::Str(text) => text.as_str().into(),
        Variant::Variant(inner) => plain(inner),
        Variant::Array(values) => values.iter().map(plain).collect(),
        Variant::Dict(entries) => Value::Object(
            entries
                .iter()
                .filter_map(|(key, value)| match key {
                    Variant::Str(key) => Some((key.to_string(), plain(value))),
                    _ => None,
                })
                .collect(),
        ),
        // No document of ours has any other.
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let text = serde_json::json!({
            "state": "open", "locked": true, "count": 7, "below": -7, "part": 0.5,
            "reasons": ["a", "b"], "none": [], "layers": {"table": {"deep": [1, {"x": "y"}]}},
        });
        assert_eq!(value(document(text.clone())), text);
        let unknown = serde_json::json!({"server": null});
        assert_eq!(value(document(unknown)), serde_json::json!({}));
    }
}
