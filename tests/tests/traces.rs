//! What the Go shim and runtime-rs ask in which order, played to a booted guest; every answer is looked at. The traces are
//! in `tests/traces`, written from the facts that are known about both shims.

mod guest;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest::{END, Guest};
use nacre::vmm::{Scratch, VmEnd};
use nacre_protocols::host_agent::nacre::UpgradeAgentRequest;
use nacre_tests::{artefacts, require, tool};
use prost::Message;

#[test]
fn a_pod_of_the_go_shim_lives_and_ends() {
    require!(vm, tool "busybox");
    let guest = Guest::boot();
    guest.play("go-pod.jsonl");
    assert_eq!(guest.vm.wait_for(END), Some(VmEnd::Finished));
}

#[test]
fn a_pod_of_runtime_rs_lives() {
    require!(vm, tool "busybox");
    Guest::boot().play("runtime-rs-pod.jsonl");
}

#[test]
fn signals_reach_whom_they_are_for() {
    require!(vm, tool "busybox");
    Guest::boot().play("kill-all.jsonl");
}

#[test]
fn limits_hold_and_change() {
    require!(vm, tool "busybox");
    Guest::boot().play("resources.jsonl");
}

#[test]
fn files_are_sent_where_no_directory_is_shared() {
    require!(vm, tool "busybox");
    Guest::boot().play("files.jsonl");
}

#[test]
fn disks_are_volumes_and_devices_by_the_guests_own_numbers() {
    require!(vm, tool "busybox", tool "mkfs.ext4");
    let guest = Guest::boot_with(|folder, config| {
        let file = folder.join("disk");
        File::create(&file).and_then(|disk| disk.set_len(32 << 20)).expect("no disk");
        tool::check(Command::new("mkfs.ext4").arg("-q").arg(&file));
        // Named by nothing on the command line, it is nobody's: a disk beside those of the guest.
        config.scratch = Scratch::Kept { file };
    });
    guest.play("disks.jsonl");
}

#[test]
fn the_bounds_of_the_command_line_hold() {
    require!(vm, tool "busybox");
    let words = ["nacre.containers=1", "nacre.capabilities=0x1", "nacre.storage=shares,layers"];
    Guest::boot_with(|_, config| config.cmdline.extend(words.map(str::to_owned))).play("manifest.jsonl");
}

#[test]
fn a_guest_out_of_a_template_is_made_its_own() {
    require!(vm, tool "busybox");
    Guest::boot().play("template.jsonl");
}

/// The lines that make a pod with one share, and what its containers' documents begin with.
const POD: &str = r#"
{"call": "CreateSandbox", "with": {"sandbox_id": "box", "storages": [{"driver": "virtio-fs", "source": "kataShared", "fstype": "virtiofs", "mount_point": "/run/kata-containers/shared/containers/"}]}, "gives": {}}
{"let": "mounts", "is": [{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}]}
{"let": "root", "is": {"path": "/run/kata-containers/shared/containers/app0/rootfs"}}
"#;

fn all_of(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the stream does not end");
    text
}

#[test]
fn connections_of_the_host_become_the_streams_of_processes() {
    require!(vm, tool "busybox");
    let words = ["agent.passfd_listener_port=1027", "agent.log_vport=1025", "agent.debug_console"];
    let guest = Guest::boot_with(|_, config| config.cmdline.extend(words.map(str::to_owned)));
    drop(guest.client());
    let (mut stdin, stdin_port) = guest.dial(1027).unwrap();
    let (stdout, stdout_port) = guest.dial(1027).unwrap();
    let (stderr, stderr_port) = guest.dial(1027).unwrap();
    let (only, only_port) = guest.dial(1027).unwrap();
    let process =
        r#"{"args": ["/bin/sh", "-c", "cat; echo wrong >&2; exit 7"], "env": ["PATH=/bin"], "cwd": "/"}"#;
    let create = format!(
        r#"{{"call": "CreateContainer", "with": {{"container_id": "app0", "exec_id": "app0", "stdin_port": {stdin_port}, "stdout_port": {stdout_port}, "stderr_port": {stderr_port}, "oci": {{"root": "$root", "mounts": "$mounts", "process": {process}}}}}, "gives": {{}}}}
{{"call": "StartContainer", "with": {{"container_id": "app0"}}, "gives": {{}}}}
{{"call": "ExecProcess", "with": {{"container_id": "app0", "exec_id": "e", "stdout_port": {only_port}, "process": {{"args": ["/bin/sh", "-c", "cat; echo done; echo nobody hears this >&2"], "env": ["PATH=/bin"], "cwd": "/"}}}}, "gives": {{}}}}
{{"call": "ExecProcess", "with": {{"container_id": "app0", "exec_id": "f", "stdout_port": {only_port}, "process": {{"args": ["/bin/true"], "cwd": "/"}}}}, "fails": {{"code": 3, "text": "no connection from port"}}}}
{{"call": "WaitProcess", "with": {{"container_id": "app0", "exec_id": "e"}}, "gives": {{"status": 0}}}}"#
    );
    guest.play_text("streams", &format!("{POD}{create}"));
    assert_eq!(all_of(only), "done\n", "its stdin and stderr are nowhere");
    // More than any buffer on the way holds: who reads late holds back who writes.
    let long: Vec<u8> = (0..4_000_000u32).map(|number| (number % 251) as u8).collect();
    let reader = std::thread::spawn(move || {
        let (mut stdout, mut bytes) = (stdout, Vec::new());
        std::thread::sleep(Duration::from_millis(300));
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    stdin.write_all(&long).unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    assert!(reader.join().unwrap().unwrap() == long, "the bytes came out otherwise");
    assert_eq!(all_of(stderr), "wrong\n");
    guest.play_text(
        "its end",
        r#"{"call": "ReadStdout", "with": {"container_id": "app0", "exec_id": "app0", "len": 100}, "gives": {"data": ""}}
{"call": "WaitProcess", "with": {"container_id": "app0", "exec_id": "app0"}, "gives": {"status": 7}}
{"call": "RemoveContainer", "with": {"container_id": "app0"}, "gives": {}}"#,
    );
    let (log, _) = guest.dial(1025).unwrap();
    let mut line = String::new();
    BufReader::new(log).read_line(&mut line).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).expect("no JSON");
    assert_eq!((&line["level"], &line["msg"]), (&"INFO".into(), &"agent 1 is up".into()), "{line}");
    let console = guest.dial(1026).map(|_| ()).unwrap_err();
    assert_eq!(
        console.kind(),
        io::ErrorKind::UnexpectedEof,
        "a console without the manifest's leave: {console}"
    );
}

#[test]
fn connections_of_the_host_are_the_streams_of_a_terminal() {
    require!(vm, tool "busybox");
    let guest =
        Guest::boot_with(|_, config| config.cmdline.push("agent.passfd_listener_port=1027".to_owned()));
    drop(guest.client());
    let (mut stdin, stdin_port) = guest.dial(1027).unwrap();
    let (mut stdout, stdout_port) = guest.dial(1027).unwrap();
    let script = "read line; stty size; echo got $line; head -c 300000 /dev/zero | tr '\\\\0' x; exit 7";
    let create = format!(
        r#"{{"let": "with_pts", "is": [{{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}}, {{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}}]}}
{{"call": "CreateContainer", "with": {{"container_id": "app0", "exec_id": "app0", "stdin_port": {stdin_port}, "stdout_port": {stdout_port}, "oci": {{"root": "$root", "mounts": "$with_pts", "process": {{"terminal": true, "args": ["/bin/sh", "-c", "{script}"], "env": ["PATH=/bin"], "cwd": "/"}}}}}}, "gives": {{}}}}
{{"call": "StartContainer", "with": {{"container_id": "app0"}}, "gives": {{}}}}
{{"call": "TtyWinResize", "with": {{"container_id": "app0", "exec_id": "app0", "row": 31, "column": 97}}, "gives": {{}}}}"#
    );
    guest.play_text("a terminal", &format!("{POD}{create}"));
    stdin.write_all(b"this\n").unwrap();
    let mut said = Vec::new();
    stdout.read_to_end(&mut said).unwrap();
    let (words, rest) = said.split_at(said.len() - 300_000);
    assert_eq!(String::from_utf8_lossy(words), "this\r\n31 97\r\ngot this\r\n");
    assert!(rest.iter().all(|byte| *byte == b'x'), "other bytes");
    guest.play_text(
        "its end",
        r#"{"call": "WaitProcess", "with": {"container_id": "app0", "exec_id": "app0"}, "gives": {"status": 7}}
{"call": "RemoveContainer", "with": {"container_id": "app0"}, "gives": {}}"#,
    );
}

#[test]
fn no_port_is_open_that_was_not_asked_for() {
    require!(vm, tool "busybox");
    let guest = Guest::boot_with(|_, config| config.cmdline.push("nacre.allow=console".to_owned()));
    drop(guest.client());
    for port in [1025, 1026, 1027] {
        assert!(guest.dial(port).is_err(), "{port}");
    }
}

#[test]
fn a_directory_that_is_watched_follows_the_hosts() {
    require!(vm, tool "busybox");
    let guest = Guest::boot();
    let volume = guest.folder.path().join("shared/app0/volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("key"), "one\n").unwrap();
    let script = "grep -c ' /volume tmpfs' /proc/mounts; cat /volume/key; \
                  while [ $(cat /volume/key) = one ]; do sleep 0.1; done; cat /volume/key";
    let create = format!(
        r#"{{"let": "watched", "is": {{"driver": "watchable-bind", "source": "/run/kata-containers/shared/containers/app0/volume", "fstype": "bind", "options": ["bind", "ro"], "mount_point": "/run/kata-containers/shared/containers/app0/watchable/volume"}}}}
{{"let": "seen", "is": [{{"destination": "/proc", "type": "proc", "source": "proc"}}, {{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}}, {{"destination": "/volume", "type": "bind", "source": "/run/kata-containers/shared/containers/app0/watchable/volume", "options": ["rbind", "ro"]}}]}}
{{"call": "CreateContainer", "with": {{"container_id": "app0", "exec_id": "app0", "storages": ["$watched"], "oci": {{"root": "$root", "mounts": "$seen", "process": {{"args": ["/bin/sh", "-c", "{script}"], "env": ["PATH=/bin"], "cwd": "/"}}}}}}, "gives": {{}}}}
{{"call": "StartContainer", "with": {{"container_id": "app0"}}, "gives": {{}}}}
{{"read": "ReadStdout", "with": {{"container_id": "app0", "exec_id": "app0", "len": 100}}, "until": "one\n"}}"#
    );
    guest.play_text("a container", &format!("{POD}{create}"));
    std::fs::write(volume.join(".key"), "two\n").unwrap();
    std::fs::rename(volume.join(".key"), volume.join("key")).unwrap();
    guest.play_text(
        "the change",
        r#"{"read": "ReadStdout", "with": {"container_id": "app0", "exec_id": "app0", "len": 100}, "until": "two\n"}
{"call": "WaitProcess", "with": {"container_id": "app0", "exec_id": "app0"}, "gives": {"status": 0}}
{"call": "RemoveContainer", "with": {"container_id": "app0"}, "gives": {}}"#,
    );
    let left: Vec<_> = std::fs::read_dir(volume.with_file_name("watchable")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Asks for another agent's program, and gives the answer.
fn upgrade(guest: &Guest, program: &Path) -> Result<(), String> {
    let request = UpgradeAgentRequest { program: std::fs::read(program).expect("no program") };
    let payload = request.encode_to_vec();
    // Its connection ends with it.
    let client = guest.client();
    let pending = client.begin("nacre.v1.Sandbox", "UpgradeAgent", payload, None).expect("no agent");
    match pending.wait(END).expect("no answer").expect("no answer in time").into_result() {
        Ok(_) => Ok(()),
        Err(status) => Err(status.message),
    }
}

#[test]
fn an_agent_is_replaced_while_its_containers_run() {
    require!(vm, tool "busybox");
    let guest = Guest::boot_with(|_, config| config.cmdline.push("nacre.allow=upgrade".to_owned()));
    guest.play_text(
        "a container",
        &format!(
            r#"{POD}
{{"call": "CreateContainer", "with": {{"container_id": "app0", "exec_id": "app0", "oci": {{"root": "$root", "mounts": "$mounts", "process": {{"args": ["/bin/sh", "-c", "echo up; read line; echo got $line; exit 5"], "env": ["PATH=/bin"], "cwd": "/"}}}}}}, "gives": {{}}}}
{{"call": "StartContainer", "with": {{"container_id": "app0"}}, "gives": {{}}}}"#
        ),
    );
    // A program that is no agent: the image's comes back.
    upgrade(&guest, &tool::find("busybox").expect("no busybox")).unwrap();
    guest.play_text("the image's agent", r#"{"call": "GetReport", "gives": {"agent_generation": 3}}"#);
    upgrade(&guest, &artefacts::guest_program("nacre-agent")).unwrap();
    guest.play_text(
        "the new agent",
        r#"{"call": "GetReport", "gives": {"agent_generation": 4, "agent_upgraded": true}}
{"call": "WriteStdin", "with": {"container_id": "app0", "exec_id": "app0", "data": "this\n"}, "gives": {"len": 5}}
{"read": "ReadStdout", "with": {"container_id": "app0", "exec_id": "app0", "len": 100}, "gives": "up\ngot this\n"}
{"call": "WaitProcess", "with": {"container_id": "app0", "exec_id": "app0"}, "gives": {"status": 5}}
{"call": "RemoveContainer", "with": {"container_id": "app0"}, "gives": {}}"#,
    );
}
