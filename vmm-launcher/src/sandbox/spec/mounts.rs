//! The mounts of a container: docker's defaults, the sandbox's own files, then `-v` in the order of the command line.

use nacre_protocols::host_agent::kata::Mount;

use super::{ContainerSettings, SANDBOX_FILES, sandbox_file};

pub fn all(settings: &ContainerSettings) -> Vec<Mount> {
    let mut mounts = defaults();
    for (destination, name) in SANDBOX_FILES {
        // A volume at the same place is the user's word against ours.
        if !settings.volumes.iter().any(|volume| volume.destination == destination) {
            mounts.push(mount(destination, &sandbox_file(name), "bind", &["rbind", "rprivate", "rw"]));
        }
    }
    for volume in &settings.volumes {
        mounts.retain(|mount| mount.destination != volume.destination);
        let access = if volume.read_only { "ro" } else { "rw" };
        mounts.push(mount(&volume.destination, &volume.source, "bind", &["rbind", "rprivate", access]));
    }
    mounts
}

fn defaults() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ]
}

fn mount(destination: &str, source: &str, kind: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        source: source.into(),
        r#type: kind.into(),
        options: options.iter().map(|&option| option.into()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Volume;
    use super::*;

    #[test]
    fn a_volume_takes_the_place_of_a_default() {
        let volume = |destination: &str| Volume {
            host: "/x".into(),
            source: "/run/kata-containers/shared/containers/vol0".into(),
            destination: destination.into(),
            read_only: true,
        };
        for destination in ["/etc/hosts", "/dev/shm", "/data"] {
            let settings = ContainerSettings { volumes: vec![volume(destination)], ..Default::default() };
            let mounts = all(&settings);
            let found: Vec<_> = mounts.iter().filter(|mount| mount.destination == destination).collect();
            assert_eq!(found.len(), 1, "{destination}");
            assert_eq!(found[0].options, ["rbind", "rprivate", "ro"]);
            assert_eq!(mounts.last().unwrap().destination, destination);
        }
    }
}
