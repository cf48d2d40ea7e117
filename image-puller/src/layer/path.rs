use super::error::{EntryProblem, LayerError};
use super::limits::Limits;

/// The components of a name in an archive, cleaned as text: empty ones and `.` vanish, `..` takes back the one before.
///
/// A `..` that leads out of the layer is refused in a relative name, as containers/storage does (containerd would
/// clamp it to the root); in an absolute name it stays at the root, as in any file system, which both accept.
pub fn components<'p>(path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, LayerError> {
    if path.len() > limits.path_bytes {
        return Err(LayerError::limit(path, "the path", limits.path_bytes as u64, "bytes"));
    }
    let absolute = path.first() == Some(&b'/');
    let mut clean: Vec<&[u8]> = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if clean.pop().is_none() && !absolute {
                    return Err(LayerError::entry(path, EntryProblem::Escapes));
                }
            }
            name if name.len() > limits.component_bytes => {
                return Err(LayerError::limit(
                    path,
                    "a path component",
                    limits.component_bytes as u64,
                    "bytes",
                ));
            }
            name if name.contains(&0) => return Err(LayerError::entry(path, EntryProblem::NulInName)),
            name => clean.push(name),
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_as_text() {
        let cases: [(&str, Option<&str>); 12] = [
            ("usr/bin/env", Some("usr/bin/env")),
            ("./usr//bin/", Some("usr/bin")),
            ("/etc/./passwd", Some("etc/passwd")),
            (".", Some("")),
            ("", Some("")),
            ("./", Some("")),
            ("a/../b", Some("b")),
            ("a/b/../../c", Some("c")),
            ("/../b", Some("b")),
            ("../b", None),
            ("a/../../b", None),
            ("..", None),
        ];
        for (name, expected) in cases {
            let got = components(name.as_bytes(), &Limits::default()).ok().map(|parts| parts.join(&b'/'));
            assert_eq!(got.as_deref(), expected.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn long_names_are_refused_by_the_limit_they_break() {
        let deep = "a/".repeat(2048);
        for (name, what) in [("x".repeat(256), "a path component"), (deep, "the path")] {
            let error = components(name.as_bytes(), &Limits::default()).unwrap_err();
            assert!(matches!(error, LayerError::Limit { what: w, .. } if w == what), "{error}");
        }
        assert!(components("x".repeat(255).as_bytes(), &Limits::default()).is_ok());
    }
}
