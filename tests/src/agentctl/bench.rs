//! What calls cost, seen from the host: for `cargo xtask bench agent`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Client, encode, reply};

const CHECKS: u32 = 1000;
const EXECS: u32 = 20;
/// Of the output that is read, in bytes.
const OUTPUT: u64 = 16 << 20;
/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Measures in a container that runs; its image has busybox.
///
/// # Errors
/// A call failed.
pub fn measure(client: &Client, container: &str) -> Result<Value, String> {
    let before = agent_seconds(client)?;
    let check = median(CHECKS, || call(client, "Check", &json!({})).map(drop))?;
    let checks_seconds = agent_seconds(client)? - before;
    let mut number = 0;
    let exec = median(EXECS, || {
        number += 1;
        let id = format!("bench-{number}");
        start(client, container, &id, "true")?;
        wait(client, container, &id)
    })?;
    start(client, container, "bench-output", &format!("head -c {OUTPUT} /dev/zero"))?;
    let (begun, before) = (Instant::now(), agent_seconds(client)?);
    let (mut received, mut reads) = (0, 0_u32);
    loop {
        let request =
            json!({"container_id": container, "exec_id": "bench-output", "len": 65536, "received": received});
        let length = read(client, &request)?;
        if length == 0 {
            break;
        }
        received += length;
        reads += 1;
    }
    let (seconds, reads_seconds) = (begun.elapsed().as_secs_f64(), agent_seconds(client)? - before);
    wait(client, container, "bench-output")?;
    if received != OUTPUT {
        return Err(format!("{received} bytes of output instead of {OUTPUT}"));
    }
    Ok(json!({
        "check_us": check.as_secs_f64() * 1e6,
        "check_agent_us": checks_seconds * 1e6 / f64::from(CHECKS),
        "exec_ms": exec.as_secs_f64() * 1e3,
        "stdout_mb_s": OUTPUT as f64 / 1e6 / seconds,
        "stdout_agent_us_per_read": reads_seconds * 1e6 / f64::from(reads.max(1)),
    }))
}

fn start(client: &Client, container: &str, id: &str, script: &str) -> Result<(), String> {
    let process = json!({"args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"});
    let request = json!({"container_id": container, "exec_id": id, "process": process});
    call(client, "ExecProcess", &request).map(drop)
}

fn wait(client: &Client, container: &str, id: &str) -> Result<(), String> {
    let ended = call(client, "WaitProcess", &json!({"container_id": container, "exec_id": id}))?;
    match ended["status"].as_i64() {
        Some(0) => Ok(()),
        status => Err(format!("{id} ended with {status:?}")),
    }
}

/// Processor time of the agent so far.
fn agent_seconds(client: &Client) -> Result<f64, String> {
    let page = call(client, "GetMetrics", &json!({}))?;
    let page = page["metrics"].as_str().unwrap_or_default();
    let line = page.lines().find_map(|line| line.strip_prefix("kata_agent_total_time "));
    line.and_then(|seconds| seconds.parse().ok()).ok_or_else(|| "no kata_agent_total_time".to_owned())
}

fn read(client: &Client, request: &Value) -> Result<u64, String> {
    // Zeros are a text, one letter a byte.
    let data = &call(client, "ReadStdout", request)?["data"];
    Ok(data.as_str().map_or(0, str::len) as u64)
}

fn call(client: &Client, method: &str, request: &Value) -> Result<Value, String> {
    let (service, payload) = encode(method, request)?;
    let begun = client.begin(service, method, payload, None);
    let response = begun.and_then(|pending| pending.wait(LIMIT)).map_err(|error| error.to_string())?;
    let response = response.ok_or_else(|| format!("{method}: no answer"))?;
    match response.into_result() {
        Ok(payload) => reply(method, &payload),
        Err(status) => Err(format!("{method}: {}", status.message)),
    }
}

fn median(times: u32, mut work: impl FnMut() -> Result<(), String>) -> Result<Duration, String> {
    let mut taken = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        work()?;
        taken.push(begun.elapsed());
    }
    taken.sort();
    taken.get(taken.len() / 2).copied().ok_or_else(|| "nothing was measured".to_owned())
}
