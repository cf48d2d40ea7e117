//! The host program: see [`nacre::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    nacre::cli::main()
}
