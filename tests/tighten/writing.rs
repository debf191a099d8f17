//! Changes as edits: what people wrote stays as they wrote it.

use std::path::Path;

use netaudit::{
    advise::{
        lint::What,
        tighten::{Change, changed, explicit_types, write},
    },
    cluster::Object,
    model::{Direction, Protocol},
    policy::declared::NetworkPolicy,
    watch::placed,
};

const HEAD: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n";

fn read(text: &str) -> NetworkPolicy {
    let placed = placed::read(Path::new("a.yaml"), text.as_bytes());
    assert!(placed.errors.is_empty() && placed.unlike.is_empty(), "{placed:?}\n{text}");
    match placed.manifests.items.into_iter().next().expect("an object").what {
        What::Object(Object::NetworkPolicy(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

/// Writes changes, reads the text again, and compares with what the policy is to be.
#[track_caller]
fn written(spec: &str, changes: &[Change]) -> String {
    let text = format!("{HEAD}{spec}");
    let policy = read(&text);
    let changes: Vec<&Change> = changes.iter().collect();
    let written = write(&text, "", &policy, &changes);
    assert_eq!(written.refused, []);
    assert_eq!(read(&written.text), changed(&policy, &changes), "{}", written.text);
    written.text.strip_prefix(HEAD).expect("the head stays").to_owned()
}

#[track_caller]
fn refused(spec: &str, change: Change) -> String {
    let text = format!("{HEAD}{spec}");
    let written = write(&text, "", &read(&text), &[&change]);
    assert_eq!((written.text, written.made), (text, vec![]));
    written.refused[0].1.clone()
}

const IN: Direction = Direction::Ingress;
const OUT: Direction = Direction::Egress;

fn block(rule: usize, peer: usize, blocks: &[(&str, &str)]) -> Change {
    let blocks = blocks.iter().map(|(net, said)| (net.parse().expect("a range"), (*said).to_owned()));
    Change::NarrowBlock { direction: OUT, rule, peer, blocks: blocks.collect() }
}

const COMMENTED: &str = "\
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: # who gets in
    # The shop's front.
    - from:
        - podSelector: {matchLabels: {app: web}} # front
      ports:
        # Plain.
        - port: 80
        # With TLS.
        - port: 443 # https

    # An old one:
    # nobody knows why.
    - from:
        - podSelector: {matchLabels: {app: old}}
        # - podSelector: {matchLabels: {app: older}}

    # Metrics.
    - ports: [{port: 9090}, {port: 9091}, {port: 9092}]
  # The end.
";

#[test]
fn a_rule_goes_with_the_comments_that_are_about_it() {
    let text = written(COMMENTED, &[Change::RemoveRule { direction: IN, rule: 1 }]);
    let old = "    # An old one:\n    # nobody knows why.\n    - from:\n        - podSelector: {matchLabels: {app: old}}\n        # - \
               podSelector: {matchLabels: {app: older}}\n\n";
    assert_eq!(text, COMMENTED.replace(old, ""));
    // The last one takes along the blank line before it, and nothing that is not its own.
    let text = written(COMMENTED, &[Change::RemoveRule { direction: IN, rule: 2 }]);
    let last = "\n    # Metrics.\n    - ports: [{port: 9090}, {port: 9091}, {port: 9092}]\n";
    assert_eq!(text, COMMENTED.replace(last, ""));
    let first = written(COMMENTED, &[Change::RemoveRule { direction: IN, rule: 0 }]);
    assert!(first.contains("  ingress: # who gets in\n    # An old one:\n"), "{first}");
}

#[test]
fn a_list_that_loses_all_stays_as_an_empty_one() {
    let all = [0, 1, 2].map(|rule| Change::RemoveRule { direction: IN, rule });
    let text = written(COMMENTED, &all);
    assert_eq!(
        text,
        "spec:\n  podSelector: {}\n  policyTypes: [Ingress]\n  ingress: [] # who gets in\n  # The end.\n"
    );
    let flow = "spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}, {ports: [{port: 1}]}]}";
    let text = written(flow, &[0, 1].map(|rule| Change::RemoveRule { direction: OUT, rule }));
    assert_eq!(text, "spec: {podSelector: {}, policyTypes: [Egress], egress: []}");
}

#[test]
fn elements_go_by_themselves_in_block_and_brackets() {
    let text = written(
        COMMENTED,
        &[
            Change::RemovePort { direction: IN, rule: 0, port: 0 },
            Change::RemovePort { direction: IN, rule: 2, port: 2 },
            Change::RemovePort { direction: IN, rule: 2, port: 0 },
            Change::RemoveRule { direction: IN, rule: 1 },
        ],
    );
    let expected = "\
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: # who gets in
    # The shop's front.
    - from:
        - podSelector: {matchLabels: {app: web}} # front
      ports:
        # With TLS.
        - port: 443 # https

    # Metrics.
    - ports: [{port: 9091}]
  # The end.
";
    assert_eq!(text, expected);
}

#[test]
fn ranges_get_narrow_in_their_own_form() {
    let spec = "\
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock:
        cidr: '10.0.0.0/8'
        except:
        # the lab
        - 10.1.0.0/16
        - 10.2.0.0/16 # guests
    - podSelector: {}
    - ipBlock: {cidr: 192.168.0.0/16, except: [192.168.1.0/24]}
    ports:
    - port: 8000
      endPort: 9000
      protocol: TCP # web
";
    let text = written(
        spec,
        &[
            block(0, 0, &[("10.2.0.0/15", "a.example, b.example"), ("10.9.0.1/32", "c.example")]),
            Change::RemovePeer { direction: OUT, rule: 0, peer: 1 },
            block(0, 2, &[("192.168.7.1/32", "d.example"), ("192.168.9.0/24", "")]),
            Change::NarrowPorts {
                direction: OUT,
                rule: 0,
                port: 0,
                ranges: vec![(8000, 8000), (8080, 8081)],
            },
        ],
    );
    let expected = "\
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock:
        cidr: '10.2.0.0/15'  # a.example, b.example
        except:
        - 10.2.0.0/16 # guests
    - ipBlock:
        cidr: 10.9.0.1/32  # c.example
    - ipBlock: {cidr: 192.168.7.1/32}
    - ipBlock: {cidr: 192.168.9.0/24}
    ports:
    - port: 8000
      protocol: TCP # web
    - protocol: TCP
      port: 8080
      endPort: 8081
";
    assert_eq!(text, expected);
    let one = written(
        spec,
        &[Change::NarrowPorts { direction: OUT, rule: 0, port: 0, ranges: vec![(8443, 8450)] }],
    );
    assert!(one.contains("    - port: 8443\n      endPort: 8450\n      protocol: TCP # web\n"), "{one}");
}

#[test]
fn what_a_policy_lacks_is_written_as_the_rest_of_it_is() {
    for (spec, expected) in [
        (
            "spec:\n  podSelector:\n    matchLabels:\n      app: web # it\n  egress:\n    - to:\n        - podSelector: {}\n",
            "spec:\n  podSelector:\n    matchLabels:\n      app: web # it\n  policyTypes:\n    - Ingress\n    - Egress\n  egress: []\n",
        ),
        (
            "spec:\n  egress:\n  - to:\n    - podSelector: {}\n  podSelector: {}",
            "spec:\n  egress: []\n  podSelector: {}\n  policyTypes:\n  - Ingress\n  - Egress",
        ),
        (
            "spec: {podSelector: {}, egress: [{to: [{podSelector: {}}]}]}\n",
            "spec: {podSelector: {}, policyTypes: [Ingress, Egress], egress: []}\n",
        ),
    ] {
        let policy = read(&format!("{HEAD}{spec}"));
        let types = explicit_types(&policy).expect("there are none");
        assert_eq!(written(spec, &[Change::RemoveRule { direction: OUT, rule: 0 }, types]), expected);
    }
    let ports = || Change::AddPorts {
        direction: OUT,
        rule: 0,
        ports: vec![(Protocol::Tcp, 443), (Protocol::Udp, 53)],
    };
    let spec = "spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n    - to:\n        - podSelector: {} # all\n    - {}\n";
    assert_eq!(
        written(spec, &[ports()]),
        "spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n    - to:\n        - podSelector: {} # all\n      ports:\n        - protocol: \
         TCP\n          port: 443\n        - protocol: UDP\n          port: 53\n    - {}\n"
    );
    let spec = "spec: {\"podSelector\": {}, \"policyTypes\": [\"Egress\"], \"egress\": [{\"to\": [{\"podSelector\": {}}]}]}\n";
    assert!(written(spec, &[ports()]).contains(
        "[{\"podSelector\": {}}], \"ports\": [{\"protocol\": \"TCP\", \"port\": 443}, {\"protocol\": \"UDP\""
    ));
}

#[test]
fn line_ends_and_a_missing_last_one_stay() {
    let spec = COMMENTED.replace('\n', "\r\n");
    let text = written(&spec, &[Change::RemoveRule { direction: IN, rule: 1 }]);
    assert!(!text.replace("\r\n", "").contains('\n'), "{text:?}");
    let spec = "spec:\n  podSelector: {}\n  policyTypes: [Ingress]\n  ingress:\n  - ports: [{port: 1}]\n  - ports: [{port: 2}]";
    let text = written(spec, &[Change::RemoveRule { direction: IN, rule: 1 }]);
    assert_eq!(
        text,
        "spec:\n  podSelector: {}\n  policyTypes: [Ingress]\n  ingress:\n  - ports: [{port: 1}]"
    );
}

#[test]
fn what_is_written_for_several_places_is_refused() {
    let spec = "spec:\n  podSelector: {}\n  policyTypes: [Ingress]\n  ingress:\n  - from: &x\n    - podSelector: {}\n    - ipBlock: {cidr: \
                10.0.0.0/8}\n  - from: *x\n    ports: [{port: 1}]\n";
    for rule in [0, 1] {
        let reason = refused(spec, Change::RemovePeer { direction: IN, rule, peer: 0 });
        assert!(reason.contains("written once for several places"), "{reason}");
    }
    let spec = "spec:\n  podSelector: {}\n  policyTypes: [Ingress]\n  ingress:\n  - from: [\n      {podSelector: {}}, # all\n      {ipBlock: \
                {cidr: 10.0.0.0/8}}]\n";
    let reason = refused(spec, Change::RemovePeer { direction: IN, rule: 0, peer: 0 });
    assert!(reason.contains("comment"), "{reason}");
    let spec = "spec:\n  podSelector: {}\n  policyTypes: [Ingress]\n  ingress:\n\n  # apart\n\n  - from: [{podSelector: {}}]\n";
    let reason = refused(spec, Change::RemoveRule { direction: IN, rule: 0 });
    assert!(reason.contains("comment between the list and its first element"), "{reason}");
}

#[test]
fn a_text_by_lines_ends_where_its_last_line_does() {
    let text = "spec:\n  podSelector: {}\n  policyTypes: [Ingress]\n  ingress:\n  - from:\n    - podSelector: {}\n  - from:\n    - podSelector:\n        matchLabels:\n          app: |-\n            old\n# about the status, must stay\nstatus: {}\n";
    let new = written(text, &[Change::RemoveRule { direction: IN, rule: 1 }]);
    assert!(new.ends_with("    - podSelector: {}\n# about the status, must stay\nstatus: {}\n"), "{new}");
    let ports = "spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n  - ports:\n    - port: 80\n      # up to here\n      endPort: 90\n";
    let new =
        written(ports, &[Change::NarrowPorts { direction: OUT, rule: 0, port: 0, ranges: vec![(80, 80)] }]);
    assert!(new.ends_with("    - port: 80\n"), "{new}");
}
