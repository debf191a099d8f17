//! YAML with comments, as a person would write it. Whatever is not plainly a word is quoted, so that no reader takes it for a number or
//! a truth.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Suggested, rules::Explained};
use crate::policy::declared::{NetworkPolicy, Peer, Port, PortRef, Rule, Selector};

/// How long a line of a comment gets.
const WIDTH: usize = 120;

/// Words that some reader of YAML takes for something else.
const RESERVED: [&str; 12] =
    ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity"];

/// A text as YAML has it: plain where that is safe for every reader, else quoted.
pub fn scalar(text: &str) -> String {
    let is_word = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '/'))
        && !RESERVED.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_word {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // Some are ends of lines to YAML, one is a mark of the byte order.
            _ if letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// A comment, in lines; what would end a line is told as it is written in source.
pub fn comment(out: &mut String, indent: usize, text: &str) {
    let text: String = text
        .chars()
        .flat_map(|letter| {
            match letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{feff}') {
                true => letter.escape_default().collect::<Vec<_>>(),
                false => vec![letter],
            }
        })
        .collect();
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && indent + line.chars().count() + word.chars().count() + 3 > WIDTH {
            let _ = writeln!(out, "{:indent$}# {line}", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(out, "{:indent$}# {line}", "");
    }
}

/// A policy as a document, without the line that separates documents.
pub fn document(suggested: &Suggested) -> String {
    let policy = &suggested.policy;
    let mut out = String::new();
    suggested.header.iter().for_each(|line| comment(&mut out, 0, line));
    out.push_str("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n");
    let _ =
        writeln!(out, "  name: {}\n  namespace: {}\nspec:", scalar(&policy.name), scalar(&policy.namespace));
    selector(&mut out, 2, "podSelector", &policy.pod_selector);
    out.push_str("  policyTypes:\n");
    for direction in &policy.policy_types {
        let _ = writeln!(out, "    - {}", scalar(direction));
    }
    for (field, peers, rules) in
        [("ingress", "from", &suggested.ingress), ("egress", "to", &suggested.egress)]
    {
        match rules.as_slice() {
            // A policy that denies all reads better without.
            [] if suggested.is_default => {}
            [] => {
                let _ = writeln!(out, "  {field}: []");
            }
            rules => {
                let _ = writeln!(out, "  {field}:");
                rules.iter().for_each(|it| rule(&mut out, peers, it));
            }
        }
    }
    out
}

fn selector(out: &mut String, indent: usize, field: &str, selector: &Selector) {
    if selector.match_labels.is_empty() {
        let _ = writeln!(out, "{:indent$}{field}: {{}}", "");
        return;
    }
    let _ = writeln!(out, "{:indent$}{field}:\n{:indent$}  matchLabels:", "", "");
    for (key, value) in &selector.match_labels {
        let _ = writeln!(out, "{:indent$}    {}: {}", "", scalar(key), scalar(value));
    }
}

fn rule(out: &mut String, field: &str, explained: &Explained) {
    explained.why.iter().for_each(|line| comment(out, 4, line));
    let Rule { peers, ports, .. } = &explained.rule;
    let _ = writeln!(out, "    - {field}:");
    let none = Vec::new();
    for (place, peer) in peers.iter().enumerate() {
        explained.peers.get(place).unwrap_or(&none).iter().for_each(|line| comment(out, 8, line));
        write_peer(out, peer);
    }
    out.push_str("      ports:\n");
    for port in ports {
        let _ = writeln!(out, "        - protocol: {}", port.protocol.as_deref().unwrap_or("TCP"));
        match &port.port {
            Some(PortRef::Number(number)) => {
                let _ = writeln!(out, "          port: {number}");
            }
            Some(PortRef::Name(name)) => {
                let _ = writeln!(out, "          port: {}", scalar(name));
            }
            None => {}
        }
        if let Some(end) = port.end_port {
            let _ = writeln!(out, "          endPort: {end}");
        }
    }
}

fn write_peer(out: &mut String, peer: &Peer) {
    let mut parts = String::new();
    if let Some(namespaces) = &peer.namespace_selector {
        selector(&mut parts, 10, "namespaceSelector", namespaces);
    }
    if let Some(pods) = &peer.pod_selector {
        selector(&mut parts, 10, "podSelector", pods);
    }
    if let Some(block) = &peer.ip_block {
        let _ = writeln!(parts, "          ipBlock:\n            cidr: {}", scalar(&block.cidr));
        if !block.except.is_empty() {
            parts.push_str("            except:\n");
            for net in &block.except {
                let _ = writeln!(parts, "              - {}", scalar(net));
            }
        }
    }
    // One element, however many fields: the first has the dash.
    out.push_str("        - ");
    out.push_str(parts.trim_start());
}

/// A policy as JSON, as the API has it.
pub fn manifest(policy: &NetworkPolicy) -> Value {
    let selector = |it: &Selector| match it.match_labels.as_slice() {
        [] => json!({}),
        labels => {
            let labels = labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
            json!({"matchLabels": labels.collect::<serde_json::Map<_, _>>()})
        }
    };
    let peer = |it: &Peer| {
        let mut value = json!({});
        if let Some(namespaces) = &it.namespace_selector {
            value["namespaceSelector"] = selector(namespaces);
        }
        if let Some(pods) = &it.pod_selector {
            value["podSelector"] = selector(pods);
        }
        if let Some(block) = &it.ip_block {
            value["ipBlock"] = json!({"cidr": block.cidr});
            if !block.except.is_empty() {
                value["ipBlock"]["except"] = json!(block.except);
            }
        }
        value
    };
    let port = |it: &Port| {
        let mut value = json!({"protocol": it.protocol});
        match &it.port {
            Some(PortRef::Number(number)) => value["port"] = json!(number),
            Some(PortRef::Name(name)) => value["port"] = json!(name),
            None => {}
        }
        if let Some(end) = it.end_port {
            value["endPort"] = json!(end);
        }
        value
    };
    let rules = |rules: &[Rule], field: &str| -> Vec<Value> {
        let rule = |it: &Rule| {
            let peers: Vec<Value> = it.peers.iter().map(peer).collect();
            json!({field: peers, "ports": it.ports.iter().map(port).collect::<Vec<_>>()})
        };
        rules.iter().map(rule).collect()
    };
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": &*policy.namespace, "name": &*policy.name},
        "spec": {
            "podSelector": selector(&policy.pod_selector),
            "policyTypes": policy.policy_types,
            "ingress": rules(&policy.ingress, "from"),
            "egress": rules(&policy.egress, "to"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_word_is_quoted() {
        for plain in ["web", "app.kubernetes.io/name", "a-b_c.d", "e3", "TCP"] {
            assert_eq!(scalar(plain), plain);
        }
        for quoted in [
            "true",
            "True",
            "NO",
            "on",
            "null",
            "123",
            "1e3",
            "0x1f",
            "0o7",
            "1_000",
            "",
            "~",
            "-",
            "1.2.3.4/32",
            "a b",
            "a: b",
            "a#b",
            "fd00::1/128",
            "*a",
            "&a",
            "!a",
            "nan",
            ".inf",
            "2001-01-01",
            "y",
            "12:30",
            "é",
        ] {
            assert_eq!(scalar(quoted), format!("\"{quoted}\""));
        }
        for hostile in ["a\nb: c", "\"", "\\", "\u{85}", "\u{2028}x", "\u{feff}", "a\u{0}b", "\t", "\u{7f}"] {
            let text = format!("{}: {}\n", scalar(hostile), scalar(hostile));
            assert_eq!(text.lines().count(), 1, "{text:?}");
            let read: std::collections::BTreeMap<String, String> = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(read.into_iter().next().unwrap(), (hostile.to_owned(), hostile.to_owned()));
        }
    }

    #[test]
    fn comments_stay_comments() {
        let mut out = String::new();
        comment(&mut out, 2, "a\nkind: Pod\u{2028}b\r\u{85} c");
        assert_eq!(out, "  # a\\nkind: Pod\\u{2028}b\\r\\u{85} c\n");
        out.clear();
        comment(&mut out, 0, &"word ".repeat(60));
        assert!(
            out.lines().count() == 3 && out.lines().all(|it| it.starts_with("# word") && it.len() <= 120)
        );
    }
}
