//! The launcher on a machine of its own: our kernel in a VM, cgroup v2 with every controller, this machine's programs shared
//! read-only. There the launcher's own tests run, and Debian's engines drive it.
//!
//! These take minutes under QEMU's translator, so they run with `cargo xtask test --all`.

#[path = "launcher_vm/machine.rs"]
mod machine;

use machine::Machine;
use nacre_tests::{require, tool};

#[test]
fn the_launcher_fulfils_the_specification_where_every_controller_is() {
    run_tests("conformance");
}

#[test]
fn the_launcher_carries_out_rare_fields_where_every_controller_is() {
    run_tests("fields");
}

#[test]
fn the_launchers_past_fails_where_every_controller_is() {
    run_tests("past");
}

/// A test program of `launcher/cli`, as it was compiled for this machine.
fn run_tests(program: &str) {
    require!(slow, vm, tool "busybox", tool "socat", tool "mkfs.erofs");
    let path = machine::test_program(program);
    let script = "exec 2>&1; cd /tmp; CI=true $PROGRAM --test-threads=1 --nocapture; echo code $?";
    let machine = Machine::boot();
    let output = machine.run(&script.replace("$PROGRAM", &path.display().to_string()));
    assert!(output.trim_end().ends_with("code 0"), "{output}");
}

/// What an engine is asked to do with a real image, one step a line, and what it must print.
struct Engine {
    /// Run before the steps, without being judged.
    prepare: &'static str,
    /// A step of bash, and a pattern of grep -E that its output has to match, or nothing to match.
    steps: &'static [(&'static str, &'static str)],
}

const PODMAN: Engine = Engine {
    prepare: "p() { podman --runtime /given/launcher --cgroup-manager cgroupfs \"$@\"; }
              p pull oci-archive:/given/small.tar",
    steps: &[
        ("p run --rm --network none small echo hello", "^hello$"),
        ("p run --rm --network none small sh -c 'exit 7'; echo code $?", "^code 7$"),
        (
            "p run --rm --network none -e A=b -w /tmp -u 1000:1001 --cap-drop all --read-only small sh -c 'echo $A; pwd; id -u; grep CapEff /proc/self/status; touch /x'; echo code $?",
            "^code 1$",
        ),
        ("p run -d --name b --network none --memory 64m --pids-limit 50 small sleep 1000", "^[0-9a-f]{64}$"),
        ("cat /sys/fs/cgroup/libpod_parent/libpod-*/memory.max", "^67108864$"),
        ("p exec b echo inside", "^inside$"),
        ("p exec b sh -c 'exit 9'; echo code $?", "^code 9$"),
        ("p stats --no-stream --format '{{.Name}} {{.PIDs}} {{.MemUsage}}' b", "^b 1 .* / 67.11MB$"),
        ("p pause b && p inspect -f '{{.State.Status}}' b", "^paused$"),
        ("p unpause b && p inspect -f '{{.State.Status}}' b", "^running$"),
        ("p kill b && p wait b", "^137$"),
        ("p rm b && p ps -aq | wc -l", "^0$"),
        ("find /sys/fs/cgroup -name 'libpod-*' | wc -l", "^0$"),
    ],
};

const CONTAINERD: Engine = Engine {
    prepare: "I=docker.io/library/small:latest
              t() { timeout 300 ctr \"$@\"; }
              printf 'version = 2\\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\\n' > /run/containerd.toml
              (containerd --config /run/containerd.toml > /tmp/containerd.log 2>&1 &)
              for i in $(seq 100); do ctr version > /dev/null 2>&1 && break; sleep 0.5; done
              t images import /given/small.tar",
    steps: &[
        ("t run --rm --runc-binary /given/launcher $I one /bin/echo hello", "^hello$"),
        ("t run --rm --runc-binary /given/launcher $I one /bin/sh -c 'exit 7'; echo code $?", "^code 7$"),
        ("t run -d --runc-binary /given/launcher --memory-limit 67108864 $I two /bin/sleep 1000", ""),
        ("cat /sys/fs/cgroup/default/two/memory.max", "^67108864$"),
        ("t task exec --exec-id e two /bin/echo inside", "^inside$"),
        ("t task exec --exec-id e two /bin/sh -c 'exit 9'; echo code $?", "^code 9$"),
        ("t task metrics two", "^memory.usage_limit +67108864 *$"),
        ("t task ps two", "^[0-9]+ "),
        ("t task pause two && t task ls", "^two .*PAUSED$"),
        ("t task resume two && t task ls", "^two .*RUNNING$"),
        ("t task kill -s SIGKILL two; sleep 2; t task ls", "^two .*STOPPED$"),
        ("t task rm two; t container rm two; t container ls -q | wc -l", "^0$"),
        ("find /sys/fs/cgroup/default -mindepth 1 -type d | wc -l", "^0$"),
    ],
};

#[test]
fn podman_runs_containers_with_the_launcher() {
    require!(slow, vm, tool "busybox", tool "socat", tool "mkfs.erofs", tool "podman", tool "skopeo", tool "umoci");
    drive(&PODMAN);
}

#[test]
fn containerd_runs_containers_with_the_launcher() {
    require!(slow, vm, tool "busybox", tool "socat", tool "mkfs.erofs", tool "containerd", tool "ctr", tool "skopeo", tool "umoci");
    drive(&CONTAINERD);
}

fn drive(engine: &Engine) {
    let work = tempfile::tempdir().unwrap();
    let script = "skopeo copy --quiet oci:$1:small oci-archive:small.tar:docker.io/library/small:latest && cp $2 launcher";
    let images = nacre_tests::fixtures::images().folder().display().to_string();
    tool::shell(work.path(), script, [images, machine::launcher().display().to_string()]);
    let mut steps = format!("exec < /dev/null 2>&1\ncd /tmp\n{}\n", engine.prepare);
    for (number, (step, pattern)) in engine.steps.iter().enumerate() {
        steps.push_str(&format!("echo '== {number}'\n{{ {step}; }} 2>&1 | tee /tmp/out\n"));
        if !pattern.is_empty() {
            steps.push_str(&format!("grep -Eq '{pattern}' /tmp/out || echo 'MISSED {number}'\n"));
        }
    }
    std::fs::write(work.path().join("steps"), steps + "echo all done\n").unwrap();
    let machine = Machine::with(&work);
    let output = machine.run("bash /given/steps 2>&1");
    let missed: Vec<_> = engine
        .steps
        .iter()
        .enumerate()
        .filter(|(number, _)| output.lines().any(|line| line == format!("MISSED {number}")))
        .map(|(_, step)| step)
        .collect();
    assert!(missed.is_empty() && output.ends_with("all done\n"), "{missed:?}\n{output}");
}
