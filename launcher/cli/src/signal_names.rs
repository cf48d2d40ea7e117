//! Names of signals (signal(7), x86-64 and most others).

/// In the order of their numbers, from 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
const LAST: i32 = 64;

/// `KILL`, `SIGKILL`, `sigkill`, `9`, `RTMIN+3`.
pub fn number(word: &str) -> Option<i32> {
    if let Ok(number) = word.parse() {
        return (1..=LAST).contains(&number).then_some(number);
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(index + 1).ok();
    }
    let (first, rest, sign) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => (REAL_TIME.start(), rest.strip_prefix('+'), 1),
        (_, Some(rest)) => (REAL_TIME.end(), rest.strip_prefix('-'), -1),
        _ => return None,
    };
    let offset: i32 = match (rest, name.len()) {
        (Some(digits), _) => digits.parse().ok()?,
        (None, 5) => 0,
        _ => return None,
    };
    let number = first.checked_add(sign * offset)?;
    REAL_TIME.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_numbers() {
        for (word, expected) in [
            ("KILL", Some(9)),
            ("SIGTERM", Some(15)),
            ("sigusr1", Some(10)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("SYS", Some(31)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-14", Some(50)),
            ("RTMIN", Some(34)),
            ("0", None),
            ("65", None),
            ("KILLED", None),
            ("RTMIN+31", None),
            ("", None),
            ("-1", None),
            ("RTMINX", None),
        ] {
            assert_eq!(number(word), expected, "{word}");
        }
    }
}
