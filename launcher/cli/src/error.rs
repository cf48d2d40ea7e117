//! What goes wrong at the command line, and where it is said: on standard error, and in the log that an engine reads.

use crate::clock::now;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{0}\nTry `nacre-launcher --help`.")]
    Usage(String),
    #[error("{doing}: {source}")]
    System { doing: String, source: io::Error },
    #[error("{0}")]
    Refused(String),
    #[error("container {0:?} does not exist")]
    NoSuchContainer(String),
}

pub type Result<T, E = CliError> = std::result::Result<T, E>;

pub fn refused(why: impl Into<String>) -> CliError {
    CliError::Refused(why.into())
}

/// Names what was tried where a system call failed.
pub trait Context<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| CliError::System { doing: what(), source: source.into() })
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `--log` and `--log-format`.
#[derive(Debug, Default, Clone)]
pub struct Log {
    pub file: Option<PathBuf>,
    pub format: LogFormat,
}

impl Log {
    /// To the log, and to whoever sits at the terminal.
    pub fn error(&self, error: &dyn Display) {
        let message = error.to_string();
        eprintln!("nacre-launcher: {message}");
        if let Some(file) = &self.file {
            let line = match self.format {
                LogFormat::Json => {
                    let line = serde_json::json!({"level": "error", "msg": message, "time": now()});
                    format!("{line}\n")
                }
                LogFormat::Text => format!("time={:?} level=error msg={message:?}\n", now()),
            };
            // There is nobody left to tell.
            let _ = append(file, &line);
        }
    }
}

fn append(file: &Path, line: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().create(true).append(true).open(file)?.write_all(line.as_bytes())
}
