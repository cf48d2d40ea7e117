//! Host names: the sandbox asks the host's resolver, for pulls and for containers.

use nacre_tests::dns::NameServer;
use nacre_tests::fixtures::images;
use nacre_tests::network::{ADDRESS, Network};
use nacre_tests::{Nacre, Registry, require};

const NAME: &str = "registry.nacre.test";

#[test]
fn a_registry_is_found_by_its_name_and_no_container_can_lead_pulls_astray() {
    require!(vm, tool "umoci", tool "docker-registry", tool "ip", tool "passt", tool "busybox");
    let network = Network::new();
    network.resolve_there();
    let server = NameServer::start(&network.registry, ADDRESS, NAME, ADDRESS);
    let registry = Registry::holding(images(), &["small", "odd"]).moved(
        &Network::inside(&network.registry),
        ADDRESS,
        None,
    );
    let nacre = Nacre::new().wrapped(&Network::inside(&network.user));
    let host = format!("{NAME}:{}", registry.port);
    let run = |options: &[&str], image: &str, command: &[&str]| {
        let image = format!("{host}/images:{image}");
        nacre.run([&["run", "--insecure-registry", &host], options, &[&image], command].concat())
    };
    let looked_up = run(&["-d", "--name", "box"], "small", &["sleep", "1000"]);
    looked_up.exited(0);
    assert!(server.asked() > 0);
    // The container's own names come the same way.
    let answer = nacre.run(["exec", "box", "busybox", "nslookup", NAME]);
    assert!(answer.text().contains(&ADDRESS.to_string()), "{answer}");
    // Root in a container writes to its /etc/resolv.conf. Whoever answers at its own loopback is not asked by the puller.
    nacre.run(["exec", "box", "sh", "-c", "echo nameserver 127.0.0.1 > /etc/resolv.conf"]).exited(0);
    run(&["--in", "box"], "odd", &["true"]).exited(0);
    nacre.remove("box");
}

#[test]
fn a_name_that_nobody_knows_is_said() {
    require!(vm, tool "umoci", tool "ip", tool "passt");
    let network = Network::new();
    network.resolve_there();
    let _server = NameServer::start(&network.registry, ADDRESS, NAME, ADDRESS);
    let nacre = Nacre::new().wrapped(&Network::inside(&network.user));
    nacre.run(["run", "nobody.nacre.test/images:small"]).exited(125).said(&["pull", "nobody.nacre.test"]);
}
