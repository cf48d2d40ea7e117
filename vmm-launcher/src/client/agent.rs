//! The calls that `nacre` makes, by name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nacre_protocols::host_agent::kata::{self, agent_service as rpc};
use nacre_protocols::host_agent::nacre::{self as own, sandbox};

use super::{CALL_DEADLINE, CallRule, Client, ClientError};

/// Asked for with one read of a stream, in bytes: large enough that the calls do not cost, small beside a frame.
pub const READ_LEN: u32 = 256 * 1024;
/// Deadline of CreateContainer: mounts of many layers, and under emulation.
const CREATE_DEADLINE: Duration = Duration::from_secs(120);

/// A process of a container: its first one when `exec` is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    pub container: String,
    pub exec: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Or 128 plus the signal.
    pub code: u8,
    /// The kernel killed it because its container had no memory left.
    pub out_of_memory: bool,
}

impl ProcessId {
    pub fn first(container: &str) -> Self {
        Self { container: container.to_owned(), exec: String::new() }
    }
}

impl Client {
    /// Sets the guest's clock to this host's.
    pub async fn set_clock(&self) -> Result<(), ClientError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let request = kata::SetGuestDateTimeRequest {
            sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            usec: i64::from(now.subsec_micros()),
        };
        self.call::<rpc::SetGuestDateTime>(&request, CallRule::REPEATABLE).await.map(drop)
    }

    pub async fn update_interface(&self, interface: kata::Interface) -> Result<(), ClientError> {
        let request = kata::UpdateInterfaceRequest { interface: Some(interface) };
        self.call::<rpc::UpdateInterface>(&request, CallRule::REPEATABLE).await.map(drop)
    }

    pub async fn update_routes(&self, routes: Vec<kata::Route>) -> Result<(), ClientError> {
        let request = kata::UpdateRoutesRequest { routes: Some(kata::Routes { routes }) };
        self.call::<rpc::UpdateRoutes>(&request, CallRule::REPEATABLE).await.map(drop)
    }

    pub async fn create_sandbox(&self, request: &kata::CreateSandboxRequest) -> Result<(), ClientError> {
        self.call::<rpc::CreateSandbox>(request, CallRule::ONCE).await.map(drop)
    }

    pub async fn create_container(&self, request: &kata::CreateContainerRequest) -> Result<(), ClientError> {
        // The agent knows a request that it has seen by its bytes.
        let rule = CallRule { deadline: Some(CREATE_DEADLINE), resend: true };
        self.call::<rpc::CreateContainer>(request, rule).await.map(drop)
    }

    pub async fn start_container(&self, container: &str) -> Result<(), ClientError> {
        let request = kata::StartContainerRequest { container_id: container.to_owned() };
        self.call::<rpc::StartContainer>(&request, CallRule::ONCE).await.map(drop)
    }

    pub async fn exec(&self, id: &ProcessId, process: kata::Process) -> Result<(), ClientError> {
        let request = kata::ExecProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            process: Some(process),
            ..Default::default()
        };
        self.call::<rpc::ExecProcess>(&request, CallRule::ONCE).await.map(drop)
    }

    pub async fn signal(&self, id: &ProcessId, signal: u32) -> Result<(), ClientError> {
        let request = kata::SignalProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            signal,
        };
        self.call::<rpc::SignalProcess>(&request, CallRule::REPEATABLE).await.map(drop)
    }

    /// Every process of the container, SIGKILL.
    pub async fn kill_all(&self, container: &str) -> Result<(), ClientError> {
        self.signal(&ProcessId::first(container), 9).await
    }

    /// Waits for the end of the process.
    pub async fn wait(&self, id: &ProcessId) -> Result<Exit, ClientError> {
        let request =
            kata::WaitProcessRequest { container_id: id.container.clone(), exec_id: id.exec.clone() };
        let kata::WaitProcessResponse { status, out_of_memory } =
            self.call::<rpc::WaitProcess>(&request, CallRule::LONG_POLL).await?;
        let code =
            u8::try_from(status).map_err(|_| ClientError::Protocol(format!("{status} is no exit code")))?;
        Ok(Exit { code, out_of_memory })
    }

    /// What the process has written behind the `received` bytes that are here already; empty at the end. Sent again on a lost
    /// connection, it gives the same.
    pub async fn read_stdout(&self, id: &ProcessId, received: u64) -> Result<Vec<u8>, ClientError> {
        let request = read_request(id, received);
        Ok(self.call::<rpc::ReadStdout>(&request, CallRule::LONG_POLL).await?.data)
    }

    pub async fn read_stderr(&self, id: &ProcessId, received: u64) -> Result<Vec<u8>, ClientError> {
        let request = read_request(id, received);
        Ok(self.call::<rpc::ReadStderr>(&request, CallRule::LONG_POLL).await?.data)
    }

    /// Returns how much was taken. Not repeated on a lost connection: the process might read it twice.
    pub async fn write_stdin(&self, id: &ProcessId, data: Vec<u8>) -> Result<usize, ClientError> {
        let length = data.len();
        let request =
            kata::WriteStreamRequest { container_id: id.container.clone(), exec_id: id.exec.clone(), data };
        let rule = CallRule { deadline: None, resend: false };
        let taken = self.call::<rpc::WriteStdin>(&request, rule).await?.len as usize;
        if taken > length || (taken == 0 && length > 0) {
            return Err(ClientError::Protocol(format!("{taken} bytes taken of {length}")));
        }
        Ok(taken)
    }

    pub async fn close_stdin(&self, id: &ProcessId) -> Result<(), ClientError> {
        let request =
            kata::CloseStdinRequest { container_id: id.container.clone(), exec_id: id.exec.clone() };
        self.call::<rpc::CloseStdin>(&request, CallRule::REPEATABLE).await.map(drop)
    }

    pub async fn resize(&self, id: &ProcessId, rows: u16, columns: u16) -> Result<(), ClientError> {
        let request = kata::TtyWinResizeRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            row: rows.into(),
            column: columns.into(),
        };
        self.call::<rpc::TtyWinResize>(&request, CallRule::REPEATABLE).await.map(drop)
    }

    pub async fn remove_container(&self, container: &str) -> Result<(), ClientError> {
        let request = kata::RemoveContainerRequest { container_id: container.to_owned(), timeout: 0 };
        self.call::<rpc::RemoveContainer>(&request, CallRule::ONCE).await.map(drop)
    }

    /// The guest syncs and powers off; the connection may be lost before the answer.
    pub async fn destroy_sandbox(&self, deadline: Duration) -> Result<(), ClientError> {
        let rule = CallRule { deadline: Some(deadline), resend: false };
        match self.call::<rpc::DestroySandbox>(&kata::DestroySandboxRequest {}, rule).await {
            Ok(_) | Err(ClientError::Lost { .. } | ClientError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub async fn stats(&self, container: &str) -> Result<kata::StatsContainerResponse, ClientError> {
        let request = kata::StatsContainerRequest { container_id: container.to_owned() };
        self.call::<rpc::StatsContainer>(&request, CallRule::REPEATABLE).await
    }

    pub async fn start_pull(&self, request: &own::StartPullRequest) -> Result<own::PullState, ClientError> {
        self.call::<sandbox::StartPull>(request, CallRule::REPEATABLE).await
    }

    /// The state of the pull when it is newer than `after`.
    pub async fn watch_pull(&self, id: &str, after: u64) -> Result<own::PullState, ClientError> {
        let request = own::WatchPullRequest { id: id.to_owned(), after };
        self.call::<sandbox::WatchPull>(&request, CallRule::LONG_POLL).await
    }

    pub async fn cancel_pull(&self, id: &str) -> Result<own::PullState, ClientError> {
        let request = own::CancelPullRequest { id: id.to_owned() };
        let rule = CallRule { deadline: Some(CALL_DEADLINE), resend: true };
        self.call::<sandbox::CancelPull>(&request, rule).await
    }

    /// What the sandbox's store holds.
    pub async fn list_images(&self) -> Result<own::ImageList, ClientError> {
        self.call::<sandbox::ListImages>(&own::ListImagesRequest {}, CallRule::REPEATABLE).await
    }

    /// Removes what no container uses and nobody keeps; the references of `forget` are not kept any more.
    pub async fn collect_images(
        &self,
        forget: Vec<String>,
        only: bool,
    ) -> Result<own::Collected, ClientError> {
        let request = own::CollectImagesRequest { forget, only };
        self.call::<sandbox::CollectImages>(&request, CallRule::REPEATABLE).await
    }

    /// Puts another program in the agent's place. Its connections end.
    pub async fn upgrade_agent(&self, program: Vec<u8>) -> Result<(), ClientError> {
        let request = own::UpgradeAgentRequest { program };
        self.call::<sandbox::UpgradeAgent>(&request, CallRule::ONCE).await.map(drop)
    }

    /// Brings processors of the guest up, until so many are.
    pub async fn online_processors(&self, count: u8) -> Result<(), ClientError> {
        let request = kata::OnlineCpuMemRequest { wait: true, nb_cpus: count.into(), cpu_only: true };
        self.call::<rpc::OnlineCPUMem>(&request, CallRule::REPEATABLE).await.map(drop)
    }

    /// Changes what a container may use.
    pub async fn update_container(
        &self,
        container: &str,
        resources: kata::LinuxResources,
    ) -> Result<(), ClientError> {
        let request =
            kata::UpdateContainerRequest { container_id: container.to_owned(), resources: Some(resources) };
        self.call::<rpc::UpdateContainer>(&request, CallRule::REPEATABLE).await.map(drop)
    }

    /// Boot stages and memory of the guest's own processes.
    pub async fn report(&self) -> Result<own::Report, ClientError> {
        self.call::<sandbox::GetReport>(&own::ReportRequest {}, CallRule::REPEATABLE).await
    }
}

fn read_request(id: &ProcessId, received: u64) -> kata::ReadStreamRequest {
    kata::ReadStreamRequest {
        container_id: id.container.clone(),
        exec_id: id.exec.clone(),
        len: READ_LEN,
        received: Some(received),
    }
}
