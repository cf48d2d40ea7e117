//! The program itself: both processes, confined, over their real edges, with real archives.
//!
//! Needs root, to start them as other users without capabilities, and `tar`, `gzip` and `zstd`.

mod common;
mod puller;

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use common::*;
use nacre_protocols::agent_puller::{Pull, PullFailureKind, Reply as Answer, Request as Ask};
use nacre_protocols::names;
use nacre_puller::digest::Digest;
use nacre_sys::seqpacket;
use puller::{Puller, Start, archives, image};

#[test]
fn layers_of_every_compression_become_tar_and_index() {
    let Some(puller) = Puller::start() else { return };
    let work = tempfile::tempdir().unwrap();
    let (tar, compressed) = archives(work.path());
    for (at, (media_type, blob)) in compressed.into_iter().enumerate() {
        let image = image(media_type, &blob, Digest::of(&tar));
        let server = FakeServer::start(move |request| image.answer(request));
        let pulled = puller
            .pull(at as u32, request(server.address))
            .unwrap_or_else(|error| panic!("{media_type}: {error:?}"));
        let layer = &pulled.layers[0];
        assert_eq!((layer.tar, layer.compressed), (tar.len() as u64, blob.len() as u64));
        assert_eq!(puller.layer(&layer.diff_id, "layer.tar")[..tar.len()], tar);
        // The superblock's magic, see the kernel's fs/erofs/erofs_fs.h.
        assert_eq!(puller.layer(&layer.diff_id, "index.erofs")[1024..1028], 0xe0f5_e1e2u32.to_le_bytes());
        assert_eq!(server.count("blobs"), 2, "each compression is another blob, and fetched");
    }
    puller.end();
}

#[test]
fn archives_that_are_damaged_are_refused_by_name() {
    let Some(puller) = Puller::start() else { return };
    let work = tempfile::tempdir().unwrap();
    let (tar, [_, (gzip_type, gzip), _]) = archives(work.path());
    let mut flipped = gzip.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    for (at, blob) in
        [gzip[..gzip.len() - 100].to_vec(), flipped, b"no archive".to_vec()].into_iter().enumerate()
    {
        let image = image(gzip_type, &blob, Digest::of(&tar));
        let server = FakeServer::start(move |request| image.answer(request));
        let (kind, message) = puller.pull(at as u32, request(server.address)).expect_err("it was taken");
        assert_eq!(kind, PullFailureKind::Malformed, "{message}");
        assert!(message.contains("layer 1 of 1"), "{message}");
    }
    assert_eq!(std::fs::read_dir(puller.store().join("tmp")).unwrap().count(), 0);
    puller.end();
}

#[test]
fn failures_leave_the_fetcher_ready_for_the_next_pull() {
    let Some(puller) = Puller::start() else { return };
    let nobody = request(connect_refused());
    assert_eq!(puller.pull(1, nobody.clone()).unwrap_err().0, PullFailureKind::Connect);
    let image = TestImage::new(&[]);
    let busy_once = FakeServer::start(move |request| match request.nth {
        0 => Reply::status(503),
        _ => image.answer(request),
    });
    let empty = puller.pull(2, request(busy_once.address)).unwrap();
    assert_eq!(empty.layers, []);
    // By https, to have the roots of trust read and a handshake begun.
    let silent = raw_server(drop);
    let alias = nacre_protocols::agent_puller::HostAlias { host: "tls.test".into(), address: silent.ip() };
    let tls =
        Pull { reference: format!("tls.test:{}/x", silent.port()), aliases: vec![alias], ..nobody.clone() };
    assert_eq!(puller.pull(3, tls).unwrap_err().0, PullFailureKind::Tls);
    assert_eq!(
        puller.pull(4, Pull { reference: "UPPER".into(), ..nobody }).unwrap_err().0,
        PullFailureKind::Reference
    );
    puller.end();
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let mount = |store: &Path| {
        let options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        assert!(Command::new("mount").args(options).arg(store).status().unwrap().success());
    };
    let Some(puller) = Puller::start_with(mount, &Start::default()) else { return };
    let work = tempfile::tempdir().unwrap();
    let (tar, [_, (gzip_type, gzip), _]) = archives(work.path());
    let image = image(gzip_type, &gzip, Digest::of(&tar));
    let server = FakeServer::start(move |request| image.answer(request));
    let outcome = puller.pull(1, request(server.address));
    let left = std::fs::read_dir(puller.store().join("tmp")).unwrap().count();
    Command::new("umount").arg("-l").arg(puller.store()).status().unwrap();
    let (kind, message) = outcome.unwrap_err();
    assert_eq!((kind, left), (PullFailureKind::DiskFull, 0), "{message}");
    assert!(message.contains("scratch disk is full: 1048576 of 1048576 bytes used"), "{message}");
    puller.end();
}

#[test]
fn a_fetcher_ends_with_its_indexer() {
    let Some(mut puller) = Puller::start() else { return };
    let image = TestImage::new(&[&[0; 5000]]);
    let part = image.layer_part(0);
    let server = FakeServer::start(move |request| {
        let stall = request.target.contains(&part).then_some(1000);
        Reply { stall_after: stall, ..image.answer(request) }
    });
    puller.send(&Ask::Pull { id: 7, pull: Box::new(request(server.address)) });
    assert!(matches!(puller.receive(), Some(Answer::Layers { id: 7, .. })));
    nacre_sys::process::signal(puller.indexer.pidfd.as_fd(), 9).unwrap();
    // Not a word about the pull: that both are gone says it, and in the sandbox init knows why.
    while let Some(answer) = puller.receive() {
        assert!(matches!(answer, Answer::Progress { .. } | Answer::Stage { .. }), "{answer:?}");
    }
    assert_eq!(puller.fetcher_code(), Some(nacre_puller::fetcher::INDEXER_GONE));
    puller.agent = None;
}

#[test]
fn a_pull_is_cancelled_on_request() {
    let Some(puller) = Puller::start() else { return };
    let image = TestImage::new(&[&[0; 5000]]);
    let part = image.layer_part(0);
    let server = FakeServer::start(move |request| {
        let stall = request.target.contains(&part).then_some(1000);
        Reply { stall_after: stall, ..image.answer(request) }
    });
    puller.send(&Ask::Pull { id: 7, pull: Box::new(request(server.address)) });
    assert!(matches!(puller.receive(), Some(Answer::Layers { id: 7, .. })));
    puller.send(&Ask::Cancel { id: 7 });
    puller.send(&Ask::Cancel { id: 8 });
    let failure = loop {
        match puller.receive() {
            Some(Answer::Failed { id: 7, failure }) => break failure,
            Some(Answer::Stage { id: 7, .. } | Answer::Progress { id: 7, .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failure.kind, PullFailureKind::Cancelled);
    puller.end();
}

#[test]
fn a_frame_that_is_not_understood_ends_the_fetcher() {
    let Some(puller) = Puller::start() else { return };
    seqpacket::send(puller.agent.as_ref().unwrap(), &[0xff; 8], &[]).unwrap();
    assert_eq!(puller.receive(), None);
}

#[test]
fn a_registry_cannot_send_the_fetcher_to_another_port() {
    let Some(puller) = Puller::start() else { return };
    // Not one of those that the puller may connect to, though somebody listens there.
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let to = format!("http://127.0.0.1:{port}/");
    let challenge = format!("Bearer realm=\"{to}\",service=\"x\"");
    for (at, (what, answer)) in [
        ("a redirect", Reply::status(307).with("Location", to)),
        ("a token realm", Reply::status(401).with("WWW-Authenticate", challenge)),
    ]
    .into_iter()
    .enumerate()
    {
        let server = FakeServer::start(move |_| answer.clone());
        let order = Pull { insecure: vec!["127.0.0.1".into()], ..request(server.address) };
        let (kind, message) = puller.pull(at as u32, order).expect_err(what);
        assert_eq!(kind, PullFailureKind::Port, "{what}: {message}");
        assert!(message.contains(&format!("port {port} is not among those")), "{what}: {message}");
        assert_eq!(server.seen.lock().unwrap().len(), 1, "{what}: it was tried again");
    }
    elsewhere.set_nonblocking(true).unwrap();
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    puller.end();
}

#[test]
fn the_processes_have_no_rights() {
    let Some(puller) = Puller::start() else { return };
    // A first answer, so that both are up.
    let _ = puller.pull(1, request(connect_refused()));
    for (child, uid, filters) in
        [(&puller.fetcher, names::FETCHER_UID, 2), (&puller.indexer, names::INDEXER_UID, 3)]
    {
        let path = format!("/proc/{}/status", child.pid);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let status = loop {
            let status = std::fs::read_to_string(&path).unwrap();
            if status.contains(&format!("Seccomp_filters:\t{filters}"))
                || std::time::Instant::now() > deadline
            {
                break status;
            }
        };
        for (field, value) in [
            ("Uid", format!("{uid}\t{uid}\t{uid}\t{uid}")),
            ("CapInh", "0000000000000000".into()),
            ("CapPrm", "0000000000000000".into()),
            ("CapEff", "0000000000000000".into()),
            ("CapBnd", "0000000000000000".into()),
            ("CapAmb", "0000000000000000".into()),
            ("NoNewPrivs", "1".into()),
            ("Seccomp", "2".into()),
            ("Seccomp_filters", filters.to_string()),
        ] {
            assert!(status.contains(&format!("{field}:\t{value}\n")), "{field} is not {value} in\n{status}");
        }
    }
    puller.end();
}
