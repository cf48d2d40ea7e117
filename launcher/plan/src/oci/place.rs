//! Where in a JSON text an error is: the names and positions of what is open there. Only for errors, so a scan from the beginning
//! will do, of a text that need not be JSON behind that place.

/// What is open around a place.
enum Open {
    /// The name read last, and whether its colon was read too.
    Object(String, bool),
    /// The position of the element.
    Array(usize),
}

/// The path to the byte at `line` and `column`, counted as serde_json does: such as `linux.resources`, `mounts[1]`; `.` for the
/// whole.
pub fn path(text: &[u8], line: usize, column: usize) -> String {
    let before = text.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len);
    let end = before.sum::<usize>().saturating_add(column);
    let mut open: Vec<Open> = Vec::new();
    let mut bytes = text.get(..end).unwrap_or(text).iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, open.last_mut()) {
            (b'{', _) => open.push(Open::Object(String::new(), false)),
            (b'[', _) => open.push(Open::Array(0)),
            (b'}' | b']', _) => drop(open.pop()),
            (b',', Some(Open::Object(name, is_value))) => (*name, *is_value) = (String::new(), false),
            (b',', Some(Open::Array(position))) => *position += 1,
            (b':', Some(Open::Object(_, is_value))) => *is_value = true,
            (b'"', of) => {
                let text = string(&mut bytes);
                if let Some(Open::Object(name, false)) = of {
                    *name = text;
                }
            }
            _ => {}
        }
    }
    let mut path = String::new();
    for it in &open {
        match it {
            Open::Object(name, true) if path.is_empty() => path.push_str(name),
            Open::Object(name, true) => path.extend([".", name]),
            // A name without a value is about the object.
            Open::Object(_, false) => {}
            Open::Array(position) => path.push_str(&format!("[{position}]")),
        }
    }
    if path.is_empty() { ".".to_owned() } else { path }
}

/// The rest of a string, as it is written.
fn string(bytes: &mut impl Iterator<Item = u8>) -> String {
    let mut text = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => break,
            b'\\' => text.extend([Some(byte), bytes.next()].into_iter().flatten()),
            byte => text.push(byte),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_by_what_is_open_there() {
        for (before, expected) in [
            ("", "."),
            ("{", "."),
            (r#"{"a""#, "."),
            (r#"{"a": 1"#, "a"),
            (r#"{"a": {"b": [1, {"c": 2"#, "a.b[1].c"),
            (r#"{"a": {"b": [1, {"c": 2}, 3"#, "a.b[2]"),
            (r#"{"a": {"b": [1]}, "d": 4"#, "d"),
            (r#"{"a,]}\"": "x:{", "b": -1"#, "b"),
            (r#"{"a": {}}}}]"#, "."),
        ] {
            let text = format!("\n{before} {{{{[[");
            assert_eq!(path(text.as_bytes(), 2, before.len()), expected, "{before}");
        }
        assert_eq!(path(b"{\"a\": 1", 99, 99), "a");
    }
}
