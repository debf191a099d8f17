//! The labels that a workload can be selected by.
//!
//! A label is stable if all pods of the workload had it, with one value, all the time, and if its key is not one that belongs to a
//! rollout, a single pod or a release. Of these the smallest set is taken that selects the workload's pods and no others; the
//! labels that people know come before all others.

use std::sync::Arc;

use crate::policy::Labels;

/// A label.
pub type Label = (Arc<str>, Arc<str>);

/// Keys that people name workloads by, the best first.
const WELL_KNOWN: [&str; 14] = [
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "app.kubernetes.io/component",
    "app.kubernetes.io/instance",
    "component",
    "name",
    "run",
    "role",
    "tier",
    "instance",
    "release",
    "service",
    "app.kubernetes.io/part-of",
];

/// Keys of which the value changes with each rollout, pod, job or release.
const UNSTABLE: [&str; 24] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "rollouts-pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "job-name",
    "controller-uid",
    "helm.sh/chart",
    "chart",
    "heritage",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/created-by",
    "version",
    "revision",
    "build",
    "commit",
    "image-tag",
    "date",
    "istio.io/rev",
    "service.istio.io/canonical-revision",
    "security.istio.io/tlsMode",
    "kubernetes.io/hostname",
];

/// The same for all keys of a domain.
const UNSTABLE_DOMAINS: [&str; 4] =
    ["batch.kubernetes.io/", "topology.kubernetes.io/", "node.kubernetes.io/", "pod.kubernetes.io/"];

/// So many labels at most are tried out together, where it is not all of the well-known ones.
const TOGETHER: usize = 4;

/// Whether a label of this key may be selected by.
pub fn is_stable(key: &str) -> bool {
    !UNSTABLE.contains(&key)
        && !UNSTABLE_DOMAINS.iter().any(|domain| key.starts_with(domain))
        && !["-hash", "/hash", "-checksum", "/checksum"].iter().any(|end| key.ends_with(end))
}

/// What all of these have in common and is stable, the best first.
pub fn stable<'a>(mut all: impl Iterator<Item = &'a Labels>) -> Vec<Label> {
    let Some(first) = all.next() else { return Vec::new() };
    // An empty value says nothing, and one selector of two is read wrongly with it.
    let usable = first.iter().filter(|(key, value)| is_stable(key) && !value.is_empty());
    let mut common: Vec<Label> = usable.map(|(key, value)| (key.into(), value.into())).collect();
    for labels in all {
        common.retain(|label| has(labels, label));
    }
    common.sort_by(|a, b| (rank(&a.0), &a.0).cmp(&(rank(&b.0), &b.0)));
    common
}

fn rank(key: &str) -> usize {
    WELL_KNOWN.iter().position(|known| *known == key).unwrap_or(WELL_KNOWN.len())
}

fn has(labels: &Labels, (key, value): &Label) -> bool {
    labels.get(key).is_some_and(|have| have == value)
}

/// Whether all of these are among the labels.
pub fn selects<'a>(selector: impl IntoIterator<Item = &'a Label>, labels: &Labels) -> bool {
    selector.into_iter().all(|label| has(labels, label))
}

/// The first of the well-known labels that there is.
pub fn best(labels: &Labels) -> Option<Label> {
    WELL_KNOWN.iter().find_map(|key| {
        let value = labels.get(key).filter(|value| !value.is_empty())?;
        Some(((*key).into(), value.clone()))
    })
}

/// The smallest selector of these labels that selects none of the others, but those that all of the labels together select too. `None`
/// where there are no labels.
pub fn choose(stable: &[Label], others: &[&Labels]) -> Option<Vec<Label>> {
    // Whom all of them select cannot be told apart; whom they do not select must stay out.
    let apart: Vec<&Labels> = others.iter().copied().filter(|it| !selects(stable, it)).collect();
    let is_exact = |chosen: &[&Label]| !apart.iter().any(|labels| selects(chosen.iter().copied(), labels));
    let known: Vec<&Label> = stable.iter().filter(|(key, _)| rank(key) < WELL_KNOWN.len()).collect();
    let all: Vec<&Label> = stable.iter().collect();
    let found = smallest(&known, known.len(), &is_exact).or_else(|| smallest(&all, TOGETHER, &is_exact));
    let found = found.unwrap_or(all);
    (!found.is_empty()).then(|| found.into_iter().cloned().collect())
}

/// The first of the smallest sets that will do.
fn smallest<'a>(
    labels: &[&'a Label],
    most: usize,
    will_do: &dyn Fn(&[&'a Label]) -> bool,
) -> Option<Vec<&'a Label>> {
    (1..=most.min(labels.len())).find_map(|size| pick(labels, size, &mut Vec::new(), will_do))
}

fn pick<'a>(
    from: &[&'a Label],
    size: usize,
    chosen: &mut Vec<&'a Label>,
    will_do: &dyn Fn(&[&'a Label]) -> bool,
) -> Option<Vec<&'a Label>> {
    if size == 0 {
        return will_do(chosen).then(|| chosen.clone());
    }
    for (place, label) in from.iter().enumerate() {
        chosen.push(label);
        let found = pick(&from[place + 1..], size - 1, chosen, will_do);
        chosen.pop();
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',').filter_map(|pair| pair.split_once('=')).collect()
    }

    fn chosen(own: &[&str], others: &[&str]) -> String {
        let own: Vec<Labels> = own.iter().map(|text| labels(text)).collect();
        let others: Vec<Labels> = others.iter().map(|text| labels(text)).collect();
        let found = choose(&stable(own.iter()), &others.iter().collect::<Vec<_>>());
        found.map_or("nothing".to_owned(), |it| it.into_iter().collect::<Labels>().to_string())
    }

    #[test]
    fn the_smallest_well_known_set_that_tells_apart_is_taken() {
        assert_eq!(
            chosen(&["app=web,pod-template-hash=1", "app=web,pod-template-hash=2"], &["app=db"]),
            "app=web"
        );
        assert_eq!(chosen(&["zone=a,app=web,x=y"], &["app=db,x=y"]), "app=web");
        let helm = "app.kubernetes.io/name=pg,app.kubernetes.io/instance=a,helm.sh/chart=pg-1";
        let other = "app.kubernetes.io/name=pg,app.kubernetes.io/instance=b";
        assert_eq!(chosen(&[helm], &[other]), "app.kubernetes.io/instance=a");
        let third = "app.kubernetes.io/name=redis,app.kubernetes.io/instance=a";
        assert_eq!(
            chosen(&[helm], &[other, third]),
            "app.kubernetes.io/instance=a,app.kubernetes.io/name=pg"
        );
        assert_eq!(chosen(&["app=web,track=canary"], &["app=web"]), "track=canary");
        assert_eq!(
            chosen(&["app=web"], &["app=web,track=canary", "app=db"]),
            "app=web",
            "not to be told apart"
        );
        assert_eq!(chosen(&["pod-template-hash=1,version=2"], &[]), "nothing");
        assert_eq!(chosen(&["app=web,version=1", "app=web2"], &[]), "nothing", "nothing in common");
        assert_eq!(chosen(&["app="], &[]), "nothing");
    }

    #[test]
    fn keys_of_rollouts_pods_and_jobs_are_never_taken() {
        for key in UNSTABLE.into_iter().chain(["batch.kubernetes.io/job-name", "x.io/config-checksum"]) {
            assert!(!is_stable(key), "{key}");
        }
        assert!(is_stable("app") && is_stable("example.com/team"));
    }
}
