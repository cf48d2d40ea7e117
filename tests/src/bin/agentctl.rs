//! `cargo xtask agentctl SANDBOX METHOD [MESSAGE]`: calls the agent of a sandbox by hand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nacre_protocols::names::AGENT_VSOCK_PORT;
use nacre_tests::agentctl::{Client, bench, encode, methods, reply, trace};
use serde_json::Value;

const USAGE: &str = "\
usage: cargo xtask agentctl SANDBOX METHOD [MESSAGE]
       cargo xtask agentctl SANDBOX --trace FILE
       cargo xtask agentctl SANDBOX --bench CONTAINER
       cargo xtask agentctl --list
SANDBOX is a name of `nacre ps`, or the path of a hybrid vsock socket. MESSAGE is JSON with the fields of
protocols/proto in snake case; bytes are a text or {\"hex\": \"00ff\"}.";
/// Long polls are part of the API.
const LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["--list"] => {
            methods().iter().for_each(|(service, method)| println!("{service}/{method}"));
            Ok(())
        }
        [sandbox, "--trace", file] => play(sandbox, file),
        [sandbox, "--bench", container] => bench(sandbox, container),
        [sandbox, method] => call(sandbox, method, "{}"),
        [sandbox, method, message] => call(sandbox, method, message),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn connect(sandbox: &str) -> Result<Client, String> {
    let path = match sandbox.contains('/') {
        true => PathBuf::from(sandbox),
        false => {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").ok_or("XDG_RUNTIME_DIR is not set")?;
            PathBuf::from(runtime).join("nacre").join(sandbox).join("vsock")
        }
    };
    Client::connect(&path, AGENT_VSOCK_PORT).map_err(|error| format!("{}: {error}", path.display()))
}

fn call(sandbox: &str, method: &str, message: &str) -> Result<(), String> {
    let message: Value = serde_json::from_str(message).map_err(|error| format!("MESSAGE: {error}"))?;
    let (service, payload) = encode(method, &message)?;
    // Dropped, it ends its connection, and with it the call.
    let client = connect(sandbox)?;
    let begun = client.begin(service, method, payload, None);
    let response = begun.and_then(|pending| pending.wait(LIMIT)).map_err(|error| error.to_string())?;
    let response = response.ok_or("no answer")?;
    match response.into_result() {
        Ok(payload) => {
            println!("{:#}", reply(method, &payload)?);
            Ok(())
        }
        Err(status) => Err(format!("{method}: code {}: {}", status.code, status.message)),
    }
}

fn bench(sandbox: &str, container: &str) -> Result<(), String> {
    println!("{}", bench::measure(&connect(sandbox)?, container)?);
    Ok(())
}

fn play(sandbox: &str, file: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let played = trace::play(&connect(sandbox)?, &text)?;
    eprintln!("{played} steps");
    Ok(())
}
