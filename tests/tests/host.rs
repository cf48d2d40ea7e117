//! What the host and the sandbox share, and what is left when either of them dies.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use nacre_tests::fixtures::images;
use nacre_tests::registry::free_port;
use nacre_tests::{Nacre, require};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn small() -> String {
    images().reference("small")
}

#[test]
fn a_shared_directory_is_read_and_written() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let share = nacre.guard().folder().join("share");
    std::fs::write(share.join("from-host"), "host\n").unwrap();
    let volume = format!("{}:/data", share.display());
    let script = "cat /data/from-host; echo guest > /data/from-guest; mkdir /data/d; mv /data/from-guest /data/d/moved; \
                  ln -s d/moved /data/link; chmod 640 /data/d/moved; cat /data/link; rm /data/from-host";
    nacre.run(["run", "-v", &volume, &small(), "sh", "-c", script]).exited(0).printed("host\nguest\n");
    assert_eq!(std::fs::read_to_string(share.join("link")).unwrap(), "guest\n");
    assert_eq!(std::fs::metadata(share.join("d/moved")).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(!share.join("from-host").exists());
}

#[test]
fn a_read_only_share_takes_no_writes() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let share = nacre.guard().folder().join("share");
    std::fs::write(share.join("file"), "host\n").unwrap();
    let volume = format!("{}:/data:ro", share.display());
    nacre.detach("box", ["-v", &volume, &small(), "sleep", "1000"]);
    nacre.run(["exec", "box", "cat", "/data/file"]).exited(0).printed("host\n");
    for script in [
        "echo x > /data/file",
        "echo x > /data/new",
        "rm /data/file",
        "mkdir /data/d",
        "chmod 777 /data/file",
        "touch /data/file",
        "mount -o remount,rw /data",
    ] {
        assert_ne!(nacre.run(["exec", "box", "sh", "-c", script]).code, 0, "{script}");
    }
    assert_eq!(std::fs::read_to_string(share.join("file")).unwrap(), "host\n");
    assert_eq!(std::fs::read_dir(&share).unwrap().count(), 1);
    nacre.remove("box");
}

#[test]
fn nothing_outside_a_shared_directory_is_reached() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let folder = nacre.guard().folder();
    let share = folder.join("share");
    std::fs::write(folder.join("secret"), "secret\n").unwrap();
    std::os::unix::fs::symlink("../secret", share.join("link")).unwrap();
    std::os::unix::fs::symlink(folder.join("secret"), share.join("absolute")).unwrap();
    let volume = format!("{}:/data", share.display());
    let script =
        "cat /data/link /data/absolute /data/../secret; ls /data/..; ln /data/link /data/hard; ls /data";
    let output = nacre.run(["run", "-v", &volume, &small(), "sh", "-c", script]);
    assert!(!output.text().contains("secret\n"), "{output}");
}

#[test]
fn two_shares_are_two_directories() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    for name in ["a", "b"] {
        let folder = nacre.guard().folder().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("name"), name).unwrap();
    }
    let volume = |name: &str| format!("{}:/{name}", nacre.guard().folder().join(name).display());
    let words = ["run", "-v", &volume("a"), "-v", &volume("b"), &small(), "cat", "/a/name", "/b/name"];
    nacre.run(words).exited(0).printed("ab");
    let missing = format!("{}/missing:/data", nacre.guard().folder().display());
    nacre.run(["run", "-v", &missing, &small(), "true"]).exited(125).said(&["missing"]);
}

#[test]
fn a_published_port_leads_into_the_container() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:8080");
    nacre.detach(
        "web",
        ["-p", &publish, &small(), "sh", "-c", "while :; do nc -l -p 8080 -e echo hello; done"],
    );
    let until = Instant::now() + PATIENCE;
    let answer = loop {
        let mut text = String::new();
        let asked = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.read_to_string(&mut text)
        });
        if asked.is_ok() && !text.is_empty() {
            break text;
        }
        assert!(Instant::now() < until, "nothing answers on port {port}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(answer, "hello\n");
    nacre.remove("web");
}

#[test]
fn without_network_there_is_none() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    // The image came over the sandbox's network; the container has none.
    let script =
        "ip -o link | grep -v ' lo:'; ip route; ping -c 1 -w 1 127.0.0.1 > /dev/null && echo loopback";
    nacre.run(["run", "--net", "none", &small(), "sh", "-c", script]).exited(0).printed("loopback\n");
}

#[test]
fn the_hosts_loopback_is_out_of_reach() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    nacre.detach("box", [&small(), "sleep", "1000"]);
    let gateway = "$(ip route | awk '/default/{print $3}')";
    for host in ["127.0.0.1", "localhost", gateway] {
        let script = format!("echo x | nc -w 3 {host} {port}");
        nacre.run(["exec", "box", "sh", "-c", &script]);
        assert!(listener.accept().is_err(), "the sandbox reached the host's loopback at {host}");
    }
    nacre.remove("box");
}

#[test]
fn an_ordinary_user_can_run_a_container() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new().wrapped(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
    ]);
    let guard = nacre.guard();
    for folder in [guard.folder().to_owned(), guard.home(), guard.runtime(), guard.temporary()] {
        std::os::unix::fs::chown(&folder, Some(65534), Some(65534)).unwrap();
    }
    // What the user cannot read the sandbox cannot be made of: copies of kernel, image and the container's image.
    let copies = guard.folder().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let layout = images().copy_to(copies.join("layout"));
    let nacre = nacre.copied_to(&copies);
    nacre_tests::tool::run("chmod", ["-R", "a+rX", &copies.display().to_string()]);
    nacre.run(["run", &layout.reference("small"), "id", "-u"]).exited(0).printed("0\n");
}

#[test]
fn a_guest_that_dies_at_boot_is_reported_with_its_console() {
    require!(vm, tool "umoci", tool "mkfs.erofs");
    let nacre = Nacre::new();
    let folder = nacre.guard().folder();
    std::fs::write(folder.join("garbage"), vec![0x5a; 1 << 20]).unwrap();
    std::fs::create_dir_all(folder.join("root/dev")).unwrap();
    nacre_tests::tool::run_in(folder, "mkfs.erofs", ["empty", "root"]);
    std::fs::write(folder.join("kernel"), "not a kernel").unwrap();
    for (option, file, texts) in [
        ("--image", "garbage", &["boot", "root", "console"][..]),
        ("--image", "empty", &["boot", "init", "console"]),
        ("--kernel", "kernel", &["boot"]),
        ("--kernel", "missing", &["missing"]),
        ("--image", "missing", &["missing"]),
    ] {
        let begun = Instant::now();
        let file = folder.join(file).display().to_string();
        nacre.run(["run", option, &file, &small(), "true"]).exited(125).printed("").said(texts);
        assert!(begun.elapsed() < Duration::from_secs(30), "{file}: it took {:?}", begun.elapsed());
    }
}

#[test]
fn killing_the_command_line_ends_the_sandbox() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let mut running = nacre.start(["run", "--name", "one", &small(), "sh", "-c", "echo up; sleep 1000"]);
    running.wait_for("up", PATIENCE);
    assert!(nacre.guard().processes().len() > 1);
    running.signal(Signal::KILL);
    running.finish(PATIENCE).exited(137);
}

#[test]
fn killing_the_command_line_while_it_boots_or_pulls_ends_the_sandbox() {
    require!(vm, tool "umoci", tool "busybox");
    for pause in [50, 500, 1500, 2500, 4000] {
        let nacre = Nacre::new();
        let running = nacre.start(["run", &small(), "sleep", "1000"]);
        std::thread::sleep(Duration::from_millis(pause));
        running.signal(Signal::KILL);
        running.finish(PATIENCE);
        // The guard looks when `nacre` is dropped.
    }
}

#[test]
fn killing_the_monitor_or_the_machine_ends_the_rest_and_says_so() {
    require!(vm, tool "umoci", tool "busybox");
    for (who, text) in [("monitor", "monitor"), ("vmm", "killed")] {
        let nacre = Nacre::new();
        let mut running = nacre.start(["run", "--name", "one", &small(), "sh", "-c", "echo up; sleep 1000"]);
        running.wait_for("up", PATIENCE);
        let pid = nacre.record("one")[who].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(Pid::from_raw).unwrap_or_else(|| panic!("no {who} in the record"));
        kill_process(pid, Signal::KILL).unwrap();
        running.finish(PATIENCE).exited(125).said(&[text]);
        nacre.run(["ps", "-q"]).exited(0).printed("");
    }
}

#[test]
fn a_detached_sandbox_whose_machine_dies_leaves_nothing() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("one", [&small(), "sleep", "1000"]);
    let pid = nacre.record("one")["vmm"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    kill_process(pid.and_then(Pid::from_raw).unwrap(), Signal::KILL).unwrap();
    let until = Instant::now() + PATIENCE;
    while !nacre.guard().processes().is_empty() {
        assert!(Instant::now() < until, "{:?}", nacre.guard().processes());
        std::thread::sleep(Duration::from_millis(50));
    }
    nacre.run(["ps", "-q"]).exited(0).printed("");
}

#[test]
fn files_of_the_sandbox_are_for_its_user_alone() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("one", [&small(), "sleep", "1000"]);
    let folder = nacre.guard().runtime().join("nacre");
    let mode = std::fs::metadata(&folder).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o700, "{mode:o}");
    nacre.remove("one");
}

#[test]
fn doctor_says_what_this_host_can_do() {
    require!(vm);
    let output = Nacre::new().run(["doctor"]);
    let text = output.text().to_lowercase();
    for part in ["kvm", "qemu", "network"] {
        assert!(text.contains(part), "{part} is not in\n{output}");
    }
}

#[test]
fn a_fixed_port_that_is_taken_is_said() {
    require!(vm, tool "umoci", tool "busybox");
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:80");
    let output = Nacre::new().run(["run", "-p", &publish, &small(), "true"]);
    output.exited(125).said(&[&port.to_string()]);
}
