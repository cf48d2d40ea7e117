//! Errors: those that end the agent, and those that answer a request.

use nacre_plan::PlanError;
use nacre_protocols::agent_init::{Failure, FailureKind};
use nacre_protocols::frame::FrameError;
use nacre_protocols::host_agent::ttrpc::Code;
use std::io;

/// What ends the agent; init starts another.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("{operation}: {error}")]
    Io { operation: &'static str, error: io::Error },
    #[error("a descriptor that init should have given is missing")]
    Descriptors,
    #[error("refusing to run: {0}")]
    Rights(String),
    #[error("init is gone")]
    InitGone,
    #[error("init's frame: {0}")]
    Frame(#[from] FrameError),
    #[error("init answered {request} with {answer}")]
    Answer { request: &'static str, answer: String },
}

impl AgentError {
    pub fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { operation, error }
    }

    pub fn unfitting(request: &'static str) -> Self {
        Self::Answer { request, answer: "what does not fit it".to_owned() }
    }

    pub fn system(operation: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { operation, error: errno.into() }
    }
}

/// What answers a request that cannot be fulfilled: a code of gRPC and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    pub code: Code,
    pub message: String,
}

impl RpcError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Init answered with what does not fit the request.
    pub fn unfitting(request: &str) -> Self {
        Self::internal(format!("init answered {request} with what does not fit it"))
    }

    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, format!("{} is not supported", what.into()))
    }
}

impl From<PlanError> for RpcError {
    fn from(error: PlanError) -> Self {
        let code = match error {
            PlanError::Unsupported { .. } => Code::Unimplemented,
            PlanError::Invalid { .. } | PlanError::TooMany { .. } => Code::InvalidArgument,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Failure> for RpcError {
    fn from(failure: Failure) -> Self {
        let code = match failure.kind {
            FailureKind::NotFound => Code::NotFound,
            FailureKind::Exists => Code::AlreadyExists,
            FailureKind::Refused => Code::PermissionDenied,
            FailureKind::State => Code::FailedPrecondition,
            FailureKind::DiskFull => Code::ResourceExhausted,
            FailureKind::Unsupported => Code::Unimplemented,
            // Shims try again only when they find this text.
            FailureKind::LinkNotFound => {
                return Self::internal(format!("Link not found: {}", failure.message));
            }
            FailureKind::CommandNotFound | FailureKind::CommandNotExecutable | FailureKind::System => {
                Code::Internal
            }
        };
        Self::new(code, failure.message)
    }
}
