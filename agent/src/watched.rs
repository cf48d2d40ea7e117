//! Directories of the host's that containers watch: a launcher brings what they are shown up to date now and then, as a share
//! does not tell of changes.

use crate::agent::Agent;
use crate::say;
use nacre_protocols::init_launcher::StorageStep;
use std::collections::BTreeSet;
use std::time::Duration;

/// As often as shims expect it.
const PERIOD: Duration = Duration::from_secs(2);

impl Agent {
    /// For ever; without anything to watch it waits.
    pub async fn keep_watched(&self) {
        // Those that could not be brought up to date the last time: it is said once.
        let mut failing = BTreeSet::new();
        loop {
            let watched: Vec<(String, String)> = self.kept(|kept| {
                let of = |(at, mount): (&String, &crate::state::Mounted)| {
                    Some((at.clone(), mount.watched.clone()?))
                };
                kept.mounts.iter().filter_map(of).collect()
            });
            if watched.is_empty() {
                failing.clear();
                self.watching.notified().await;
            }
            for (mount_point, source) in watched {
                let _turn = self.mounting.lock().await;
                // Somebody may have unmounted it meanwhile.
                if !self.kept(|kept| kept.mounts.contains_key(&mount_point)) {
                    continue;
                }
                let step = StorageStep::Watched { source, mount_point: mount_point.clone() };
                match self.apply(vec![step]).await {
                    Ok(()) => drop(failing.remove(&mount_point)),
                    Err(error) => {
                        if failing.insert(mount_point) {
                            say(&error.message);
                        }
                    }
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}
