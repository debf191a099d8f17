//! What is said of each code at length: what the API says, the case, what to do, and when it is no fault.

pub(super) const NAMESPACE_LABEL: &str = "\
A namespaceSelector compares labels of Namespace objects, never their names. The API server puts one label on every namespace, \
kubernetes.io/metadata.name, with the namespace's name as its value; a label such as name=kube-system is there only where somebody \
has put it. The selector matches nothing, and every connection that it was to allow is denied.

The case: the document of the example deployment sends those whose pods cannot resolve names to this label first.

It is a warning where all the Namespaces that it names (by such a label, or by kubernetes.io/metadata.name beside another one) are among \
the manifests and lack the label. It is a note where only some of them are; where none of the Namespaces that are among \
the manifests has it, as another may; and where a label that Kubernetes does not set is asked of a namespace that every cluster has, as \
somebody may have set it there.

What to do: matchLabels: {kubernetes.io/metadata.name: NAMESPACE}, or put the label on the Namespace.";

pub(super) const SELECTS_NOTHING: &str = "\
spec.podSelector selects pods of the policy's own namespace by their labels, and pods on their node's network (hostNetwork) not at all. A \
policy that selects no pod does nothing: those that it was meant for are not isolated, and get none of its allowances.

It is said where the selector contradicts itself; and where pods or workloads of the namespace are among the manifests, and none of them \
has the labels. Labels that a controller adds (pod-template-hash, job-name and the like) may have any value.

It is not said of kube-system, kube-public and kube-node-lease, whose pods the cluster makes, nor of a namespace with an object of a kind \
that may make pods (an operator's: a Rollout, a Cluster); nor where a Service leads to such pods. It is no fault where the pods are made \
by something that is not among the manifests: then silence it, or say --partial, with which nothing is concluded from what is not there.

What to do: compare the selector with the labels of the pod template, not with those of the Deployment.";

pub(super) const PEER_MATCHES_NOTHING: &str = "\
An element of from or to with a podSelector matches pods by their labels: of the policy's own namespace, or of those that its \
namespaceSelector selects. One that matches no pod allows nothing. Most often a label is misspelt, or the pods are in another namespace \
and the namespaceSelector is missing.

It is said where the selector contradicts itself; and where the namespace is named (the policy's own, or by kubernetes.io/metadata.name), \
pods or workloads of it are among the manifests, and none of them matches. Pods on their node's network do not match by labels.

As for selects-nothing, nothing is concluded of the cluster's own namespaces, nor of one with an object that may make pods. It is no \
fault where the pods are made by something that is not among the manifests: then silence it, or say --partial.";

pub(super) const DNS_EGRESS_MISSING: &str = "\
A policy that isolates egress denies DNS as everything else. Pods that may open connections to Services or to the internet, but may not \
ask a server on port 53, fail with a time-out at the first name, which looks like an outage of whatever they call.

The case: a default-deny policy is rolled out and everything stops, for a reason that no log of the application names.

It is said of a policy that has egress rules for other ports, where no policy that may select the same pods has a rule that may be for \
DNS. A rule that does not say port 53 may be, unless all its peers are namespaces by name, or the policy's own, and none of them is \
kube-system or openshift-dns, or has a Service on port 53. It is a note where only a single address with any port may be that of a server, and where all \
that is allowed are ranges smaller than the internet; and of a policy that denies all egress of every pod where no policy allows any. It \
is not said where all that is allowed are single addresses, which need no name; of the DNS servers' own policy; where a policy of the \
Admin tier or of another project's kind may allow it; nor with --partial.

What to do: a policy for every pod of the namespace with egress to kube-system, UDP 53 and TCP 53.";

pub(super) const DNS_TCP_MISSING: &str = "\
An answer that does not fit into a datagram is marked as cut off, and is asked for again over TCP to port 53. Where only UDP is allowed, \
names with many addresses or long records fail, now and then, and never when somebody looks.

It is said of a rule that names UDP port 53, where no rule of a policy that may select the same pods may be for TCP port 53 of the same \
peers: as for dns-egress-missing, one that does not say the port only where these may be servers. It is not said where a policy of \
another kind may allow it.

It is no fault where no answer can ever be long. With --partial it is a note, as another policy may allow it.

--fix adds protocol: TCP, port: 53 beside it: the rule then allows this to the same peers, and nothing else.";

pub(super) const DNS_UDP_MISSING: &str = "\
A port without a protocol is TCP. A rule for port: 53 alone therefore allows no DNS as nearly every resolver asks it, over UDP, and no \
name is resolved.

It is said of a rule that names TCP port 53, where no rule of a policy that may select the same pods may be for UDP port 53 of the same \
peers, as dns-tcp-missing is. Where TCP is written out it is a note, as is all of it with --partial: a resolver can be told to use TCP only (options use-vc).

--fix adds protocol: UDP, port: 53 beside it where no protocol was written: the rule then allows this to the same peers, and nothing else.";

pub(super) const NODE_LOCAL_DNS: &str = "\
With a node-local DNS cache, pods ask an address of their own node (169.254.20.10 unless its manifest says otherwise), not the cluster's \
DNS servers. The cache runs on its node's network, where no podSelector and no namespaceSelector matches it. The API lets a pod talk to \
its own node in any case, but not every CNI takes this address for the node's.

It is said where a node-local DNS cache is among the manifests, and a rule for port 53 names pods or ranges without the cache's address. \
It is a note, as CNIs differ.

What to do: if names cannot be resolved, add - ipBlock: {cidr: 169.254.20.10/32} to the rule's to.";

pub(super) const EXCEPT_OUTSIDE_CIDR: &str = "\
Each except of an ipBlock must be a proper part of its cidr: the API server refuses the policy otherwise. Where an except lies wholly \
outside, it takes nothing out of the range, and one of the two is a slip; where it holds all of the range, nothing is left of it.

--fix removes an except of the other address family, which can take nothing out. Any other is left alone: it is as likely a slip of an \
exclusion that somebody wants (192.186.1.0/24 in 192.168.0.0/16), and to remove it would make the slip last.";

pub(super) const PRIVATE_SERVICE_EXCLUDED: &str = "\
A rule for the internet (0.0.0.0/0 without the private ranges of RFC 1918) also closes what is reached by a private address: an identity \
provider, a registry or a database beside the cluster.

The case: the document of the example deployment says that its except must be adjusted if Authentik is on a private address.

It is said where an EndpointSlice that belongs to no pods, of a Service without a selector, is among the manifests; one of its addresses lies \
inside the cidr and inside an except; the rule is for its port; and no other rule of a policy that may select the same pods names the \
address. It is a note, since nobody says in a manifest who uses the Service. Endpoints objects and the addresses of load balancers are \
not looked at.

What to do: a rule of its own with the address as /32, or /128.";

pub(super) const SERVICE_PORT: &str = "\
Policies are enforced on the pod, after a Service's address and port were replaced by those of a pod: the port of a rule is the port that \
the container listens on, the Service's targetPort, and never the Service's own port where the two differ.

The case: rules that a generator wrote with the Service's port, so that all traffic was denied (kubescape/node-agent#943).

It is said where every backend of a Service is one of the pods that the rule is about, the rule names the Service's port and does not \
allow its target port, and no Service leads to, and no container of these pods declares, the port that the rule names. A targetPort by \
name is compared where pods that have it are among the manifests.

What to do: name the target port, or the container port's name.";

pub(super) const NAMED_PORT_UNKNOWN: &str = "\
A port by name is the port of the destination that a container has declared with this name and this protocol (TCP where the rule says \
none). Where no pod that the rule is about has declared it, the rule allows nothing. Names of Services' ports do not count.

It is said where pods are among the manifests that the rule is about, and none of them has the port; and of egress to addresses only, \
which have no names. A port of this name with another protocol is told.

It is no fault where a container that something adds later (a sidecar) declares it.";

pub(super) const PROBES_DENIED: &str = "\
The API lets a pod's own node reach it whatever policies say, so the kubelet's probes need no rule. Some CNIs, or ways to set them up \
(Cilium with allow-localhost: policy, filters on the host), do not follow it: then a default-deny policy makes pods unready or restarts \
them.

Which CNI there is, and how it is set up, is in no manifest of an application: the check runs with --probes-need-rule only. It is said of \
pods and workloads among the manifests that are isolated for ingress and have a probe by network on a port that no rule for everybody, \
nor for any range of addresses, may be for.

What to do: allow the probe's port from the nodes' range.";

pub(super) const TYPES_DEFAULTED: &str = "\
Where policyTypes is missing, a policy is about Ingress always, and about Egress if it has an egress rule. A policy of egress rules alone, \
written to limit what pods may call, therefore also denies everything that they receive.

It is said where policyTypes is missing, there are egress rules and no ingress, and no other policy already isolates all of these pods for \
ingress. With --partial, or where a policy of another kind may allow ingress, it is a note.

What to do: policyTypes: [Egress] if the ingress was not meant, [Ingress, Egress] if it was. Only the author knows which, so --fix does \
not.";

pub(super) const RULES_WITHOUT_TYPE: &str = "\
policyTypes says which directions a policy is about. Rules of a direction that it does not name are kept by the API server and mean \
nothing: the pods are not isolated in this direction, and everything passes.

It is always so. What to do: add the direction to policyTypes (which isolates the pods), or remove the rules.";

pub(super) const EMPTY_EGRESS_WITHOUT_TYPE: &str = "\
egress: [] is the same as no egress at all. Without policyTypes the policy is then about Ingress only, and denies no egress, whatever the \
author wanted the empty list to say.

It is said where egress is written as an empty list and policyTypes is missing or empty.

What to do: policyTypes: [Ingress, Egress] to deny all egress, or remove the empty list.";

pub(super) const AND_MEANT: &str = "\
Elements of from and to are alternatives. - namespaceSelector: … followed by - podSelector: … (two dashes) allows every pod of these \
namespaces, and besides the pods with these labels in the policy's own namespace. One element with both fields (one dash) allows the pods \
with these labels in these namespaces. A single character makes the difference, and the first opens far more.

It is a warning where the podSelector matches no pod of the policy's own namespace that is among the manifests, but does match some in \
the namespaces of the element before it; and where the namespaceSelector is empty, as the podSelector then adds nothing. Otherwise it is a \
note: both may be meant. An empty podSelector, which is the policy's own namespace, is never told.

What to do: remove the second dash; or, if either is meant, put the two in another order or silence it.";

pub(super) const SHADOWED: &str = "\
Rules of a NetworkPolicy only ever add. A rule, or an element of from, to or ports, all of which another one of the same policy allows, \
changes nothing: to remove it is safe, and to edit it has no effect, which is what costs time.

It is said where labels, ranges and ports show that it is so for any pods and namespaces. It is a note: an element may be kept for those \
who read it. Rules that overlap in part are not told, nor rules of different policies.

What to do: remove it, or narrow the other one.";

pub(super) const UNREACHABLE: &str = "\
The rules of a ClusterNetworkPolicy or AdminNetworkPolicy are asked in order, and the first that matches decides; Pass decides too, as it \
leaves the tier. A rule whose peers and ports an earlier rule of the same direction holds entirely is never asked.

It is said where labels, ranges and ports show that it is so for any pods and namespaces: a warning where the two have different actions, \
a note where they have the same.

What to do: put the narrower rule first.";

pub(super) const PRIORITY_TIE: &str = "\
Policies of a tier are asked in order of priority. The API leaves open which of two with the same priority comes first: what both are \
about may be allowed today and denied tomorrow.

It is said of two policies of the same tier and priority that may select the same pods and have rules of one direction with different \
actions.

What to do: give them different priorities.";

pub(super) const IPV6_FORGOTTEN: &str = "\
0.0.0.0/0 is every IPv4 address, and not one IPv6 address. In a cluster with both, names resolve to both, and connections over IPv6 are \
denied: with a pause, or for good, depending on the program.

The case: IPv6 was silently missing from what generators wrote (kguardian/kguardian#1370).

It is a warning where pods, nodes or Services with IPv6 addresses are among the manifests, else a note: a cluster may have IPv4 only, or \
IPv6 may be meant to stay denied. It is not said where a rule of a policy that may select the same pods is for IPv6 and the same ports, \
nor where a policy of another kind may allow it.

What to do: add - ipBlock: {cidr: ::/0} with an except of its own (fc00::/7 is what the private ranges are there).";

pub(super) const HOST_BITS: &str = "\
Of a CIDR only the bits of its prefix count: 10.1.2.3/8 is 10.0.0.0/8. Who writes an address with too short a prefix allows far more than \
it.

The case: /32, which is one address in IPv4, written for an IPv6 address, where it is a provider's whole network \
(kguardian/kguardian#1370).

It is a warning for /32 of an IPv6 address, else a note: the range may be meant, and be written carelessly.

What to do: /128 for an IPv6 address, /32 for an IPv4 address, or the range's first address.";

pub(super) const NOT_ENFORCED: &str = "\
The API server takes policies whether or not anything enforces them. Flannel alone does not: every policy is without effect, and nothing \
says so.

The case: policies that were accepted by the API and enforced by nobody, noticed by accident (camunda/camunda-platform-helm#6591, \
rwlove/home-ops#11464).

It is said where the only network whose DaemonSet is among the manifests is Flannel, without a container that enforces policies, or where \
--cni flannel says so. An enforcer that is not among the manifests is not seen: that of k3s is built in, and --cni kube-router says so.

What to do: install an enforcer beside it (Calico as Canal does, kube-network-policies), and see `netaudit findings` for what is enforced.";

pub(super) const EMPTY_PEERS: &str = "\
An empty from or to is the same as none: the rule is for everybody, on the ports that it names. Many read an empty list as nobody; where \
elements were removed one by one, the last removal opened the rule.

It is said where the list is written and empty, or nothing, as where all of its elements are comments; a rule without the field is not \
told.

What to do: remove the rule if nobody is meant; remove the field if everybody is.";

pub(super) const INVALID: &str = "\
A value that the API server refuses (the policy is then not applied, and the old one stays), or a field that it does not know: it drops \
it, with no more than a warning, so that what a misspelt or misplaced field was to say is lost.

It is said for all that netaudit cannot take as the API documents it, with the reason; but for what has a code of its own.

What to do: what the message says; kubectl apply --dry-run=server --validate=strict shows the same where there is a cluster.";

pub(super) const DEFINED_TWICE: &str = "\
Kind, namespace and name say which object a document is. Of two that say the same, the one that is applied last replaces the other: what \
the first allowed or denied is gone, and the order of files decides which is the first.

It is said of policies, Namespaces and Services that are twice among the manifests. Copies of a policy are checked as if the others were not \
there, and --fix changes none of them. With --partial it is a note.

It is no fault where the copies are for different clusters, as overlays are: then check what belongs together by itself.";
