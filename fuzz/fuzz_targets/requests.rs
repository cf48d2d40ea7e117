//! Requests of the host, of every method, one after the other to one agent, whose init says yes to whatever it may: no message
//! makes the agent fail otherwise than with a text, and what it asks of init is always a frame that decodes.
#![no_main]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nacre_agent::agent::Agent;
use nacre_agent::init::Edge;
use nacre_agent::rpc::{Context, Work, route};
use nacre_agent::server::Outbound;
use nacre_agent::stream::Mirror;
use nacre_protocols::agent_init::{
    FRAME_MAX, Failure, FailureKind, FromInit, NetworkState, ReplyBody, Request, RequestBody, STATE_BYTES,
    Scratch, Usage, Welcome,
};
use nacre_protocols::frame;
use nacre_protocols::host_agent::kata::{agent_service, health};
use nacre_protocols::host_agent::nacre::sandbox;
use nacre_protocols::init_launcher::{PLAN_MAX, Plan};
use nacre_sys::{memfd, seqpacket};
use rustix::pipe::{PipeFlags, pipe_with};

/// How long a request may wait: for an exit that never comes, mostly.
const PATIENCE: Duration = Duration::from_millis(2);

fn methods() -> Vec<(&'static str, &'static str)> {
    [
        (agent_service::SERVICE, agent_service::METHODS),
        (health::SERVICE, health::METHODS),
        (sandbox::SERVICE, sandbox::METHODS),
    ]
    .into_iter()
    .flat_map(|(service, methods)| methods.iter().map(move |method| (service, *method)))
    .collect()
}

fuzz_target!(|data: &[u8]| {
    let (ours, agents) = seqpacket::pair().expect("a pair of sockets");
    let init = thread::spawn(move || serve(&ours));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let mut edge = Edge::new(agents).expect("an edge");
        let (welcome, _) = edge.greet().await.expect("a greeting");
        let state = memfd::fixed("state", STATE_BYTES).expect("a state");
        let mirror = Mirror::new().expect("a pipe");
        let agent = Agent::resume(edge, welcome, state, mirror).await.expect("an agent");
        ask_all(&agent, data).await;
    });
    // The agent goes, and its end of the edge with it.
    drop((tasks, runtime));
    init.join().expect("a frame that does not decode");
});

/// A method's number, the length of its message (16 bits, lowest first), the message; and so on.
async fn ask_all(agent: &Rc<Agent>, mut left: &[u8]) {
    let methods = methods();
    while let Some((&[number, low, high], rest)) = left.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (message, rest) = rest.split_at(length);
        left = rest;
        let (service, method) = methods[usize::from(number) % methods.len()];
        let Ok(route) = route(service, method) else { continue };
        if message.len() > route.request_max {
            continue;
        }
        let context = Context { agent: Rc::clone(agent), outbound: Rc::new(Outbound::default()) };
        let outcome = match route.work {
            Work::AtOnce(work) => work(message),
            Work::UntilDeadline(begin) | Work::ToTheEnd(begin) => {
                let work = begin(context, message.to_vec());
                match tokio::time::timeout(PATIENCE, work).await {
                    Ok(outcome) => outcome,
                    Err(_) => continue,
                }
            }
        };
        match outcome {
            Ok(reply) => {
                if let Some(sent) = reply.sent {
                    sent();
                }
            }
            Err(error) => assert!(!error.message.is_empty(), "{method} failed without a word"),
        }
    }
}

/// Init, until the agent is gone.
fn serve(socket: &OwnedFd) {
    let mut buffer = vec![0; FRAME_MAX];
    while let Ok(Some((length, fds))) = seqpacket::receive(socket, &mut buffer) {
        let Request { tag, body } = frame::decode(&buffer[..length], FRAME_MAX).expect("a request");
        let is_plan = !matches!(body, RequestBody::Upgrade);
        if let Some(plan) = fds.into_iter().next().filter(|_| is_plan) {
            let bytes = memfd::read_sealed(plan, PLAN_MAX as u64).expect("a sealed plan");
            frame::decode::<Plan>(&bytes, PLAN_MAX).expect("a plan");
        }
        let (result, fds) = answer(&body);
        let reply = frame::encode(&FromInit::Reply { tag, result }, FRAME_MAX).expect("a reply");
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        if seqpacket::send(socket, &reply, &fds).is_err() {
            return;
        }
    }
}

fn answer(body: &RequestBody) -> (Result<ReplyBody, Failure>, Vec<OwnedFd>) {
    let refused = || Err(Failure { kind: FailureKind::System, message: "not here".to_owned() });
    let usage = Usage { total: 3, used: 2, available: 1 };
    let body = match body {
        RequestBody::Hello { .. } => ReplyBody::Welcome(Welcome {
            generation: 1,
            boot: Vec::new(),
            scratch: Scratch::Tmpfs { bytes: 1 << 20 },
            log: false,
            passed: false,
            upgraded: false,
        }),
        RequestBody::Held { .. } => ReplyBody::NoMore,
        RequestBody::CreateContainer { terminal: false, .. } | RequestBody::Exec { terminal: false, .. } => {
            let pipe = || pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
            // Whoever is behind them has gone.
            return (Ok(ReplyBody::Created { pid: 7 }), vec![pipe().1, pipe().0, pipe().0]);
        }
        RequestBody::CreateContainer { .. } | RequestBody::Exec { .. } | RequestBody::ConnectPuller => {
            return (refused(), Vec::new());
        }
        RequestBody::Open { .. } => {
            let file = memfd::sealed("file", b"1 2\nfrozen 1\nkey 3\n").expect("a file");
            return (Ok(ReplyBody::Opened), vec![file]);
        }
        RequestBody::Network => ReplyBody::Network(NetworkState::default()),
        RequestBody::Report => ReplyBody::Report(Vec::new()),
        RequestBody::Storage => ReplyBody::Usage { bytes: usage, inodes: usage },
        _ => ReplyBody::Done,
    };
    (Ok(body), Vec::new())
}
