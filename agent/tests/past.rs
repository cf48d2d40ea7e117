//! What went wrong in Kata's agent before, played again on ours. The launcher's own past is in `launcher/cli/tests/past.rs`.
//!
//! | what | test |
//! |---|---|
//! | CVE-2026-41326 | `a_host_leaves_no_link_and_writes_no_file_by_copying` |

mod support;

use nacre_protocols::host_agent::kata;
use nacre_protocols::host_agent::kata::agent_service::CopyFile;
use nacre_protocols::host_agent::ttrpc::Code;
use std::path::{Path, PathBuf};
use support::{Sandbox, can_run};

const SHARED: &str = "/run/kata-containers/shared/containers";
const SYMBOLIC_LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_755;

/// First a link in the one place where files may be copied to, then a file by way of it: wherever it leads in the guest.
#[test]
fn a_host_leaves_no_link_and_writes_no_file_by_copying() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let copies = |shared: &Path| {
        let link = shared.join(format!("past-{}", std::process::id()));
        let through = link.join("written");
        let copy = |path: PathBuf, file_mode, data: &[u8]| kata::CopyFileRequest {
            path: path.display().to_string(),
            file_size: data.len() as i64,
            file_mode,
            dir_mode: 0o755,
            data: data.to_vec(),
            ..Default::default()
        };
        [copy(link, SYMBOLIC_LINK, outside.to_str().unwrap().as_bytes()), copy(through, FILE, b"attacked")]
    };

    // Who believes the paths, as they are within the shared directory.
    for it in copies(folder.path()) {
        if it.file_mode == SYMBOLIC_LINK {
            std::os::unix::fs::symlink(std::str::from_utf8(&it.data).unwrap(), &it.path).unwrap();
        } else {
            std::fs::write(&it.path, &it.data).unwrap();
        }
    }
    assert!(outside.join("written").exists(), "the attack does not work on a path");
    std::fs::remove_file(outside.join("written")).unwrap();

    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    for it in copies(Path::new(SHARED)) {
        let (code, text) = client.refused::<CopyFile>(&it);
        assert_eq!(code, Code::Unimplemented, "{text}");
        assert!(std::fs::symlink_metadata(&it.path).is_err(), "{}", it.path);
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}
