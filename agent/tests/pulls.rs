//! Pulls: who asks for them, what becomes of them, and a puller that dies.

mod support;

use nacre_protocols::agent_init::{Event, PullerEnd, PullerProcess, RequestBody};
use nacre_protocols::agent_puller::{
    self as edge, Credentials, ImageConfig, LayerToPull, PullFailure, PullFailureKind, PulledImage,
    PulledLayer, Reply, Request, Verdict,
};
use nacre_protocols::host_agent::kata;
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::nacre::layer_state::Stage as LayerStage;
use nacre_protocols::host_agent::nacre::pull_state::Stage;
use nacre_protocols::host_agent::nacre::sandbox::*;
use nacre_protocols::host_agent::nacre::{self, failure};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::init_launcher::{MountKind, Plan, Rootfs, StorageStep};
use nacre_protocols::names::Sha256;
use std::time::Duration;
use support::client::Client;
use support::init::FakePuller;
use support::requests::*;
use support::{Sandbox, can_run};

fn image(reference: &str) -> kata::Storage {
    kata::Storage {
        driver: "image_guest_pull".into(),
        source: reference.into(),
        fstype: "overlay".into(),
        mount_point: "/run/kata-containers/c/rootfs".into(),
        ..Default::default()
    }
}

fn start_pull(id: &str, reference: &str) -> nacre::StartPullRequest {
    nacre::StartPullRequest {
        id: id.into(),
        reference: reference.into(),
        credentials: Some(nacre::Credentials {
            user: "u".into(),
            password: "p".into(),
            identity_token: String::new(),
        }),
        aliases: vec![nacre::HostAlias { host: "host".into(), address: "10.0.2.2".into() }],
        ..Default::default()
    }
}

fn watch(client: &mut Client, id: &str, after: u64) -> nacre::PullState {
    client.call::<WatchPull>(&nacre::WatchPullRequest { id: id.into(), after }).unwrap()
}

fn layers() -> Vec<LayerToPull> {
    vec![
        LayerToPull { digest: Sha256([1; 32]), size: 1000, present: false },
        LayerToPull { digest: Sha256([2; 32]), size: 50, present: true },
    ]
}

fn pulled(reference: &str) -> PulledImage {
    PulledImage {
        reference: format!("docker.io/library/{reference}"),
        manifest: Sha256([3; 32]),
        root: Sha256([4; 32]),
        config: Sha256([5; 32]),
        layers: vec![
            PulledLayer { diff_id: Sha256([6; 32]), compressed: 1000, tar: 4096 },
            PulledLayer { diff_id: Sha256([7; 32]), compressed: 50, tar: 1024 },
        ],
        process: ImageConfig {
            command: vec!["/from-image".into()],
            volumes: vec!["/data".into()],
            ..Default::default()
        },
        annotations: vec![("a".into(), "b".into())],
        verdict: Verdict::Unjudged,
    }
}

#[test]
fn the_first_policy_stays_and_every_pull_is_held_to_it() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    let with = |id: &str, policy: &str| nacre::StartPullRequest {
        policy: policy.into(),
        ..start_pull(id, "busybox")
    };
    let verdict = |verdict| PulledImage { verdict, ..pulled("busybox") };
    let listed = |byte| Verdict::Listed { scope: "docker.io".into(), digest: Sha256([byte; 32]) };
    // Pulled before there was a policy.
    client.call::<StartPull>(&start_pull("early", "busybox")).unwrap();
    let puller = sandbox.init.puller(0);
    let finish = |id: &str, image: PulledImage, policy: &str| {
        let Some(Request::Pull { id: number, pull }) = puller.receive() else { panic!("no pull") };
        assert_eq!(pull.policy, policy, "{id}");
        puller.send(&Reply::Done { id: number, image: Box::new(image) });
    };
    finish("early", pulled("busybox"), "");
    let ended = |client: &mut Client, id: &str| loop {
        let state = watch(client, id, 0);
        match state.stage() {
            Stage::Done => break Ok(state.image.unwrap().policy_scope),
            Stage::Failed => break Err(state.failure.unwrap().kind()),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert_eq!(ended(&mut client, "early"), Ok(String::new()));
    client.call::<StartPull>(&with("first", "P")).unwrap();
    finish("first", verdict(listed(3)), "P");
    assert_eq!(ended(&mut client, "first"), Ok("docker.io".into()));
    let other = client.refused::<StartPull>(&with("second", "Q"));
    assert_eq!(other.0, Code::FailedPrecondition);
    // Without one of its own, and with a verdict that is none or does not hold.
    for (id, image) in [("third", pulled("busybox")), ("fourth", verdict(listed(9)))] {
        client.call::<StartPull>(&start_pull(id, "busybox")).unwrap();
        finish(id, image, "P");
        assert_eq!(ended(&mut client, id), Err(nacre::failure::Kind::Policy), "{id}");
    }
    let too_long = client.refused::<StartPull>(&with("fifth", &"x".repeat(70_000)));
    assert_eq!(too_long.0, Code::InvalidArgument);
}

#[test]
fn a_pull_is_watched_to_its_end_and_its_layers_become_the_root() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let early = client.refused::<StartPull>(&start_pull("p", "busybox"));
    assert_eq!(early.0, Code::FailedPrecondition);
    create_sandbox(&mut client);
    let state = client.call::<StartPull>(&start_pull("p", "busybox")).unwrap();
    assert_eq!(state.stage(), Stage::Resolving);
    let puller = sandbox.init.puller(0);
    let Some(Request::Pull { id, pull }) = puller.receive() else { panic!("no pull") };
    assert_eq!(pull.reference, "busybox");
    assert_eq!(pull.credentials, Credentials::Basic { user: "u".into(), password: "p".into() });
    assert_eq!((pull.platform.os.as_str(), pull.platform.architecture.as_str()), ("linux", "amd64"));
    assert_eq!(pull.aliases[0].host, "host");

    puller.send(&Reply::Layers { id, layers: layers() });
    let state = watch(&mut client, "p", state.version);
    assert_eq!(state.stage(), Stage::Fetching);
    assert_eq!((state.layers[0].size, state.layers[1].done), (1000, true));
    assert_eq!(state.layers[0].digest, format!("sha256:{}", "01".repeat(32)));
    let stages = |state: &nacre::PullState| [state.layers[0].stage(), state.layers[1].stage()];
    assert_eq!(stages(&state), [LayerStage::Waiting, LayerStage::Stored]);
    puller.send(&Reply::Stage { id, index: 0, stage: edge::LayerStage::Fetching });
    let state = watch(&mut client, "p", state.version);
    assert_eq!(stages(&state), [LayerStage::Fetching, LayerStage::Stored]);
    puller.send(&Reply::Progress { id, index: 0, fetched: 400 });
    let state = watch(&mut client, "p", state.version);
    assert_eq!(state.layers[0].fetched, 400);
    // Nonsense from the puller changes nothing.
    puller.send(&Reply::Progress { id, index: 99, fetched: 1 });
    puller.send(&Reply::Stage { id, index: 99, stage: edge::LayerStage::Checking });
    puller.send(&Reply::Progress { id: id + 5, index: 0, fetched: 1 });
    // A container of the same image joins the pull, and its deadline does not end it.
    let mut request = create_request("c", image("busybox"));
    request.oci.as_mut().unwrap().process.as_mut().unwrap().args.clear();
    let late = client.call_within::<CreateContainer>(&request, Duration::from_millis(30));
    assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded as i32);
    puller.send(&Reply::LayerDone { id, index: 0 });
    puller.send(&Reply::Done { id, image: Box::new(pulled("busybox")) });
    let mut state = watch(&mut client, "p", state.version);
    while state.stage() == Stage::Fetching {
        state = watch(&mut client, "p", state.version);
    }
    assert_eq!(state.stage(), Stage::Done);
    let described = state.image.unwrap();
    assert_eq!(described.reference, "docker.io/library/busybox");
    assert_eq!(described.layers[0].diff_id, format!("sha256:{}", "06".repeat(32)));
    assert_eq!(described.command, ["/from-image"]);
    client.call::<CreateContainer>(&request).unwrap();
    let (_, plan) = sandbox.init.asked(|body| matches!(body, RequestBody::CreateContainer { .. }));
    let Some(Plan::Create(plan)) = plan else { panic!("no plan") };
    assert_eq!(plan.rootfs, Rootfs::Layers(vec![Sha256([6; 32]), Sha256([7; 32])]));
    assert_eq!(plan.process.args, ["/from-image"]);
    assert_eq!((plan.mounts[0].destination.as_str(), &plan.mounts[0].kind), ("/data", &MountKind::Own));
    let mounted: Vec<_> = sandbox
        .init
        .steps()
        .into_iter()
        .filter_map(|step| match step {
            StorageStep::Layer { diff_id } => Some(diff_id),
            _ => None,
        })
        .collect();
    assert_eq!(mounted, [Sha256([6; 32]), Sha256([7; 32])]);
    // The next agent still knows the image.
    sandbox.kill_agent();
    sandbox.start_agent();
    let mut client = sandbox.connect();
    client.call::<CreateContainer>(&create_request("second", image("busybox"))).unwrap();
    assert_eq!(sandbox.init.count(|body| *body == RequestBody::ConnectPuller), 1);
}

#[test]
fn an_idle_puller_is_let_go_and_a_new_one_started() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    client.call::<StartPull>(&start_pull("p", "busybox")).unwrap();
    let puller = sandbox.init.puller(0);
    let Some(Request::Pull { id, .. }) = puller.receive() else { panic!("no pull") };
    let failure = PullFailure { kind: PullFailureKind::Unauthorized, message: "401 for busybox".into() };
    puller.send(&Reply::Failed { id, failure });
    let state = watch(&mut client, "p", 0);
    assert_eq!(state.failure.unwrap().kind(), failure::Kind::Unauthorized);
    assert!(puller.receive().is_none(), "the agent closes its end");
    client.call::<StartPull>(&start_pull("q", "busybox")).unwrap();
    assert!(matches!(sandbox.init.puller(1).receive(), Some(Request::Pull { .. })));
}

#[test]
fn a_puller_is_let_out_to_the_ports_of_its_pulls_and_to_no_others() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    let end = |puller: &FakePuller, id| {
        let failure = PullFailure { kind: PullFailureKind::NotFound, message: "no such image".into() };
        puller.send(&Reply::Failed { id, failure });
    };
    client.call::<StartPull>(&start_pull("p", "r.example:5000/busybox")).unwrap();
    let first = sandbox.init.puller(0);
    assert_eq!(first.ports, [53, 443, 5000]);
    let Some(Request::Pull { id: p, .. }) = first.receive() else { panic!("no pull") };
    // This one needs no other port; that one does, and waits until nothing goes on behind the first ones.
    client.call::<StartPull>(&start_pull("q", "busybox")).unwrap();
    let Some(Request::Pull { id: q, .. }) = first.receive() else { panic!("no pull") };
    let more = nacre::StartPullRequest { ports: vec![9000], ..start_pull("r", "s.example:5001/busybox") };
    client.call::<StartPull>(&more).unwrap();
    end(&first, p);
    watch(&mut client, "p", 0);
    assert_eq!(sandbox.init.count(|body| *body == RequestBody::ConnectPuller), 1);
    end(&first, q);
    let second = sandbox.init.puller(1);
    assert_eq!(second.ports, [53, 443, 5001, 9000]);
    assert!(matches!(second.receive(), Some(Request::Pull { .. })));
    assert!(first.receive().is_none(), "the agent closes its end");
    let wrong = nacre::StartPullRequest { ports: vec![65536], ..start_pull("s", "busybox") };
    assert_eq!(client.refused::<StartPull>(&wrong).0, Code::InvalidArgument);
}

#[test]
fn a_puller_that_dies_fails_its_pulls_and_the_next_pull_has_a_new_one() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    client.call::<StartPull>(&start_pull("p", "busybox")).unwrap();
    let puller = sandbox.init.puller(0);
    puller.receive();
    drop(puller);
    sandbox.init.drop_puller(0);
    // A pull that begins while init has not said yet how it ended is not lost with it.
    std::thread::sleep(Duration::from_millis(100));
    client.call::<StartPull>(&start_pull("q", "alpine")).unwrap();
    let puller = sandbox.init.puller(1);
    puller.receive();
    let end = PullerEnd { process: PullerProcess::Indexer, code: 137, out_of_memory: true };
    sandbox.init.tell(Event::PullerExited(end));
    let failure = watch(&mut client, "p", 0).failure.unwrap();
    assert_eq!(failure.kind(), failure::Kind::Limit);
    assert!(failure.message.contains("indexer reached its memory limit of 402653184"), "{}", failure.message);
    let goes_on = client.call::<StartPull>(&start_pull("q", "alpine")).unwrap();
    assert_eq!(goes_on.stage(), Stage::Resolving);
    // As init tells it first, before the socket closes.
    let end = PullerEnd { process: PullerProcess::Fetcher, code: 159, out_of_memory: false };
    sandbox.init.tell(Event::PullerExited(end));
    let failure = watch(&mut client, "q", 0).failure.unwrap();
    assert!(failure.message.contains("fetcher was killed by signal 31"), "{}", failure.message);
    // A container fails with it, and can be made by the next pull.
    let mut creating = sandbox.connect();
    let create = creating.send::<CreateContainer>(&create_request("c", image("busybox")), Duration::ZERO);
    let puller = sandbox.init.puller(2);
    let Some(Request::Pull { id, pull }) = puller.receive() else { panic!("no pull") };
    assert_eq!(pull.credentials, Credentials::Anonymous);
    let failure = PullFailure { kind: PullFailureKind::NotFound, message: "no such image".into() };
    puller.send(&Reply::Failed { id, failure });
    let status = creating.receive::<CreateContainer>(create).unwrap_err();
    assert_eq!((status.code, status.message.as_str()), (Code::NotFound as i32, "no such image"));
}

#[test]
fn a_pull_is_given_up_on_request() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    client.call::<StartPull>(&start_pull("p", "busybox")).unwrap();
    let puller = sandbox.init.puller(0);
    let Some(Request::Pull { id, .. }) = puller.receive() else { panic!("no pull") };
    let mut canceller = sandbox.connect();
    let cancel = canceller.send::<CancelPull>(&nacre::CancelPullRequest { id: "p".into() }, Duration::ZERO);
    assert!(matches!(puller.receive(), Some(Request::Cancel { id: of }) if of == id));
    let failure = PullFailure { kind: PullFailureKind::Cancelled, message: "given up".into() };
    puller.send(&Reply::Failed { id, failure });
    let state = canceller.receive::<CancelPull>(cancel).unwrap();
    assert_eq!(state.failure.unwrap().kind(), failure::Kind::Cancelled);
    assert_eq!(client.refused::<StartPull>(&start_pull("p", "other")).0, Code::AlreadyExists);
    let report = client.call::<GetReport>(&nacre::ReportRequest {}).unwrap();
    assert_eq!((report.agent_generation, report.boot.len()), (1, 1));
}
