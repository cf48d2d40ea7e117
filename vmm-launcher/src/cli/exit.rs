//! What the exit codes of `nacre` mean. They are docker's where docker has them.
//!
//! | code | meaning |
//! |---|---|
//! | 0 to 255 | of `run` and `exec`: what the container's command ended with |
//! | 125 | `nacre` itself failed: arguments, VM, network, pull, or the sandbox died |
//! | 126 | the command is in the container and cannot be executed |
//! | 127 | the command is not in the container |
//! | 128 + n | the command was killed by signal n |
//! | 1 | of the other commands: it could not be done |

use std::process::ExitCode;

/// `nacre` itself failed.
pub const OWN_FAILURE: u8 = 125;
/// The command cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command is not there.
pub const NOT_FOUND: u8 = 127;
/// A command about sandboxes could not do what it was asked for.
pub const FAILED: u8 = 1;
/// 128 and SIGINT: the user gave up before there was a container.
pub const INTERRUPTED: u8 = 130;

/// For `main`.
pub fn code(number: u8) -> ExitCode {
    ExitCode::from(number)
}
