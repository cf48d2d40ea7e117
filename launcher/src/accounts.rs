//! Users and groups of an image: `/etc/passwd` and `/etc/group` (passwd(5), group(5)) as docker reads them. Pure; the
//! bytes are the image's and may be anything.
//!
//! Lines that are not of the form, or whose numbers are none, are passed over.

/// Largest id that is looked up or given: what docker takes.
const ID_MAX: u32 = 0x7fff_ffff;
/// Most supplementary groups.
pub const GROUPS_MAX: usize = 1024;

/// What a process is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Home directory of the user's line, if there is one and it is text.
    pub home: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    #[error("user {0:?} is not in the image's /etc/passwd")]
    NoUser(String),
    #[error("group {0:?} is not in the image's /etc/group")]
    NoGroup(String),
    #[error("id {0:?} is beyond {ID_MAX}")]
    Range(String),
    #[error("user {user:?} is in more than {GROUPS_MAX} groups")]
    TooManyGroups { user: String },
}

/// Resolves `[user][:group]`, names or numbers.
///
/// A user that is only a number need not have a line; its group is 0 then. With a group given, there are no
/// supplementary ones; else they are all that name the user as a member.
pub fn resolve(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Account, AccountError> {
    let (user, group_name) = spec.split_once(':').unwrap_or((spec, ""));
    let user = if user.is_empty() { "0" } else { user };
    let line = users(passwd).find(|line| line.name == user.as_bytes() || number(user) == Some(line.uid));
    let (uid, gid, home) = match &line {
        Some(line) => (line.uid, line.gid, line.home()),
        None => (id(user, AccountError::NoUser)?, 0, None),
    };
    if group_name.is_empty() {
        let member = line.as_ref().map_or(user.as_bytes(), |line| line.name);
        let groups = groups_of(member, group);
        if groups.len() > GROUPS_MAX {
            return Err(AccountError::TooManyGroups { user: user.to_owned() });
        }
        return Ok(Account { uid, gid, groups, home });
    }
    let found = groups(group)
        .find(|line| line.name == group_name.as_bytes() || number(group_name) == Some(line.gid))
        .map(|line| line.gid);
    let gid = found.map_or_else(|| id(group_name, AccountError::NoGroup), Ok)?;
    Ok(Account { uid, gid, groups: Vec::new(), home })
}

/// The home directory of the first line with this uid.
pub fn home_of(uid: u32, passwd: &[u8]) -> Option<String> {
    users(passwd).find(|line| line.uid == uid)?.home()
}

struct UserLine<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl UserLine<'_> {
    fn home(&self) -> Option<String> {
        let home = std::str::from_utf8(self.home).ok()?;
        (!home.is_empty() && !home.contains('\0')).then(|| home.to_owned())
    }
}

struct GroupLine<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// `name:password:uid:gid:comment:home:shell`
fn users(passwd: &[u8]) -> impl Iterator<Item = UserLine<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let uid = line_number(fields.nth(1)?)?;
        let gid = line_number(fields.next()?)?;
        Some(UserLine { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// `name:password:gid:member,member`
fn groups(group: &[u8]) -> impl Iterator<Item = GroupLine<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let gid = line_number(fields.nth(1)?)?;
        Some(GroupLine { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// At most one more than [`GROUPS_MAX`].
fn groups_of(member: &[u8], group: &[u8]) -> Vec<u32> {
    groups(group)
        .filter(|line| line.members.split(|byte| *byte == b',').any(|name| name == member))
        .map(|line| line.gid)
        .take(GROUPS_MAX + 1)
        .collect()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

fn line_number(field: &[u8]) -> Option<u32> {
    number(std::str::from_utf8(field).ok()?)
}

/// A plain decimal number within the range of ids.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= ID_MAX)
}

/// What has no line of its own must be a number.
fn id(text: &str, unknown: fn(String) -> AccountError) -> Result<u32, AccountError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(unknown(text.to_owned()));
    }
    number(text).ok_or_else(|| AccountError::Range(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken:x:one:1::/:\n\
        short:x:5\n\
        app:x:1000:1001:App:/home/app:/bin/sh\n\
        1000:x:77:78::/seventy:/bin/sh\n\
        nohome:x:9:9\n\
        \xff\xfe:x:10:10::/\xff:/bin/sh\n\
        big:x:4294967295:0::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,app\nvideo:x:44:app\nempty:x:\n45:x:46:\nlast:x:47:app";

    #[test]
    fn users_resolve_as_docker_resolves_them() {
        for (spec, uid, gid, groups, home) in [
            ("", 0, 0, &[10][..], Some("/root")),
            ("root", 0, 0, &[10], Some("/root")),
            ("0", 0, 0, &[10], Some("/root")),
            ("app", 1000, 1001, &[10, 44, 47], Some("/home/app")),
            // The first line whose name or number it is.
            ("1000", 1000, 1001, &[10, 44, 47], Some("/home/app")),
            ("app:video", 1000, 44, &[], Some("/home/app")),
            ("app:44", 1000, 44, &[], Some("/home/app")),
            ("app:45", 1000, 46, &[], Some("/home/app")),
            ("app:4711", 1000, 4711, &[], Some("/home/app")),
            (":video", 0, 44, &[], Some("/root")),
            ("app:", 1000, 1001, &[10, 44, 47], Some("/home/app")),
            ("4711", 4711, 0, &[], None),
            ("4711:4712", 4711, 4712, &[], None),
            ("nohome", 9, 9, &[], None),
            ("2147483647", 2_147_483_647, 0, &[], None),
        ] {
            let home = home.map(str::to_owned);
            let account = Account { uid, gid, groups: groups.to_vec(), home };
            assert_eq!(resolve(spec, PASSWD, GROUP), Ok(account), "{spec:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let owned = str::to_owned;
        for (spec, error) in [
            ("nobody", AccountError::NoUser(owned("nobody"))),
            ("broken", AccountError::NoUser(owned("broken"))),
            ("short", AccountError::NoUser(owned("short"))),
            ("big", AccountError::NoUser(owned("big"))),
            ("-1", AccountError::NoUser(owned("-1"))),
            ("+0", AccountError::NoUser(owned("+0"))),
            ("app:nogroup", AccountError::NoGroup(owned("nogroup"))),
            ("app:empty", AccountError::NoGroup(owned("empty"))),
            ("app:a:b", AccountError::NoGroup(owned("a:b"))),
            ("2147483648", AccountError::Range(owned("2147483648"))),
            ("99999999999999999999", AccountError::Range(owned("99999999999999999999"))),
        ] {
            assert_eq!(resolve(spec, PASSWD, GROUP), Err(error), "{spec:?}");
        }
    }

    #[test]
    fn without_files_only_numbers_resolve() {
        let root = Account { uid: 0, gid: 0, groups: vec![], home: None };
        assert_eq!(resolve("", b"", b""), Ok(root));
        assert!(resolve("root", b"", b"").is_err());
    }

    #[test]
    fn a_user_of_too_many_groups_is_refused() {
        let group: String = (0..=GROUPS_MAX).map(|gid| format!("g{gid}:x:{gid}:app\n")).collect();
        let error = AccountError::TooManyGroups { user: "app".to_owned() };
        assert_eq!(resolve("app", PASSWD, group.as_bytes()), Err(error));
    }
}
