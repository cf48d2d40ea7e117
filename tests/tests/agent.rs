//! The agent may die at any moment: no container and no exit code goes with it, and of output only what it had read and
//! not yet handed to the host.
//!
//! The guest image of these tests has a prober behind init that kills the agent again and again, whatever it is doing;
//! see `src/bin/test_init.rs`.

use std::time::{Duration, Instant};

use nacre_tests::fixtures::images;
use nacre_tests::{Nacre, artefacts, require};

const PATIENCE: Duration = Duration::from_secs(120);
/// Milliseconds between two kills: a sandbox whose agent dies more than 8 times in 10 s is given up by its init.
const PAUSE: &str = "1500";

fn nacre() -> Nacre {
    let nacre = Nacre::new();
    let file = nacre.guard().folder().join("pause");
    std::fs::write(&file, PAUSE).unwrap();
    nacre.image(artefacts::image_with(&[("etc/nacre-test-kill-agent", &file)]))
}

fn kills(nacre: &Nacre, sandbox: &str) -> usize {
    let console = nacre.guard().runtime().join("nacre").join(sandbox).join("console.log");
    String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).matches("PROBE KILLED").count()
}

/// Known gap: a read that is on its way dies with the agent, for it has left the pipe. Nothing else may be missing, doubled
/// or out of order: at most one hole for each death.
#[test]
fn killing_the_agent_loses_no_exit_code_and_only_reads_on_their_way() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = nacre();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); [ $((i % 1000)) = 0 ] && sleep 0.2; done; \
                  exit 42";
    let begun = Instant::now();
    let output = nacre.run(["run", "-q", &images().reference("small"), "sh", "-c", script]).exited(42);
    let pause: u128 = PAUSE.parse().unwrap();
    let deaths = usize::try_from(begun.elapsed().as_millis() / pause).unwrap() + 1;
    let (mut holes, mut next) = (0, 0);
    for line in output.text().lines() {
        match line.strip_prefix("line ").and_then(|number| number.parse::<usize>().ok()) {
            Some(number) if number == next => next += 1,
            // The first whole line behind a hole; what the hole cut in two is no line, or one that is ahead.
            Some(number) if number > next && number < 20_000 => (holes, next) = (holes + 1, number + 1),
            _ => {}
        }
    }
    assert!(holes <= 2 * deaths, "{holes} holes, with at most {deaths} deaths");
    let (found, expected) = (output.text().len(), (0..20_000).map(|i| format!("line {i}\n").len()).sum());
    assert!(found <= expected && found > expected / 2, "{found} bytes of {expected}");
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
