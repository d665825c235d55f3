//! The description of a packet, as it comes over the bus.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use zbus::{Signature, Type};

/// Far more options than there are.
const MOST_OPTIONS: usize = 64;
/// Bytes of an option or its value: longer than any address or link's name.
const LONGEST_WORD: usize = 256;

/// Options of `killswitch explain` without their dashes, and their values. Anybody may send any: one
/// that cannot be a packet is given up while it is being read, before it takes time and memory.
#[derive(Debug)]
pub(super) struct Packet(pub BTreeMap<String, String>);

impl Type for Packet {
    const SIGNATURE: &'static Signature = BTreeMap::<String, String>::SIGNATURE;
}

impl<'de> Deserialize<'de> for Packet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Options).map(Packet)
    }
}

struct Options;

impl<'de> Visitor<'de> for Options {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at most {MOST_OPTIONS} options of at most {LONGEST_WORD} bytes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut options = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<&str, &str>()? {
            let length = name.len().max(value.len());
            if options.len() >= MOST_OPTIONS || length > LONGEST_WORD {
                return Err(de::Error::invalid_length(options.len().max(length), &self));
            }
            options.insert(name.to_owned(), value.to_owned());
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use zbus::Message;

    use super::*;

    fn read(options: &BTreeMap<String, String>) -> zbus::Result<BTreeMap<String, String>> {
        let message = Message::method_call("/", "Explain").build(options)?;
        Ok(message.body().deserialize::<Packet>()?.0)
    }

    #[test]
    fn no_packet_has_many_or_long_options() {
        let options = |count: usize, length: usize| -> BTreeMap<String, String> {
            (0..count).map(|it| (it.to_string(), "x".repeat(length))).collect()
        };
        for few in [options(0, 0), options(1, LONGEST_WORD), options(MOST_OPTIONS, 1)] {
            assert_eq!(read(&few).unwrap(), few);
        }
        for bad in [options(1, LONGEST_WORD + 1), options(MOST_OPTIONS + 1, 1)] {
            let words = read(&bad).unwrap_err().to_string();
            assert!(words.contains("at most 64 options"), "{words}");
        }
    }
}
