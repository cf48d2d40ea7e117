//! Messages by the name of their method, as JSON.

use nacre_protocols::host_agent::Rpc;
use nacre_protocols::host_agent::json::Visitor;
use nacre_protocols::host_agent::kata::{agent_service, health};
use nacre_protocols::host_agent::nacre::sandbox;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Service and method names of everything that can be called.
pub fn methods() -> Vec<(&'static str, &'static str)> {
    let of = |service, methods: &[&'static str]| methods.iter().map(|it| (service, *it)).collect::<Vec<_>>();
    [
        of(agent_service::SERVICE, agent_service::METHODS),
        of(health::SERVICE, health::METHODS),
        of(sandbox::SERVICE, sandbox::METHODS),
    ]
    .concat()
}

/// Service and encoded message of a call.
///
/// # Errors
/// There is no such method, or its message has no such field.
pub fn encode(method: &str, request: &Value) -> Result<(&'static str, Vec<u8>), String> {
    visit(method, Encode(request)).ok_or_else(|| format!("no method {method:?}"))?
}

/// A reply's message.
///
/// # Errors
/// It is not one of this method.
pub fn reply(method: &str, payload: &[u8]) -> Result<Value, String> {
    visit(method, Decode(payload)).ok_or_else(|| format!("no method {method:?}"))?
}

fn visit<V: Visitor + Copy>(method: &str, visitor: V) -> Option<V::Output> {
    agent_service::visit(method, visitor)
        .or_else(|| health::visit(method, visitor))
        .or_else(|| sandbox::visit(method, visitor))
}

#[derive(Clone, Copy)]
struct Encode<'a>(&'a Value);

impl Visitor for Encode<'_> {
    type Output = Result<(&'static str, Vec<u8>), String>;

    fn visit<R: Rpc>(self) -> Self::Output
    where
        R::Request: Serialize + DeserializeOwned,
    {
        let request: R::Request = serde_json::from_value(self.0.clone())
            .map_err(|error| format!("the message of {}: {error}", R::METHOD))?;
        Ok((R::SERVICE, request.encode_to_vec()))
    }
}

#[derive(Clone, Copy)]
struct Decode<'a>(&'a [u8]);

impl Visitor for Decode<'_> {
    type Output = Result<Value, String>;

    fn visit<R: Rpc>(self) -> Self::Output
    where
        R::Response: Serialize + DeserializeOwned,
    {
        let response =
            R::Response::decode(self.0).map_err(|error| format!("the reply of {}: {error}", R::METHOD))?;
        serde_json::to_value(response).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_method_takes_an_empty_message_and_gives_one() {
        assert_eq!(methods().len(), 42 + 2 + sandbox::METHODS.len());
        for (service, method) in methods() {
            assert_eq!(encode(method, &json!({})), Ok((service, vec![])), "{method}");
            assert!(reply(method, &[]).is_ok(), "{method}");
        }
    }

    #[test]
    fn bytes_are_text_or_hex_and_what_is_misspelt_is_refused() {
        let write = |data: Value| encode("WriteStdin", &json!({"container_id": "c", "data": data}));
        let (_, text) = write(json!("ab")).unwrap();
        assert_eq!(write(json!({"hex": "6162"})).unwrap().1, text);
        assert!(write(json!({"hex": "616"})).is_err());
        assert!(encode("WriteStdin", &json!({"container": "c"})).unwrap_err().contains("container"));
        assert!(encode("Nothing", &json!({})).is_err());
        assert_eq!(reply("ReadStdout", &[0x0a, 1, 0xff]).unwrap(), json!({"data": {"hex": "ff"}}));
    }
}
