//! What a test needs of the machine. Without it the test is skipped aloud, or fails where `CI` is set.

/// Skips the test (returns from it) unless every named thing is there: `require!(root, vm, tool "skopeo")`.
#[macro_export]
macro_rules! require {
    (@one root) => { $crate::need::root() };
    (@one vm) => { $crate::need::vm() };
    (@one slow) => { $crate::need::slow() };
    (@one tool $name:literal) => { $crate::need::tool($name) };
    ($($kind:ident $($name:literal)?),+ $(,)?) => {
        $(if let Err(reason) = $crate::require!(@one $kind $($name)?) {
            $crate::need::skip(&reason);
            return;
        })+
    };
}

/// Why a test does not run here.
pub type Reason = String;

/// Says that this test is skipped.
///
/// # Panics
/// In continuous integration, where nothing may be skipped for want of a tool or a right.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    assert!(!is_set("CI") || reason.starts_with(SLOW), "{name} cannot run: {reason}");
    eprintln!("skipped: {name}: {reason}");
}

const SLOW: &str = "slow";

pub fn root() -> Result<(), Reason> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err("needs root: fixtures hold devices, owners and capabilities".to_owned()),
    }
}

/// A sandbox can be started here.
pub fn vm() -> Result<(), Reason> {
    root()?;
    tool("qemu-system-x86_64")?;
    crate::artefacts::find().map(|_| ())
}

/// Tests that take minutes run with `cargo xtask test --all`.
pub fn slow() -> Result<(), Reason> {
    match is_set("NACRE_TEST_ALL") {
        true => Ok(()),
        false => Err(format!("{SLOW}: runs with `cargo xtask test --all`")),
    }
}

pub fn tool(name: &str) -> Result<(), Reason> {
    match crate::tool::find(name) {
        Some(_) => Ok(()),
        None => Err(format!("needs the program {name}; `cargo xtask test` installs it")),
    }
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}
