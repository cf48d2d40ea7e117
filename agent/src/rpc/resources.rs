//! What a container uses and may use.

use super::{Context, method};
use crate::error::RpcError;
use crate::plan;
use crate::stats::{self, MemoryTexts};
use nacre_protocols::agent_init::{CgroupFile, GuestFile, KernelFile, RequestBody};
use nacre_protocols::host_agent::kata::{
    CgroupStats, Empty, PauseContainerRequest, ResumeContainerRequest, StatsContainerRequest,
    StatsContainerResponse, UpdateContainerRequest, agent_service,
};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::init_launcher::Plan;
use std::time::Duration;

/// How often it is looked whether every process has stopped, and for how long.
const FREEZE_PAUSE: Duration = Duration::from_millis(5);
const FREEZE_ATTEMPTS: usize = 400;

method!(stats, agent_service::StatsContainer, container_stats);
method!(pause, agent_service::PauseContainer, pause_container);
method!(resume, agent_service::ResumeContainer, resume_container);
method!(update, agent_service::UpdateContainer, update_container);

async fn container_stats(
    context: Context,
    request: StatsContainerRequest,
) -> Result<StatsContainerResponse, RpcError> {
    let agent = &context.agent;
    let id = &request.container_id;
    agent.containers.expect(id)?;
    let read = |file| agent.init.read_if_there(KernelFile::Cgroup { id: id.clone(), file });
    let memory = MemoryTexts {
        current: read(CgroupFile::MemoryCurrent).await?,
        peak: read(CgroupFile::MemoryPeak).await?,
        max: read(CgroupFile::MemoryMax).await?,
        events: read(CgroupFile::MemoryEvents).await?,
        stat: read(CgroupFile::MemoryStat).await?,
        swap: read(CgroupFile::SwapCurrent).await?,
    };
    let pids = stats::pids(&read(CgroupFile::PidsCurrent).await?, &read(CgroupFile::PidsMax).await?);
    let mut cgroup = CgroupStats {
        cpu_stats: Some(stats::cpu(&read(CgroupFile::CpuStat).await?)),
        memory_stats: Some(stats::memory(&memory)),
        pids_stats: Some(pids),
        blkio_stats: Some(stats::blocks(&read(CgroupFile::IoStat).await?)),
        ..Default::default()
    };
    for (size, current, events) in [
        ("2MB", CgroupFile::HugePages2MibCurrent, CgroupFile::HugePages2MibEvents),
        ("1GB", CgroupFile::HugePages1GibCurrent, CgroupFile::HugePages1GibEvents),
    ] {
        let current = read(current).await?;
        if !current.is_empty() {
            let of_size = stats::huge_pages(&current, &read(events).await?);
            cgroup.hugetlb_stats.insert(size.to_owned(), of_size);
        }
    }
    // The sandbox's: its containers share them.
    let dev = agent.init.read_if_there(KernelFile::Guest(GuestFile::NetworkDevices)).await?;
    let mut network_stats = stats::interfaces(&dev);
    network_stats.retain(|interface| interface.name != "lo");
    Ok(StatsContainerResponse { cgroup_stats: Some(cgroup), network_stats })
}

async fn pause_container(context: Context, request: PauseContainerRequest) -> Result<Empty, RpcError> {
    let id = request.container_id;
    freeze(&context, &id, true).await?;
    for _ in 0..FREEZE_ATTEMPTS {
        let file = KernelFile::Cgroup { id: id.clone(), file: CgroupFile::Events };
        if stats::fields(&context.agent.init.read(file).await?).get("frozen") == Some(&1) {
            return Ok(Empty {});
        }
        tokio::time::sleep(FREEZE_PAUSE).await;
    }
    freeze(&context, &id, false).await?;
    Err(RpcError::new(Code::DeadlineExceeded, format!("the processes of container {id:?} do not stop")))
}

async fn resume_container(context: Context, request: ResumeContainerRequest) -> Result<Empty, RpcError> {
    freeze(&context, &request.container_id, false).await?;
    Ok(Empty {})
}

async fn freeze(context: &Context, id: &str, frozen: bool) -> Result<(), RpcError> {
    context.agent.containers.expect(id)?;
    context.agent.init.order(RequestBody::Freeze { id: id.to_owned(), frozen }).await?;
    Ok(())
}

/// Rules of devices stay those that the container was made with: shims send them along with every other change.
async fn update_container(context: Context, request: UpdateContainerRequest) -> Result<Empty, RpcError> {
    let id = request.container_id;
    context.agent.containers.expect(&id)?;
    let resources = request.resources.ok_or_else(|| RpcError::invalid("resources is missing"))?;
    let limits = nacre_plan::limits(&plan::resources(&resources), nacre_plan::Place::Sandbox)?;
    context.agent.init.ask_with_plan(RequestBody::Update { id }, &Plan::Update(limits)).await?;
    Ok(Empty {})
}
