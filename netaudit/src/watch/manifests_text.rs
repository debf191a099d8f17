//! The text of manifests: where documents begin, and what can be told of one that does not parse.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::convert::DEFAULT_NAMESPACE;
use crate::cluster::Kind;

/// One document of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Document<'a> {
    pub text: &'a str,
    /// The line of the file that it begins on, from 1.
    pub line: u32,
}

/// The documents of a YAML text. `---` and `...` separate them only at the very left, where no scalar can hold them.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let is_marker = |marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        let begins = is_marker("---");
        if begins || is_marker("...") {
            documents.push(Document { text: &text[start..offset], line: start_line });
            // What follows the marker on its line belongs to the document that it begins.
            start = offset + if begins { 3 } else { line.len() };
            start_line = if begins { number } else { number + 1 };
        }
        offset += line.len();
    }
    documents.push(Document { text: &text[start..], line: start_line });
    documents.retain(|document| !is_blank(document.text));
    documents
}

/// Only spaces and comments.
fn is_blank(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .all(|line| line.is_empty() || line.starts_with('#') || line.starts_with("%YAML"))
}

/// What a document that does not parse seems to be.
#[derive(PartialEq, Eq, Default, Debug)]
pub(super) struct Guess {
    /// Where all that it may hold are of one.
    pub api_version: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// Addresses of a pod's or a node's status.
    pub ips: SmallVec<[IpAddr; 2]>,
}

/// Reads what it can. What it finds is used only to narrow whom the document could concern, so it finds nothing rather
/// than something wrong: a list or two kinds in one document give no kind.
pub(super) fn guess(text: &str) -> Guess {
    let mut found = Found::default();
    if text.trim_start().starts_with(['{', '[']) {
        guess_json(text, &mut found)
    } else {
        guess_yaml(text, &mut found)
    }
    let Found { kinds, api_versions, node_ips, mut guess, metadata_is_whole } = found;
    if let [version, others @ ..] = api_versions.as_slice()
        && others.iter().all(|it| it == version)
        && api_versions.len() >= kinds.len()
    {
        guess.api_version = Some(version.clone());
    }
    match kinds.as_slice() {
        [kind] if !kind.ends_with("List") => {
            guess.kind = Some(kind.clone());
            if kind == "Node" {
                guess.ips = node_ips;
            }
            if metadata_is_whole && guess.name.is_some() && guess.namespace.is_none() {
                guess.namespace = Some(DEFAULT_NAMESPACE.to_owned());
            }
        }
        // Perhaps several objects, and each may live elsewhere.
        _ => (guess.namespace, guess.name) = (None, None),
    }
    guess
}

/// Kinds that are often in one directory with policies and change no verdict.
const OF_NO_CONCERN: [&str; 20] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "HorizontalPodAutoscaler",
    "Ingress",
    "Job",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "ReplicaSet",
    "Role",
    "RoleBinding",
    "Secret",
    "ServiceAccount",
    "StatefulSet",
    "StorageClass",
];

/// The kind of a YAML document that does not parse (as with the tag `!!binary` in a Secret), if it is well known and
/// nothing in the document can change a verdict. A kind that is not known may be a misspelt one that can.
pub(super) fn kind_of_no_concern(text: &str) -> Option<&'static str> {
    let kind = guess(text).kind?;
    OF_NO_CONCERN.into_iter().find(|it| *it == kind)
}

/// Whether a document that does not parse names a kind, anywhere, that a check could want to know.
pub(super) fn names_a_kind_of_concern(text: &str) -> bool {
    let mut kinds = Kind::ALL.into_iter().map(Kind::api_kind);
    let mut workloads = OF_NO_CONCERN.into_iter().filter(|it| super::workloads::makes_pods(it));
    kinds.any(|it| text.contains(it)) || workloads.any(|it| text.contains(it))
}

#[derive(Default)]
struct Found {
    kinds: Vec<String>,
    api_versions: Vec<String>,
    node_ips: SmallVec<[IpAddr; 2]>,
    guess: Guess,
    /// Whether the metadata was read to its end, so that what it lacks is not said.
    metadata_is_whole: bool,
}

impl Found {
    fn add(&mut self, path: &[&str], value: &str) {
        match path {
            ["kind"] => self.kinds.push(value.to_owned()),
            ["apiVersion"] => self.api_versions.push(value.to_owned()),
            ["metadata", "namespace"] => keep(&mut self.guess.namespace, value),
            ["metadata", "name"] => keep(&mut self.guess.name, value),
            [.., "podIP" | "ip"] => add_ip(&mut self.guess.ips, value),
            [.., "address"] => add_ip(&mut self.node_ips, value),
            _ => {}
        }
    }
}

/// Line by line: what stands at the very left, and what is indented once below `metadata`.
fn guess_yaml(text: &str, found: &mut Found) {
    let mut in_metadata = false;
    let mut metadata_indent = 0;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim_start().trim_start_matches("- ").trim_start();
        let Some((key, value)) = trimmed.split_once(':') else { continue };
        let key = key.trim().trim_matches('"');
        let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']).trim();
        if indent == 0 {
            found.metadata_is_whole |= in_metadata;
            in_metadata = key == "metadata";
            metadata_indent = 0;
        } else if in_metadata && metadata_indent == 0 {
            metadata_indent = indent;
        }
        if value.is_empty() || value.contains(['{', '[', '"', ' ']) {
            continue;
        }
        match indent {
            0 => found.add(&[key], value),
            _ if in_metadata && indent == metadata_indent => found.add(&["metadata", key], value),
            _ => found.add(&["", key], value),
        }
    }
}

/// Texts with the keys that lead to them, by counting brackets.
fn guess_json(text: &str, found: &mut Found) {
    let mut path: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '[', '}', ']', '"']) {
        let (mark, after) = (rest.as_bytes()[at], &rest[at + 1..]);
        rest = after;
        match mark {
            b'{' | b'[' => path.push(""),
            b'}' | b']' => {
                path.pop();
            }
            _ => {
                // Escapes do not occur in the names that are looked for; a quote behind one only ends a text early.
                let Some((token, after)) = after.split_once('"') else { return };
                rest = after;
                match (after.trim_start().starts_with(':'), path.last_mut()) {
                    (true, Some(key)) => *key = token,
                    _ => found.add(&path, token),
                }
            }
        }
    }
}

fn add_ip(ips: &mut SmallVec<[IpAddr; 2]>, text: &str) {
    if let Ok(ip) = text.parse::<IpAddr>().map(|ip| ip.to_canonical())
        && !ips.contains(&ip)
    {
        ips.push(ip);
    }
}

fn keep(slot: &mut Option<String>, value: &str) {
    slot.get_or_insert_with(|| value.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_at_markers_on_the_left_only() {
        let text = "# head\n---\na: |\n  ---\n  x\n--- # second\nb: 1\n...\n---\n\n";
        let found: Vec<_> = split(text).iter().map(|it| (it.line, it.text)).collect();
        assert_eq!(found, [(2, "\na: |\n  ---\n  x\n"), (6, " # second\nb: 1\n")]);
    }

    #[test]
    fn markers_may_be_followed_by_any_space() {
        let text = "---\t# one\na: 1\n---\t\nb: 1\r\n---\r\nc: 1\n...\t# end\n---\nd: 1\n---e: 1\n....\n";
        let found: Vec<_> = split(text).iter().map(|it| it.line).collect();
        assert_eq!(found, [1, 3, 5, 8]);
    }

    #[test]
    fn a_broken_policy_tells_its_namespace() {
        let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: p\n  namespace: \"x\" \
                    # here\n  labels:\n    name: other\nspec: {oops\n";
        let guess = guess(text);
        assert_eq!(guess.kind.as_deref(), Some("NetworkPolicy"));
        assert_eq!(guess.namespace.as_deref(), Some("x"));
        assert_eq!(guess.name.as_deref(), Some("p"));
    }

    #[test]
    fn several_kinds_or_a_list_tell_nothing() {
        assert_eq!(guess("kind: Pod\nmetadata:\n  name: a\nkind: Service\n").kind, None);
        assert_eq!(guess("kind: List\nitems: [").kind, None);
        assert_eq!(guess("{\"kind\": \"Pod\", \n\"kind\": \"Service\"").kind, None);
    }

    #[test]
    fn an_api_version_is_told_only_if_it_is_that_of_everything() {
        let version = |text: &str| guess(text).api_version;
        assert_eq!(version("apiVersion: a/v1\nkind: X\nspec: {").as_deref(), Some("a/v1"));
        assert_eq!(
            version("apiVersion: a/v1\nkind: X\napiVersion: a/v1\nkind: Y\n").as_deref(),
            Some("a/v1")
        );
        assert_eq!(version("apiVersion: a/v1\nkind: X\napiVersion: b/v1\nkind: Y\n"), None);
        assert_eq!(version("apiVersion: a/v1\nkind: X\nkind: Y\n"), None);
        assert_eq!(
            version("{\"apiVersion\": \"a/v1\", \"spec\": {\"apiVersion\": \"b/v1\"").as_deref(),
            Some("a/v1")
        );
    }

    #[test]
    fn a_broken_pod_tells_its_address() {
        let guess = guess("kind: Pod\nmetadata:\n  name: a\nspec: [\nstatus:\n  podIP: 10.0.0.1\n");
        assert_eq!(guess.ips.as_slice(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(guess.namespace.as_deref(), Some("default"));
    }
}
