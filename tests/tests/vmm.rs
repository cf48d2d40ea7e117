//! `nacre vmm`, as any launcher may start it: its control socket, and devices that the run command does not use. In the lab.

use nacre_tests::{lab, require};

/// Fills and frees memory, uses its disk, then counts on and on.
const GUEST: &str = r#"
echo words by the virtio console > /dev/hvc0
busybox dd if=/dev/zero of=/tmp/fill bs=1M count=96 2> /dev/null; echo filled
until busybox dd if=/dev/vdb bs=1 count=2 iflag=direct 2> /dev/null | busybox grep -q go; do busybox sleep 0.1; done
busybox rm /tmp/fill; echo freed
busybox dd if=/dev/zero of=/dev/vdb bs=1M count=16 seek=1 conv=fsync 2> /dev/null; echo written
until busybox dd if=/dev/vdb bs=1 count=4 iflag=direct 2> /dev/null | busybox grep -q more; do busybox sleep 0.1; done
busybox blkdiscard /dev/vdb && echo discarded
while true; do echo tick; busybox usleep 50000; done
"#;

#[test]
fn a_machine_is_controlled_and_gives_back_what_it_does_not_use() {
    require!(vm, tool "mkfs.erofs");
    let folder = tempfile::tempdir().expect("no temporary directory");
    let image = lab::busybox_guest(folder.path(), GUEST);
    let said = lab::run(
        r#"
        cd /tmp; truncate -s 32M disk
        cat > config.json <<END
        {"version": 1, "kernel": "$NACRE_KERNEL", "processors": 2, "memory_mib": 256, "memory_pages": "density",
         "command_line": "console=ttyS0 quiet reboot=k panic=-1 root=/dev/vda rootfstype=erofs ro init=/init",
         "disks": [{"file": {"path": "$NACRE_GUEST"}, "read_only": true}, {"file": {"path": "/tmp/disk"}, "durable": true}],
         "vsock": {"guest_cid": 3, "socket": "/tmp/vsock"},
         "balloon": true, "virtio_console": true, "control": "/tmp/control"}
END
        exec 9< /etc/passwd
        $NACRE_BIN vmm --config config.json > console 2> errors & pid=$!
        # Until the console has said it; the line and what follows.
        said() { for n in $(seq 600); do grep -q "$1" console && return; kill -0 $pid || break; sleep 0.1; done
            echo "never said: $1"; cat console errors; exit 1; }
        resident() { echo $(($(grep VmRSS /proc/$pid/status | tr -dc 0-9) / 1024)); }
        ask() { $NACRE_BIN vmm-control /tmp/control $1; }
        said filled; full=$(resident)
        printf go | dd of=disk conv=notrunc 2> /dev/null
        said freed
        for n in $(seq 100); do [ $(resident) -lt $((full - 64)) ] && break; sleep 0.2; done
        echo "resident $full MiB, then $(resident) MiB"
        [ $(resident) -lt $((full - 64)) ] && echo memory came back
        said written; [ $(stat -c %b disk) -gt 32000 ] && echo blocks are there
        printf more | dd of=disk conv=notrunc 2> /dev/null
        said discarded; [ $(stat -c %b disk) -lt 100 ] && echo blocks are gone
        said tick
        ask pause; echo pause $?; ask status | grep state; before=$(grep -c tick console); sleep 1
        echo held $(($(grep -c tick console) - before))
        ask pause; echo again $?; ask resume; echo resume $?; ask status | grep state
        for n in $(seq 100); do [ $(grep -c tick console) -gt $((before + 3)) ] && break; sleep 0.1; done
        [ $(grep -c tick console) -gt $((before + 3)) ] && echo goes on
        for n in 1 2 3 4 5 6 7 8 9 10; do ask pause && ask resume || echo fails; done
        ask metrics; grep -c words console
        for thread in /proc/$pid/task/*; do echo thread $(cat $thread/comm); done
        ls -l /tmp/control; grep -E 'core|processes|locked|data|open files' /proc/$pid/limits
        for fd in /proc/$pid/fd/*; do echo "open $(readlink $fd)"; done | tr -d 0-9 | sort -u
        ask stop; wait $pid; echo code $?; cat errors
        ask status; echo gone $?
        "#,
        &[("NACRE_GUEST", &image.to_string_lossy())],
    );
    for line in [
        "memory came back\n",
        "blocks are there\n",
        "blocks are gone\n",
        "pause 0\n",
        "\"state\": \"paused\"",
        "held 0\n",
        "again 0\n",
        "resume 0\n",
        "\"state\": \"running\"",
        "goes on\n",
        "thread nacre-control\n",
        "thread nacre-balloon\n",
        "thread nacre-console\n",
        "srw-------",
        "code 4\n",
        "gone 1\n",
    ] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    assert!(!said.contains("fails") && !said.contains("virtio-"), "{said}");
    for (name, limit) in [
        ("Max core file size", "0"),
        ("Max processes", "0"),
        ("Max locked memory", "0"),
        ("Max data size", "1342177280"),
        ("Max open files", "2048"),
    ] {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{said}"));
        let values: Vec<&str> = line.trim_start_matches(name).split_whitespace().take(2).collect();
        assert_eq!(values, [limit, limit], "{line}");
    }
    // What it was given, what KVM is, what its threads wait for; not what this shell had open.
    let open: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("open ")).collect();
    for file in &open {
        let known = [
            "/dev/kvm",
            "/dev/null",
            "/tmp/disk",
            "/tmp/console",
            "/tmp/errors",
            "anon_inode:kvm-vm",
            "anon_inode:kvm-vcpu:",
            "anon_inode:[eventfd]",
            "anon_inode:[eventpoll]",
            "socket:[]",
        ];
        assert!(known.contains(file) || file.ends_with("/guest.erofs"), "{file} is open: {open:?}");
    }
    let start = said.find("{\n  \"processors\"").expect("no metrics");
    let metrics = serde_json::Deserializer::from_str(&said[start..]).into_iter::<serde_json::Value>().next();
    let metrics = metrics.expect("no metrics").expect("metrics are not JSON");
    assert!(metrics["processors"][0]["port_out"].as_u64() > Some(0), "{metrics}");
    assert!(metrics["processors"][1]["interrupted"].as_u64() > Some(0), "{metrics}");
    assert!(metrics["memory_returned_bytes"].as_u64() > Some(64 << 20), "{metrics}");
    let disk = &metrics["devices"][1];
    assert!(disk["from_guest_bytes"].as_u64() >= Some(16 << 20), "{metrics}");
    assert!(disk["requests"].as_u64() > Some(16), "{metrics}");
    eprintln!("{}", said.lines().find(|line| line.starts_with("resident")).unwrap_or_default());
}

/// Does what the files of one of its shares say, one after the other.
const GROWING_GUEST: &str = r#"
busybox mkdir /tmp/one /tmp/two
busybox mount -t virtiofs one /tmp/one; busybox mount -t virtiofs two /tmp/two; busybox cat /tmp/one/a/file /tmp/two/b/file
echo "cpus $(busybox cat /sys/devices/system/cpu/present) $(busybox cat /sys/devices/system/cpu/online)"
mib() { echo $(($(busybox grep MemTotal /proc/meminfo | busybox tr -dc 0-9) / 1024)); }
until_file() { until [ -e /tmp/one/a/$1 ]; do busybox sleep 0.1; done; }
first=$(mib); echo "first $first"
until_file grown; for n in $(busybox seq 300); do [ $(mib) -ge $((first + 272)) ] && break; busybox sleep 0.1; done; echo "more $(($(mib) - first))"
busybox dd if=/dev/vdb of=/tmp/copy bs=1M 2> /dev/null; echo "sum $(busybox md5sum < /tmp/copy)"
busybox rm /tmp/copy; echo 3 > /proc/sys/vm/drop_caches; echo emptied
until_file processors; echo 1 > /sys/devices/system/cpu/cpu1/online; echo "online $(busybox cat /sys/devices/system/cpu/online)"
echo 1 > /sys/devices/system/cpu/cpu2/online && echo it took one too many; echo "still $(busybox cat /sys/devices/system/cpu/online)"
until_file end; busybox reboot -f
"#;

#[test]
fn a_machine_grows_and_shrinks() {
    require!(vm, tool "mkfs.erofs");
    let folder = tempfile::tempdir().expect("no temporary directory");
    let image = lab::busybox_guest(folder.path(), GROWING_GUEST);
    let said = lab::run(
        r#"
        cd /tmp; yes 'some text that is not all the same' | nl | head -c 167772160 > disk; echo given $(md5sum < disk | cut -c1-32)
        mkdir a b; echo in one > a/file; echo in two > b/file
        cat > config.json <<END
        {"version": 1, "kernel": "$NACRE_KERNEL", "processors": 1, "processors_max": 3,
         "memory_mib": 128, "memory_max_mib": 512, "memory_pages": "density",
         "command_line": "console=ttyS0 quiet reboot=k panic=-1 root=/dev/vda rootfstype=erofs ro init=/init",
         "disks": [{"file": {"path": "$NACRE_GUEST"}, "read_only": true}, {"file": {"path": "/tmp/disk"}, "read_only": true}],
         "shares": [{"tag": "one", "name": "a", "path": "/tmp/a"}, {"tag": "two", "name": "b", "path": "/tmp/b"}],
         "balloon": true, "control": "/tmp/control"}
END
        $NACRE_BIN vmm --config config.json > console 2> errors & pid=$!
        said() { for n in $(seq 900); do grep -q "$1" console && return; kill -0 $pid || break; sleep 0.1; done
            echo "never said: $1"; cat console errors; exit 1; }
        ask() { $NACRE_BIN vmm-control /tmp/control "$@"; }
        has() { ask status | sed -n 's/^ *"memory_mib": \([0-9]*\),/\1/p'; }
        said first
        ask resize --memory 1g; ask resize --memory 64m; ask resize --processors 4
        ask resize --memory 400m; echo asked $?; touch a/grown; said more; echo has $(has)
        said emptied; ask resize --memory 128m
        for n in $(seq 300); do [ $(has) -le 160 ] && break; sleep 0.1; done; echo shrunk to $(has)
        # What has been given once can be taken again.
        ask resize --memory 512m; for n in $(seq 300); do [ $(has) = 512 ] && break; sleep 0.1; done; echo again $(has)
        ask resize --processors 2; ask pause; ask resume; touch a/processors; said still
        ask status | grep -E '"(processors|memory)'; touch a/end
        wait $pid; echo code $?; tr -d '\r' < console; cat errors
        "#,
        &[("NACRE_GUEST", &image.to_string_lossy())],
    );
    let given = said.lines().find_map(|line| line.strip_prefix("given ")).expect("no sum");
    for line in [
        "in one\nin two\n",
        "cpus 0-2 0\n",
        "memory_mib: 1024 is outside 128 to 512",
        "memory_mib: 64 is outside 128 to 512",
        "processors: 4 is outside 1 to 3",
        "asked 0\n",
        "more 272\n",
        "has 400\n",
        "again 512\n",
        "online 0-1\n",
        "still 0-1\n",
        "\"processors\": 2,",
        "\"processors_max\": 3,",
        "\"memory_wanted_mib\": 512,",
        "code 0\n",
    ] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    assert!(said.contains(&format!("sum {given}")), "{said}");
    assert!(!said.contains("one too many") && !said.contains("virtio-"), "{said}");
    let shrunk = said.lines().find_map(|line| line.strip_prefix("shrunk to ")?.parse::<u32>().ok());
    assert!(shrunk.is_some_and(|mib| mib <= 160), "{said}");
}

/// Each with a machine of its own.
const SEEDS: &str = "1 2 3";
/// Resident KiB of a machine, the guest's 128 MiB included, of which a hostile guest touches less than half.
const RESIDENT_KIB_MAX: u64 = 128 << 10;

#[test]
fn a_guest_that_sprays_ports_registers_and_descriptors_hurts_nobody_but_itself() {
    require!(vm, tool "cc");
    let folder = tempfile::tempdir().expect("no temporary directory");
    let guest = lab::bare_guest(folder.path(), "hostile");
    let said = lab::run(
        r#"
        cd /tmp; truncate -s 32M disk; truncate -s 8M image; mkdir share; echo shared > share/file; echo secret > secret
        for seed in $NACRE_SEEDS; do
            rm -f vsock control
            cat > config.json <<END
            {"version": 1, "kernel": "$NACRE_GUEST", "processors": 1, "memory_mib": 128, "memory_pages": "density",
             "command_line": "seed=$seed",
             "disks": [{"file": {"path": "/tmp/disk"}, "durable": true}, {"file": {"path": "/tmp/image"}, "read_only": true}],
             "vsock": {"guest_cid": 3, "socket": "/tmp/vsock"}, "shares": [{"name": "share", "path": "/tmp/share"}],
             "balloon": true, "virtio_console": true, "control": "/tmp/control"}
END
            $NACRE_BIN vmm --config config.json > console 2> errors & pid=$!
            peak=0
            for n in $(seq 1200); do
                now=$(grep VmRSS /proc/$pid/status 2> /dev/null | tr -dc 0-9); [ -n "$now" ] || break
                [ $now -gt $peak ] && peak=$now
                # It answers all the while.
                [ $n = 10 ] && $NACRE_BIN vmm-control /tmp/control status | grep -c uptime
                sleep 0.1
            done
            [ $n = 1200 ] && kill -9 $pid && echo hangs
            wait $pid; echo "end $seed: code $?, peak $peak KiB, $(grep -a -c -e '^hostile' -e '^sprayed' console) words, \
$(grep -c . errors) notes"
            grep -v '^nacre vmm: ' errors
        done
        cat secret; ls /tmp/share; [ $(stat -c %s disk) = 33554432 ] && echo the disk has its size
        cmp -n 8388608 image /dev/zero && echo the image is untouched
        "#,
        &[("NACRE_GUEST", &guest.to_string_lossy()), ("NACRE_SEEDS", SEEDS)],
    );
    let ends: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("end ")).collect();
    assert_eq!(ends.len(), SEEDS.split(' ').count(), "{said}");
    for end in &ends {
        let number = |from: &str, to: &str| {
            let rest = end.split_once(from).and_then(|(_, rest)| rest.split_once(to));
            rest.and_then(|(number, _)| number.parse::<u64>().ok()).unwrap_or_else(|| panic!("{said}"))
        };
        // It came to its end; or a device wrote over it, as it was told, and it crashed.
        let (code, words) = (number("code ", ","), number("KiB, ", " words"));
        assert!(code == 0 && words == 2 || code == 3 && words == 1, "{said}");
        assert!(number("peak ", " KiB") < RESIDENT_KIB_MAX, "{said}");
        assert!(number("words, ", " notes") > 0, "{said}");
        eprintln!("{end}");
    }
    assert!(ends.iter().any(|end| end.contains("code 0")), "{said}");
    for line in ["secret\n", "the disk has its size\n", "the image is untouched\n"] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    assert!(!said.contains("hangs") && !said.contains("panicked"), "{said}");
}

/// Configures the tap's other end, tries it both ways, and says what it did.
const NETWORK_GUEST: &str = r#"
busybox ip addr add 10.77.0.2/24 dev eth0; busybox ip link set eth0 up
busybox ping -c 3 -i 0.2 -W 5 10.77.0.1 | busybox grep received
busybox dd if=/dev/urandom of=/tmp/large bs=1M count=12 2> /dev/null
sum=$(busybox md5sum < /tmp/large)
busybox nc 10.77.0.1 7001 < /tmp/large; echo up $sum
busybox nc 10.77.0.1 7002 | busybox md5sum; echo the end
busybox sleep 1000
"#;

#[test]
fn a_tap_carries_large_frames_both_ways() {
    require!(vm, tool "mkfs.erofs", tool "ip", tool "socat");
    let folder = tempfile::tempdir().expect("no temporary directory");
    let image = lab::busybox_guest(folder.path(), NETWORK_GUEST);
    // With one, sender and receiver take turns, and TCP sends small pieces by itself.
    let said = lab::run_on(
        2,
        r#"
        # By its path: the shell here has one of its own, which knows no taps.
        cd /tmp; ip=/bin/ip; $ip tuntap add tap7 mode tap vnet_hdr; $ip addr add 10.77.0.1/24 dev tap7; $ip link set tap7 up
        dd if=/dev/urandom of=down bs=1M count=12 2> /dev/null; echo down $(md5sum < down | cut -c1-32)
        socat -b 200000 -u TCP-LISTEN:7001,bind=10.77.0.1 CREATE:up & socat -b 200000 -u FILE:down TCP-LISTEN:7002,bind=10.77.0.1 &
        cat > config.json <<END
        {"version": 1, "kernel": "$NACRE_KERNEL", "processors": 1, "memory_mib": 128,
         "command_line": "console=ttyS0 quiet reboot=k panic=-1 root=/dev/vda rootfstype=erofs ro init=/init",
         "disks": [{"file": {"path": "$NACRE_GUEST"}, "read_only": true}],
         "network": {"tap": {"name": "tap7"}, "mac": [2, 0, 0, 0, 0, 7], "mtu": 1500}, "control": "/tmp/control"}
END
        $NACRE_BIN vmm --config config.json > console 2> errors & pid=$!
        for n in $(seq 600); do grep -q 'the end' console && break; kill -0 $pid || break; sleep 0.1; done
        $NACRE_BIN vmm-control /tmp/control metrics; cat console errors
        grep -q "up $(md5sum < up | cut -c1-32)" console && echo all came up
        for way in rx tx; do echo "$way $(cat /sys/class/net/tap7/statistics/${way}_packets) frames"; done
        $NACRE_BIN vmm-control /tmp/control stop; wait $pid; echo code $?
        "#,
        &[("NACRE_GUEST", &image.to_string_lossy())],
    );
    let down = said.lines().find_map(|line| line.strip_prefix("down ")).expect("no sum");
    for line in ["3 packets received", "all came up\n", "code 4\n"] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    assert_eq!(said.matches(down).count(), 2, "{said}");
    assert!(!said.contains("nacre vmm: "), "{said}");
    // Frames of 1,500 bytes would be 724 to a MiB, and then those that only acknowledge.
    for (way, mebibytes) in [("tx", 12), ("rx", 12)] {
        let line = said.lines().find(|line| line.starts_with(way)).expect("no count");
        let frames: u64 = line.split(' ').nth(1).and_then(|number| number.parse().ok()).expect("no number");
        assert!(frames < mebibytes * 660, "{line}: too many for {mebibytes} MiB");
        eprintln!("{line} for {mebibytes} MiB");
    }
}
