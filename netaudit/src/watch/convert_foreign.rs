//! Policies of kinds that are not evaluated: whom they select, in which direction, and what they could do there.
//!
//! What of a selector is not understood is kept as invalid: then the policy may select whom the rest of it selects.

use std::sync::Arc;

use super::{
    convert_fields::{Field, Flaw},
    convert_policy::{invalid, selector},
};
use crate::{
    cluster::Kind,
    policy::{
        METADATA_NAME,
        declared::{Expression, ForeignEffect, ForeignPart, ForeignPolicy, Invalid, Selector},
    },
};

/// Reads the policy at `root`.
pub(super) fn policy(
    root: &Field<'_>,
    kind: Kind,
    namespace: &Arc<str>,
    name: &Arc<str>,
) -> Result<ForeignPolicy, Flaw> {
    let parts = match kind {
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => cilium(root, kind)?,
        Kind::AuthorizationPolicy => istio(&root.get("spec")?, namespace)?,
        _ => calico(&root.get("spec")?, kind)?,
    };
    Ok(ForeignPolicy { kind: kind.as_str(), namespace: namespace.clone(), name: name.clone(), parts })
}

/// Cilium's documentation: `spec` is one rule, `specs` several. An endpoint that a rule selects denies by default in each
/// direction that the rule has a section for, unless `enableDefaultDeny` says otherwise; allowances of all policies add
/// up, Kubernetes' own among them, and the sections that deny go before all.
fn cilium(root: &Field<'_>, kind: Kind) -> Result<Vec<ForeignPart>, Flaw> {
    let mut specs = root.get("specs")?.items()?;
    let spec = root.get("spec")?;
    if spec.is_present() {
        specs.push(spec);
    }
    let mut parts = Vec::new();
    for spec in specs {
        let endpoints = spec.get("endpointSelector")?;
        // Without one it selects nodes, which are no pods.
        if !endpoints.is_present() {
            continue;
        }
        let (namespaces, pods) = cilium_selector(selector(&endpoints, &mut Vec::new())?);
        let effect = |direction: &str| -> Result<ForeignEffect, Flaw> {
            let allows = !spec.get(direction)?.items()?.is_empty();
            let denies = !spec.get(&format!("{direction}Deny"))?.items()?.is_empty();
            let by_default = spec.at(&["enableDefaultDeny", direction])?.flag()?;
            Ok(ForeignEffect {
                isolates: by_default.unwrap_or(allows || denies),
                allows,
                denies,
                in_proxy: false,
            })
        };
        let of_own = kind == Kind::CiliumNetworkPolicy && namespaces == Selector::default();
        parts.push(ForeignPart {
            namespaces: (!of_own).then_some(namespaces),
            pods,
            ingress: effect("ingress")?,
            egress: effect("egress")?,
        });
    }
    Ok(parts)
}

/// Labels of an endpoint carry their source and, beside the pod's own, those of its namespace.
fn cilium_selector(all: Selector) -> (Selector, Selector) {
    let (mut namespaces, mut pods) =
        (Selector::default(), Selector { invalid: all.invalid, ..Selector::default() });
    let mut place = |key: &str| -> Option<(bool, String)> {
        let key = key.strip_prefix("k8s:").or_else(|| key.strip_prefix("any:")).unwrap_or(key);
        if key == "io.kubernetes.pod.namespace" {
            return Some((true, METADATA_NAME.to_owned()));
        }
        if let Some(of_namespace) = key.strip_prefix("io.cilium.k8s.namespace.labels.") {
            return Some((true, of_namespace.to_owned()));
        }
        let is_other = key.contains(':') || key.starts_with("io.cilium.k8s.policy");
        if is_other {
            let reason = "a label that is no pod's own".to_owned();
            pods.invalid.push(Invalid { path: format!("spec.endpointSelector: {key}"), reason });
            return None;
        }
        Some((false, key.to_owned()))
    };
    let mut labels = [Vec::new(), Vec::new()];
    for (key, value) in all.match_labels {
        if let Some((of_namespace, key)) = place(&key) {
            labels[usize::from(of_namespace)].push((key, value));
        }
    }
    let mut expressions = [Vec::new(), Vec::new()];
    for expression in all.match_expressions {
        if let Some((of_namespace, key)) = place(&expression.key) {
            expressions[usize::from(of_namespace)].push(Expression { key, ..expression });
        }
    }
    [pods.match_labels, namespaces.match_labels] = labels;
    [pods.match_expressions, namespaces.match_expressions] = expressions;
    (namespaces, pods)
}

/// Calico's documentation: policies are asked by tier and order, and the first rule that matches decides; Kubernetes' own
/// stand in the tier `default`. `types` is by default the directions that have rules, and Ingress where none has.
fn calico(spec: &Field<'_>, kind: Kind) -> Result<Vec<ForeignPart>, Flaw> {
    let types = spec.get("types")?.texts()?;
    let has = |direction: &str| -> Result<bool, Flaw> { Ok(!spec.get(direction)?.items()?.is_empty()) };
    let (ingress, egress) = (has("ingress")?, has("egress")?);
    let speaks = |name: &str, by_default: bool| match types.as_slice() {
        [] => by_default,
        types => types.iter().any(|it| it == name),
    };
    // At the end of a tier, what no policy of it has decided is denied; of the tier where Kubernetes' own policies
    // stand these may still allow it.
    let own_tier = !matches!(spec.get("tier")?.text()?, None | Some("" | "default"));
    let effect = |direction: &str, speaks: bool| -> Result<ForeignEffect, Flaw> {
        if !speaks {
            return Ok(ForeignEffect::default());
        }
        let mut effect = ForeignEffect { isolates: true, denies: own_tier, ..ForeignEffect::default() };
        for rule in spec.get(direction)?.items()? {
            match rule.get("action")?.text()? {
                Some("Deny") => effect.denies = true,
                Some("Log") => {}
                // To pass leads to the next tier, which may allow more than this one would have.
                _ => effect.allows = true,
            }
        }
        Ok(effect)
    };
    let mut pods = calico_selector(spec.get("selector")?.text()?.unwrap_or_default(), false);
    let accounts = spec.get("serviceAccountSelector")?;
    if accounts.text()?.is_some_and(|it| !it.is_empty()) {
        pods.invalid.push(invalid(accounts.flaw("service accounts are not known")));
    }
    let namespaces = match kind {
        Kind::CalicoGlobalNetworkPolicy => {
            Some(calico_selector(spec.get("namespaceSelector")?.text()?.unwrap_or_default(), true))
        }
        _ => None,
    };
    let part = ForeignPart {
        namespaces,
        pods,
        ingress: effect("ingress", speaks("Ingress", ingress || !egress))?,
        egress: effect("egress", speaks("Egress", egress))?,
    };
    Ok(vec![part])
}

/// The part of Calico's selectors that Kubernetes' own can say: requirements joined by `&&`.
fn calico_selector(text: &str, of_namespaces: bool) -> Selector {
    let mut selector = Selector::default();
    for term in text.split("&&").map(str::trim).filter(|term| !matches!(*term, "" | "all()")) {
        match calico_requirement(term, of_namespaces) {
            Some(requirement) => selector.match_expressions.push(requirement),
            None => selector.invalid.push(Invalid {
                path: "spec.selector".to_owned(),
                reason: format!("{term:?} is not understood"),
            }),
        }
    }
    selector
}

fn calico_requirement(term: &str, of_namespaces: bool) -> Option<Expression> {
    let key = |key: &str| {
        let key = match key.trim() {
            "projectcalico.org/name" if of_namespaces => METADATA_NAME,
            // Labels that Calico adds and no object has.
            key if key.starts_with("projectcalico.org/") => return None,
            key => key,
        };
        let is_key = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
        (!key.is_empty() && key.bytes().all(is_key)).then(|| key.to_owned())
    };
    let quoted = |text: &str| {
        let text = text.trim();
        let inner = ['\'', '"'].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q))?;
        (!inner.contains(['\'', '"'])).then(|| inner.to_owned())
    };
    let expression = |key: String, operator: &str, values: Vec<String>| {
        Some(Expression { key, operator: operator.to_owned(), values })
    };
    if let Some(inner) = term.strip_prefix("has(").and_then(|it| it.strip_suffix(')')) {
        return expression(key(inner)?, "Exists", Vec::new());
    }
    if let Some(inner) = term.strip_prefix("!has(").and_then(|it| it.strip_suffix(')')) {
        return expression(key(inner)?, "DoesNotExist", Vec::new());
    }
    for (sign, operator) in [("==", "In"), ("!=", "NotIn")] {
        if let Some((name, value)) = term.split_once(sign) {
            return expression(key(name)?, operator, vec![quoted(value)?]);
        }
    }
    for (sign, operator) in [(" not in ", "NotIn"), (" in ", "In")] {
        if let Some((name, values)) = term.split_once(sign) {
            let values = values.trim().strip_prefix('{')?.strip_suffix('}')?;
            let values: Option<Vec<_>> = values.split(',').map(quoted).collect();
            return expression(key(name)?, operator, values?);
        }
    }
    None
}

/// Istio's documentation: policies act on requests at the workloads' proxies, on what they receive; in the root
/// namespace they act in the whole mesh. Those that only write an audit log do nothing to a request.
fn istio(spec: &Field<'_>, namespace: &Arc<str>) -> Result<Vec<ForeignPart>, Flaw> {
    let action = spec.get("action")?.text()?.unwrap_or("ALLOW");
    if action == "AUDIT" {
        return Ok(Vec::new());
    }
    let denies = action != "ALLOW";
    let effect = ForeignEffect { isolates: !denies, allows: false, denies, in_proxy: true };
    let mut pods = selector(&spec.get("selector")?, &mut Vec::new())?;
    for target in ["targetRef", "targetRefs"] {
        let field = spec.get(target)?;
        if field.is_present() {
            pods.invalid.push(invalid(field.flaw("which pods stand behind it is not known")));
        }
    }
    let namespaces = (**namespace == *"istio-system").then(Selector::default);
    Ok(vec![ForeignPart { namespaces, pods, ingress: effect, egress: ForeignEffect::default() }])
}
