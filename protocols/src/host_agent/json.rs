//! The messages as JSON: field names as in `proto/*.proto`, in snake case; what is left out is 0 or empty.

use super::Rpc;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Looks at one method of a service, chosen by name.
pub trait Visitor {
    type Output;

    fn visit<R: Rpc>(self) -> Self::Output
    where
        R::Request: Serialize + DeserializeOwned,
        R::Response: Serialize + DeserializeOwned;
}

/// Bytes that are a text are that text; others are `{"hex": "00ff"}`.
pub mod bytes {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Hex { hex: String },
    }

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let form = match std::str::from_utf8(bytes) {
            Ok(text) => Form::Text(text.to_owned()),
            Err(_) => Form::Hex { hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() },
        };
        form.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let hex = match Form::deserialize(deserializer)? {
            Form::Text(text) => return Ok(text.into_bytes()),
            Form::Hex { hex } => hex,
        };
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(pair).collect();
        bytes.ok_or_else(|| D::Error::custom("hex is not pairs of hex digits"))
    }
}
