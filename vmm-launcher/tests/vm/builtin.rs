//! Every test of this program again, with guests on our own VMM: in the lab (`cargo xtask lab`), whatever KVM this host has.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{own_vmm, parts, skip};

#[test]
fn all_of_it_on_our_own_vmm() {
    if own_vmm().is_some() || parts().is_none() {
        return;
    }
    if std::env::var_os("NACRE_TEST_ALL").is_none() {
        eprintln!("skipped: slow: runs with `cargo xtask test --all`");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given = std::env::var_os("NACRE_BIN").map(PathBuf::from);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("..");
    let nacre = given.unwrap_or_else(|| target.join("release/nacre"));
    let Ok(nacre) = nacre.canonicalize() else {
        return skip("no nacre: set NACRE_BIN, or run cargo xtask test");
    };
    let own = std::env::current_exe().unwrap();
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["xtask", "lab", "--timeout", "900", "--"])
        .arg(own)
        .args(["--skip", "on_our_own_vmm", "--skip", "qemus_own", "--test-threads", "2"])
        .env("NACRE_TEST_OWN_VMM", nacre)
        .env("CI", "true") // nothing is skipped there
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success() && out.contains("test result: ok. "), "{}\n{out}{err}", output.status);
}
