//! Policies of kinds that are not evaluated: whom they select, in which direction, and what they could do there.
//!
//! What of a selector is not understood is kept as invalid: then the policy may select whom the rest of it selects. What
//! it does in a direction and cannot be read is whatever a policy of its kind can do.

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
pub(super) fn policy(root: &Field<'_>, kind: Kind, namespace: &Arc<str>, name: &Arc<str>) -> ForeignPolicy {
    let parts = match kind {
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => cilium(root, kind, namespace),
        Kind::AuthorizationPolicy => root.get("spec").and_then(|spec| istio(&spec, namespace)),
        _ => root.get("spec").and_then(|spec| calico(&spec, kind)),
    };
    let parts = parts.unwrap_or_else(|flaw| vec![anything(flaw, kind, namespace)]);
    ForeignPolicy { kind: kind.as_str(), namespace: namespace.clone(), name: name.clone(), parts }
}

/// The namespaces that a policy is about where it does not say; `None` for its own. Istio's documentation: a policy in
/// the root namespace is about all of them.
fn namespaces(kind: Kind, namespace: &str) -> Option<Selector> {
    let is_about_all =
        !kind.is_namespaced() || (kind == Kind::AuthorizationPolicy && namespace == "istio-system");
    is_about_all.then(Selector::default)
}

/// What a policy stands for of which nothing is known but where it lives: it may select every pod there.
fn anything(flaw: Flaw, kind: Kind, namespace: &str) -> ForeignPart {
    let (ingress, egress) = match kind {
        Kind::AuthorizationPolicy => {
            let refuses = ForeignEffect { isolates: true, denies: true, allows: false, in_proxy: true };
            (refuses, ForeignEffect::default())
        }
        _ => (ANYTHING, ANYTHING),
    };
    let pods = Selector { invalid: vec![invalid(flaw)], ..Selector::default() };
    ForeignPart { namespaces: namespaces(kind, namespace), pods, ingress, egress }
}

/// All that a policy can do to the flows of a direction.
const ANYTHING: ForeignEffect = ForeignEffect { isolates: true, allows: true, denies: true, in_proxy: false };

/// What a direction is subject to; where that cannot be read, why is told with the pods.
fn effect_or_anything(effect: Result<ForeignEffect, Flaw>, pods: &mut Selector) -> ForeignEffect {
    effect.unwrap_or_else(|flaw| {
        pods.invalid.push(invalid(flaw));
        ANYTHING
    })
}

/// Cilium's documentation: `spec` is one rule, `specs` several. An endpoint that a rule selects denies by default in each
/// direction that the rule has a section for, unless `enableDefaultDeny` says otherwise; allowances of all policies add
/// up, Kubernetes' own among them, and the sections that deny go before all.
fn cilium(root: &Field<'_>, kind: Kind, namespace: &str) -> Result<Vec<ForeignPart>, Flaw> {
    let mut specs = root.get("specs")?.items()?;
    let spec = root.get("spec")?;
    if spec.is_present() {
        specs.push(spec);
    }
    let mut parts = Vec::new();
    for spec in specs {
        match cilium_rule(&spec, kind, namespace) {
            Ok(part) => parts.extend(part),
            Err(flaw) => parts.push(anything(flaw, kind, namespace)),
        }
    }
    Ok(parts)
}

fn cilium_rule(spec: &Field<'_>, kind: Kind, namespace: &str) -> Result<Option<ForeignPart>, Flaw> {
    let endpoints = spec.get("endpointSelector")?;
    // Without one it selects nodes, which are no pods.
    if !endpoints.is_present() {
        return Ok(None);
    }
    let (mut namespaces, mut pods) = match selector(&endpoints, &mut Vec::new()) {
        Ok(selector) => cilium_selector(selector),
        Err(flaw) => (Selector::default(), Selector { invalid: vec![invalid(flaw)], ..Selector::default() }),
    };
    let mut is_about_own = false;
    if kind == Kind::CiliumNetworkPolicy {
        // It always applies in its own namespace: Cilium takes out of its selector, with a warning, what names another.
        namespaces.match_labels.retain(|(key, _)| key != METADATA_NAME);
        namespaces.match_expressions.retain(|it| it.key != METADATA_NAME);
        is_about_own = namespaces == Selector::default();
        namespaces.match_labels.push((METADATA_NAME.to_owned(), namespace.to_owned()));
    }
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
    let ingress = effect_or_anything(effect("ingress"), &mut pods);
    let egress = effect_or_anything(effect("egress"), &mut pods);
    Ok(Some(ForeignPart { namespaces: (!is_about_own).then_some(namespaces), pods, ingress, egress }))
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
    let listed = spec.get("types")?;
    let types = listed.texts()?;
    let odd = types.iter().find(|it| !matches!(it.as_str(), "Ingress" | "Egress"));
    // What is no list of rules stands for some.
    let has = |direction: &str| -> Result<bool, Flaw> {
        Ok(spec.get(direction)?.items().map_or(true, |rules| !rules.is_empty()))
    };
    let (has_ingress, has_egress) = (has("ingress")?, has("egress")?);
    let speaks = |name: &str, by_default: bool| match types.as_slice() {
        [] => by_default,
        types => types.iter().any(|it| it == name),
    };
    // At the end of a tier, what no policy of it has decided is denied; of the tier where Kubernetes' own policies
    // stand these may still allow it.
    let own_tier = !matches!(spec.get("tier")?.text()?, None | Some("" | "default"));
    let effect = |direction: &str, speaks: bool| -> Result<ForeignEffect, Flaw> {
        // Whoever meant something by it may have meant either direction.
        if let Some(odd) = odd {
            return Err(listed.flaw(format!("unknown type {odd:?}: Ingress or Egress")));
        }
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
    let ingress =
        effect_or_anything(effect("ingress", speaks("Ingress", has_ingress || !has_egress)), &mut pods);
    let egress = effect_or_anything(effect("egress", speaks("Egress", has_egress)), &mut pods);
    Ok(vec![ForeignPart { namespaces, pods, ingress, egress }])
}

/// The part of Calico's selectors that Kubernetes' own can say: requirements joined by `&&`. With an `||` or a group in
/// it, no single requirement need hold.
fn calico_selector(text: &str, of_namespaces: bool) -> Selector {
    let mut selector = Selector::default();
    let without_calls = text.replace("has(", "").replace("all(", "");
    if text.contains("||") || without_calls.contains('(') {
        let reason = format!("{text:?} is not understood");
        selector.invalid.push(Invalid { path: "spec.selector".to_owned(), reason });
        return selector;
    }
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
            // Labels that Calico adds and no object has: its own, and those of the namespace and the service account.
            key if ["projectcalico.org/", "pcns.", "pcsa."].iter().any(|it| key.starts_with(it)) => {
                return None;
            }
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

/// Istio's documentation: policies act on requests at the workloads' proxies, on what they receive. Those that only write
/// an audit log do nothing to a request.
fn istio(spec: &Field<'_>, namespace: &str) -> Result<Vec<ForeignPart>, Flaw> {
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
    let namespaces = namespaces(Kind::AuthorizationPolicy, namespace);
    Ok(vec![ForeignPart { namespaces, pods, ingress: effect, egress: ForeignEffect::default() }])
}
