//! From `config.json` of a bundle to the plan.

use crate::error::{Context, Result, refused};
use nacre_launcher::check::{Checked, CheckedPlan, check_on_host};
use nacre_plan::{Container, Place, oci};
use nacre_protocols::init_launcher::{ContainerPlan, ExecPlan, Plan, Rootfs};
use std::path::{Path, PathBuf};

/// Longest `config.json`, in bytes.
const CONFIG_MAX: usize = 4 * 1024 * 1024;

pub struct Bundle {
    pub directory: PathBuf,
    pub spec: oci::Spec,
    /// In the form that links lead to: the launcher follows none.
    pub rootfs: PathBuf,
}

impl Bundle {
    pub fn read(directory: &Path) -> Result<Self> {
        let directory =
            directory.canonicalize().doing(|| format!("opening the bundle {}", directory.display()))?;
        let spec: oci::Spec = read_document(&directory.join("config.json"))?;
        if spec.oci_version.is_empty() {
            return Err(refused("config.json: ociVersion is missing"));
        }
        // Version 2 would be another document.
        if !spec.oci_version.starts_with("1.") {
            return Err(refused(format!("config.json: ociVersion {:?} is not supported", spec.oci_version)));
        }
        let Some(root) = &spec.root else { return Err(refused("config.json: root is missing")) };
        if root.path.is_empty() {
            return Err(refused("config.json: root.path is missing"));
        }
        let rootfs = directory.join(&root.path);
        let rootfs =
            rootfs.canonicalize().doing(|| format!("opening the root file system {}", rootfs.display()))?;
        Ok(Self { directory, spec, rootfs })
    }

    /// `preserved`: how many descriptors the command gets besides its standard streams.
    pub fn plan(&self, id: &str, preserved: u8) -> Result<Checked<Box<ContainerPlan>>> {
        let Some(rootfs) = self.rootfs.to_str() else {
            return Err(refused(format!("root.path {:?} is not UTF-8", self.rootfs)));
        };
        let mut plan = nacre_plan::container(Container {
            id,
            spec: &self.spec,
            rootfs: Rootfs::Guest(rootfs.to_owned()),
            user: None,
            image: None,
            bundle: self.directory.to_str().unwrap_or_default(),
            place: Place::Host,
        })
        .map_err(|error| refused(format!("config.json: {error}")))?;
        plan.inherited = preserved;
        match check_on_host(Plan::Create(Box::new(plan))) {
            Ok(CheckedPlan::Create(plan)) => Ok(plan),
            Ok(_) => Err(refused("config.json: no plan for a container")),
            Err(error) => Err(refused(format!("config.json: {error}"))),
        }
    }
}

pub fn checked_exec(plan: ExecPlan) -> Result<Checked<Box<ExecPlan>>> {
    match check_on_host(Plan::Exec(Box::new(plan))) {
        Ok(CheckedPlan::Exec(plan)) => Ok(plan),
        Ok(_) => Err(refused("no plan for an exec")),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// A document of the specification; `-` is standard input.
pub fn read_document<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = if path == Path::new("-") {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut text)
            .doing(|| "reading standard input".to_owned())?;
        text
    } else {
        std::fs::read(path).doing(|| format!("reading {}", path.display()))?
    };
    if text.len() > CONFIG_MAX {
        return Err(refused(format!("{} is longer than {CONFIG_MAX} bytes", path.display())));
    }
    oci::from_json(&text).map_err(|error| refused(format!("{}: {error}", path.display())))
}
