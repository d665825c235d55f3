//! What `nft` itself says of a table.

use killswitch::lab::Host;
use killswitch::lab::harness::Failed;
use killswitch::ruleset::Family;
use serde_json::Value;

/// One line for each object, without what depends on how and when it came to be.
///
/// Never of a guard on every link: nft 1.0.6 hangs on it (threat 42).
pub fn of(host: &Host, family: Family) -> Result<Vec<String>, Failed> {
    let family = family.to_string();
    let json =
        host.command("timeout", &["30", "nft", "-j", "list", "table", &family, "killswitch"])?;
    let mut document: Value = serde_json::from_str(&json)?;
    let objects = document["nftables"].as_array_mut().ok_or("no list of objects")?;
    objects.retain(|object| object.get("metainfo").is_none());
    objects.iter_mut().for_each(normalise);
    Ok(objects.iter().map(Value::to_string).collect())
}

fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            // nft 1.0.6 does not know of the flags owner and persist.
            if let Some(table) = fields.get_mut("table").and_then(Value::as_object_mut) {
                table.remove("flags");
            }
            if let Some(Value::Object(counter)) = fields.get_mut("counter") {
                counter.clear();
            }
            if let Some(Value::Array(elements)) = fields.get_mut("elem") {
                elements.sort_by_key(Value::to_string);
            }
            fields.values_mut().for_each(normalise);
        }
        Value::Array(list) => list.iter_mut().for_each(normalise),
        _ => {}
    }
}
