//! NA022: policies that nobody enforces.

use super::{
    Code,
    world::{Out, World},
};
use crate::audit::cnis;

/// The network that enforces no policy.
const FLANNEL: &str = "flannel";

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    let Some(first) =
        world.policies.iter().map(|it| it.item).chain(world.wide.iter().map(|it| it.item)).min()
    else {
        return;
    };
    let count = world.policies.len() + world.wide.len();
    let policies = if count == 1 { "the policy".to_owned() } else { format!("the {count} policies") };
    let advice = "install an enforcer beside it";
    if let Some(name) = &world.options.cni {
        if name == FLANNEL {
            let message =
                format!("--cni {name}: {policies} among the manifests are taken and not enforced; {advice}");
            out.find(Code::NotEnforced, first, "", message);
        }
        return;
    }
    let all = || world.pods.values().flatten();
    let found = cnis(all().map(|(_, it)| &it.pod));
    if found.is_empty() {
        return out.skip(
            Code::NotEnforced,
            "no DaemonSet of a known network is among the manifests, and no --cni says which it is",
        );
    }
    // Flannel's own chart can add a container that enforces.
    let enforces = |name: &String| name.contains("network-policies") || name.contains("netpol");
    if !found.iter().eq([FLANNEL].iter()) {
        return;
    }
    let flannels = all().filter(|(_, it)| !cnis([&it.pod]).is_empty());
    for (item, pods) in flannels {
        if !pods.containers.iter().any(enforces) {
            let message = format!(
                "{pods} is the network, and enforces no policy: {policies} among the manifests have no effect; {advice}"
            );
            out.find(Code::NotEnforced, *item, "", message);
        }
    }
}
