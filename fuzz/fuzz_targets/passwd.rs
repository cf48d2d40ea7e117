//! `user:group`, `/etc/passwd` and `/etc/group` of an image, parted by NUL: looking up never panics and stays in bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_launcher::accounts::{GROUPS_MAX, home_of, resolve};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (spec, passwd, group) = (String::from_utf8_lossy(next()), next(), next());
    if let Ok(account) = resolve(&spec, passwd, group) {
        assert!(account.groups.len() <= GROUPS_MAX);
        assert!(account.uid <= i32::MAX as u32 && account.gid <= i32::MAX as u32);
        assert!(account.home.is_none_or(|home| !home.is_empty() && !home.contains('\0')));
    }
    home_of(0, passwd);
});
