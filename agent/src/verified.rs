//! The one place where what the puller says becomes an image that can be mounted.
//!
//! A [`VerifiedImage`] is made out of the puller's answer to a request, and holds only if the answer keeps to the request's
//! policy. Nothing else in the agent makes a step that mounts a layer.

use nacre_protocols::agent_puller::{
    ImageConfig, LAYERS_MAX, PullFailure, PullFailureKind, PulledImage, Verdict,
};
use nacre_protocols::init_launcher::{Rootfs, StorageStep};
use nacre_protocols::names::Sha256;
use serde::{Deserialize, Serialize};

/// What may be mounted. Kept over an agent's death in the agent's own memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedImage(PulledImage);

impl VerifiedImage {
    /// `judged`: the request had a policy, so that the answer must say which of its rules takes the image.
    pub fn new(image: PulledImage, judged: bool) -> Result<Self, PullFailure> {
        let refused = |kind, message: String| Err(PullFailure { kind, message });
        if image.layers.len() > LAYERS_MAX {
            return refused(PullFailureKind::Limit, format!("the image has more than {LAYERS_MAX} layers"));
        }
        let holds = match &image.verdict {
            Verdict::Unjudged => !judged,
            Verdict::Accepted { .. } => judged,
            Verdict::Listed { digest, .. } => judged && [image.root, image.manifest].contains(digest),
        };
        match holds {
            true => Ok(Self(image)),
            false => {
                refused(PullFailureKind::Policy, "policy: the puller's verdict does not hold".to_owned())
            }
        }
    }

    pub fn was_judged(&self) -> bool {
        self.0.verdict != Verdict::Unjudged
    }

    pub fn described(&self) -> &PulledImage {
        &self.0
    }

    pub fn config(&self) -> &ImageConfig {
        &self.0.process
    }

    /// Lowest first.
    pub fn layers(&self) -> Vec<Sha256> {
        self.0.layers.iter().map(|layer| layer.diff_id).collect()
    }

    /// What mounts its layers.
    pub fn steps(&self) -> Vec<StorageStep> {
        self.layers().into_iter().map(|diff_id| StorageStep::Layer { diff_id }).collect()
    }

    /// The root that they make.
    pub fn rootfs(&self) -> Rootfs {
        Rootfs::Layers(self.layers())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(verdict: Verdict) -> PulledImage {
        PulledImage {
            reference: "docker.io/library/x:latest".into(),
            manifest: Sha256([3; 32]),
            root: Sha256([4; 32]),
            config: Sha256([5; 32]),
            layers: Vec::new(),
            process: ImageConfig::default(),
            annotations: Vec::new(),
            verdict,
        }
    }

    #[test]
    fn a_verdict_must_fit_the_request() {
        let listed = |byte| Verdict::Listed { scope: "x".into(), digest: Sha256([byte; 32]) };
        let accepted = || Verdict::Accepted { scope: "x".into() };
        for (verdict, judged, holds) in [
            (Verdict::Unjudged, false, true),
            (Verdict::Unjudged, true, false),
            (accepted(), true, true),
            (accepted(), false, false),
            (listed(3), true, true),
            (listed(4), true, true),
            (listed(5), true, false),
            (listed(4), false, false),
        ] {
            let made = VerifiedImage::new(image(verdict.clone()), judged);
            assert_eq!(made.is_ok(), holds, "{verdict:?}, judged: {judged}");
        }
    }
}
