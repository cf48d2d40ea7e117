//! Words of the command line: runc's, as the engines say them. A word that is not known is refused, and so is one whose
//! meaning cannot be given.

use crate::error::{CliError, Log, LogFormat, Result};
use std::path::PathBuf;

/// Where state lies when `--root` does not say.
pub const ROOT: &str = "/run/nacre-launcher";

#[derive(Debug)]
pub struct Arguments {
    pub root: PathBuf,
    pub command: String,
    /// The words behind the command.
    pub rest: Vec<String>,
}

impl Arguments {
    /// Comes with the log even when it fails, so that the failure is heard there.
    pub fn read(words: impl Iterator<Item = String>) -> (Log, Result<Self>) {
        let mut log = Log::default();
        let result = Self::read_into(words, &mut log);
        (log, result)
    }

    fn read_into(words: impl Iterator<Item = String>, log: &mut Log) -> Result<Self> {
        let mut words = Words::new(words.collect());
        let mut root = PathBuf::from(ROOT);
        while let Some(option) = words.option()? {
            match option.as_str() {
                "--root" => root = words.value(&option)?.into(),
                "--log" => log.file = Some(words.value(&option)?.into()),
                "--log-format" => {
                    log.format = match words.value(&option)?.as_str() {
                        "text" => LogFormat::Text,
                        "json" => LogFormat::Json,
                        other => {
                            return Err(usage(format!("--log-format {other:?} is neither text nor json")));
                        }
                    }
                }
                "--debug" => {}
                "--rootless" => match words.value(&option)?.as_str() {
                    "auto" | "false" => {}
                    _ => return Err(unsupported("--rootless", "this launcher needs root")),
                },
                "--systemd-cgroup" => {
                    return Err(unsupported(
                        "--systemd-cgroup",
                        "cgroups are made as directories; set the engine's cgroup manager to cgroupfs",
                    ));
                }
                "--help" | "-h" | "--version" | "-v" => {
                    let command =
                        if option.starts_with("--h") || option == "-h" { "help" } else { "version" };
                    return Ok(Self { root, command: command.to_owned(), rest: Vec::new() });
                }
                _ => return Err(unknown(&option)),
            }
        }
        let command = words.next().ok_or_else(|| usage("no command".to_owned()))?;
        Ok(Self { root, command, rest: words.rest() })
    }
}

/// The words behind a command, read one by one.
pub struct Words {
    words: std::collections::VecDeque<String>,
    /// Of `--name=value`.
    value: Option<String>,
}

impl Words {
    pub fn new(words: Vec<String>) -> Self {
        Self { words: words.into(), value: None }
    }

    /// The next option's name; `None` before the first word that is none, or behind `--`.
    pub fn option(&mut self) -> Result<Option<String>> {
        if let Some(unused) = self.value.take() {
            return Err(usage(format!("a value that nobody asked for: {unused:?}")));
        }
        match self.words.front().map(String::as_str) {
            Some("--") => {
                self.words.pop_front();
                Ok(None)
            }
            Some(word) if word.len() > 1 && word.starts_with('-') => {
                let word = self.words.pop_front().unwrap_or_default();
                // A single dash before a long name is as good as two: Go's way.
                Ok(Some(match word.split_once('=') {
                    Some((name, value)) => {
                        self.value = Some(value.to_owned());
                        name.to_owned()
                    }
                    None => word,
                }))
            }
            _ => Ok(None),
        }
    }

    /// The value of the option that was just read.
    pub fn value(&mut self, option: &str) -> Result<String> {
        self.value
            .take()
            .or_else(|| self.words.pop_front())
            .ok_or_else(|| usage(format!("{option} needs a value")))
    }

    pub fn number<T: std::str::FromStr>(&mut self, option: &str) -> Result<T> {
        let value = self.value(option)?;
        value.parse().map_err(|_| usage(format!("{option} {value:?} is not a number in range")))
    }

    /// A flag, which may be written `--flag=false`.
    pub fn flag(&mut self, option: &str) -> Result<bool> {
        match self.value.take().as_deref() {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(usage(format!("{option}={other} is neither true nor false"))),
        }
    }

    pub fn next(&mut self) -> Option<String> {
        self.words.pop_front()
    }

    pub fn rest(self) -> Vec<String> {
        self.words.into()
    }

    /// The one word that is left.
    pub fn only(mut self, what: &str) -> Result<String> {
        let word = self.next().ok_or_else(|| usage(format!("{what} is missing")))?;
        self.end().map(|()| word)
    }

    pub fn end(self) -> Result<()> {
        match self.words.front() {
            None => Ok(()),
            Some(word) => Err(usage(format!("a word too many: {word:?}"))),
        }
    }
}

pub fn usage(why: String) -> CliError {
    CliError::Usage(why)
}

pub fn unknown(option: &str) -> CliError {
    usage(format!("unknown option {option}"))
}

pub fn unsupported(option: &str, why: &str) -> CliError {
    CliError::Refused(format!("{option} is not supported: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments> {
        Arguments::read(line.split_whitespace().map(str::to_owned)).1
    }

    #[test]
    fn what_stands_before_the_command_is_global() {
        let line = "--root /x --log=/l --log-format json --debug create --bundle /b id";
        let (log, it) = Arguments::read(line.split_whitespace().map(str::to_owned));
        let it = it.unwrap();
        assert_eq!(it.root, PathBuf::from("/x"));
        assert_eq!(log.file, Some("/l".into()));
        assert_eq!(log.format, LogFormat::Json);
        assert_eq!((it.command.as_str(), it.rest.join(" ").as_str()), ("create", "--bundle /b id"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (line, expected) in [
            ("--colour create", "--colour"),
            ("--systemd-cgroup create", "--systemd-cgroup is not supported"),
            ("--log-format xml list", "xml"),
            ("", "no command"),
            ("--root", "--root needs a value"),
            ("--debug=perhaps list", "perhaps"),
        ] {
            assert!(read(line).unwrap_err().to_string().contains(expected), "{line}");
        }
    }
}
