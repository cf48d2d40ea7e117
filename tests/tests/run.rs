//! `nacre run`: what the container's command prints and ends with is what the caller gets.

use std::time::Duration;

use nacre_tests::fixtures::images;
use nacre_tests::{Nacre, require};

fn small() -> String {
    images().reference("small")
}

#[test]
fn output_errors_and_exit_code_come_back() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let output = nacre.run(["run", &small(), "sh", "-c", "echo out; echo err >&2; exit 42"]);
    let output = output.exited(42).printed("out\n").said(&["err\n"]);
    assert!(!output.stderr.contains("out\n"), "{output}");
}

#[test]
fn the_last_line_names_every_stage() {
    require!(vm, tool "umoci", tool "busybox");
    let output = Nacre::new().run(["run", &small(), "true"]).exited(0).printed("");
    let last = output.stderr.lines().last().unwrap_or_default();
    for stage in ["boot ", "agent ", "pull ", "1 layer", "verified in the sandbox", "start "] {
        assert!(last.contains(stage), "{stage:?} is not in {last:?}");
    }
    assert!(!output.stderr.contains('\x1b'), "escape sequences on what is no terminal: {:?}", output.stderr);
}

#[test]
fn quiet_prints_nothing_of_its_own() {
    require!(vm, tool "umoci", tool "busybox");
    let output = Nacre::new().run(["run", "--quiet", &small(), "echo", "x"]).exited(0).printed("x\n");
    assert_eq!(output.stderr, "");
}

#[test]
fn standard_input_arrives_whole_and_ends() {
    require!(vm, tool "umoci", tool "busybox");
    let input: Vec<u8> = (0..3_000_000u32).flat_map(|i| (i % 251).to_le_bytes()).collect();
    let output = Nacre::new().run_with_input(&input, ["run", "-i", &small(), "cat"]).exited(0);
    assert!(output.stdout == input, "{} bytes came back of {}", output.stdout.len(), input.len());
}

#[test]
fn without_interactive_standard_input_is_empty() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let running = nacre.start(["run", &small(), "sh", "-c", "wc -c"]);
    running.finish(Duration::from_secs(60)).exited(0).printed("0\n");
}

#[test]
fn much_output_arrives_whole() {
    require!(vm, tool "umoci", tool "busybox");
    let script = "i=0; while [ $i -lt 40 ]; do dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' x; i=$((i+1)); done";
    let output = Nacre::new().run(["run", "-q", &small(), "sh", "-c", script]).exited(0);
    assert_eq!(output.stdout.len(), 40 << 20);
    assert!(output.stdout.iter().all(|byte| *byte == b'x'));
}

#[test]
fn what_is_not_there_or_not_executable_has_dockers_exit_codes() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    for (command, code, text) in [
        ("no-such-program", 127, "no-such-program"),
        ("/bin/no-such-program", 127, "no-such-program"),
        ("/etc/plain", 126, "/etc/plain"),
        ("/etc", 126, "/etc"),
    ] {
        nacre.run(["run", &small(), command]).exited(code).printed("").said(&[text]);
    }
}

#[test]
fn a_command_in_a_running_container_ends_as_it_ends() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("box", [&small(), "sleep", "1000"]);
    for (command, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -INT $$; sleep 1", 130),
        ("kill -SEGV $$", 139),
        ("exec /etc/plain", 126),
        ("exec nothing", 127),
    ] {
        nacre.run(["exec", "box", "sh", "-c", command]).exited(code);
    }
    for (command, code) in
        [("nothing", 127), ("/etc/plain", 126), ("/bin/orphan", 127), ("/bin/garbage", 126)]
    {
        nacre.run(["exec", "box", command]).exited(code).said(&[command]);
    }
    nacre.remove("box");
}

#[test]
fn a_first_process_that_is_killed_gives_128_and_the_signal() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        // The first process of a pid namespace ignores what it has no handler for; so has it one.
        let script = "trap 'trap - TERM; exit 143' TERM; echo ready; while :; do sleep 0.1; done";
        let mut running = nacre.start(["run", "--name", "victim", &small(), "sh", "-c", script]);
        running.wait_for("ready", Duration::from_secs(60));
        nacre.run(["kill", "-s", signal, "victim"]).exited(0);
        running.finish(Duration::from_secs(60)).exited(code);
    }
}

#[test]
fn variables_directory_user_and_names_are_the_ones_asked_for() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new().variable("FROM_HERE", "handed on");
    let file = nacre.guard().folder().join("share/variables");
    std::fs::write(&file, "# a comment\nFROM_FILE=file\n").unwrap();
    let file = file.display().to_string();
    let script =
        "echo $FROM_IMAGE $SET $FROM_HERE $FROM_FILE; pwd; id -u; id -g; hostname; echo $HOME; id -G";
    nacre
        .run([
            "run",
            "-e",
            "SET=a b",
            "-e",
            "FROM_HERE",
            "--env-file",
            &file,
            "-w",
            "/var",
            "-u",
            "user",
            "--hostname",
            "shell",
            &small(),
            "sh",
            "-c",
            script,
        ])
        .exited(0)
        .printed("yes a b handed on file\n/var\n1000\n1000\nshell\n/home/user\n1000 29 60\n");
}

#[test]
fn users_are_found_in_the_images_own_files() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("box", [&small(), "sleep", "1000"]);
    for (user, ids) in [
        ("root", "0 0"),
        ("user", "1000 1000"),
        ("1000", "1000 1000"),
        ("user:games", "1000 60"),
        ("1234", "1234 0"),
        ("1234:5678", "1234 5678"),
        ("nobody", "65534 65534"),
    ] {
        let output = nacre.run(["exec", "-u", user, "box", "sh", "-c", "echo $(id -u) $(id -g)"]);
        output.exited(0).printed(&format!("{ids}\n"));
    }
    nacre.run(["exec", "-u", "stranger", "box", "true"]).said(&["stranger"]);
    nacre.remove("box");
}

#[test]
fn entrypoint_and_command_of_the_image_are_used_and_replaced() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let layout = images().copy_to(nacre.guard().folder().join("layout"));
    layout.with_config("small", "entry", |config| {
        config["config"]["Entrypoint"] = serde_json::json!(["/bin/echo", "entry"]);
        config["config"]["Cmd"] = serde_json::json!(["command"]);
    });
    let entry = layout.reference("entry");
    nacre.run(["run", &entry]).exited(0).printed("entry command\n");
    nacre.run(["run", &entry, "other"]).exited(0).printed("entry other\n");
    nacre.run(["run", "--entrypoint", "/bin/printf", &entry, "%s\\n", "x"]).exited(0).printed("x\n");
}

#[test]
fn a_container_is_shut_in() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("box", [&small(), "sleep", "1000"]);
    let inside = |script: &str| nacre.run(["exec", "box", "sh", "-c", script]);
    // What docker's default profile and mounts refuse.
    for script in [
        "mount -t tmpfs none /tmp",
        "echo 1 > /proc/sys/kernel/panic",
        "echo x > /sys/kernel/x",
        "mknod /tmp/disk b 254 0 && dd if=/tmp/disk of=/dev/null count=1",
        "cat /proc/kcore | head -c 1 | grep .",
        "date -s 2000-01-01; date +%Y | grep 2000",
        "hostname other",
        "chroot / unshare -m true",
        "swapoff -a && reboot -f",
    ] {
        let output = inside(script);
        assert_ne!(output.code, 0, "{script}\n{output}");
    }
    inside("ls /dev | sort | tr '\\n' ' '")
        .exited(0)
        .printed("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ");
    inside("cat /proc/1/cmdline | tr '\\0' ' '").exited(0).printed("sleep 1000 ");
    inside("cat /proc/self/status | grep -E '^(NoNewPrivs|Seccomp):' | tr -d '\\t\\n'").exited(0);
    // docker's fourteen.
    inside("grep CapEff /proc/self/status | cut -f2").exited(0).printed("00000000a80425fb\n");
    inside("ps -o pid | wc -l").exited(0);
    nacre.remove("box");
}

#[test]
fn capabilities_are_given_and_taken() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let effective = ["sh", "-c", "grep CapEff /proc/self/status | cut -f2"];
    for (options, expected) in [
        (&["--cap-drop", "ALL"][..], "0000000000000000\n"),
        (&["--cap-drop", "ALL", "--cap-add", "NET_ADMIN"], "0000000000001000\n"),
        (&["--cap-drop", "CHOWN"], "00000000a80425fa\n"),
    ] {
        let image = small();
        let words = [&["run"][..], options, &[&image], &effective].concat();
        nacre.run(words).exited(0).printed(expected);
    }
}

#[test]
fn a_read_only_root_takes_no_writes_and_scratch_may_be_memory() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let output = nacre.run(["run", "--read-only", &small(), "sh", "-c", "echo x > /file"]);
    assert_ne!(output.code, 0);
    output.said(&["read-only"]);
    let words = ["run", "--scratch", "tmpfs", &small(), "sh", "-c", "echo x > /file && cat /file"];
    nacre.run(words).exited(0).printed("x\n");
}

#[test]
fn wrong_arguments_are_125_and_explained() {
    require!(vm);
    let nacre = Nacre::new();
    for (arguments, text) in [
        (&["run"][..], "IMAGE"),
        (&["run", "--no-such-option", "x"], "--no-such-option"),
        (&["run", "-m", "many", "x"], "many"),
        (&["run", "-v", "relative:path", "x"], "path"),
        (&["run", "oci:/no/such/directory", "true"], "/no/such/directory"),
        (&["run", "docker-archive:/no/such/file", "true"], "/no/such/file"),
        (&["run", "-w", "relative", "x"], "\"relative\" is not absolute"),
        (&["run", "--platform", "linux/foo", "x"], "\"foo\""),
        (&["run", "--creds", "foo", "x"], "USER:PASSWORD"),
        (&["run", "--proxy", "ftp://p", "x"], "\"ftp\""),
        (
            &["run", "library/CASE", "true"],
            "arguments: library/CASE: repository path \"library/CASE\" must be lower case",
        ),
    ] {
        nacre.run(arguments).exited(125).printed("").said(&[text]);
    }
}
