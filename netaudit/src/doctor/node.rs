//! What the node is, as far as it matters for what can be seen.

use std::{fs, path::Path};

use serde::Serialize;

use super::selftest::{self, Trial};
use crate::kernel::{BTF_PATH, Kernel};

/// Something of the node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fact {
    /// What.
    pub name: &'static str,
    /// What it is here.
    pub value: String,
    /// What to do, where it is not as it should be.
    pub advice: Option<String>,
}

impl Fact {
    fn good(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, value: value.into(), advice: None }
    }

    fn bad(name: &'static str, value: impl Into<String>, advice: &str) -> Self {
        Self { name, value: value.into(), advice: Some(advice.to_owned()) }
    }
}

/// The oldest kernel that is tested.
const FLOOR: (u32, u32) = (6, 1);

/// The inode of the first pid namespace, the same on every machine: `PROC_PID_INIT_INO`.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What can be told without the programs.
pub fn facts() -> Vec<Fact> {
    let mut facts = vec![kernel(&rustix::system::uname().release().to_string_lossy())];
    facts.push(if Path::new(BTF_PATH).exists() {
        Fact::good("type information", BTF_PATH)
    } else {
        let advice = "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys";
        Fact::bad("type information", "none", advice)
    });
    // As root without a fence it is readable; where it is not, there is nothing to say.
    if let Ok(text) = fs::read_to_string("/sys/kernel/security/lockdown") {
        facts.push(lockdown(&text));
    }
    let link = |path: &str| fs::read_link(path).map(|link| link.to_string_lossy().into_owned());
    if let Ok(own) = link("/proc/self/ns/pid") {
        facts.push(if own == FIRST_PID_NAMESPACE {
            Fact::good("pid namespace", "the kernel's first, as hostPID gives")
        } else {
            // A node may be a container itself, as kind's and k3d's are: then this is as good as it gets.
            Fact::good(
                "pid namespace",
                "not the kernel's first: processes of other namespaces have no number here",
            )
        });
    }
    if let (Ok(own), Ok(first)) = (link("/proc/self/ns/net"), link("/proc/1/ns/net")) {
        facts.push(if own == first {
            Fact::good("network namespace", "that of process 1, as hostNetwork gives")
        } else {
            let advice = "give the agent hostNetwork: it takes its own namespace for the node's";
            Fact::bad("network namespace", "not that of process 1", advice)
        });
    }
    facts
}

/// What of the cgroup hierarchy is watched.
pub fn watched(kernel: &Kernel) -> Fact {
    let (root, mount) = (kernel.cgroup_root().display(), kernel.cgroup_mount().display());
    let part = if kernel.watches_everything() { "all of it" } else { "a part of it" };
    Fact::good("cgroup v2", format!("{root} of {mount}, {part}"))
}

/// Where nothing of the self-test was seen: what may be the reason.
pub fn blind(kernel: &Kernel, trials: &[(Trial, selftest::Result)]) -> Option<Fact> {
    let saw_nothing = trials.iter().all(|(_, result)| *result != selftest::Result::Works);
    let root = kernel.cgroup_root().display();
    let advice = if kernel.watches_everything() {
        "this should not be: please report it, with this output".to_owned()
    } else {
        format!("only sockets of {root} are watched: run this in a cgroup at or below it")
    };
    saw_nothing.then(|| Fact::bad("self-test", "nothing was seen", &advice))
}

fn kernel(release: &str) -> Fact {
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map(|it| it.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= FLOOR {
        Fact::good("kernel", release)
    } else {
        let advice =
            format!("kernels before {}.{} are not tested: look closely at what follows", FLOOR.0, FLOOR.1);
        Fact::bad("kernel", release, &advice)
    }
}

/// The text has all modes, the one that holds in brackets.
fn lockdown(text: &str) -> Fact {
    let mode = text.split(['[', ']']).nth(1).unwrap_or("none");
    if mode == "confidentiality" {
        let advice =
            "boot with lockdown=integrity: this mode keeps programs from reading the kernel's memory";
        Fact::bad("lockdown", mode, advice)
    } else {
        Fact::good("lockdown", mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_gets_advice() {
        for (release, is_old) in
            [("6.18.5", false), ("6.1.0-56-cloud-amd64", false), ("5.15.0-91", true), ("10.0", false)]
        {
            assert_eq!(kernel(release).advice.is_some(), is_old, "{release}");
        }
    }

    #[test]
    fn only_confidentiality_is_in_the_way() {
        assert_eq!(lockdown("[none] integrity confidentiality\n"), Fact::good("lockdown", "none"));
        assert!(lockdown("none [integrity] confidentiality\n").advice.is_none());
        assert!(lockdown("none integrity [confidentiality]\n").advice.is_some());
    }
}
