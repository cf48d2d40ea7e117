//! Signals by name, as x86-64 numbers them (signal(7)).

pub const SIGKILL: u32 = 9;
pub const SIGTERM: u32 = 15;

/// Of the real-time signals the first, as glibc numbers it.
const SIGRTMIN: u32 = 34;
const SIGRTMAX: u32 = 64;

const NAMES: [(&str, u32); 33] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`; `None` for what is no signal.
pub fn signal_number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: u32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return SIGRTMIN.checked_add(offset).filter(|number| *number <= SIGRTMAX);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset: u32 = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse().ok()? };
        return SIGRTMAX.checked_sub(offset).filter(|number| *number >= SIGRTMIN);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, expected) in [
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigkill", Some(9)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX", Some(64)),
            ("RTMAX-1", Some(63)),
            ("RTMIN+99", None),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("TERMINATE", None),
            ("", None),
        ] {
            assert_eq!(signal_number(text), expected, "{text:?}");
        }
    }
}
