//! Our own VMM, on a KVM that really executes: everything here happens in the lab (`cargo xtask lab`), whatever this host has.

use std::collections::{HashMap, HashSet};

use nacre::kvm::jail::{Kind, rules};
use nacre_tests::fixtures::images;
use nacre_tests::{lab, require};

#[test]
fn a_sandbox_on_our_own_vmm_has_all_that_one_under_qemu_has() {
    require!(vm, tool "umoci", tool "passt");
    let small = images().reference("small");
    let said = lab::run(
        r#"
        export HOME=/tmp/home XDG_RUNTIME_DIR=/tmp/runtime
        mkdir -m 700 $HOME $XDG_RUNTIME_DIR; mkdir /tmp/share; echo from the host > /tmp/share/file
        $NACRE_BIN doctor | grep kvm
        $NACRE_BIN run --name box --vm-memory-max 1g --vm-cpus-max 3 -v /tmp/share:/data $NACRE_SMALL sh -c '
            echo processors $(grep -c ^processor /proc/cpuinfo)
            cat /data/file; echo from the guest > /data/answer
            echo network $(ls /sys/class/net)
            dd if=/dev/urandom of=/big bs=1M count=20 2> /dev/null; sync; md5sum < /big > /sum
            dd if=/big bs=1M iflag=direct 2> /dev/null | md5sum | cmp - /sum && echo the disk keeps what is written
            until test -e /data/go; do sleep 0.1; done
            echo grown to $(grep -c ^processor /proc/cpuinfo), $(($(grep MemTotal /proc/meminfo | tr -dc 0-9) / 1000 / 100 * 100)), $(cat /sys/fs/cgroup/memory.max)
            exit 7' &
        pid=$!
        until test -e /tmp/share/answer || ! kill -0 $pid; do sleep 0.1; done
        for thread in /proc/$(pgrep -f '[v]mm --config')/task/*; do
            echo thread $(cat $thread/comm) $(grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' $thread/status)
        done
        $NACRE_BIN vmm-control box pause; $NACRE_BIN vmm-control box status | grep state; sleep 1
        $NACRE_BIN vmm-control box resume; $NACRE_BIN vmm-control box status | grep state
        $NACRE_BIN update --vm-memory 2g box; $NACRE_BIN update --memory 900m --vm-cpus 3 box; echo updated $?
        touch /tmp/share/go; wait $pid; echo code $?
        cat /tmp/share/answer
        echo left $(pgrep -c -f '[v]mm --config')
        $NACRE_BIN run --vmm kvm --image /bin/busybox $NACRE_SMALL true; echo code $?
        echo "$(du -k /tmp/runtime | tail -1 | cut -f1) KiB left"
        "#,
        &[("NACRE_SMALL", &small)],
    );
    for line in [
        "usable",
        "processors 1\n",
        "from the host\n",
        "network eth0 lo\n",
        "the disk keeps what is written\n",
        "\"state\": \"paused\"",
        "\"state\": \"running\"",
        "memory_mib: 2048 is outside 512 to 1024",
        "updated 0\n",
        // Up to the machine's largest: 900 MiB and what a guest needs would be more.
        "grown to 3, 1000, 943718400\n",
        "code 7\n",
        "from the guest\n",
        "left 0\n",
        "the guest kernel panicked",
        "code 125\n",
        "verified in the sandbox",
    ] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    assert!(!said.contains("no KVM"), "{said}");
    // Every thread is confined; that of the shares keeps what reading anybody's files needs, as root.
    let threads: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("thread ")).collect();
    let names: Vec<&str> = threads.iter().filter_map(|line| line.split(' ').next()).collect();
    for name in [
        "nacre",
        "nacre-vcpu0",
        "nacre-vcpu1",
        "nacre-disk",
        "nacre-rng",
        "nacre-vsock",
        "nacre-fs",
        "nacre-network",
        "nacre-balloon",
        "nacre-control",
    ] {
        assert!(names.contains(&name), "{name}: {threads:#?}");
    }
    for thread in threads {
        assert!(thread.contains("NoNewPrivs: 1") && thread.contains("Seccomp: 2"), "{thread}");
        let none = thread.contains("CapEff: 0000000000000000") && thread.contains("CapBnd: 0000000000000000");
        assert!(none || thread.starts_with("nacre-fs "), "{thread}");
    }
}

#[test]
fn an_ordinary_user_needs_no_more_than_the_group_kvm() {
    require!(vm, tool "umoci", tool "passt", tool "setpriv");
    let small = images().reference("small");
    let said = lab::run(
        r#"
        mkdir -m 700 /tmp/user /tmp/user/home /tmp/user/run /tmp/user/shared; echo for root alone > /tmp/secret; chmod 600 /tmp/secret
        ln -s /tmp/secret /tmp/user/shared/link; chown -R 1234:1234 /tmp/user; chgrp 77 /dev/kvm; chmod 660 /dev/kvm
        # The user may go where the programs and images are; what is changed here, this machine alone sees.
        for file in $NACRE_BIN $NACRE_KERNEL $NACRE_IMAGE $NACRE_LAYOUT/index.json; do
            while [ $file != / ]; do file=$(dirname $file); chmod o+x $file; done
        done
        chmod -R o+rX $NACRE_LAYOUT
        cat > /tmp/user/as <<'END'
group=$1; shift; export HOME=/tmp/user/home XDG_RUNTIME_DIR=/tmp/user/run NACRE_SCRATCH_DIR=/tmp/user/home
# The shell here has one of its own, which knows less.
exec /usr/bin/setpriv --reuid 1234 --regid 1234 --groups $group --bounding-set -all --inh-caps -all $NACRE_BIN "$@"
END
        as() { sh /tmp/user/as "$@"; }
        as 77 run --vmm kvm --name box -v /tmp/user/shared:/data $NACRE_SMALL sh -c '
            echo inside $(id -u); echo text > /data/file; cat /data/link; mknod /data/disk b 1 0; chown 5:5 /data/file; touch /data/ready
            until test -e /data/go; do sleep 0.1; done' &
        pid=$!
        until test -e /tmp/user/shared/ready || ! kill -0 $pid; do sleep 0.1; done
        for process in $(pgrep -f '[v]mm --config') $(pgrep passt); do
            echo process $(cat /proc/$process/comm) $(grep -E '^(Uid|Gid|CapEff|CapPrm|NoNewPrivs):' /proc/$process/status)
        done
        touch /tmp/user/shared/go; wait $pid; echo code $?
        stat -c '%n %u:%g' /tmp/user/shared/*; find /tmp/user/run -type f -o -type s
        as 78 run --vmm kvm $NACRE_SMALL true; echo without $?; as 78 doctor 2>&1 | grep -A1 kvm
        "#,
        &[("NACRE_SMALL", &small), ("NACRE_LAYOUT", &images().folder().to_string_lossy())],
    );
    for line in [
        "inside 0\n",
        "/tmp/user/shared/file 1234:1234\n",
        "code 0\n",
        "without 125\n",
        "/dev/kvm: Permission denied",
        "usermod -aG kvm",
    ] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    assert!(!said.contains("for root alone"), "{said}");
    assert!(!said.contains("/tmp/user/shared/disk"), "{said}");
    let processes: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("process ")).collect();
    assert!(processes.len() >= 2, "{said}");
    for process in processes {
        let is_the_users = process.contains("Uid: 1234 1234 1234 1234 Gid: 1234 1234 1234 1234");
        let has_nothing = process.contains("CapPrm: 0000000000000000 CapEff: 0000000000000000");
        assert!(is_the_users && has_nothing, "{process}");
    }
}

#[test]
fn every_rule_of_every_filter_is_used() {
    require!(slow, vm, tool "strace", tool "setfattr", tool "umoci", tool "passt");
    let small = images().reference("small");
    let said = lab::run(
        r#"
        export HOME=/tmp/home XDG_RUNTIME_DIR=/tmp/runtime
        mkdir -m 700 $HOME $XDG_RUNTIME_DIR; mkdir /tmp/share; echo shared > /tmp/share/file
        # Programs that the image has not, and what they need.
        mkdir /tmp/share/bin; for name in setfattr getfattr; do cp $(command -v $name) $(ldd $(command -v $name) | grep -o '/[^ ]*') /tmp/share/bin; done
        $NACRE_BIN store create --size 1g kept
        strace -f -n -qq -e signal=none -o /tmp/trace $NACRE_BIN run --vmm kvm --boot-timeout 600 --name box --store kept -v /tmp/share:/data \
            $NACRE_SMALL sh -c '
            cd /data; cat file; echo x > new; mkdir d; mv new d/n; ln d/n hard; ln -s d/n soft; readlink soft; chmod 600 d/n
            touch -d 2020-01-01 d/n; truncate -s 100000 d/n; fallocate -l 200000 big; dd if=/dev/zero of=big bs=64k count=20 conv=fsync
            sync -d big; mkfifo fifo; df /data; ls -la; rm -r fifo soft hard d big; for do in "setfattr -n user.a -v b" "getfattr -n user.a" "getfattr -d" "setfattr -x user.a"; do
                bin/ld-linux-x86-64.so.2 --library-path bin bin/$do file; done
            dd if=/dev/zero of=/fill bs=1M count=30; sync; rm /fill; ping -c 1 -W 1 10.0.2.2; sleep 3; sync' > /tmp/out 2>&1 & pid=$!
        for n in $(seq 300); do sleep 1; $NACRE_BIN vmm-control box pause > /dev/null 2>&1 && break; kill -0 $pid || break; done
        $NACRE_BIN vmm-control box resume; wait $pid; echo code $?; tail -5 /tmp/out
        sed -E 's/^([0-9]+) +\[ *([0-9]+)\] ([a-z_0-9]+)\((.{0,30}).*/call \1 \2 \3 \4/; t; d' /tmp/trace
        "#,
        &[("NACRE_SMALL", &small)],
    );
    let calls = confined_calls(&said);
    let threads = [
        ("nacre-control", Kind::Control),
        ("nacre-vcpu0", Kind::Processor),
        ("nacre-balloon", Kind::Balloon),
        ("nacre-disk", Kind::Disk),
        ("nacre-rng", Kind::Entropy),
        ("nacre-network", Kind::Network),
        ("nacre-vsock", Kind::Vsock),
        ("nacre-fs", Kind::Files),
    ];
    let is_common = |number| rules(Kind::Main).any(|rule| rule.number == number);
    let mut unused = Vec::new();
    for (name, kind) in threads {
        for rule in rules(kind).filter(|rule| rule.seldom.is_none()) {
            let used = |name: &str| calls.contains(&(name.to_owned(), rule.number));
            // What all may do, one of them must.
            let is_used = match is_common(rule.number) {
                true => threads.iter().any(|(name, _)| used(name)),
                false => used(name),
            };
            if !is_used {
                unused.push(format!("{name}: system call {}, {}", rule.number, rule.why));
            }
        }
    }
    let words: Vec<&str> = said.lines().filter(|line| !line.starts_with("call ")).collect();
    assert!(unused.is_empty(), "{unused:#?}\n{words:#?}");
}

/// Name of the thread and number of the system call, of all that threads of ours did once they were confined.
fn confined_calls(trace: &str) -> HashSet<(String, i64)> {
    let (mut names, mut confined, mut calls) = (HashMap::new(), HashSet::new(), HashSet::new());
    for line in trace.lines().filter_map(|line| line.strip_prefix("call ")) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let [thread, number, call, arguments] = words[..] else { continue };
        if call == "prctl" && arguments.starts_with("PR_SET_NAME") {
            names.insert(thread, arguments.split('"').nth(1).unwrap_or_default().to_owned());
        }
        if let (true, Some(name)) = (confined.contains(thread), names.get(thread)) {
            calls.insert((name.clone(), number.parse().unwrap_or(-1)));
        }
        if call == "seccomp" || (call == "prctl" && arguments.starts_with("PR_SET_SECCOMP")) {
            confined.insert(thread);
        }
    }
    calls
}
