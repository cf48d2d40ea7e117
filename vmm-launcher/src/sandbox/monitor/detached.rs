//! Containers without a command: their output goes to a log, their end is waited for here.

use std::time::Duration;

use tokio::sync::mpsc;

use super::keeper::KILLED;
use crate::client::{Client, ClientError, ProcessId};
use crate::sandbox::container_log::{LogWriter, Stream};

/// How long a killed container may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// Chunks of output on their way to the log.
const CHUNKS_MAX: usize = 4;

/// A detached container: its output to the log, then its end. Returns the exit code.
pub async fn look_after(client: &Client, container: &str, mut log: LogWriter) -> u8 {
    let id = ProcessId::first(container);
    let (sender, mut chunks) = mpsc::channel(CHUNKS_MAX);
    for stream in [Stream::Output, Stream::Error] {
        let (client, id, sender) = (client.clone(), id.clone(), sender.clone());
        tokio::spawn(async move {
            let mut received = 0;
            loop {
                let read = match stream {
                    Stream::Output => client.read_stdout(&id, received).await,
                    Stream::Error => client.read_stderr(&id, received).await,
                };
                match read {
                    Ok(data) if !data.is_empty() => {
                        received += data.len() as u64;
                        if sender.send((stream, data)).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        });
    }
    drop(sender);
    let mut broken = false;
    while let Some((stream, data)) = chunks.recv().await {
        // A full disk must not stop the container: read on, and say it once.
        if let Err(error) = log.write(stream, &data)
            && !std::mem::replace(&mut broken, true)
        {
            eprintln!("nacre monitor: write the log of {container}: {error}");
        }
    }
    let code = client.wait(&id).await.map_or(KILLED, |exit| exit.code);
    remove(client, container).await;
    code
}

/// Of a container whose command is gone. Returns the exit code.
pub async fn kill_and_remove(client: &Client, container: &str) -> u8 {
    let _ = client.kill_all(container).await;
    let waited = tokio::time::timeout(KILL_GRACE, client.wait(&ProcessId::first(container))).await;
    remove(client, container).await;
    waited.ok().and_then(Result::ok).map_or(KILLED, |exit| exit.code)
}

async fn remove(client: &Client, container: &str) {
    let killed: Result<(), ClientError> = client.kill_all(container).await;
    let removed = client.remove_container(container).await;
    if let Err(error) = killed.and(removed)
        && !error.is_end()
    {
        eprintln!("nacre monitor: remove {container}: {error}");
    }
}
