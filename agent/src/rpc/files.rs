//! Files and volumes: what the host sends, and what it asks about.

use super::{Context, method};
use crate::error::RpcError;
use nacre_protocols::agent_init::{ReplyBody, RequestBody, Usage};
use nacre_protocols::host_agent::kata::{
    CopyFileRequest, Empty, GetDiagnosticDataRequest, GetDiagnosticDataResponse,
    RemoveStaleVirtiofsShareMountsRequest, UpdateEphemeralMountsRequest, VolumeCondition, VolumeStatsRequest,
    VolumeStatsResponse, VolumeUsage, agent_service, volume_usage::Unit,
};
use nacre_protocols::init_launcher::{COPY_PART_MAX, Copied, FileCopy, Plan, StorageStep};
use nacre_protocols::names::SHARED_DIR;

/// Kinds of files in a mode (inode(7)).
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;
/// Of directories on the way, where the host gives no mode: whoever the file is for can reach it.
const DIRECTORY_MODE: u32 = 0o755;
/// Longest message of a container's end, in bytes (Kubernetes: `terminationMessagePath`).
const MESSAGE_MAX: u32 = 4096;

method!(copy, agent_service::CopyFile, copy_file);
method!(update_ephemeral_mounts, agent_service::UpdateEphemeralMounts, change_ephemeral);
method!(remove_stale_shares, agent_service::RemoveStaleVirtiofsShareMounts, unmount_stale);
method!(volume_stats, agent_service::GetVolumeStats, stats_of_volume);
method!(diagnostic_data, agent_service::GetDiagnosticData, diagnose);

async fn copy_file(context: Context, request: CopyFileRequest) -> Result<Empty, RpcError> {
    for step in copies(request)? {
        context.agent.apply(vec![StorageStep::Copy(step)]).await?;
    }
    Ok(Empty {})
}

async fn change_ephemeral(
    context: Context,
    request: UpdateEphemeralMountsRequest,
) -> Result<Empty, RpcError> {
    context.agent.change_ephemeral(&request.storages).await?;
    Ok(Empty {})
}

async fn unmount_stale(
    context: Context,
    _: RemoveStaleVirtiofsShareMountsRequest,
) -> Result<Empty, RpcError> {
    let _turn = context.agent.mounting.lock().await;
    context.agent.apply(vec![StorageStep::UnmountStale]).await?;
    Ok(Empty {})
}

async fn stats_of_volume(
    context: Context,
    request: VolumeStatsRequest,
) -> Result<VolumeStatsResponse, RpcError> {
    let step = StorageStep::Usage { path: request.volume_guest_path };
    let ReplyBody::Usage { bytes, inodes } = ask(&context, step).await? else {
        return Err(RpcError::unfitting("Storage"));
    };
    let usage = |of: Usage, unit: Unit| VolumeUsage {
        available: of.available,
        total: of.total,
        used: of.used,
        unit: unit.into(),
    };
    Ok(VolumeStatsResponse {
        usage: vec![usage(bytes, Unit::Bytes), usage(inodes, Unit::Inodes)],
        volume_condition: Some(VolumeCondition { abnormal: false, message: String::new() }),
    })
}

/// What a container left as the reason of its end, where the host shares no directory that it could look into.
async fn diagnose(
    context: Context,
    request: GetDiagnosticDataRequest,
) -> Result<GetDiagnosticDataResponse, RpcError> {
    if request.log_type != "termination_log" {
        return Err(RpcError::unsupported(format!("log_type {:?}", request.log_type)));
    }
    context.agent.containers.expect(&request.container_id)?;
    let path = context.agent.kept(|kept| kept.containers.get(&request.container_id)?.termination_log.clone());
    let Some(path) = path else { return Ok(GetDiagnosticDataResponse { data: String::new() }) };
    match ask(&context, StorageStep::Read { path, length: MESSAGE_MAX }).await? {
        ReplyBody::Content(bytes) => {
            Ok(GetDiagnosticDataResponse { data: String::from_utf8_lossy(&bytes).into_owned() })
        }
        _ => Err(RpcError::unfitting("Storage")),
    }
}

async fn ask(context: &Context, step: StorageStep) -> Result<ReplyBody, RpcError> {
    Ok(context.agent.init.ask_with_plan(RequestBody::Storage, &Plan::Storage(vec![step])).await?.body)
}

/// As many steps as the data has parts that fit one.
fn copies(request: CopyFileRequest) -> Result<Vec<FileCopy>, RpcError> {
    let path = request.path.trim_end_matches('/').to_owned();
    if !path.strip_prefix(SHARED_DIR).is_some_and(|rest| rest.starts_with('/')) {
        return Err(RpcError::invalid(format!("path {path:?} is not beneath {SHARED_DIR}")));
    }
    let negative = |field: &str| RpcError::invalid(format!("{field} is negative"));
    let owner = |id: i32| u32::try_from(id).ok();
    let template = FileCopy {
        path,
        content: Copied::Directory,
        mode: request.file_mode & 0o7777,
        directory_mode: match request.dir_mode & 0o7777 {
            0 => DIRECTORY_MODE,
            mode => mode,
        },
        uid: owner(request.uid),
        gid: owner(request.gid),
    };
    let with = |content| FileCopy { content, ..template.clone() };
    match request.file_mode & S_IFMT {
        S_IFDIR => Ok(vec![template]),
        S_IFLNK => {
            let target = String::from_utf8(request.data)
                .map_err(|_| RpcError::invalid("data is no target of a link"))?;
            Ok(vec![with(Copied::Link { target })])
        }
        S_IFREG | 0 => {
            let start = u64::try_from(request.offset).map_err(|_| negative("offset"))?;
            let size = u64::try_from(request.file_size).map_err(|_| negative("file_size"))?;
            if start.checked_add(request.data.len() as u64).is_none_or(|end| end > size) {
                let length = request.data.len();
                let message = format!("{length} bytes at offset {start} go beyond file_size {size}");
                return Err(RpcError::invalid(message));
            }
            let mut offset = start;
            let mut steps = Vec::new();
            // An empty file is one empty part.
            let mut parts = request.data.chunks(COPY_PART_MAX).peekable();
            if parts.peek().is_none() {
                steps.push(with(Copied::Part { offset, size, data: Vec::new() }));
            }
            for part in parts {
                steps.push(with(Copied::Part { offset, size, data: part.to_vec() }));
                offset += part.len() as u64;
            }
            Ok(steps)
        }
        _ => Err(RpcError::unsupported(format!("file_mode {:o}: a file of this kind", request.file_mode))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocols::host_agent::ttrpc::Code;

    fn request(mode: u32, offset: i64, size: i64, data: Vec<u8>) -> CopyFileRequest {
        CopyFileRequest {
            path: format!("{SHARED_DIR}/x/file"),
            file_size: size,
            file_mode: mode,
            offset,
            data,
            uid: -1,
            gid: 5,
            ..Default::default()
        }
    }

    #[test]
    fn a_request_becomes_parts_that_fit_a_plan() {
        let steps = copies(request(0o100_644, 10, 2_000_000, vec![7; 1 << 20])).unwrap();
        let parts: Vec<_> = steps
            .iter()
            .map(|step| match &step.content {
                Copied::Part { offset, size, data } => (*offset, *size, data.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(parts, [(10, 2_000_000, COPY_PART_MAX), (524_298, 2_000_000, COPY_PART_MAX)]);
        let [step] = copies(request(0o644, 0, 0, vec![])).unwrap().try_into().unwrap();
        assert_eq!(step.content, Copied::Part { offset: 0, size: 0, data: vec![] });
        assert_eq!((step.mode, step.directory_mode, step.uid, step.gid), (0o644, 0o755, None, Some(5)));
        let [step] = copies(request(0o120_777, 0, 3, b"a/b".to_vec())).unwrap().try_into().unwrap();
        assert_eq!(step.content, Copied::Link { target: "a/b".into() });
        let directory = CopyFileRequest { dir_mode: 0o40_750, ..request(0o040_700, 0, 0, vec![]) };
        let [step] = copies(directory).unwrap().try_into().unwrap();
        assert_eq!((step.content, step.mode, step.directory_mode), (Copied::Directory, 0o700, 0o750));
    }

    #[test]
    fn what_is_no_part_of_a_file_is_refused() {
        let elsewhere =
            CopyFileRequest { path: "/run/kata-containers/sandbox/x".into(), ..Default::default() };
        let root = CopyFileRequest { path: format!("{SHARED_DIR}/"), ..Default::default() };
        for (request, code) in [
            (elsewhere, Code::InvalidArgument),
            (root, Code::InvalidArgument),
            (request(0o644, -1, 5, vec![]), Code::InvalidArgument),
            (request(0o644, 0, -5, vec![]), Code::InvalidArgument),
            (request(0o644, 3, 5, vec![0; 3]), Code::InvalidArgument),
            (request(0o644, i64::MAX, i64::MAX, vec![0]), Code::InvalidArgument),
            (request(0o120_777, 0, 2, vec![0xff, 0xfe]), Code::InvalidArgument),
            (request(0o010_644, 0, 0, vec![]), Code::Unimplemented),
        ] {
            assert_eq!(copies(request).unwrap_err().code, code);
        }
    }
}
