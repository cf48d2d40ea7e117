//! The methods of the API: which there are, what each may cost, and the functions that do the work.

mod container;
mod disks;
mod files;
mod guest;
mod nacre;
mod network;
mod process;
mod resources;
mod sandbox;

use crate::agent::Agent;
use crate::error::RpcError;
use crate::server::{Outbound, Sent};
use nacre_protocols::host_agent::kata::{agent_service, health};
use nacre_protocols::host_agent::nacre::sandbox as nacre_sandbox;
use nacre_protocols::host_agent::{Rpc, ttrpc::Code};
use prost::Message;
use std::pin::Pin;
use std::rc::Rc;

/// What a method is given beside its message.
#[derive(Clone)]
pub struct Context {
    pub agent: Rc<Agent>,
    /// Of the connection that the request came on.
    pub outbound: Rc<Outbound>,
}

/// The answer to a request, and what to do when it was written to the host.
pub struct Reply {
    pub payload: Vec<u8>,
    pub sent: Option<Sent>,
}

pub type Outcome = Result<Reply, RpcError>;
pub type Begin = fn(Context, Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome>>>;

pub struct Route {
    /// Longest message, in bytes.
    pub request_max: usize,
    pub work: Work,
}

/// How long the work for a request goes on.
pub enum Work {
    /// Done in one step.
    AtOnce(fn(&[u8]) -> Outcome),
    /// Given up when the deadline passes or the connection ends: waiting and reading, which change nothing until
    /// they answer.
    UntilDeadline(Begin),
    /// Goes on to its end whatever becomes of who asked.
    ToTheEnd(Begin),
}

/// Longest message of most methods, in bytes.
const SMALL: usize = 64 * 1024;
/// With an OCI configuration, or a list of certificates.
const LARGE: usize = 1024 * 1024;
/// With data for a stream.
const DATA: usize = 4 * 1024 * 1024;

pub fn route(service: &str, method: &str) -> Result<Route, RpcError> {
    let (route, methods) = match service {
        agent_service::SERVICE => (agent_route(method), agent_service::METHODS),
        health::SERVICE => (health_route(method), health::METHODS),
        nacre_sandbox::SERVICE => (nacre_route(method), nacre_sandbox::METHODS),
        _ => {
            let message = format!("service {:?} is unknown", shown(service));
            return Err(RpcError::invalid(message));
        }
    };
    route.ok_or_else(|| {
        let what = match absence(method) {
            _ if !methods.contains(&method) => "is unknown".to_owned(),
            Some(reason) => format!("is not implemented: {reason}"),
            None => "is not implemented".to_owned(),
        };
        RpcError::new(Code::Unimplemented, format!("method {:?} of {service} {what}", shown(method)))
    })
}

/// Why this guest does not have a method of the API.
fn absence(method: &str) -> Option<&'static str> {
    Some(match method {
        "SetPolicy" => "the bounds of this sandbox were set when it was booted",
        "MemAgentMemcgSet" | "MemAgentCompactSet" => "the guest has no memory agent",
        "MemHotplugByProbe" => "memory is not added to this guest by probing",
        "GetIPTables" | "SetIPTables" => "the guest's kernel has no packet filter",
        _ => return None,
    })
}

fn agent_route(method: &str) -> Option<Route> {
    Some(match method {
        "CreateSandbox" => to_the_end(LARGE, sandbox::create),
        "DestroySandbox" => to_the_end(SMALL, sandbox::destroy),
        "GetGuestDetails" => until_deadline(sandbox::guest_details),
        "SetGuestDateTime" => to_the_end(SMALL, sandbox::set_date_time),
        "GetOOMEvent" => until_deadline(sandbox::oom_event),
        "OnlineCPUMem" => to_the_end(SMALL, guest::online),
        "ReseedRandomDev" => to_the_end(SMALL, guest::reseed),
        "GetMetrics" => until_deadline(guest::metrics),
        "StatsContainer" => until_deadline(resources::stats),
        "PauseContainer" => to_the_end(SMALL, resources::pause),
        "ResumeContainer" => to_the_end(SMALL, resources::resume),
        "CopyFile" => to_the_end(DATA, files::copy),
        "UpdateEphemeralMounts" => to_the_end(SMALL, files::update_ephemeral_mounts),
        "RemoveStaleVirtiofsShareMounts" => to_the_end(SMALL, files::remove_stale_shares),
        "GetVolumeStats" => until_deadline(files::volume_stats),
        "ResizeVolume" => to_the_end(SMALL, disks::grow),
        "AddSwap" => to_the_end(SMALL, disks::add_swap),
        "AddSwapPath" => to_the_end(SMALL, disks::add_swap_by_name),
        "GetDiagnosticData" => until_deadline(files::diagnostic_data),
        "UpdateContainer" => to_the_end(SMALL, resources::update),
        "CreateContainer" => to_the_end(LARGE, container::create),
        "StartContainer" => to_the_end(SMALL, container::start),
        "RemoveContainer" => to_the_end(SMALL, container::remove),
        "ExecProcess" => to_the_end(LARGE, process::exec),
        "SignalProcess" => to_the_end(SMALL, process::signal),
        "WaitProcess" => until_deadline(process::wait),
        "WriteStdin" => to_the_end(DATA, process::write_stdin),
        "ReadStdout" => until_deadline(process::read_stdout),
        "ReadStderr" => until_deadline(process::read_stderr),
        "CloseStdin" => to_the_end(SMALL, process::close_stdin),
        "TtyWinResize" => to_the_end(SMALL, process::resize),
        "UpdateInterface" => to_the_end(SMALL, network::update_interface),
        "UpdateRoutes" => to_the_end(SMALL, network::update_routes),
        "ListInterfaces" => to_the_end(SMALL, network::list_interfaces),
        "ListRoutes" => to_the_end(SMALL, network::list_routes),
        "AddARPNeighbors" => to_the_end(SMALL, network::add_neighbours),
        _ => return None,
    })
}

fn health_route(method: &str) -> Option<Route> {
    Some(match method {
        "Check" => at_once(sandbox::check),
        "Version" => at_once(sandbox::version),
        _ => return None,
    })
}

fn nacre_route(method: &str) -> Option<Route> {
    Some(match method {
        "StartPull" => to_the_end(LARGE, nacre::start_pull),
        "WatchPull" => until_deadline(nacre::watch_pull),
        "CancelPull" => to_the_end(SMALL, nacre::cancel_pull),
        "ListImages" => to_the_end(SMALL, nacre::list_images),
        "CollectImages" => to_the_end(SMALL, nacre::collect_images),
        "GetReport" => to_the_end(SMALL, nacre::report),
        "UpgradeAgent" => to_the_end(DATA, nacre::upgrade_agent),
        _ => return None,
    })
}

fn at_once(work: fn(&[u8]) -> Outcome) -> Route {
    Route { request_max: SMALL, work: Work::AtOnce(work) }
}

fn until_deadline(work: Begin) -> Route {
    Route { request_max: SMALL, work: Work::UntilDeadline(work) }
}

fn to_the_end(request_max: usize, work: Begin) -> Route {
    Route { request_max, work: Work::ToTheEnd(work) }
}

fn request<R: Rpc>(payload: &[u8]) -> Result<R::Request, RpcError> {
    R::Request::decode(payload)
        .map_err(|error| RpcError::invalid(format!("the message of {} does not decode: {error}", R::METHOD)))
}

fn reply<R: Rpc>(response: &R::Response) -> Outcome {
    Ok(Reply { payload: response.encode_to_vec(), sent: None })
}

/// A name from outside, as an error shows it.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// Makes a method of an `async fn(Context, Request) -> Result<Response, RpcError>`.
macro_rules! method {
    ($(#[$doc:meta])* $name:ident, $rpc:ty, $work:expr) => {
        $(#[$doc])*
        pub fn $name(
            context: $crate::rpc::Context,
            payload: Vec<u8>,
        ) -> std::pin::Pin<Box<dyn Future<Output = $crate::rpc::Outcome>>> {
            Box::pin(async move {
                let request = $crate::rpc::request::<$rpc>(&payload)?;
                drop(payload);
                let response = $work(context, request).await?;
                $crate::rpc::reply::<$rpc>(&response)
            })
        }
    };
}
use method;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_says_so_by_name() {
        for (service, method, code, text) in [
            ("grpc.Nothing", "Check", Code::InvalidArgument, "service \"grpc.Nothing\" is unknown"),
            ("grpc.Health", "Chuck", Code::Unimplemented, "method \"Chuck\" of grpc.Health is unknown"),
            (
                "grpc.AgentService",
                "SetPolicy",
                Code::Unimplemented,
                "method \"SetPolicy\" of grpc.AgentService is not implemented: the bounds of this sandbox were set when it was booted",
            ),
        ] {
            let error = route(service, method).err().unwrap();
            assert_eq!((error.code, error.message.as_str()), (code, text));
        }
    }

    #[test]
    fn only_methods_of_the_api_have_a_route() {
        let all = agent_service::METHODS.iter().filter(|method| agent_route(method).is_some()).count();
        let refused = agent_service::METHODS.iter().filter(|method| absence(method).is_some()).count();
        assert_eq!((all, refused), (36, 6));
        assert!(agent_service::METHODS.iter().all(|it| agent_route(it).is_none() || absence(it).is_none()));
        assert!(health::METHODS.iter().all(|method| health_route(method).is_some()));
        assert!(nacre_sandbox::METHODS.iter().all(|method| nacre_route(method).is_some()));
    }
}
