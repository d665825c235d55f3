//! Keys: kept out of logs and messages, wiped when no longer needed.

use std::fmt;

use base64ct::{Base64, Encoding};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Characters of 32 bytes in base64.
const BASE64_LENGTH: usize = 44;

/// Why text is not a key. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Wrong length.
    #[error("a key has 44 characters, this has {0}")]
    Length(usize),
    /// Not base64, or not the one base64 form of 32 bytes.
    #[error("not a key: 43 characters of base64 and one \"=\" are expected")]
    Encoding,
    /// All bytes are zero.
    #[error("a key of zeros protects nothing")]
    Zero,
}

/// A WireGuard private or preshared key: wiped from memory when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; 32]);

impl Key {
    /// Reads a key as `wg genkey` writes it; white space around it is skipped.
    ///
    /// # Errors
    /// On anything but the base64 of 32 bytes that are not all zero.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let mut key = Key([0; 32]);
        decode(text, &mut key.0)?;
        if key.0 == [0; 32] {
            return Err(KeyError::Zero);
        }
        Ok(key)
    }

    /// The key itself, to hand to the kernel. Do not print, log or store it.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key in base64, for the private configuration of another program. Do not print or log it.
    pub fn expose_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(Base64::encode_string(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Key(..)")
    }
}

/// A WireGuard public key. Displays as base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads a key as `wg pubkey` writes it; white space around it is skipped.
    ///
    /// # Errors
    /// On anything but the base64 of 32 bytes that are not all zero.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        decode(text, &mut bytes)?;
        if bytes == [0; 32] { Err(KeyError::Zero) } else { Ok(PublicKey(bytes)) }
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> Self {
        PublicKey(bytes)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&Base64::encode_string(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PublicKey({self})")
    }
}

fn decode(text: &str, bytes: &mut [u8; 32]) -> Result<(), KeyError> {
    let text = text.trim();
    if text.len() != BASE64_LENGTH {
        return Err(KeyError::Length(text.chars().count()));
    }
    match Base64::decode(text, bytes.as_mut_slice()) {
        Ok(decoded) if decoded.len() == 32 => Ok(()),
        _ => Err(KeyError::Encoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=";

    #[test]
    fn a_key_survives_the_way_through_base64() {
        let key = Key::from_base64(&format!(" {TEXT}\n")).unwrap();
        assert_eq!(*key.expose_base64(), TEXT);
        assert_eq!(PublicKey::from(*key.expose()).to_string(), TEXT);
    }

    #[test]
    fn a_private_key_is_never_printed() {
        let key = Key::from_base64(TEXT).unwrap();
        assert_eq!(format!("{key:?} {:#?}", Some(&key)), "Key(..) Some(\n    Key(..),\n)");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let refused = |text: &str| Key::from_base64(text).unwrap_err();
        assert_eq!(refused(""), KeyError::Length(0));
        assert_eq!(refused(&TEXT[1..]), KeyError::Length(43));
        assert_eq!(refused(&TEXT.replace('=', "A")), KeyError::Encoding);
        assert_eq!(refused(&TEXT.replace('+', "-")), KeyError::Encoding);
        // The same bytes, but bits beyond the 32nd byte set.
        assert_eq!(refused(&TEXT.replace("k=", "l=")), KeyError::Encoding);
        assert_eq!(refused(&format!("{}=", "A".repeat(43))), KeyError::Zero);
        assert_eq!(PublicKey::from_base64(&format!("{}=", "A".repeat(43))), Err(KeyError::Zero));
    }
}
