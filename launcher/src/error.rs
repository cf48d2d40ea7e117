//! The launcher's one error: where a plan failed, with which errno, on what object. It is what goes back to init.

use nacre_protocols::init_launcher::{LaunchFailure, LaunchStage};
use std::io;

/// Longest message in a status frame, in bytes.
const MESSAGE_MAX: usize = 2048;

/// A failed step. Not an enum with a variant each: the edge asks for stage, errno and object, and nothing here ever
/// tells steps apart in another way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    pub stage: LaunchStage,
    /// 0 where no system call failed.
    pub errno: i32,
    pub message: String,
}

pub type Result<T, E = LaunchError> = std::result::Result<T, E>;

impl LaunchError {
    /// A refusal of our own, where no system call failed.
    pub fn refused(stage: LaunchStage, message: impl Into<String>) -> Self {
        Self { stage, errno: 0, message: message.into() }
    }

    /// A system call that failed while `doing`.
    pub fn system(stage: LaunchStage, error: impl Into<io::Error>, doing: impl std::fmt::Display) -> Self {
        let error = error.into();
        Self { stage, errno: crate::filesystem::errno(&error), message: format!("{doing}: {error}") }
    }

    /// The form on the wire, cut to a length that fits a status frame.
    pub fn into_failure(mut self) -> LaunchFailure {
        if self.message.len() > MESSAGE_MAX {
            let end = (0..=MESSAGE_MAX).rev().find(|end| self.message.is_char_boundary(*end));
            self.message.truncate(end.unwrap_or(0));
        }
        LaunchFailure { stage: self.stage, errno: self.errno, message: self.message }
    }
}

/// Names the step and its object where a system call failed.
pub trait Context<T> {
    fn at(self, stage: LaunchStage, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn at(self, stage: LaunchStage, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| LaunchError::system(stage, error, doing()))
    }
}
