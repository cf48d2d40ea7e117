//! Credential helpers: programs of the user's, named in the configuration of docker and podman, that keep what `docker login`
//! was told. One is asked here, on the host, for one registry; the sandbox gets the answer alone.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Credentials;

/// What a helper is waited for: it may ask its user something.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;
/// What a helper says in place of a user's name when it has a token (docker-credential-helpers, "client").
const TOKEN_USER: &str = "<token>";
/// What it says when it has nothing.
const NOT_FOUND: &str = "credentials not found";

#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error("the name is not made of letters, digits, '.', '_' and '-'")]
    Name,
    #[error("cannot start {program}: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("{program} did not answer within {} s", PATIENCE.as_secs())]
    Patience { program: String },
    #[error("{program} failed")]
    Failed { program: String },
    #[error("{program} did not answer with the JSON of a user and a secret")]
    Answer { program: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: String,
}

/// Asks `docker-credential-NAME` for what it has for `server`; `None` if it has nothing. Neither its answer nor what it says
/// about it is ever shown: both may hold the secret.
pub fn ask(name: &str, server: &str) -> Result<Option<Credentials>, HelperError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(HelperError::Name);
    }
    ask_program(format!("docker-credential-{name}"), server)
}

fn ask_program(program: String, server: &str) -> Result<Option<Credentials>, HelperError> {
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| HelperError::Start { program: program.clone(), source })?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has gone already says so by its exit code.
        let _ = stdin.write_all(server.as_bytes());
    }
    // Read on the side, so that one that talks without end and one that is silent are both given up.
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let _ = stdout.map(|stdout| stdout.take(ANSWER_MAX).read_to_end(&mut answer));
        answer
    });
    let Some(status) = wait(&mut child) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(HelperError::Patience { program });
    };
    let answer = reader.join().unwrap_or_default();
    match (status, serde_json::from_slice::<Answer>(&answer)) {
        (true, Ok(Answer { username, secret })) if username == TOKEN_USER => {
            Ok(Some(Credentials::IdentityToken(secret)))
        }
        (true, Ok(Answer { username, secret })) => {
            Ok(Some(Credentials::Basic { user: username, password: secret }))
        }
        (true, Err(_)) => Err(HelperError::Answer { program }),
        (false, _) if String::from_utf8_lossy(&answer).contains(NOT_FOUND) => Ok(None),
        (false, _) => Err(HelperError::Failed { program }),
    }
}

/// Whether it went well; `None` if it has not ended.
fn wait(child: &mut Child) -> Option<bool> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            Err(_) => return Some(false),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn helpers_are_asked_as_docker_asks_them() {
        let directory = tempfile::tempdir().unwrap();
        let basic = Credentials::Basic { user: "u r.example".into(), password: "hidden".into() };
        for (at, (script, expected)) in [
            (
                r#"read s; echo "{\"ServerURL\":\"$s\",\"Username\":\"u $s\",\"Secret\":\"hidden\"}""#,
                Ok(Some(basic)),
            ),
            (
                r#"echo '{"Username":"<token>","Secret":"hidden"}'"#,
                Ok(Some(Credentials::IdentityToken("hidden".into()))),
            ),
            ("echo credentials not found in native keychain; exit 1", Ok(None)),
            ("echo hidden; exit 1", Err("failed")),
            ("echo hidden", Err("JSON")),
            (r#"test "$1" = get || exit 1; yes hidden | head -c 1000000"#, Err("failed")),
        ]
        .into_iter()
        .enumerate()
        {
            let program = directory.path().join(format!("helper-{at}"));
            std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
            let answer = ask_program(program.display().to_string(), "r.example");
            match (answer, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{script}"),
                (Err(error), Err(word)) => {
                    let text = error.to_string();
                    assert!(text.contains(word) && !text.contains("hidden"), "{script}: {text}");
                }
                (answer, _) => panic!("{script}: {answer:?}"),
            }
        }
        for name in ["", "../x", "a b"] {
            assert!(matches!(ask(name, "x"), Err(HelperError::Name)), "{name}");
        }
    }
}
