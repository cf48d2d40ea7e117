//! What a person is told when something fails: the stage, the cause, the end of the console, and what to do next.

use std::fmt;

use super::exit;
use crate::client::ClientError;
use crate::sandbox::session::{PullProblem, SessionError};
use crate::sandbox::{ControlError, LaunchError, Problem, StateError};

#[derive(Debug)]
pub struct Failure {
    /// Such as `pull`.
    pub stage: &'static str,
    pub cause: String,
    /// The end of the guest's console, printable.
    pub console: Vec<String>,
    pub next_step: Option<String>,
    /// See [`exit`].
    pub code: u8,
    /// The agent could not be reached: perhaps the sandbox is dead, and that is the true cause.
    pub lost: bool,
}

impl Failure {
    pub fn new(stage: &'static str, cause: impl fmt::Display) -> Self {
        Self {
            stage,
            cause: cause.to_string(),
            console: Vec::new(),
            next_step: None,
            code: exit::OWN_FAILURE,
            lost: false,
        }
    }

    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next_step = Some(step.into());
        self
    }

    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// With the user's name for something instead of the sandbox's.
    pub fn named(mut self, sandbox: &str, user: &str) -> Self {
        self.cause = self.cause.replace(sandbox, user);
        self
    }

    /// The sandbox itself died.
    pub fn died(stage: &'static str, problem: Problem) -> Self {
        Self {
            stage,
            cause: problem.cause,
            console: problem.console,
            next_step: Some(problem.next_step),
            code: exit::OWN_FAILURE,
            lost: false,
        }
    }

    pub fn from_session(stage: &'static str, error: SessionError) -> Self {
        let cause = error.to_string();
        match error {
            SessionError::CommandNotFound(_) => Self::new(stage, cause)
                .next("check the command and the image's PATH; for a look around: nacre run -it --entrypoint sh IMAGE")
                .with_code(exit::NOT_FOUND),
            SessionError::CommandNotExecutable(_) => Self::new(stage, cause)
                .next("check the file's mode, its interpreter (first line), and that it is made for x86-64")
                .with_code(exit::NOT_EXECUTABLE),
            SessionError::Pull { kind, .. } => Self::new(stage, cause).next(pull_advice(kind)),
            SessionError::Agent { source, .. } => {
                let lost = source.is_end() || matches!(source, ClientError::Lost { .. });
                let failure = Self { lost, ..Self::new(stage, cause) };
                match agent_advice(&source) {
                    Some(advice) => failure.next(advice),
                    None => failure,
                }
            }
        }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::new("state", error)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::new("sandbox", error)
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Failed(problem) => {
                let cause = format!("{}: {}", problem.stage, problem.cause);
                Self::died("boot", Problem { cause, ..problem })
            }
            other => Self::new("boot", other),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nacre: {}: {}", self.stage, self.cause)?;
        if !self.console.is_empty() {
            write!(f, "\n  the end of the sandbox's console:")?;
            for line in &self.console {
                write!(f, "\n    {line}")?;
            }
        }
        if let Some(next) = &self.next_step {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
    }
}

fn pull_advice(kind: PullProblem) -> &'static str {
    match kind {
        PullProblem::Reference => "write it as [REGISTRY/]NAME[:TAG][@sha256:DIGEST]",
        PullProblem::NameResolution => "check the registry's name, and that this host can resolve it",
        PullProblem::Connect => {
            "check that the registry runs and that this host reaches it; for plain http: --tls-verify=false"
        }
        PullProblem::Port => "if the registry's answers may lead there, name the port with --registry-port",
        PullProblem::Tls => {
            "add the registry's authority with --ca-cert FILE, or accept any with --tls-verify=false"
        }
        PullProblem::Unauthorized => {
            "give --creds USER:PASSWORD, or log in with docker login or podman login"
        }
        PullProblem::NotFound => {
            "check the image's name and tag; private images look missing without --creds"
        }
        PullProblem::Digest => {
            "what the registry sent is not what was asked for: do not use it; tell the registry's owner, or pull from another"
        }
        PullProblem::Platform => "choose one that the image has, or build it for linux/amd64; see --platform",
        PullProblem::Limit => "the image is beyond what a sandbox takes; the message names the limit",
        PullProblem::Stalled => "the registry stopped sending; try again",
        PullProblem::DiskFull => {
            "give the sandbox more room with --scratch SIZE, and check the free space of this host"
        }
        PullProblem::Quota => {
            "give the sandbox's layers more room with --image-quota, or let go of images with nacre images --prune"
        }
        PullProblem::Malformed => {
            "the image or the registry breaks the OCI specification; push the image again"
        }
        PullProblem::Policy => "if you trust it, let a rule of the --policy file take it",
        PullProblem::Cancelled => "it was cancelled",
        PullProblem::Internal => "run it again; if it stays, report it with the console log",
    }
}

fn agent_advice(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Gone { .. } | ClientError::Closed => Some("the virtual machine ended; see the console"),
        ClientError::Lost { .. } => Some("the agent was restarted in the middle; run it again"),
        ClientError::Deadline { .. } => {
            Some("the sandbox is too slow or stuck; try again, with more --vm-memory")
        }
        ClientError::Protocol(_) => Some("the guest does not behave: treat the image as hostile"),
        ClientError::Status { message, .. } if message.to_lowercase().contains("no space left") => {
            Some("give the sandbox more room with --scratch SIZE")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_stage_cause_console_and_next_step() {
        let problem = Problem {
            stage: "boot".into(),
            cause: "the VMM was killed by signal 9".into(),
            console: vec!["line one".into(), "line two".into()],
            next_step: "look at dmesg".into(),
        };
        let text = Failure::died("boot", problem).to_string();
        assert_eq!(
            text,
            "nacre: boot: the VMM was killed by signal 9\n  the end of the sandbox's console:\n    line one\n    line two\n  next: look at dmesg"
        );
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        for (error, code) in [
            (SessionError::CommandNotFound("x".into()), 127),
            (SessionError::CommandNotExecutable("x".into()), 126),
            (SessionError::Pull { kind: PullProblem::Digest, message: "x".into() }, 125),
            (SessionError::Agent { action: "x", source: ClientError::Closed }, 125),
        ] {
            assert_eq!(Failure::from_session("start", error).code, code);
        }
    }
}
