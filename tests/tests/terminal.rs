//! `nacre run -it` in a terminal: size, keys, colours off the log, the terminal as it was afterwards.

use std::time::Duration;

use nacre_tests::fixtures::images;
use nacre_tests::terminal::Terminal;
use nacre_tests::{Nacre, require};

const PATIENCE: Duration = Duration::from_secs(60);

fn start(nacre: &Nacre, arguments: &[&str]) -> Terminal {
    let image = images().reference("small");
    let words = [&["run", "-it", "--name", "term", &image], arguments].concat();
    Terminal::start(&nacre.command(words), 31, 97)
}

#[test]
fn the_window_has_the_size_of_the_terminal_and_follows_it() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done";
    let mut terminal = start(&nacre, &["sh", "-c", script]);
    terminal.wait_for("31 97", PATIENCE);
    terminal.resize(20, 50);
    terminal.wait_for("20 50", PATIENCE);
    terminal.type_in("\x03");
    let (status, shown) = terminal.finish(PATIENCE);
    assert_eq!(status.code(), Some(130), "{shown}");
}

#[test]
fn keys_reach_the_shell_and_its_end_is_ours() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let mut terminal = start(&nacre, &["sh"]);
    terminal.wait_for("# ", PATIENCE);
    terminal.type_in("echo $((6 * 7))\r");
    terminal.wait_for("42", PATIENCE);
    terminal.type_in("tty; test -t 0 && test -t 1 && echo both\r");
    terminal.wait_for("both\r\n", PATIENCE);
    // Ctrl-C ends the command, not the shell; Ctrl-D ends the shell.
    terminal.type_in("sleep 1000\r");
    std::thread::sleep(Duration::from_millis(500));
    terminal.type_in("\x03");
    terminal.type_in("echo still here; (exit 9)\r");
    // With its prompt the shell reads keys by itself: before that, the end would be one of a line that nobody reads.
    terminal.wait_for("still here\r\n/ # ", PATIENCE);
    terminal.type_in("\x04");
    let (status, shown) = terminal.finish(PATIENCE);
    assert_eq!(status.code(), Some(9), "{shown}");
}

#[test]
fn a_command_in_a_running_container_gets_a_terminal_too() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("box", [&images().reference("small"), "sleep", "1000"]);
    let mut terminal = Terminal::start(&nacre.command(["exec", "-it", "box", "sh"]), 24, 80);
    terminal.wait_for("# ", PATIENCE);
    terminal.type_in("stty size\r");
    terminal.wait_for("24 80", PATIENCE);
    terminal.type_in("exit 5\r");
    assert_eq!(terminal.finish(PATIENCE).0.code(), Some(5));
    nacre.remove("box");
}

#[test]
fn the_terminal_is_afterwards_as_it_was_before() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let image = images().reference("small");
    let inner = nacre.command(["run", "-it", &image, "sh", "-c", "stty raw -echo; kill -9 $$; exit 0"]);
    let mut outer = std::process::Command::new("sh");
    outer.args(["-c", "stty -g > before; \"$@\"; stty -g > after", "sh"]);
    outer.arg(inner.get_program()).args(inner.get_args()).current_dir(nacre.guard().folder());
    outer.env_clear().envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    let terminal = Terminal::start(&outer, 24, 80);
    terminal.finish(PATIENCE);
    let settings = |name: &str| std::fs::read_to_string(nacre.guard().folder().join(name)).unwrap();
    assert_eq!(settings("before"), settings("after"));
}

#[test]
fn progress_is_shown_on_a_terminal() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let image = images().reference("small");
    let terminal = Terminal::start(&nacre.command(["run", &image, "echo", "output"]), 24, 100);
    let (status, shown) = terminal.finish(PATIENCE);
    assert!(status.success(), "{shown}");
    assert!(shown.contains('\x1b') && shown.contains("output"), "{shown:?}");
}
