//! `-e` and `--env-file`.

use std::path::PathBuf;

use super::error::Failure;

/// Longest file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// Files first, then `-e`, so that the line wins; a name without a value is taken from here, if it is set here.
pub fn collect(files: &[PathBuf], entries: &[String]) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for path in files {
        let failed = |error: std::io::Error| {
            Failure::new("arguments", format!("--env-file {}: {error}", path.display()))
        };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > FILE_MAX {
            return Err(Failure::new(
                "arguments",
                format!("--env-file {}: longer than {FILE_MAX} bytes", path.display()),
            ));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let lines =
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            all.extend(entry(line, |name| std::env::var(name).ok())?);
        }
    }
    for line in entries {
        all.extend(entry(line, |name| std::env::var(name).ok())?);
    }
    Ok(all)
}

fn entry(line: &str, here: impl Fn(&str) -> Option<String>) -> Result<Option<String>, Failure> {
    let name = line.split('=').next().unwrap_or_default();
    if name.is_empty() || name.contains(char::is_whitespace) || line.contains('\0') {
        return Err(Failure::new("arguments", format!("{line:?} is not NAME=VALUE or NAME")));
    }
    Ok(if line.contains('=') {
        Some(line.to_owned())
    } else {
        here(name).map(|value| format!("{name}={value}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_the_line_or_from_here() {
        let here = |name: &str| (name == "SET").then(|| "x=y".to_owned());
        for (line, expected) in [
            ("A=1", Some(Some("A=1"))),
            ("A=", Some(Some("A="))),
            ("A=b=c d", Some(Some("A=b=c d"))),
            ("SET", Some(Some("SET=x=y"))),
            ("UNSET", Some(None)),
            ("=1", None),
            ("A B=1", None),
            ("", None),
        ] {
            let found = entry(line, here).ok();
            assert_eq!(found.as_ref().map(|entry| entry.as_deref()), expected, "{line:?}");
        }
    }

    #[test]
    fn files_are_read_before_the_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\n\nA=file\n  B=2\n").unwrap();
        let all = collect(&[file.path().to_owned()], &["A=line".into()]).unwrap();
        assert_eq!(all, ["A=file", "B=2", "A=line"]);
    }
}
