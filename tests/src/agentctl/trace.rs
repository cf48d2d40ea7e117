//! Plays a trace: what a shim asks in which order, with what must come back. One JSON object a line; lines that begin with
//! `//` are for people.
//!
//! | line | |
//! |---|---|
//! | `{"call": METHOD, "with": MESSAGE, "gives": MESSAGE}` | called and answered. `with` may be left out |
//! | `{"call": METHOD, "with": MESSAGE, "fails": {"code": N, "text": TEXT}}` | refused, in a text that has this in it |
//! | `{"call": METHOD, "with": MESSAGE, "as": NAME}` | called; the answer comes later |
//! | `{"pending": NAME}` | there is no answer yet |
//! | `{"reply": NAME, "gives": …}` or `"fails"` | there is now |
//! | `{"forget": NAME}` | there may be one or none |
//! | `{"read": METHOD, "with": MESSAGE, "until": TEXT}` | called until all that came ends so |
//! | `{"read": METHOD, "with": MESSAGE, "gives": TEXT}` | called to the end of the stream, which is all of this |
//! | `{"let": NAME, "is": VALUE}` | from here on the string `"$NAME"` stands for the value |
//!
//! A field that `gives` leaves out may be anything; `{}` is the empty message. A string that begins with `~` must be
//! contained, `"*"` is any value, and `{"at_least": N, "at_most": N}`, or one of them, a number.

use std::collections::BTreeMap;
use std::time::Duration;

use nacre_protocols::host_agent::ttrpc::Response;
use serde_json::Value;

use super::{Client, Pending, encode, reply};

/// How long any answer may take: emulated, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a call must stay without an answer to count as pending.
const PENDING: Duration = Duration::from_millis(400);
/// Most reads for one stream.
const READS_MAX: usize = 10_000;

/// Plays all of it.
///
/// # Errors
/// Number and text of the line that did not go as it says.
pub fn play(client: &Client, trace: &str) -> Result<usize, String> {
    let mut player = Player { client, pending: BTreeMap::new(), values: BTreeMap::new() };
    let mut played = 0;
    for (number, line) in trace.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        player.step(line).map_err(|error| format!("line {}: {error}\n  {line}", number + 1))?;
        played += 1;
    }
    match player.pending.keys().next() {
        Some(name) => Err(format!("the answer to {name} was never looked at")),
        None => Ok(played),
    }
}

struct Player<'a> {
    client: &'a Client,
    pending: BTreeMap<String, (String, Pending)>,
    values: BTreeMap<String, Value>,
}

impl Player<'_> {
    fn step(&mut self, line: &str) -> Result<(), String> {
        let step: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let word = |name: &str| step.get(name).and_then(Value::as_str);
        if let Some(name) = word("let") {
            let value = self.filled(step.get("is").ok_or("no value")?);
            self.values.insert(name.to_owned(), value);
        } else if let Some(name) = word("pending") {
            let (_, pending) = self.pending.get(name).ok_or("no such call")?;
            if let Some(response) = pending.wait(PENDING).map_err(|error| error.to_string())? {
                return Err(format!("it was answered: {response:?}"));
            }
        } else if let Some(name) = word("forget") {
            self.pending.remove(name).ok_or("no such call")?;
        } else if let Some(name) = word("reply") {
            let (method, pending) = self.pending.remove(name).ok_or("no such call")?;
            self.judge(&method, &answer(&pending)?, &step)?;
        } else if let Some(method) = word("read") {
            self.read(method, &step)?;
        } else {
            let method = word("call").ok_or("no call")?;
            let pending = self.begin(method, &step)?;
            match word("as") {
                Some(name) => {
                    self.pending.insert(name.to_owned(), (method.to_owned(), pending));
                }
                None => self.judge(method, &answer(&pending)?, &step)?,
            }
        }
        Ok(())
    }

    fn begin(&self, method: &str, step: &Value) -> Result<Pending, String> {
        let message =
            step.get("with").map_or_else(|| Value::Object(Default::default()), |it| self.filled(it));
        let (service, payload) = encode(method, &message)?;
        let deadline = step.get("deadline_ms").and_then(Value::as_u64).map(Duration::from_millis);
        self.client.begin(service, method, payload, deadline).map_err(|error| error.to_string())
    }

    fn judge(&self, method: &str, response: &Response, step: &Value) -> Result<(), String> {
        match (response.clone().into_result(), step.get("gives"), step.get("fails")) {
            (Ok(payload), Some(expected), None) => {
                let found = reply(method, &payload)?;
                match matches(&self.filled(expected), &found) {
                    true => Ok(()),
                    false => Err(format!("it gave {found}")),
                }
            }
            (Err(status), None, Some(expected)) => {
                let code = expected.get("code").and_then(Value::as_i64);
                let text = expected.get("text").and_then(Value::as_str).ok_or("fails without a text")?;
                match code == Some(status.code.into()) && status.message.contains(text) {
                    true => Ok(()),
                    false => Err(format!("it failed with {}: {}", status.code, status.message)),
                }
            }
            (Ok(payload), None, Some(_)) => Err(format!("it did not fail: {}", reply(method, &payload)?)),
            (Err(status), Some(_), None) => {
                Err(format!("it failed with {}: {}", status.code, status.message))
            }
            _ => Err("the answer is not looked at: say `gives` or `fails`".to_owned()),
        }
    }

    fn read(&self, method: &str, step: &Value) -> Result<(), String> {
        let word = |name: &str| step.get(name).and_then(Value::as_str);
        let mut all = Vec::new();
        for _ in 0..READS_MAX {
            let response = answer(&self.begin(method, step)?)?;
            let payload = response.into_result().map_err(|status| status.message)?;
            let data = match reply(method, &payload)?.get("data") {
                Some(Value::String(text)) => text.clone().into_bytes(),
                other => return Err(format!("no text but {other:?}")),
            };
            let ended = data.is_empty();
            all.extend(data);
            let text = String::from_utf8_lossy(&all);
            match (word("until"), word("gives")) {
                (Some(until), None) if text.ends_with(until) => return Ok(()),
                (Some(_), None) if !ended => {}
                (None, Some(_)) if !ended => {}
                (None, Some(gives)) if text == gives => return Ok(()),
                _ => return Err(format!("the stream was {text:?}")),
            }
        }
        Err("the stream does not end".to_owned())
    }

    /// With the values that were named before.
    fn filled(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                let named = text.strip_prefix('$').and_then(|name| self.values.get(name));
                named.cloned().unwrap_or_else(|| value.clone())
            }
            Value::Array(list) => list.iter().map(|it| self.filled(it)).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, it)| (name.clone(), self.filled(it))).collect()
            }
            _ => value.clone(),
        }
    }
}

fn answer(pending: &Pending) -> Result<Response, String> {
    let answered = pending.wait(LIMIT).map_err(|error| format!("the connection: {error}"))?;
    answered.ok_or_else(|| "no answer".to_owned())
}

fn matches(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::String(any), _) if any == "*" => true,
        (Value::String(part), Value::String(found)) if part.starts_with('~') => {
            part.strip_prefix('~').is_some_and(|part| found.contains(part))
        }
        (Value::Object(expected), Value::Number(found)) => {
            let bound = |name: &str| expected.get(name).and_then(Value::as_u64);
            let (least, most) = (bound("at_least"), bound("at_most"));
            let fits =
                |found| least.is_none_or(|least| found >= least) && most.is_none_or(|most| found <= most);
            (least.is_some() || most.is_some()) && found.as_u64().is_some_and(fits)
        }
        (Value::Object(expected), Value::Object(found)) if expected.is_empty() => found.is_empty(),
        (Value::Object(expected), Value::Object(found)) => {
            expected.iter().all(|(name, it)| found.get(name).is_some_and(|found| matches(it, found)))
        }
        (Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len() && expected.iter().zip(found).all(|(it, found)| matches(it, found))
        }
        _ => expected == found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_expectation_names_what_matters() {
        let found = json!({"status": 7, "text": "no process", "list": [{"a": 1, "b": 2}], "none": {}});
        for (expected, fits) in [
            (json!({"status": 7}), true),
            (json!({"status": 8}), false),
            (json!({"status": {"at_least": 7}}), true),
            (json!({"status": {"at_least": 8}}), false),
            (json!({"status": {"at_most": 7}}), true),
            (json!({"status": {"at_least": 1, "at_most": 6}}), false),
            (json!({"status": {}}), false),
            (json!({"text": "~process"}), true),
            (json!({"text": "process"}), false),
            (json!({"text": "*", "list": [{"b": 2}]}), true),
            (json!({"list": []}), false),
            (json!({"missing": "*"}), false),
            (json!({"none": {}}), true),
            (json!({}), false),
        ] {
            assert_eq!(matches(&expected, &found), fits, "{expected}");
        }
    }
}
