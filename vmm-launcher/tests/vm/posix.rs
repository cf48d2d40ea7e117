//! What a file system has to do, on a share, by suites that others keep: pjdfstest (the rewrite of crates.io) and fio. They take
//! minutes, so `cargo xtask test --all` runs them.

use std::path::{Path, PathBuf};

use nacre::devices::fs::{Access, Share};

use crate::support::{Guest, parts};

/// Parts of the names of pjdfstest's cases that fail, and why.
const KNOWN: &[(&str, &str)] = &[
    ("::block", "no device node is ever made on the host"),
    ("::char", "the same"),
    ("uid_gid_eq_euid_egid", "what a guest makes belongs to who started nacre: no chown to anybody else"),
    ("link::share_metadata", "the same"),
    ("chmod::clear_isgid_bit", "the same, and no set-id bits"),
];
/// Of all cases, so that a suite that ends early is seen.
const CASES_MIN: usize = 390;

/// A program of the host for the guest; `None` when slow tests are not asked for.
fn program(variable: &str) -> Option<PathBuf> {
    if std::env::var_os("NACRE_TEST_ALL").is_none() {
        eprintln!("skipped: slow: runs with `cargo xtask test --all`");
        return None;
    }
    Some(std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set")).into())
}

/// A guest with these shares below /mnt.
fn guest(shares: Vec<Share>) -> Option<Guest> {
    let parts = parts()?;
    let guest = Guest::boot(parts, |config| {
        config.shares = shares;
        config.memory_mib = 512;
    });
    guest.run("mount -t virtiofs kataShared /mnt");
    Some(guest)
}

#[test]
fn pjdfstest_fails_only_where_it_is_known() {
    let Some(program) = program("NACRE_PJDFSTEST") else { return };
    let host = tempfile::tempdir().unwrap();
    std::fs::write(
        host.path().join("configuration.toml"),
        "[features]\nposix_fallocate = {}\nutime_now = {}\nutimensat = {}\n\
         [settings]\nnaptime = 0.01\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nobody\"], [\"tests\", \"tests\"]]\n",
    )
    .unwrap();
    std::fs::copy(&program, host.path().join("program")).unwrap();
    let share = Share { name: "vol0".into(), host: host.path().to_owned(), access: Access::ReadWrite };
    let Some(guest) = guest(vec![share]) else { return };
    let said = guest.run(
        "exec 2>&1; umask 0; mkdir -m 777 /mnt/vol0/work; cd /mnt/vol0; \
         timeout 1500 ./program -c configuration.toml -p /mnt/vol0/work -s /tmp",
    );
    println!("{said}");
    let of = |word: &str| -> Vec<&str> {
        let ends = said.lines().filter_map(|line| line.trim_end().strip_suffix(word));
        ends.map(str::trim).filter(|name| name.contains("::")).collect()
    };
    let (passed, failed, skipped) = (of("ok"), of("FAILED"), of("skipped"));
    assert!(passed.len() + failed.len() + skipped.len() >= CASES_MIN, "{said}");
    let unknown: Vec<_> =
        failed.iter().filter(|case| !KNOWN.iter().any(|(known, _)| case.contains(known))).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    let mended: Vec<_> =
        KNOWN.iter().filter(|(known, _)| !failed.iter().any(|case| case.contains(known))).collect();
    assert!(mended.is_empty(), "these pass now: {mended:#?}");
}

#[test]
fn fio_reads_back_what_it_wrote() {
    let Some(program) = program("NACRE_FIO") else { return };
    let host = tempfile::tempdir().unwrap();
    let shares = vec![
        Share { name: "vol0".into(), host: host.path().to_owned(), access: Access::ReadWrite },
        // The program has many libraries: all of the host's.
        Share { name: "vol1".into(), host: "/usr".into(), access: Access::ReadOnly },
    ];
    let Some(guest) = guest(shares) else { return };
    let program = Path::new("/mnt/vol1").join(program.strip_prefix("/usr").unwrap());
    let libraries = "/mnt/vol1/lib/x86_64-linux-gnu";
    let fio = format!(
        "{libraries}/ld-linux-x86-64.so.2 --library-path {libraries}:{libraries}/ceph {} --directory=/mnt/vol0 --size=8m \
         --verify=crc32c --verify_fatal=1 --verify_state_save=0 --minimal",
        program.display()
    );
    for job in [
        "--name=random --rw=randrw --bsrange=512-64k --ioengine=psync --fsync=32",
        "--name=direct --rw=randwrite --bs=4k --ioengine=psync --direct=1",
        "--name=mapped --rw=randwrite --bs=4k --ioengine=mmap",
        "--name=together --rw=randwrite --bs=4k --ioengine=psync --numjobs=4 --thread",
        "--name=allocated --rw=randwrite --bs=4k --ioengine=vsync --fallocate=posix",
        "--name=appended --rw=write --bs=64k --ioengine=sync --end_fsync=1 --fallocate=none",
    ] {
        let said = guest.run(&format!("exec 2>&1; {fio} {job}; echo code $?"));
        println!("{job}: {said}");
        // The fifth field of a line is the error.
        let errors: Vec<&str> = said.lines().filter_map(|line| line.split(';').nth(4)).collect();
        assert!(said.contains("code 0\n") && !errors.is_empty(), "{job}: {said}");
        assert!(errors.iter().all(|error| *error == "0"), "{job}: {said}");
    }
}
