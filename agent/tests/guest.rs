//! What shims ask about resources, the network and the machine, against the real, confined agent.

mod support;

use nacre_protocols::agent_init::{FailureKind, InterfaceState, NetworkState, RequestBody};
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::kata::{self, IpFamily};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::init_launcher::{NetworkStep, Plan};
use std::time::Duration;
use support::client::Client;
use support::{Sandbox, can_run};

fn running(client: &mut Client, id: &str) {
    let spec = kata::Spec {
        root: Some(kata::Root { path: "/run/kata-containers/shared/containers/c".into(), readonly: true }),
        process: Some(kata::Process { args: vec!["/bin/app".into()], ..Default::default() }),
        ..Default::default()
    };
    let request =
        kata::CreateContainerRequest { container_id: id.into(), oci: Some(spec), ..Default::default() };
    client.call::<CreateContainer>(&request).unwrap();
    client.call::<StartContainer>(&kata::StartContainerRequest { container_id: id.into() }).unwrap();
}

fn files(sandbox: &Sandbox, files: &[(&'static str, &str)]) {
    let mut world = sandbox.init.world();
    world.files.extend(files.iter().map(|(name, text)| (*name, (*text).to_owned())));
}

#[test]
fn stats_are_read_from_the_files_of_the_cgroup() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let request = kata::StatsContainerRequest { container_id: "c".into() };
    assert_eq!(client.refused::<StatsContainer>(&request).0, Code::InvalidArgument);
    running(&mut client, "c");
    files(
        &sandbox,
        &[
            ("cpu.stat", "usage_usec 10\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("pids.current", "2\n"),
            ("/proc/net/dev", "lo: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\neth0: 5 1 1 1 1 1 1 1 6 1 1 1 1 1 1 1\n"),
        ],
    );
    let stats = client.call::<StatsContainer>(&request).unwrap();
    let [eth0] = stats.network_stats.as_slice() else { panic!("{stats:?}") };
    assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.tx_bytes), ("eth0", 5, 6));
    let cgroup = stats.cgroup_stats.unwrap();
    assert_eq!(cgroup.cpu_stats.unwrap().cpu_usage.unwrap().total_usage, 10_000);
    let usage = cgroup.memory_stats.unwrap().usage.unwrap();
    assert_eq!((usage.usage, usage.limit), (4096, 8192));
    assert_eq!(cgroup.pids_stats.unwrap().current, 2);
    // The kernel has no huge pages of this size, then it has.
    assert!(cgroup.hugetlb_stats.is_empty());
    files(&sandbox, &[("hugetlb.2MB.current", "2097152\n")]);
    let cgroup = client.call::<StatsContainer>(&request).unwrap().cgroup_stats.unwrap();
    assert_eq!(cgroup.hugetlb_stats["2MB"].usage, 2 << 20);
}

#[test]
fn a_container_is_paused_when_the_kernel_says_so() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let pause = kata::PauseContainerRequest { container_id: "c".into() };
    let resume = kata::ResumeContainerRequest { container_id: "c".into() };
    assert_eq!(client.refused::<PauseContainer>(&pause).0, Code::InvalidArgument);
    assert_eq!(client.refused::<ResumeContainer>(&resume).0, Code::InvalidArgument);
    running(&mut client, "c");
    client.call::<PauseContainer>(&pause).unwrap();
    sandbox.init.asked(|body| *body == RequestBody::Freeze { id: "c".into(), frozen: true });
    client.call::<ResumeContainer>(&resume).unwrap();
    sandbox.init.asked(|body| *body == RequestBody::Freeze { id: "c".into(), frozen: false });
}

#[test]
fn limits_change_and_rules_of_devices_do_not() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    running(&mut client, "c");
    let resources = |limit| kata::LinuxResources {
        memory: Some(kata::LinuxMemory { limit, ..Default::default() }),
        devices: vec![kata::LinuxDeviceCgroup { allow: true, access: "rwm".into(), ..Default::default() }],
        ..Default::default()
    };
    let request = |id: &str, limit| kata::UpdateContainerRequest {
        container_id: id.into(),
        resources: Some(resources(limit)),
    };
    client.call::<UpdateContainer>(&request("c", 1 << 20)).unwrap();
    let (_, plan) = sandbox.init.asked(|body| matches!(body, RequestBody::Update { .. }));
    let Some(Plan::Update(limits)) = plan else { panic!("{plan:?}") };
    let writes: Vec<_> = limits.writes.iter().map(|it| (it.file.as_str(), it.value.as_str())).collect();
    assert!(writes.contains(&("memory.max", "1048576")), "{writes:?}");
    assert_eq!(client.refused::<UpdateContainer>(&request("d", 1)).0, Code::InvalidArgument);
    let none = kata::UpdateContainerRequest { container_id: "c".into(), resources: None };
    assert_eq!(client.refused::<UpdateContainer>(&none).0, Code::InvalidArgument);
}

#[test]
fn interfaces_are_listed_with_their_own_families_and_neighbours_set() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    sandbox.init.world().network = NetworkState {
        interfaces: vec![InterfaceState {
            name: "eth0".into(),
            hardware_address: [2, 0, 0, 0, 0, 0xa],
            mtu: 1500,
            flags: 0x1043,
            addresses: vec![("10.0.2.15".parse().unwrap(), 24), ("fd00::2".parse().unwrap(), 64)],
        }],
        routes: Vec::new(),
    };
    let listed = client.call::<ListInterfaces>(&kata::ListInterfacesRequest {}).unwrap().interfaces;
    let [eth0] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((eth0.hw_addr.as_str(), eth0.mtu, eth0.raw_flags), ("02:00:00:00:00:0a", 1500, 0x1043));
    let addresses: Vec<_> = eth0.ip_addresses.iter().map(|it| (it.family, &*it.address, &*it.mask)).collect();
    let (v4, v6) = (i32::from(IpFamily::V4), i32::from(IpFamily::V6));
    assert_eq!(addresses, [(v4, "10.0.2.15", "24"), (v6, "fd00::2", "64")]);

    let neighbour = |address: &str, lladdr: &str| kata::AddArpNeighborsRequest {
        neighbors: Some(kata::ArpNeighbors {
            arp_neighbors: vec![kata::ArpNeighbor {
                to_ip_address: Some(kata::IpAddress { address: address.into(), ..Default::default() }),
                device: "eth0".into(),
                lladdr: lladdr.into(),
                state: 0x80,
                flags: 0,
            }],
        }),
    };
    client.call::<AddARPNeighbors>(&neighbour("10.0.2.2/32", "02:00:00:00:00:02")).unwrap();
    let Some((_, Some(Plan::Network(steps)))) = sandbox.init.world().asked.last().cloned() else {
        panic!("no plan")
    };
    let [NetworkStep::Neighbour(step)] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!((step.address.to_string().as_str(), step.state), ("10.0.2.2", 0x80));
    for (address, lladdr) in [("ten", "02:00:00:00:00:02"), ("10.0.0.1", "02:00")] {
        let (code, _) = client.refused::<AddARPNeighbors>(&neighbour(address, lladdr));
        assert_eq!(code, Code::InvalidArgument, "{address} {lladdr}");
    }
}

#[test]
fn processors_are_waited_for_and_seeds_given_in_parts() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let online = |wait, nb_cpus| kata::OnlineCpuMemRequest { wait, nb_cpus, cpu_only: true };
    client.call::<OnlineCPUMem>(&online(true, 0)).unwrap();
    assert_eq!(sandbox.init.count(|body| matches!(body, RequestBody::OnlineCpus { .. })), 0);
    let is_online: fn(&RequestBody) -> bool = |body| matches!(body, RequestBody::OnlineCpus { .. });
    sandbox.init.fail_next(is_online, FailureKind::State, "1 of 2 processors are there");
    client.call::<OnlineCPUMem>(&online(true, 2)).unwrap();
    assert_eq!(sandbox.init.count(is_online), 2);
    sandbox.init.fail_next(is_online, FailureKind::State, "1 of 2 processors are there");
    let (code, text) = client.refused::<OnlineCPUMem>(&online(false, 2));
    assert_eq!((code, text.as_str()), (Code::FailedPrecondition, "1 of 2 processors are there"));

    let reseed = |length| kata::ReseedRandomDevRequest { data: vec![7; length] };
    client.call::<ReseedRandomDev>(&reseed(5000)).unwrap();
    let sizes: Vec<usize> = sandbox
        .init
        .world()
        .asked
        .iter()
        .filter_map(|(body, _)| match body {
            RequestBody::Reseed { data } => Some(data.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [4096, 904]);
    assert_eq!(client.refused::<ReseedRandomDev>(&reseed(0)).0, Code::InvalidArgument);
}

#[test]
fn metrics_are_prometheus_text() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    files(&sandbox, &[("/proc/loadavg", "0.5 0.25 0 1/20 99\n")]);
    for scrapes in 1..3 {
        let page = client.call::<GetMetrics>(&kata::GetMetricsRequest {}).unwrap().metrics;
        assert!(page.contains("kata_guest_load{item=\"load1\"} 0.5\n"), "{page}");
        assert!(page.contains(&format!("kata_agent_scrape_count {scrapes}\n")), "{page}");
    }
}

#[test]
fn what_makes_no_sense_in_this_guest_says_why() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    for (method, reason) in [
        ("SetPolicy", "bounds"),
        ("MemAgentMemcgSet", "memory agent"),
        ("MemAgentCompactSet", "memory agent"),
        ("MemHotplugByProbe", "probing"),
        ("GetIPTables", "packet filter"),
        ("SetIPTables", "packet filter"),
    ] {
        let stream = client.send_raw("grpc.AgentService", method, vec![], Duration::ZERO);
        let status = client.receive_raw(stream).into_result().unwrap_err();
        assert_eq!(Code::from_number(status.code), Some(Code::Unimplemented), "{method}");
        assert!(status.message.contains(reason), "{method}: {}", status.message);
    }
}
