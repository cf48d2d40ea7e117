//! The language of the fragments, which is the language of `.config`: `CONFIG_NAME=value`, or
//! `# CONFIG_NAME is not set`. Every other line that starts with `#` is a reason.

use std::collections::BTreeMap;
use std::fmt;

/// One file of `fragments/`.
#[derive(Debug, Clone, Copy)]
pub struct Fragment {
    pub name: &'static str,
    pub text: &'static str,
}

impl Fragment {
    /// The same but for the options that `leave_out` names.
    pub(crate) fn without(&self, leave_out: impl Fn(&str) -> bool) -> Self {
        let stays = |line: &&str| option(line).is_none_or(|option| !leave_out(option));
        let text: String = self.text.lines().filter(stays).flat_map(|line| [line, "\n"]).collect();
        // As many as there are flavours in one run of a builder.
        Self { name: self.name, text: text.leak() }
    }
}

/// What an option shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Off, or not offered at all because something it depends on is off.
    Off,
    /// The text after `=`: `y`, a number, or a quoted string.
    Is(String),
}

/// One option of a fragment, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub option: String,
    pub value: Value,
    pub fragment: &'static str,
    pub line: usize,
}

/// An option that did not come out of Kconfig as the fragment has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub wanted: Setting,
    pub got: Value,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("{file}:{line}: neither an option, nor `is not set`, nor a comment: `{text}`")]
    NotASetting { file: String, line: usize, text: String },
    #[error("{file}:{line}: {option} has no reason: a comment must stand above its paragraph")]
    NoReason { file: String, line: usize, option: String },
    #[error("{file}:{line}: {option} is already set in {first}:{first_line}")]
    Twice { file: String, line: usize, option: String, first: &'static str, first_line: usize },
}

/// All settings of all fragments. Fails when an option stands without a reason or stands twice.
pub fn settings(fragments: &[Fragment]) -> Result<Vec<Setting>, ParseError> {
    let mut all: Vec<Setting> = Vec::new();
    for fragment in fragments {
        for setting in parse_fragment(fragment)? {
            if let Some(first) = all.iter().find(|other| other.option == setting.option) {
                return Err(ParseError::Twice {
                    file: setting.fragment.to_owned(),
                    line: setting.line,
                    option: setting.option,
                    first: first.fragment,
                    first_line: first.line,
                });
            }
            all.push(setting);
        }
    }
    Ok(all)
}

/// The options of a `.config`, or of anything in that language; `file` only appears in errors.
pub fn parse(file: &str, text: &str) -> Result<BTreeMap<String, Value>, ParseError> {
    let mut options = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        match Line::parse(line) {
            Line::Setting(option, value) => {
                options.insert(option.to_owned(), value);
            }
            Line::Comment | Line::Blank => {}
            Line::Nonsense => return Err(not_a_setting(file, index + 1, line)),
        }
    }
    Ok(options)
}

/// Every setting that `resolved` does not fulfil. An option that is absent counts as off.
pub fn check(settings: &[Setting], resolved: &BTreeMap<String, Value>) -> Vec<Mismatch> {
    settings
        .iter()
        .filter_map(|wanted| {
            let got = resolved.get(&wanted.option).cloned().unwrap_or(Value::Off);
            (got != wanted.value).then(|| Mismatch { wanted: wanted.clone(), got })
        })
        .collect()
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Off => f.write_str("off"),
            Value::Is(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { option, value, fragment, line } = &self.wanted;
        write!(f, "{option} ({fragment}:{line}): wanted {value}, Kconfig made it {}", self.got)
    }
}

fn parse_fragment(fragment: &Fragment) -> Result<Vec<Setting>, ParseError> {
    let mut settings = Vec::new();
    // A reason holds for the settings below it up to the next blank line.
    let mut reason = false;
    for (index, line) in fragment.text.lines().enumerate() {
        match Line::parse(line) {
            Line::Blank => reason = false,
            Line::Comment => reason = true,
            Line::Setting(option, value) => {
                let (option, line) = (option.to_owned(), index + 1);
                if !reason {
                    return Err(ParseError::NoReason { file: fragment.name.to_owned(), line, option });
                }
                settings.push(Setting { option, value, fragment: fragment.name, line });
            }
            Line::Nonsense => return Err(not_a_setting(fragment.name, index + 1, line)),
        }
    }
    Ok(settings)
}

/// The option that a line is about.
pub(crate) fn option(line: &str) -> Option<&str> {
    match Line::parse(line) {
        Line::Setting(option, _) => Some(option),
        _ => None,
    }
}

enum Line<'a> {
    Blank,
    Comment,
    Setting(&'a str, Value),
    Nonsense,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Blank;
        }
        if let Some(comment) = line.strip_prefix('#') {
            return match comment.trim().strip_suffix(" is not set") {
                Some(option) if is_option(option) => Self::Setting(option, Value::Off),
                _ => Self::Comment,
            };
        }
        match line.split_once('=') {
            // `=n` is how some write "not set"; the resolved configuration never has it.
            Some((option, "n")) if is_option(option) => Self::Setting(option, Value::Off),
            Some((option, value)) if is_option(option) && !value.is_empty() => {
                Self::Setting(option, Value::Is(value.to_owned()))
            }
            _ => Self::Nonsense,
        }
    }
}

fn is_option(text: &str) -> bool {
    text.strip_prefix("CONFIG_").is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

fn not_a_setting(file: &str, line: usize, text: &str) -> ParseError {
    ParseError::NotASetting { file: file.to_owned(), line, text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Fragment = Fragment {
        name: "some.config",
        text: "# Networking.\nCONFIG_NET=y\nCONFIG_VIRTIO_NET=y\n\n# A door.\n# CONFIG_MODULES is not set\n\n\
               # Names.\nCONFIG_LSM=\"landlock\"\n",
    };

    fn mismatches(resolved: &str) -> Vec<String> {
        let settings = settings(&[WANTED]).unwrap();
        check(&settings, &parse(".config", resolved).unwrap()).iter().map(Mismatch::to_string).collect()
    }

    #[test]
    fn a_configuration_that_has_everything_passes() {
        let resolved =
            "# Automatically generated\nCONFIG_NET=y\nCONFIG_VIRTIO_NET=y\nCONFIG_LSM=\"landlock\"\n";
        assert_eq!(mismatches(resolved), Vec::<String>::new());
        let spelled_out = format!("{resolved}# CONFIG_MODULES is not set\n");
        assert_eq!(mismatches(&spelled_out), Vec::<String>::new());
    }

    #[test]
    fn an_option_that_is_not_as_wanted_is_named() {
        let cases = [
            (
                "an option fell off",
                "CONFIG_NET=y\nCONFIG_LSM=\"landlock\"\n",
                "CONFIG_VIRTIO_NET (some.config:3): wanted y, Kconfig made it off",
            ),
            (
                "an option is spelled out as off",
                "CONFIG_NET=y\n# CONFIG_VIRTIO_NET is not set\nCONFIG_LSM=\"landlock\"\n",
                "CONFIG_VIRTIO_NET (some.config:3): wanted y, Kconfig made it off",
            ),
            (
                "an option became a module",
                "CONFIG_NET=y\nCONFIG_VIRTIO_NET=m\nCONFIG_LSM=\"landlock\"\n",
                "CONFIG_VIRTIO_NET (some.config:3): wanted y, Kconfig made it m",
            ),
            (
                "an option that must be off is on",
                "CONFIG_NET=y\nCONFIG_VIRTIO_NET=y\nCONFIG_MODULES=y\nCONFIG_LSM=\"landlock\"\n",
                "CONFIG_MODULES (some.config:6): wanted off, Kconfig made it y",
            ),
            (
                "a string differs",
                "CONFIG_NET=y\nCONFIG_VIRTIO_NET=y\nCONFIG_LSM=\"\"\n",
                "CONFIG_LSM (some.config:9): wanted \"landlock\", Kconfig made it \"\"",
            ),
        ];
        for (what, resolved, expected) in cases {
            assert_eq!(mismatches(resolved), [expected], "{what}");
        }
    }

    #[test]
    fn a_prefix_of_an_option_is_not_the_option() {
        let resolved = "CONFIG_NET_CORE=y\nCONFIG_VIRTIO_NET=y\nCONFIG_LSM=\"landlock\"\n";
        assert_eq!(mismatches(resolved), ["CONFIG_NET (some.config:2): wanted y, Kconfig made it off"]);
    }

    #[test]
    fn faulty_fragments_are_refused() {
        let cases = [
            (
                "CONFIG_NET=y\n",
                "some.config:1: CONFIG_NET has no reason: a comment must stand above its paragraph",
            ),
            (
                "# Why.\nCONFIG_NET=y\n\nCONFIG_INET=y\n",
                "some.config:4: CONFIG_INET has no reason: a comment must stand above its paragraph",
            ),
            ("# Why.\nNET=y\n", "some.config:2: neither an option, nor `is not set`, nor a comment: `NET=y`"),
            (
                "# Why.\nCONFIG_NET\n",
                "some.config:2: neither an option, nor `is not set`, nor a comment: `CONFIG_NET`",
            ),
            (
                "# Why.\nCONFIG_NET=y\n# CONFIG_NET is not set\n",
                "some.config:3: CONFIG_NET is already set in some.config:2",
            ),
        ];
        for (text, expected) in cases {
            let error = settings(&[Fragment { name: "some.config", text }]).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn the_fragments_of_the_tree_parse_and_keep_the_doors_shut() {
        let small = settings(crate::FRAGMENTS).unwrap();
        let with_buses = settings(&crate::fragments_with_buses()).unwrap();
        let is_off = |settings: &[Setting], option: &str| {
            let name = format!("CONFIG_{option}");
            let setting = settings.iter().find(|setting| setting.option == name);
            setting.is_some_and(|setting| setting.value == Value::Off)
        };
        for option in ["PCI", "ACPI", "SWAP"] {
            assert!(is_off(&small, option) && !is_off(&with_buses, option), "{option}");
        }
        for option in [
            "MODULES",
            "KEXEC",
            "KEXEC_FILE",
            "VSOCKETS_LOOPBACK",
            "CRYPTO_USER_API_HASH",
            "CRYPTO_USER_API_SKCIPHER",
            "CRYPTO_USER_API_RNG",
            "CRYPTO_USER_API_AEAD",
            "X86_X32_ABI",
            "IA32_EMULATION",
            "DEVMEM",
            "DEVPORT",
            "DEBUG_FS",
            "IO_URING",
            "USERFAULTFD",
        ] {
            assert!(is_off(&small, option) && is_off(&with_buses, option), "{option}");
        }
    }

    #[test]
    fn the_kernel_with_buses_differs_in_what_its_fragment_says() {
        let small = settings(crate::FRAGMENTS).unwrap();
        let with_buses = settings(&crate::fragments_with_buses()).unwrap();
        let own = parse(crate::BUSES.name, crate::BUSES.text).unwrap();
        for setting in &small {
            let other = with_buses.iter().find(|other| other.option == setting.option).unwrap();
            let expected = own.get(&setting.option).unwrap_or(&setting.value);
            assert_eq!(&other.value, expected, "{}", setting.option);
        }
        assert!(own.keys().all(|option| with_buses.iter().any(|setting| setting.option == *option)));
    }

    #[test]
    fn the_kernel_for_figures_differs_in_what_it_says() {
        let of_guests = settings(crate::FRAGMENTS).unwrap();
        let for_figures = settings(&crate::fragments_for_figures()).unwrap();
        let value = |settings: &[Setting], option: &str| {
            settings.iter().find(|setting| setting.option == option).map(|setting| setting.value.clone())
        };
        for setting in &of_guests {
            let other = value(&for_figures, &setting.option);
            let differs = setting.option.contains("MITIGATION") || setting.option == "CONFIG_BLK_DEV_INITRD";
            assert_eq!(other.as_ref() != Some(&setting.value), differs, "{}", setting.option);
        }
        assert_eq!(value(&for_figures, "CONFIG_CPU_MITIGATIONS"), Some(Value::Off));
    }

    #[test]
    fn every_file_of_the_fragment_folder_is_used() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fragments");
        let mut on_disk: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let all = crate::FRAGMENTS.iter().chain([&crate::BUSES]);
        let mut used: Vec<&str> = all.map(|fragment| fragment.name).collect();
        on_disk.sort();
        used.sort();
        assert_eq!(on_disk, used);
    }
}
