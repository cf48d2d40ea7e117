//! The process of a container, and of an exec into it.

use nacre_protocols::host_agent::kata::{Box as ConsoleSize, LinuxCapabilities, Process, User};
use serde::{Deserialize, Serialize};

use super::{ContainerSettings, ImageProcess, TerminalSize};

/// docker's, for images that set none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProcessError {
    #[error("the image has neither an entrypoint nor a command, and none was given")]
    NoCommand,
    #[error("the command's first word is empty")]
    EmptyCommand,
    #[error("the working directory {0:?} is not absolute")]
    RelativeDirectory(String),
}

/// What an exec takes over from its container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessDefaults {
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
}

/// What the command line says about an exec.
#[derive(Debug, Clone, Default)]
pub struct ExecSettings {
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub terminal: Option<TerminalSize>,
}

pub(super) fn container_process(
    image: &ImageProcess,
    settings: &ContainerSettings,
    capabilities: &[String],
) -> Result<(Process, ProcessDefaults), ProcessError> {
    let mut env = Vec::new();
    if !image.env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    env.push(format!("HOSTNAME={}", settings.hostname));
    merge(&mut env, &image.env);
    merge(&mut env, &settings.env);
    let defaults = ProcessDefaults {
        env,
        cwd: working_directory(settings.cwd.as_deref(), &image.working_directory),
        user: settings.user.clone().unwrap_or_else(|| image.user.clone()),
        capabilities: capabilities.to_vec(),
        no_new_privileges: settings.no_new_privileges,
    };
    let args = arguments(image, settings);
    let terminal = settings.terminal;
    let process = process(args, &defaults, terminal)?;
    Ok((process, defaults))
}

/// The process of an exec in a container that was made with `defaults`.
pub fn exec_process(defaults: &ProcessDefaults, settings: &ExecSettings) -> Result<Process, ProcessError> {
    let mut own = defaults.clone();
    merge(&mut own.env, &settings.env);
    if let Some(cwd) = &settings.cwd {
        own.cwd.clone_from(cwd);
    }
    if let Some(user) = &settings.user {
        own.user.clone_from(user);
    }
    process(settings.command.clone(), &own, settings.terminal)
}

fn process(
    args: Vec<String>,
    defaults: &ProcessDefaults,
    terminal: Option<TerminalSize>,
) -> Result<Process, ProcessError> {
    match args.first().map(String::as_str) {
        None => return Err(ProcessError::NoCommand),
        Some("") => return Err(ProcessError::EmptyCommand),
        Some(_) => {}
    }
    if !defaults.cwd.starts_with('/') {
        return Err(ProcessError::RelativeDirectory(defaults.cwd.clone()));
    }
    let mut env = defaults.env.clone();
    if terminal.is_some() && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    let set = defaults.capabilities.clone();
    // An empty name would be uid 0 without the groups that the image's /etc/group gives to root.
    let username = if defaults.user.is_empty() { "0".to_owned() } else { defaults.user.clone() };
    Ok(Process {
        terminal: terminal.is_some(),
        console_size: terminal
            .map(|size| ConsoleSize { height: size.rows.into(), width: size.columns.into() }),
        user: Some(User { username, ..Default::default() }),
        args,
        env,
        cwd: defaults.cwd.clone(),
        // Nothing inheritable or ambient: a user that is not root executes without capabilities.
        capabilities: Some(LinuxCapabilities {
            bounding: set.clone(),
            effective: set.clone(),
            permitted: set,
            ..Default::default()
        }),
        no_new_privileges: defaults.no_new_privileges,
        ..Default::default()
    })
}

/// To the agent, `/` means whatever the image says; who asks for it in so many words gets it.
fn working_directory(wanted: Option<&str>, image: &str) -> String {
    match (wanted, image) {
        (Some("/"), _) => "/.",
        (Some(wanted), _) => wanted,
        (None, "") => "/",
        (None, image) => image,
    }
    .to_owned()
}

/// docker's rule: an entrypoint on the command line drops the image's command; a command replaces the image's.
fn arguments(image: &ImageProcess, settings: &ContainerSettings) -> Vec<String> {
    let command = match (&settings.entrypoint, settings.command.is_empty()) {
        (None, true) => &image.command,
        _ => &settings.command,
    };
    let entrypoint = settings.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    entrypoint.iter().chain(command).cloned().collect()
}

/// Later entries replace earlier ones of the same name, in place.
fn merge(env: &mut Vec<String>, more: &[String]) {
    for entry in more {
        let name = entry.split('=').next().unwrap_or_default();
        let place = env.iter().position(|old| old.split('=').next() == Some(name));
        match place.and_then(|place| env.get_mut(place)) {
            Some(old) => old.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn entrypoint_and_command_compose_as_docker_composes_them() {
        for (image_entrypoint, image_command, entrypoint, command, expected) in [
            ("", "sh", None, "", "sh"),
            ("", "sh", None, "echo hi", "echo hi"),
            ("/entry", "serve", None, "", "/entry serve"),
            ("/entry", "serve", None, "check now", "/entry check now"),
            ("/entry", "serve", Some("/other"), "", "/other"),
            ("/entry", "serve", Some("/other"), "x", "/other x"),
            ("/entry", "serve", Some(""), "x", "x"),
        ] {
            let image = ImageProcess {
                entrypoint: words(image_entrypoint),
                command: words(image_command),
                ..Default::default()
            };
            let settings = ContainerSettings {
                entrypoint: entrypoint.map(words),
                command: words(command),
                ..Default::default()
            };
            assert_eq!(arguments(&image, &settings), words(expected), "{settings:?}");
        }
    }

    #[test]
    fn the_environment_is_path_hostname_image_then_command_line() {
        let image = ImageProcess {
            env: vec!["A=image".into(), "B=1".into()],
            command: words("x"),
            ..Default::default()
        };
        let settings = ContainerSettings {
            env: vec!["A=line".into(), "C=a=b".into()],
            hostname: "h".into(),
            terminal: Some(TerminalSize::default()),
            ..Default::default()
        };
        let (process, _) = container_process(&image, &settings, &[]).unwrap();
        assert_eq!(process.env, [DEFAULT_PATH, "HOSTNAME=h", "A=line", "B=1", "C=a=b", "TERM=xterm"]);
    }

    #[test]
    fn a_process_without_a_command_or_with_a_relative_directory_is_refused() {
        let none = container_process(&ImageProcess::default(), &ContainerSettings::default(), &[]);
        assert_eq!(none.unwrap_err(), ProcessError::NoCommand);
        let settings =
            ContainerSettings { command: words("x"), cwd: Some("tmp".into()), ..Default::default() };
        let relative = container_process(&ImageProcess::default(), &settings, &[]);
        assert_eq!(relative.unwrap_err(), ProcessError::RelativeDirectory("tmp".into()));
    }

    #[test]
    fn an_exec_has_the_surroundings_of_its_container() {
        let defaults = ProcessDefaults {
            env: vec!["A=1".into()],
            cwd: "/srv".into(),
            user: "app".into(),
            capabilities: vec!["CAP_KILL".into()],
            no_new_privileges: true,
        };
        let settings = ExecSettings { command: words("id"), user: Some("0:0".into()), ..Default::default() };
        let process = exec_process(&defaults, &settings).unwrap();
        assert_eq!(
            (process.env, process.cwd.as_str(), process.no_new_privileges),
            (vec!["A=1".into()], "/srv", true)
        );
        assert_eq!(process.user.unwrap().username, "0:0");
        assert_eq!(process.capabilities.unwrap().bounding, ["CAP_KILL"]);
    }
}
