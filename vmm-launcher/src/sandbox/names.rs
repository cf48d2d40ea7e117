//! Names for sandboxes that were not given one.

use std::io::{self, Read};

const FIRST: [&str; 16] = [
    "calm", "clear", "deep", "fair", "keen", "kind", "light", "mild", "neat", "pale", "plain", "quiet",
    "round", "still", "warm", "wise",
];
const SECOND: [&str; 16] = [
    "bay", "cove", "current", "delta", "drift", "fjord", "harbor", "inlet", "lagoon", "pearl", "reef",
    "shell", "shore", "strand", "surf", "tide",
];

/// Such as `calm-tide-3f9a1c`: two words to remember, 24 bits against chance.
pub fn random_name() -> io::Result<String> {
    let mut random = [0u8; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let [words, a, b, c] = random;
    let (first, second) = (FIRST[usize::from(words >> 4)], SECOND[usize::from(words & 15)]);
    Ok(format!("{first}-{second}-{a:02x}{b:02x}{c:02x}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_names_are_names() {
        let name = super::random_name().unwrap();
        assert!(nacre_protocols::names::is_valid_id(&name), "{name}");
        assert!(name.len() < super::super::NAME_MAX);
    }
}
