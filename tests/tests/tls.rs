//! https: a registry's certificate is verified against the roots of trust, and nothing else will do.
//!
//! Loopback registries are exempt from that, as with docker; so these tests have network namespaces of their own, with
//! addresses that are nobody's.

use std::path::Path;

use nacre_tests::fixtures::images;
use nacre_tests::network::{ADDRESS, Network};
use nacre_tests::{Nacre, Registry, require, tool};

/// An authority, and certificates that it and nobody signed; `good.crt` names [`ADDRESS`], `other.crt` another one.
fn make_certificates(folder: &Path) {
    let script = r#"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 \
    -subj '/CN=nacre test authority' -addext basicConstraints=critical,CA:TRUE 2> /dev/null
for kind in "good:IP:$1" other:IP:203.0.113.9; do
    name=${kind%%:*}
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $name.key -out $name.csr \
        -subj "/CN=$name" 2> /dev/null
    printf 'subjectAltName=%s\n' "${kind#*:}" > $name.ext
    openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out $name.crt -days 2 \
        -extfile $name.ext 2> /dev/null
done
"#;
    tool::shell(folder, script, [ADDRESS.to_string()]);
}

#[test]
fn a_certificate_must_come_from_a_root_of_trust_and_name_the_registry() {
    require!(vm, tool "umoci", tool "docker-registry", tool "openssl", tool "ip", tool "passt");
    let network = Network::new();
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let registry = |name: &str| {
        let (certificate, key) = (at(&format!("{name}.crt")), at(&format!("{name}.key")));
        let open = Registry::holding(images(), &["small"]);
        open.moved(&Network::inside(&network.registry), ADDRESS, Some((&certificate, &key)))
    };
    let (good, other) = (registry("good"), registry("other"));
    let nacre = Nacre::new().wrapped(&Network::inside(&network.user));
    let image = |registry: &Registry| format!("{ADDRESS}:{}/images:small", registry.port);
    let trusted = ["run", "--ca-cert", &at("ca.crt")].map(str::to_owned);
    let run = |options: &[String], registry: &Registry| {
        nacre.run([options, &[image(registry), "echo".to_owned(), "in".to_owned()]].concat())
    };
    run(&trusted, &good).exited(0).printed("in\n");
    run(&["run".to_owned()], &good).exited(125).printed("").said(&["pull", "certificate"]);
    run(&trusted, &other).exited(125).printed("").said(&["pull", "certificate"]);
    let insecure = ["run".to_owned(), "--insecure-registry".to_owned(), format!("{ADDRESS}:{}", other.port)];
    run(&insecure, &other).exited(0).printed("in\n");
}
