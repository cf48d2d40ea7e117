//! The rights table of ARCHITECTURE.md, read from the page itself, and what a process in the guest really has.

use std::fs;

use serde_json::Value;

use crate::artefacts;

/// All capabilities of a kernel that knows the last one of linux/capability.h, `CAP_CHECKPOINT_RESTORE`.
const ALL_CAPABILITIES: u64 = (1 << 41) - 1;
const HEADING: &str = "## Processes and their rights";

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    pub process: String,
    pub uid: u32,
    /// The five sets in the order of `/proc/PID/status`: inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    pub no_new_privs: bool,
    pub filters: u32,
    /// As the page has it.
    pub network: String,
    pub descriptors: String,
}

/// # Panics
/// When the page has no such table, or a cell is not understood.
pub fn table() -> Vec<Rights> {
    let path = artefacts::workspace().join("ARCHITECTURE.md");
    parse(&fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

fn parse(page: &str) -> Vec<Rights> {
    let (_, section) = page.split_once(HEADING).expect("ARCHITECTURE.md has no rights table");
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let mut rows = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let heads = rows.next().expect("an empty table");
    let column = |name: &str| {
        heads.iter().position(|head| *head == name).unwrap_or_else(|| panic!("no column {name}: {heads:?}"))
    };
    let rights = |row: Vec<&str>| Rights {
        process: row[column("process")].to_owned(),
        uid: row[column("uid")].parse().expect("uid is no number"),
        capabilities: match row[column("capabilities")] {
            "none" => [0; 5],
            // Of PID 1: it may do everything, and hands nothing on by itself.
            "all" => [0, ALL_CAPABILITIES, ALL_CAPABILITIES, ALL_CAPABILITIES, 0],
            other => panic!("capabilities {other:?}"),
        },
        no_new_privs: row[column("no_new_privs")] == "1",
        filters: first_number(row[column("seccomp filters")]),
        network: row[column("network")].to_owned(),
        descriptors: row[column("descriptors")].to_owned(),
    };
    rows.skip(1).map(rights).collect()
}

/// What the prober in the guest saw of one process; see `src/bin/test_init`.
#[derive(Debug, Clone)]
pub struct Found {
    pub pid: u64,
    pub executable: String,
    pub arguments: Vec<String>,
    pub descriptors: Vec<(String, String)>,
    pub namespaces: Value,
    pub interfaces: Vec<String>,
    pub root: String,
    /// `memory.max` and `pids.max` of its cgroup.
    pub limits: Value,
    status: String,
}

impl Found {
    /// From one line of the prober.
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let texts = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
        let pairs = value["fds"].as_object()?.iter().map(|(number, target)| (number.clone(), text(target)));
        Some(Self {
            pid: value["pid"].as_u64()?,
            executable: text(&value["exe"]),
            arguments: texts(&value["args"]),
            descriptors: pairs.collect(),
            namespaces: value["ns"].clone(),
            interfaces: texts(&value["interfaces"]),
            root: text(&value["root"]),
            limits: value["limits"].clone(),
            status: text(&value["status"]),
        })
    }

    /// A line of `/proc/PID/status`.
    pub fn status(&self, name: &str) -> &str {
        let line = self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{} has no {name} in its status", self.executable)).trim()
    }

    /// Real, effective, saved and file system uid.
    pub fn uids(&self) -> Vec<u32> {
        self.status("Uid").split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    pub fn gids(&self) -> Vec<u32> {
        self.status("Gid").split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    pub fn groups(&self) -> Vec<u32> {
        self.status("Groups").split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    pub fn capabilities(&self) -> [u64; 5] {
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .map(|name| u64::from_str_radix(self.status(name), 16).expect("no set of capabilities"))
    }
}

fn first_number(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{text:?} does not begin with a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_process_of_the_guest() {
        let table = table();
        let names: Vec<&str> = table.iter().map(|rights| rights.process.as_str()).collect();
        for name in ["nacre-init", "nacre-agent", "nacre-puller (fetcher)", "nacre-puller (indexer)"] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
        assert!(table.iter().filter(|rights| rights.uid == 0).all(|rights| rights.process == "nacre-init"));
    }

    #[test]
    fn a_row_is_read_cell_by_cell() {
        let page = format!(
            "{HEADING}\n\ntext\n\n| process | uid | capabilities | no_new_privs | seccomp filters | network | \
             descriptors |\n|---|---|---|---|---|---|---|\n| a | 7 | none | 1 | 2 (floor, own) | none | null |\n\nmore"
        );
        let expected = Rights {
            process: "a".to_owned(),
            uid: 7,
            capabilities: [0; 5],
            no_new_privs: true,
            filters: 2,
            network: "none".to_owned(),
            descriptors: "null".to_owned(),
        };
        assert_eq!(parse(&page), [expected]);
    }
}
