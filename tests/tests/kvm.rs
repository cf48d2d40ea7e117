//! Our own VMM, on a KVM that really executes: everything here happens in the lab (`cargo xtask lab`), whatever this host has.

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
        $NACRE_BIN run --name box --cpus 2 -v /tmp/share:/data $NACRE_SMALL sh -c '
            echo processors $(grep -c ^processor /proc/cpuinfo)
            cat /data/file; echo from the guest > /data/answer
            echo network $(ls /sys/class/net)
            dd if=/dev/urandom of=/big bs=1M count=20 2> /dev/null; sync; md5sum < /big > /sum
            dd if=/big bs=1M iflag=direct 2> /dev/null | md5sum | cmp - /sum && echo the disk keeps what is written
            until test -e /data/go; do sleep 0.1; done
            exit 7' &
        pid=$!
        until test -e /tmp/share/answer || ! kill -0 $pid; do sleep 0.1; done
        for thread in /proc/$(pgrep -f '[v]mm --config')/task/*; do
            echo thread $(cat $thread/comm) $(grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' $thread/status)
        done
        $NACRE_BIN vmm-control box pause; $NACRE_BIN vmm-control box status | grep state; sleep 1
        $NACRE_BIN vmm-control box resume; $NACRE_BIN vmm-control box status | grep state
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
        "processors 2\n",
        "from the host\n",
        "network eth0 lo\n",
        "the disk keeps what is written\n",
        "\"state\": \"paused\"",
        "\"state\": \"running\"",
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
