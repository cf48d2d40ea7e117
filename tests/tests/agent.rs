//! The agent may die at any moment: no container, no exit code and no output goes with it.
//!
//! The guest image of these tests has a prober behind init that kills the agent again and again, whatever it is doing;
//! see `src/bin/test_init`.

use std::time::{Duration, Instant};

use nacre_tests::fixtures::images;
use nacre_tests::{Nacre, artefacts, require};

const PATIENCE: Duration = Duration::from_secs(120);
/// Milliseconds between two kills: a sandbox whose agent dies more than 8 times in 10 s is given up by its init.
const PAUSE: &str = "1500";

fn nacre() -> Nacre {
    killing_every(PAUSE)
}

fn killing_every(milliseconds: &str) -> Nacre {
    let nacre = Nacre::new();
    let file = nacre.guard().folder().join("pause");
    std::fs::write(&file, milliseconds).unwrap();
    nacre.image(artefacts::image_with(&[("etc/nacre-test-kill-agent", &file)]))
}

fn kills(nacre: &Nacre, sandbox: &str) -> usize {
    let console = nacre.guard().runtime().join("nacre").join(sandbox).join("console.log");
    String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).matches("PROBE KILLED").count()
}

#[test]
fn killing_the_agent_loses_no_exit_code_and_no_output() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = nacre();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); [ $((i % 1000)) = 0 ] && sleep 0.2; done; \
                  exit 42";
    let output = nacre.run(["run", "-q", &images().reference("small"), "sh", "-c", script]).exited(42);
    let expected: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    assert!(output.text() == expected, "{} bytes instead of {}", output.stdout.len(), expected.len());
}

#[test]
fn killing_the_agent_hurts_no_container() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = nacre();
    nacre.detach(
        "box",
        ["--keep", &images().reference("small"), "sh", "-c", "while :; do echo x; sleep 0.2; done"],
    );
    let until = Instant::now() + PATIENCE;
    let mut commands = 0;
    while kills(&nacre, "box") < 5 {
        assert!(Instant::now() < until, "the agent was killed {} times only", kills(&nacre, "box"));
        // A command that is under way when the agent dies may fail, but never with somebody else's result.
        let output = nacre.run(["exec", "box", "sh", "-c", "cat /proc/1/comm; exit 3"]);
        if output.code == 3 {
            assert_eq!(output.text(), "sh\n");
            commands += 1;
        } else {
            assert_eq!(output.code, 125, "{output}");
        }
    }
    assert!(commands > 0, "no command came through");
    nacre.run(["ps", "-q"]).exited(0).printed("box\n");
    nacre.run(["stop", "-t", "1", "box"]).exited(0);
    nacre.run(["rm", "box"]).exited(0);
}

#[test]
fn an_agent_that_keeps_dying_ends_the_sandbox_and_says_so() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = killing_every("100");
    let output = nacre.run(["run", "-q", &images().reference("small"), "sleep", "100"]);
    assert_eq!(output.code, 125, "{output}");
    let expected = "the agent ended 9 times in 10 s; its last exit code was 137";
    assert!(output.stderr.contains(expected), "{output}");
}
