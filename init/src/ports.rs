//! vsock ports beside the agent's own, each only when the host asks for it on the kernel command line, in the words that
//! Kata's runtimes write:
//!
//! | word | who listens | what comes out of it |
//! |---|---|---|
//! | `agent.log_vport=PORT` | the agent | its log, as lines of JSON |
//! | `agent.passfd_listener_port=PORT` | the agent | connections that become the standard streams of processes |
//! | `agent.debug_console`, `agent.debug_console_vport=PORT` | init | a shell, where the manifest allows it (`nacre.allow=console`) |

use crate::InitError;
use crate::console::say;
use nacre_sys::vsock;
use std::os::fd::OwnedFd;

/// Where Kata's runtimes look for the console, when they do not say another place.
const CONSOLE_PORT: u32 = 1026;

/// The ports that are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ports {
    pub log: Option<u32>,
    pub passed: Option<u32>,
    pub console: Option<u32>,
}

/// Open to the end, as the agent's own port: nobody else in the guest can take them.
#[derive(Default)]
pub struct Listeners {
    pub log: Option<OwnedFd>,
    pub passed: Option<OwnedFd>,
    pub console: Option<OwnedFd>,
}

impl Ports {
    /// Takes a word that is about a port. A number that is none asks for nothing, as Kata's own agent has it.
    pub fn word(&mut self, word: &str) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse().ok().filter(|port| *port > 0);
        match name {
            "agent.log_vport" => self.log = number(),
            "agent.passfd_listener_port" => self.passed = number(),
            "agent.debug_console_vport" => self.console = number(),
            "agent.debug_console" if matches!(value, "" | "true" | "1") => {
                self.console = self.console.or(Some(CONSOLE_PORT));
            }
            _ => {}
        }
    }

    pub fn listen(self, console_allowed: bool) -> Result<Listeners, InitError> {
        let console = match self.console {
            Some(port) if !console_allowed => {
                say(&format!("no debug console on port {port}: the manifest does not allow it"));
                None
            }
            asked => asked,
        };
        Ok(Listeners { log: open(self.log)?, passed: open(self.passed)?, console: open(console)? })
    }
}

fn open(port: Option<u32>) -> Result<Option<OwnedFd>, InitError> {
    port.map(vsock::listen)
        .transpose()
        .map_err(InitError::io("listening on a vsock port of the command line"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_opened_by_its_word_alone() {
        let none = Ports::default();
        for (words, expected) in [
            ("quiet agent.log=debug agent.devmode", none),
            ("agent.log_vport=1025", Ports { log: Some(1025), ..none }),
            ("agent.log_vport=0", none),
            ("agent.log_vport=many", none),
            ("agent.passfd_listener_port=1027", Ports { passed: Some(1027), ..none }),
            ("agent.debug_console", Ports { console: Some(1026), ..none }),
            ("agent.debug_console=false", none),
            ("agent.debug_console agent.debug_console_vport=2000", Ports { console: Some(2000), ..none }),
            ("agent.debug_console_vport=2000 agent.debug_console", Ports { console: Some(2000), ..none }),
        ] {
            let mut ports = none;
            words.split(' ').for_each(|word| ports.word(word));
            assert_eq!(ports, expected, "{words}");
        }
    }

    #[test]
    fn a_console_that_the_manifest_does_not_allow_is_not_opened() {
        let listeners = Ports { console: Some(1026), ..Default::default() }.listen(false).unwrap();
        assert!(listeners.console.is_none());
    }
}
