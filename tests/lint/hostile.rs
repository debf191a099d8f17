//! Texts that nobody should write, and that somebody does.

use netaudit::advise::lint::Options;

use super::{lines, lint};

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - ports: [{protocol: UDP, port: 53}]
";

#[test]
fn a_document_that_cannot_be_read_costs_only_itself() {
    for (name, broken) in [
        ("an open bracket", "spec: [\n"),
        ("tabs", "metadata:\n\tname: x\n"),
        ("an unknown alias", "spec: *nobody\n"),
        ("a key twice", "kind: NetworkPolicy\nkind: NetworkPolicy\n"),
        ("too deep", &format!("kind: NetworkPolicy\nspec: {}\n", "[".repeat(5000))),
        (
            "a bomb",
            "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n\
             d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n\
             g: [*f,*f,*f,*f,*f,*f,*f,*f]\n",
        ),
    ] {
        let text = format!("{broken}---\n{POLICY}");
        let (placed, report) = lint("a.yaml", &text, &Options::default());
        let errors: Vec<_> = placed.errors.iter().chain(&placed.unlike).collect();
        assert_eq!(errors.len(), 1, "{name}: {errors:?}");
        assert!(errors[0].line > 0, "{name}");
        let line = 8 + 1 + broken.lines().count();
        assert_eq!(
            lines(&placed, &report),
            [format!("{line}:13 warning NA005 spec.egress[0].ports[0]")],
            "{name}"
        );
    }
}

#[test]
fn line_breaks_and_a_byte_order_mark_move_no_place() {
    let expected = ["8:13 warning NA005 spec.egress[0].ports[0]"];
    for text in [
        POLICY.replace('\n', "\r\n"),
        format!("\u{feff}{POLICY}"),
        format!("\u{feff}{}", POLICY.replace('\n', "\r\n")),
        POLICY.trim_end().to_owned(),
    ] {
        let (placed, report) = lint("a.yaml", &text, &Options::default());
        assert_eq!(lines(&placed, &report), expected, "{text:?}");
    }
    // Columns are characters, not bytes.
    let text = POLICY.replace("  - ports: [", "  - \"ports\": [{protocol: SCTP, port: 1}, # äöü\n     ");
    let (placed, report) = lint("a.yaml", &text, &Options::default());
    assert_eq!(lines(&placed, &report), ["9:6 warning NA005 spec.egress[0].ports[1]"]);
}

#[test]
fn what_is_written_once_for_several_is_told_where_it_is_used() {
    let text = "x: &ports [{protocol: UDP, port: 53}]
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - ports: *ports
  - <<: {ports: [{protocol: UDP, port: 53}]}
    to: [{ipBlock: {cidr: 203.0.113.0/24}}]
";
    let (placed, report) = lint("a.yaml", text, &Options::default());
    assert_eq!(
        lines(&placed, &report),
        [
            "1:11 error NA024 x",
            "9:12 warning NA005 spec.egress[0].ports[0]",
            "10:5 warning NA005 spec.egress[1].ports[0]",
            "10:5 note NA017 spec.egress[1]",
        ]
    );
}

#[test]
fn names_with_quotes_and_line_breaks_are_names() {
    let text = POLICY.replace("name: dns", r#"name: "a\nb\"c\u001b[31m""#);
    let (placed, report) = lint("a.yaml", &text, &Options::default());
    assert_eq!(lines(&placed, &report), ["8:13 warning NA005 spec.egress[0].ports[0]"]);
}

#[test]
fn ten_thousand_documents_are_no_burden() {
    let text: String =
        (0..10_000).map(|it| format!("{}---\n", POLICY.replace("shop", &format!("n{it}")))).collect();
    let (placed, report) = lint("a.yaml", &text, &Options::default());
    assert_eq!(placed.manifests.items.len(), 10_000);
    let lines = lines(&placed, &report);
    assert_eq!(lines.len(), 10_000);
    assert_eq!(lines[9_999], format!("{}:13 warning NA005 spec.egress[0].ports[0]", 9_999 * 9 + 8));
}

#[test]
fn items_of_lists_in_lists_and_of_typed_lists_have_places() {
    let item = |name: &str| {
        format!(
            "{{\"metadata\": {{\"name\": \"{name}\", \"namespace\": \"{name}\"}},\n\"spec\": {{\"podSelector\": {{}}, \"policyTypes\": \
             [\"Egress\"],\n\"egress\": [{{\"ports\": [{{\"protocol\": \"UDP\", \"port\": 53}}]}}]}}}}"
        )
    };
    let text = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n{{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \
         \"NetworkPolicyList\", \"items\": [\n{},\n{}]}}]}}",
        item("aa"),
        item("bb")
    );
    let (placed, report) = lint("a.json", &text, &Options::default());
    assert_eq!(placed.errors, []);
    let path = "spec.egress[0].ports[0]";
    let expected = [5, 8].map(|line| format!("{line}:23 warning NA005 {path}"));
    assert_eq!(lines(&placed, &report), expected);
}
