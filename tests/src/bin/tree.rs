//! Prints the tree below a directory as canonical lines; see `nacre_tests::tree`. Built static, it runs in containers
//! whose image has nothing.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let mut out = BufWriter::new(std::io::stdout().lock());
    match nacre_tests::tree::write(&root, &mut out).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre-tree: {error}");
            ExitCode::FAILURE
        }
    }
}
