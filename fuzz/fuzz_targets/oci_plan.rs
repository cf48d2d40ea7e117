//! Any bytes as the message of CreateContainer: judging it never panics, every plan fits its frame's lists, and every seccomp
//! program is one that the kernel's verifier takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_agent::plan::{document, named_user, process};
use nacre_launcher::check::check;
use nacre_plan::{Container, Exec, ImageDefaults, Place, container, exec};
use nacre_protocols::host_agent::kata::CreateContainerRequest;
use nacre_protocols::init_launcher::{Mode, Plan, Rootfs, SECCOMP_MAX};
use nacre_protocols::names::Sha256;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(request) = CreateContainerRequest::decode(data) else { return };
    let Some(spec) = &request.oci else { return };
    let Ok(user) = named_user(request.string_user.as_ref()) else { return };
    let Ok(document) = document(spec) else { return };
    let command = ["/bin/true".to_owned()];
    let plan = container(Container {
        id: "c",
        spec: &document,
        rootfs: Rootfs::Layers(vec![Sha256([0; 32])]),
        user,
        image: Some(ImageDefaults { command: &command, ..Default::default() }),
        bundle: "",
        place: Place::Sandbox,
    });
    if let Ok(plan) = plan {
        if let Some(seccomp) = &plan.process.seccomp {
            verify(&seccomp.program);
        }
        let _ = check(Plan::Create(Box::new(plan)), Mode::Create, u64::MAX, u32::MAX);
    }
    if let Some(described) = &spec.process {
        let process = &process(described);
        let _ = exec(Exec { process, user, seccomp: None, container: None, place: Place::Sandbox });
    }
});

/// The rules of the kernel's verifier that our instructions could break: every jump is forward and within the program,
/// which ends with a return.
fn verify(program: &[(u16, u8, u8, u32)]) {
    const JUMP: u16 = 0x05;
    const RETURN: u16 = 0x06;
    assert!(!program.is_empty() && program.len() <= SECCOMP_MAX);
    assert_eq!(program.last().unwrap().0, RETURN);
    for (at, (code, jt, jf, k)) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        match *code {
            JUMP => assert!((*k as usize) < left),
            code if code & 0x07 == JUMP => assert!(usize::from(*jt).max((*jf).into()) < left),
            _ => {}
        }
    }
}
