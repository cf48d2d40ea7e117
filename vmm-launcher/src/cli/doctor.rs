//! `nacre doctor`: what this host can do, and the fix for what it cannot.

use super::args::Doctor;
use super::error::Failure;
use super::plan::scratch_directory;
use super::{exit, guest_files};
use crate::doctor::{Finding, State, Subject, examine};
use crate::sandbox::{StateError, StateRoot};

/// Prints every finding; the exit code is 1 if something is bad.
pub fn doctor(args: &Doctor) -> Result<u8, Failure> {
    let subject = Subject {
        kernel: guest_files::kernel(args.kernel.as_deref()).ok(),
        image: guest_files::image(args.image_file.as_deref()).ok(),
        scratch_dir: scratch_directory()?,
    };
    let mut findings = examine(&subject);
    findings.push(state_directory(StateRoot::open()));
    for finding in &findings {
        println!("{}", line(finding));
        if !finding.fix.is_empty() {
            println!("{:24}fix: {}", "", finding.fix);
        }
    }
    let bad = findings.iter().filter(|finding| finding.state == State::Bad).count();
    Ok(if bad == 0 { 0 } else { exit::FAILED })
}

fn line(finding: &Finding) -> String {
    format!("{:4}  {:16}  {}", finding.state, finding.what, finding.seen)
}

fn state_directory(root: Result<StateRoot, StateError>) -> Finding {
    let (state, seen, fix): (_, _, &str) = match root {
        Ok(root) => (State::Good, format!("sandboxes are kept in {}", root.path().display()), ""),
        Err(error) => {
            (State::Bad, error.to_string(), "set NACRE_RUNTIME_DIR to a directory of your own, mode 0700")
        }
    };
    Finding { what: "state", state, seen, fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_state_directory_is_bad() {
        let missing = StateRoot::at(std::path::Path::new("/nowhere/at/all"));
        let finding = state_directory(missing);
        assert_eq!(finding.state, State::Bad);
        assert!(!finding.fix.is_empty());
        assert!(line(&finding).starts_with("bad   state"), "{}", line(&finding));
    }
}
