//! The client of the agent against an agent of our own that is slow, rude or dead.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nacre::client::{CallRule, Client, ClientError, Exit, ProcessId};
use nacre::sandbox::session::{self, PullProblem, SessionError, Wanted};
use nacre_protocols::host_agent::kata::{self, health};
use nacre_protocols::host_agent::nacre as own;
use nacre_protocols::host_agent::ttrpc::{Code, HEADER_LEN, Header, Request, Response, response_frame};
use prost::Message;

/// The guest's side of the hybrid socket: what a test does with each accepted connection is up to it.
struct FakeAgent {
    directory: tempfile::TempDir,
}

/// One connection, after the greeting.
struct Peer {
    stream: UnixStream,
}

impl FakeAgent {
    /// `serve` is called for each connection in turn, with its number.
    fn start(serve: impl Fn(usize, &mut Peer) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut peer = Peer { stream: stream.unwrap() };
                if peer.greet() {
                    serve(number, &mut peer);
                }
            }
        });
        Self { directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("vsock")
    }

    fn client(&self) -> Client {
        Client::new(&self.socket())
    }
}

impl Peer {
    fn greet(&mut self) -> bool {
        let mut line = [0; 13];
        if self.stream.read_exact(&mut line).is_err() {
            return false;
        }
        assert_eq!(&line, b"connect 1024\n");
        self.stream.write_all(b"OK 1073741824\n").is_ok()
    }

    fn receive(&mut self) -> Option<(u32, Request)> {
        let mut head = [0; HEADER_LEN];
        self.stream.read_exact(&mut head).ok()?;
        let header = Header::decode(&head);
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some((header.stream, Request::from_payload(&payload).unwrap()))
    }

    fn reply(&mut self, stream: u32, response: &Response) {
        // A client that gave up is what some tests are about.
        let _ = self.stream.write_all(&response_frame(stream, response).unwrap());
    }

    /// Answers every request until the client leaves.
    fn answer(&mut self, answer: impl Fn(&Request) -> Response) {
        while let Some((stream, request)) = self.receive() {
            self.reply(stream, &answer(&request));
        }
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn check(client: &Client, rule: CallRule) -> Result<kata::HealthCheckResponse, ClientError> {
    client.call::<health::Check>(&kata::CheckRequest::default(), rule).await
}

#[test]
fn answers_find_their_calls_whatever_their_order() {
    let agent = FakeAgent::start(|_, peer| {
        let calls: Vec<_> = (0..50).map(|_| peer.receive().unwrap()).collect();
        for (stream, request) in calls.iter().rev() {
            assert_eq!(
                (request.service.as_str(), request.method.as_str()),
                ("grpc.AgentService", "ReadStdout")
            );
            let asked = kata::ReadStreamRequest::decode(request.payload.as_slice()).unwrap();
            let data = asked.exec_id.into_bytes();
            peer.reply(*stream, &Response::ok(&kata::ReadStreamResponse { data }));
        }
        peer.receive();
    });
    run(async {
        let client = agent.client();
        let calls: Vec<_> = (0..50)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move {
                    let id = ProcessId { container: "c".into(), exec: format!("exec-{number}") };
                    assert_eq!(client.read_stdout(&id, 0).await.unwrap(), id.exec.as_bytes());
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
    });
}

#[test]
fn a_guest_that_breaks_the_protocol_is_cut_off_with_the_reason() {
    let frame = |length: u32, stream: u32, kind: u8| {
        [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0]].concat()
    };
    let garbage = [frame(2, 1, 2), vec![0xff, 0xff]].concat();
    for (bytes, text) in [
        (frame(4 * 1024 * 1024 + 1, 1, 2), "a frame of 4194305 bytes"),
        (frame(u32::MAX, 1, 2), "a frame of 4294967295 bytes"),
        (frame(0, 1, 1), "a frame of type 1"),
        (frame(0, 1, 3), "a frame of type 3"),
        (frame(0, 99, 2), "stream 99"),
        (frame(0, 2, 2), "stream 2"),
        (garbage, "does not decode"),
    ] {
        let agent = FakeAgent::start(move |_, peer| {
            peer.receive();
            peer.stream.write_all(&bytes).unwrap();
            peer.receive();
        });
        let error = run(async { check(&agent.client(), CallRule::ONCE).await.unwrap_err() });
        assert!(matches!(&error, ClientError::Protocol(cause) if cause.contains(text)), "{text}: {error:?}");
    }
}

#[test]
fn a_hostile_greeting_is_refused() {
    for greeting in ["NO\n", "OK\n", "OK x\n", &format!("{}\n", "O".repeat(100))] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let text = greeting.to_owned();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.read(&mut [0; 64]);
        });
        let error = run(async { check(&Client::new(&socket), CallRule::ONCE).await.unwrap_err() });
        assert!(matches!(error, ClientError::Protocol(_)), "{greeting:?}: {error:?}");
    }
}

#[test]
fn the_late_answer_to_a_call_that_was_given_up_does_no_harm() {
    let (given_up, wait) = mpsc::channel();
    let agent = FakeAgent::start(move |_, peer| {
        let (late, _) = peer.receive().unwrap();
        wait.recv().unwrap();
        peer.reply(late, &Response::ok(&kata::HealthCheckResponse { status: 0 }));
        peer.answer(|_| Response::ok(&kata::HealthCheckResponse { status: 1 }));
    });
    run(async {
        let client = agent.client();
        let rule = CallRule { deadline: Some(Duration::from_millis(50)), resend: false };
        let error = check(&client, rule).await.unwrap_err();
        assert!(matches!(error, ClientError::Deadline { method: "Check", .. }), "{error:?}");
        given_up.send(()).unwrap();
        assert_eq!(check(&client, CallRule::ONCE).await.unwrap().status, 1);
    });
}

#[test]
fn a_restarted_agent_is_a_short_stall_for_what_may_be_repeated() {
    // Three agents die with the call in their hands; the fourth answers.
    let agent = FakeAgent::start(|number, peer| {
        if number < 3 {
            peer.receive();
            return;
        }
        peer.answer(|_| Response::ok(&kata::WaitProcessResponse { status: 42, out_of_memory: true }));
    });
    run(async {
        let begun = Instant::now();
        let exit = agent.client().wait(&ProcessId::first("c")).await.unwrap();
        assert_eq!(exit, Exit { code: 42, out_of_memory: true });
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    });
}

#[test]
fn what_must_not_happen_twice_is_not_sent_again() {
    let (seen, calls) = mpsc::channel();
    let agent = FakeAgent::start(move |_, peer| {
        if let Some((_, request)) = peer.receive() {
            seen.send(request.method).unwrap();
        }
    });
    run(async {
        let error = agent.client().start_container("c").await.unwrap_err();
        assert!(matches!(error, ClientError::Lost { method: "StartContainer" }), "{error:?}");
        let error = agent.client().write_stdin(&ProcessId::first("c"), vec![1]).await.unwrap_err();
        assert!(matches!(error, ClientError::Lost { method: "WriteStdin" }), "{error:?}");
    });
    assert_eq!(calls.try_iter().collect::<Vec<_>>(), ["StartContainer", "WriteStdin"]);
}

#[test]
fn text_of_the_guest_is_made_harmless() {
    let agent = FakeAgent::start(|_, peer| {
        peer.answer(|_| Response::error(Code::Internal, "bad \x1b]0;title\x07 thing"));
    });
    let error = run(async { agent.client().start_container("c").await.unwrap_err() });
    assert!(error.is_status(Code::Internal));
    assert!(!error.to_string().contains('\x1b'), "{error}");
}

#[test]
fn answers_out_of_range_are_violations() {
    let agent = FakeAgent::start(|_, peer| {
        peer.answer(|request| match request.method.as_str() {
            "WaitProcess" => Response::ok(&kata::WaitProcessResponse { status: 256, out_of_memory: false }),
            _ => Response::ok(&kata::WriteStreamResponse { len: 1000 }),
        });
    });
    run(async {
        let id = ProcessId::first("c");
        assert!(matches!(agent.client().wait(&id).await, Err(ClientError::Protocol(_))));
        assert!(matches!(agent.client().write_stdin(&id, vec![0; 10]).await, Err(ClientError::Protocol(_))));
    });
}

#[test]
fn a_sandbox_that_is_gone_is_known_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::new(&directory.path().join("none"));
    run(async {
        let begun = Instant::now();
        assert!(matches!(check(&client, CallRule::LONG_POLL).await, Err(ClientError::Gone { .. })));
        assert!(begun.elapsed() < Duration::from_secs(1));
    });
    let agent = FakeAgent::start(|_, peer| drop(peer.receive().and_then(|_| peer.receive())));
    run(async {
        let client = agent.client();
        let waiting = {
            let client = client.clone();
            tokio::spawn(async move { client.wait(&ProcessId::first("c")).await })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.close();
        assert!(matches!(waiting.await.unwrap(), Err(ClientError::Closed)));
    });
}

#[test]
fn booting_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vsock");
    let late = socket.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        let listener = UnixListener::bind(late).unwrap();
        for (number, stream) in listener.incoming().enumerate() {
            let mut peer = Peer { stream: stream.unwrap() };
            // At first the kernel is up and nobody listens: the connection just closes.
            if number >= 3 && peer.greet() {
                peer.answer(|_| Response::ok(&kata::HealthCheckResponse { status: 1 }));
            }
        }
    });
    run(async {
        Client::new(&socket).wait_until_up(Duration::from_secs(10)).await.unwrap();
        let nobody = Client::new(&directory.path().join("none"));
        let begun = Instant::now();
        nobody.wait_until_up(Duration::from_millis(100)).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
}

fn pull_state(version: u64, stage: own::pull_state::Stage) -> own::PullState {
    own::PullState { version, stage: stage.into(), ..Default::default() }
}

#[test]
fn a_pull_is_begun_again_when_the_agent_forgot_it() {
    use own::pull_state::Stage;
    let agent = FakeAgent::start(|number, peer| {
        if number == 0 {
            let (stream, _) = peer.receive().unwrap();
            peer.reply(stream, &Response::ok(&pull_state(1, Stage::Fetching)));
            peer.receive();
            return;
        }
        let forgotten = std::cell::Cell::new(true);
        peer.answer(|request| match request.method.as_str() {
            "WatchPull" if forgotten.get() => Response::error(Code::NotFound, "no pull"),
            "StartPull" => {
                forgotten.set(false);
                Response::ok(&pull_state(1, Stage::Fetching))
            }
            _ => {
                let image = own::Image { command: vec!["sh".into()], ..Default::default() };
                Response::ok(&own::PullState { image: Some(image), ..pull_state(2, Stage::Done) })
            }
        });
    });
    run(async {
        let mut seen = 0;
        let pulled = session::pull(&agent.client(), "p", &Wanted::default(), |_| seen += 1).await.unwrap();
        assert_eq!(pulled.process.command, ["sh"]);
        assert_eq!(seen, 3);
    });
}

#[test]
fn a_failed_pull_says_what_kind() {
    let agent = FakeAgent::start(|_, peer| {
        peer.answer(|_| {
            let failure =
                own::Failure { kind: own::failure::Kind::Digest.into(), message: "layer \x1b[1m…".into() };
            let state = pull_state(1, own::pull_state::Stage::Failed);
            Response::ok(&own::PullState { failure: Some(failure), ..state })
        });
    });
    let error =
        run(async { session::pull(&agent.client(), "p", &Wanted::default(), |_| {}).await.unwrap_err() });
    match error {
        SessionError::Pull { kind, message } => {
            assert_eq!(kind, PullProblem::Digest);
            assert!(!message.contains('\x1b'));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_command_is_told_from_other_failures() {
    let agent = FakeAgent::start(|_, peer| {
        peer.answer(|request| match request.method.as_str() {
            "StartContainer" => Response::error(Code::Internal, "the file nope was not found: ENOENT"),
            "ExecProcess" => Response::error(Code::Internal, "the file /etc cannot be executed: EACCES"),
            _ => Response::error(Code::Internal, "no space left on device"),
        });
    });
    run(async {
        let client = agent.client();
        let start = session::start(&client, "c").await.unwrap_err();
        assert!(matches!(start, SessionError::CommandNotFound(_)), "{start:?}");
        let id = ProcessId { container: "c".into(), exec: "e".into() };
        let exec = session::exec(&client, &id, kata::Process::default()).await.unwrap_err();
        assert!(matches!(exec, SessionError::CommandNotExecutable(_)), "{exec:?}");
        let create = session::create(&client, "c", "ref", kata::Spec::default()).await.unwrap_err();
        assert!(matches!(create, SessionError::Agent { .. }), "{create:?}");
    });
}

#[test]
fn a_container_is_asked_for_by_the_reference_of_its_image() {
    let (seen, requests) = mpsc::channel();
    let agent = FakeAgent::start(move |_, peer| {
        peer.answer(|request| {
            seen.send(kata::CreateContainerRequest::decode(request.payload.as_slice()).unwrap()).unwrap();
            Response::ok(&kata::Empty {})
        });
    });
    run(async {
        session::create(&agent.client(), "web", "r.example/x:1", kata::Spec::default()).await.unwrap()
    });
    let request = requests.recv().unwrap();
    let storage = &request.storages[0];
    assert_eq!((request.container_id.as_str(), storage.driver.as_str()), ("web", "image_guest_pull"));
    assert_eq!((storage.source.as_str(), storage.fstype.as_str()), ("r.example/x:1", "overlay"));
    assert_eq!(storage.mount_point, "/run/kata-containers/web/rootfs");
}
