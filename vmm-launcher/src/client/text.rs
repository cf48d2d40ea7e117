//! Text of the guest on its way to a terminal.

use std::fmt::Write;

/// `text` without anything that a terminal would act on, and not longer than `max` characters.
pub fn printable(text: &str, max: usize) -> String {
    let mut clean = String::new();
    for (count, letter) in text.chars().enumerate() {
        if count >= max {
            clean.push('…');
            break;
        }
        match letter {
            '\n' | '\t' => clean.push(' '),
            letter if is_dangerous(letter) => {
                let _ = write!(clean, "\\u{{{:x}}}", u32::from(letter));
            }
            letter => clean.push(letter),
        }
    }
    clean
}

/// The last `lines` lines of a console, each made printable, at most `max` characters a line.
pub fn printable_lines(bytes: &[u8], lines: usize, max: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| printable(line, max)).collect()
}

/// Control characters, and format characters that reorder or hide what follows (Unicode TR36, "bidirectional text").
fn is_dangerous(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_gets_through() {
        for (text, expected) in [
            ("plain é 漢", "plain é 漢"),
            ("\x1b[2Jgone", "\\u{1b}[2Jgone"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\r\nb\tc", "a\\u{d} b c"),
            ("\u{202e}txt.exe", "\\u{202e}txt.exe"),
            ("0123456789", "01234567…"),
        ] {
            assert_eq!(printable(text, if text.starts_with('0') { 8 } else { 100 }), expected);
        }
    }

    #[test]
    fn the_end_of_a_console_is_its_last_lines() {
        let console = b"one\r\n\r\ntwo\xff\nthree\x1b[0m\n";
        assert_eq!(printable_lines(console, 2, 80), ["two\u{fffd}", "three\\u{1b}[0m"]);
        assert!(printable_lines(b"", 5, 80).is_empty());
    }
}
