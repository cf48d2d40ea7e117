//! The machine that the sandbox is: processors, random numbers, figures.

use super::{Context, method};
use crate::error::RpcError;
use crate::metrics::{self, Texts};
use nacre_protocols::agent_init::{AgentFile, FailureKind, GuestFile, KernelFile, RequestBody, SEED_MAX};
use nacre_protocols::host_agent::kata::{
    Empty, GetMetricsRequest, Metrics, OnlineCpuMemRequest, ReseedRandomDevRequest, agent_service,
};
use std::time::Duration;

/// How often it is looked whether the processors have come, and for how long.
const ONLINE_PAUSE: Duration = Duration::from_millis(100);
const ONLINE_ATTEMPTS: usize = 50;

method!(online, agent_service::OnlineCPUMem, online_processors);
method!(reseed, agent_service::ReseedRandomDev, reseed_random_numbers);
method!(metrics, agent_service::GetMetrics, all_metrics);

/// Memory that is added comes up by itself (MHP_DEFAULT_ONLINE_TYPE of the kernel).
async fn online_processors(context: Context, request: OnlineCpuMemRequest) -> Result<Empty, RpcError> {
    if request.nb_cpus == 0 {
        return Ok(Empty {});
    }
    let attempts = if request.wait { ONLINE_ATTEMPTS } else { 1 };
    for attempt in 1.. {
        match context.agent.init.order(RequestBody::OnlineCpus { count: request.nb_cpus }).await {
            Err(failure) if failure.kind == FailureKind::State && attempt < attempts => {
                tokio::time::sleep(ONLINE_PAUSE).await;
            }
            result => return Ok(result.map(|()| Empty {})?),
        }
    }
    Ok(Empty {})
}

async fn reseed_random_numbers(context: Context, request: ReseedRandomDevRequest) -> Result<Empty, RpcError> {
    if request.data.is_empty() {
        return Err(RpcError::invalid("data is empty"));
    }
    for part in request.data.chunks(SEED_MAX) {
        context.agent.init.order(RequestBody::Reseed { data: part.to_vec() }).await?;
    }
    Ok(Empty {})
}

async fn all_metrics(context: Context, _: GetMetricsRequest) -> Result<Metrics, RpcError> {
    let init = &context.agent.init;
    let guest = |file| init.read_if_there(KernelFile::Guest(file));
    let agent = |file| init.read_if_there(KernelFile::Agent(file));
    let texts = Texts {
        load_average: guest(GuestFile::LoadAverage).await?,
        stat: guest(GuestFile::Stat).await?,
        memory: guest(GuestFile::Memory).await?,
        virtual_memory: guest(GuestFile::VirtualMemory).await?,
        disks: guest(GuestFile::Disks).await?,
        network_devices: guest(GuestFile::NetworkDevices).await?,
        agent_stat: agent(AgentFile::Stat).await?,
        agent_status: agent(AgentFile::Status).await?,
        agent_io: agent(AgentFile::Io).await?,
    };
    Ok(Metrics { metrics: metrics::page(&texts, context.agent.count_scrape()) })
}
