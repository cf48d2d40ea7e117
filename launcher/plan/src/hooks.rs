//! Hooks, and what they are told of the container (runtime specification, "State", "POSIX-platform Hooks").
//!
//! The launcher cannot know JSON and the document cannot know the process's number, so the text is made here and cut
//! where the number belongs.

use super::{Place, PlanError, absolute, at_most};
use crate::oci;
use nacre_protocols::init_launcher::{ARGS_MAX, HOOKS_MAX, Hook, Hooks, StateText};
use std::fmt::Write;

/// Version of the specification whose state is told.
const VERSION: &str = "1.3.0";

pub fn hooks(
    hooks: Option<&oci::Hooks>,
    place: Place,
    state: impl Fn(&str) -> StateText,
) -> Result<Hooks, PlanError> {
    let Some(hooks) = hooks else { return Ok(Hooks::default()) };
    if place == Place::Sandbox {
        // Their programs would be the guest's own, and a guest has none for it.
        for (list, name) in [
            (&hooks.prestart, "prestart"),
            (&hooks.create_runtime, "createRuntime"),
            (&hooks.create_container, "createContainer"),
            (&hooks.poststart, "poststart"),
            (&hooks.poststop, "poststop"),
        ] {
            if !list.is_empty() {
                return Err(PlanError::unsupported(format!("hooks.{name} in the guest")));
            }
        }
    }
    let all = Hooks {
        pause: !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty(),
        create_container: list("hooks.createContainer", &hooks.create_container)?,
        start_container: list("hooks.startContainer", &hooks.start_container)?,
        ..Default::default()
    };
    // Judged here as well, though somebody else runs them.
    list("hooks.prestart", &hooks.prestart)?;
    list("hooks.createRuntime", &hooks.create_runtime)?;
    list("hooks.poststart", &hooks.poststart)?;
    list("hooks.poststop", &hooks.poststop)?;
    if all.create_container.is_empty() && all.start_container.is_empty() {
        return Ok(all);
    }
    Ok(Hooks { creating: state("creating"), created: state("created"), ..all })
}

/// Checked and in the form of the plan: also for those hooks that the runtime runs itself.
pub fn list(field: &'static str, hooks: &[oci::Hook]) -> Result<Vec<Hook>, PlanError> {
    at_most(field, hooks.len(), HOOKS_MAX)?;
    let hook = |hook: &oci::Hook| {
        let path = absolute(&format!("{field}.path"), &hook.path)?;
        at_most(field, hook.args.len().max(hook.env.len()), ARGS_MAX)?;
        if hook.args.iter().chain(&hook.env).any(|text| text.contains('\0')) {
            return Err(PlanError::invalid(field, "has a NUL in it"));
        }
        let timeout = match hook.timeout {
            None => None,
            Some(seconds) => match u32::try_from(seconds) {
                Ok(seconds @ 1..) => Some(seconds),
                _ => return Err(PlanError::invalid(field, format!("timeout {seconds} is not above 0"))),
            },
        };
        let args = if hook.args.is_empty() { vec![path.clone()] } else { hook.args.clone() };
        Ok(Hook { args, env: hook.env.clone(), timeout, path })
    };
    hooks.iter().map(hook).collect()
}

/// The state of a container as JSON.
pub fn state(id: &str, status: &str, bundle: &str, spec: &oci::Spec) -> StateText {
    let mut before = format!(
        "{{\"ociVersion\":{},\"id\":{},\"status\":{},\"pid\":",
        text(VERSION),
        text(id),
        text(status)
    );
    let mut after = format!(",\"bundle\":{}", text(bundle));
    if !spec.annotations.is_empty() {
        let pairs: Vec<String> =
            spec.annotations.iter().map(|(key, value)| format!("{}:{}", text(key), text(value))).collect();
        let _ = write!(after, ",\"annotations\":{{{}}}", pairs.join(","));
    }
    after.push('}');
    before.shrink_to_fit();
    StateText(vec![before, after])
}

/// What a seccomp agent is told (runtime specification, "The Container Process State").
pub fn listener_state(metadata: &str, state: StateText) -> StateText {
    let mut parts = vec![format!("{{\"ociVersion\":{},\"fds\":[\"seccompFd\"],\"pid\":", text(VERSION))];
    let mut between = String::new();
    if !metadata.is_empty() {
        let _ = write!(between, ",\"metadata\":{}", text(metadata));
    }
    between.push_str(",\"state\":");
    for (index, part) in state.0.iter().enumerate() {
        parts.push(if index == 0 { format!("{between}{part}") } else { part.clone() });
    }
    if let Some(last) = parts.last_mut() {
        last.push('}');
    }
    StateText(parts)
}

/// A string of JSON (RFC 8259, section 7).
fn text(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for letter in value.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\0'..='\u{1f}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(path: &str, timeout: Option<i64>) -> oci::Hook {
        oci::Hook { path: path.into(), timeout, ..Default::default() }
    }

    #[test]
    fn states_are_json_with_the_number_between() {
        let mut spec = oci::Spec::default();
        spec.annotations.insert("a\"b".into(), "line\nend\\".into());
        let whole =
            |state: &StateText| serde_json::from_str::<serde_json::Value>(&state.0.join("42")).unwrap();
        let state = state("box", "creating", "/bundle", &spec);
        let value = whole(&state);
        assert_eq!(
            (&value["id"], &value["pid"], &value["status"]),
            (&"box".into(), &42.into(), &"creating".into())
        );
        assert_eq!(value["annotations"]["a\"b"], "line\nend\\");
        let value = whole(&listener_state("meta", state));
        assert_eq!(
            (&value["pid"], &value["state"]["pid"], &value["metadata"]),
            (&42.into(), &42.into(), &"meta".into())
        );
        assert_eq!(value["fds"][0], "seccompFd");
    }

    #[test]
    fn hooks_are_judged_wherever_they_run() {
        let text = |_: &str| StateText(vec!["a".into(), "b".into()]);
        let with = |change: fn(&mut oci::Hooks, oci::Hook), hook: oci::Hook, place| {
            let mut described = oci::Hooks::default();
            change(&mut described, hook);
            hooks(Some(&described), place, text)
        };
        let start: fn(&mut oci::Hooks, oci::Hook) = |hooks, hook| hooks.start_container.push(hook);
        let plan = with(start, hook("/hook", Some(3)), Place::Sandbox).unwrap();
        let expected =
            Hook { path: "/hook".into(), args: vec!["/hook".into()], env: vec![], timeout: Some(3) };
        assert_eq!((plan.pause, plan.start_container, plan.created), (false, vec![expected], text("")));
        let runtime: fn(&mut oci::Hooks, oci::Hook) = |hooks, hook| hooks.create_runtime.push(hook);
        assert!(with(runtime, hook("/hook", None), Place::Host).unwrap().pause);
        assert!(with(runtime, hook("/hook", None), Place::Sandbox).is_err());
        for bad in [hook("hook", None), hook("/hook", Some(0)), hook("/hook", Some(-1))] {
            assert!(with(|hooks, hook| hooks.poststop.push(hook), bad, Place::Host).is_err());
        }
    }
}
