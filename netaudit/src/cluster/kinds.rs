//! The kinds of objects that matter, and what the API calls them.

use std::fmt;

use crate::policy::declared;

/// A kind of object that is watched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Pod.
    Pod,
    /// `v1` Node.
    Node,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `batch/v1` CronJob: it changes no verdict, but tells how seldom a rule may be used.
    CronJob,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1` AdminNetworkPolicy.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1` BaselineAdminNetworkPolicy.
    BaselineAdminNetworkPolicy,
    /// `cilium.io/v2` CiliumNetworkPolicy.
    CiliumNetworkPolicy,
    /// `cilium.io/v2` CiliumClusterwideNetworkPolicy.
    CiliumClusterwideNetworkPolicy,
    /// Calico's NetworkPolicy: `crd.projectcalico.org/v1`, in manifests `projectcalico.org/v3` too.
    CalicoNetworkPolicy,
    /// Calico's GlobalNetworkPolicy.
    CalicoGlobalNetworkPolicy,
    /// `security.istio.io/v1` AuthorizationPolicy.
    AuthorizationPolicy,
}

/// What the API calls a kind.
struct Names {
    /// Ours, unique.
    name: &'static str,
    /// The API's, which another group may use too.
    kind: &'static str,
    plural: &'static str,
    /// The `apiVersion` that is watched, then others in which manifests may be written.
    versions: &'static [&'static str],
    namespaced: bool,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Namespace,
        Self::Pod,
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
        Self::CronJob,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::CalicoNetworkPolicy,
        Self::CalicoGlobalNetworkPolicy,
        Self::AuthorizationPolicy,
    ];

    const fn names(self) -> Names {
        const fn names(
            name: &'static str,
            plural: &'static str,
            versions: &'static [&'static str],
            namespaced: bool,
        ) -> Names {
            Names { name, kind: name, plural, versions, namespaced }
        }
        const POLICY_V1ALPHA1: &[&str] = &["policy.networking.k8s.io/v1alpha1"];
        const CILIUM: &[&str] = &["cilium.io/v2"];
        const CALICO: &[&str] = &["crd.projectcalico.org/v1", "projectcalico.org/v3"];
        match self {
            Self::Namespace => names("Namespace", "namespaces", &["v1"], false),
            Self::Pod => names("Pod", "pods", &["v1"], true),
            Self::Node => names("Node", "nodes", &["v1"], false),
            Self::Service => names("Service", "services", &["v1"], true),
            Self::EndpointSlice => names("EndpointSlice", "endpointslices", &["discovery.k8s.io/v1"], true),
            Self::CronJob => names("CronJob", "cronjobs", &["batch/v1", "batch/v1beta1"], true),
            Self::NetworkPolicy => names("NetworkPolicy", "networkpolicies", &["networking.k8s.io/v1"], true),
            Self::ClusterNetworkPolicy => names(
                "ClusterNetworkPolicy",
                "clusternetworkpolicies",
                &["policy.networking.k8s.io/v1alpha2"],
                false,
            ),
            Self::AdminNetworkPolicy => {
                names("AdminNetworkPolicy", "adminnetworkpolicies", POLICY_V1ALPHA1, false)
            }
            Self::BaselineAdminNetworkPolicy => {
                names("BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies", POLICY_V1ALPHA1, false)
            }
            Self::CiliumNetworkPolicy => names("CiliumNetworkPolicy", "ciliumnetworkpolicies", CILIUM, true),
            Self::CiliumClusterwideNetworkPolicy => {
                names("CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", CILIUM, false)
            }
            Self::CalicoNetworkPolicy => Names {
                kind: "NetworkPolicy",
                ..names("CalicoNetworkPolicy", "networkpolicies", CALICO, true)
            },
            Self::CalicoGlobalNetworkPolicy => Names {
                kind: "GlobalNetworkPolicy",
                ..names("CalicoGlobalNetworkPolicy", "globalnetworkpolicies", CALICO, false)
            },
            Self::AuthorizationPolicy => names(
                "AuthorizationPolicy",
                "authorizationpolicies",
                &["security.istio.io/v1", "security.istio.io/v1beta1"],
                true,
            ),
        }
    }

    /// A name that no other kind has: the API's own, but for Calico's kinds.
    pub const fn as_str(self) -> &'static str {
        self.names().name
    }

    /// The name that the API uses, which another group may use too.
    pub const fn api_kind(self) -> &'static str {
        self.names().kind
    }

    /// The `apiVersion` that is watched.
    pub const fn api_version(self) -> &'static str {
        self.names().versions[0]
    }

    /// Every `apiVersion` in which manifests are read.
    pub const fn api_versions(self) -> &'static [&'static str] {
        self.names().versions
    }

    /// The API group; empty for the core.
    pub fn api_group(self) -> &'static str {
        group(self.api_version())
    }

    /// The name that its API's paths use.
    pub const fn plural(self) -> &'static str {
        self.names().plural
    }

    /// Whether its objects live in a namespace.
    pub const fn is_namespaced(self) -> bool {
        self.names().namespaced
    }

    /// Whether it is a policy, of a kind that is evaluated or of one that is not.
    pub const fn is_policy(self) -> bool {
        matches!(self, Self::NetworkPolicy) || self.is_cluster_policy() || self.is_foreign()
    }

    /// Whether it is a policy of a cluster-wide kind that is evaluated.
    pub const fn is_cluster_policy(self) -> bool {
        matches!(
            self,
            Self::ClusterNetworkPolicy | Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy
        )
    }

    /// Whether it is a policy of a kind that is not evaluated.
    pub const fn is_foreign(self) -> bool {
        matches!(
            self,
            Self::CiliumNetworkPolicy
                | Self::CiliumClusterwideNetworkPolicy
                | Self::CalicoNetworkPolicy
                | Self::CalicoGlobalNetworkPolicy
                | Self::AuthorizationPolicy
        )
    }

    /// Whether it is a policy of a kind that can deny what NetworkPolicies allow, and allow what they deny. A mesh's
    /// policy refuses requests and no flows.
    pub const fn overrides(self) -> bool {
        self.is_cluster_policy() || (self.is_foreign() && !matches!(self, Self::AuthorizationPolicy))
    }

    /// Whether every API server knows it. The others are there where somebody installed them.
    pub const fn is_built_in(self) -> bool {
        !self.is_cluster_policy() && !self.is_foreign()
    }

    /// Whether any verdict can change with its objects. CronJobs only tell how seldom a rule is used.
    pub const fn changes_verdicts(self) -> bool {
        !matches!(self, Self::CronJob)
    }

    /// The kind of this [name](Self::as_str).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The policies of an `apiVersion`'s group; none where nothing in it is a policy.
    pub fn policies_of_group(api_version: &str) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |kind| kind.is_policy() && kind.is_of_group(api_version))
    }

    /// The kinds that the API calls `name`, in any case, whatever their group.
    pub fn called(name: &str) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |kind| kind.api_kind().eq_ignore_ascii_case(name))
    }

    /// Whether an `apiVersion` is of a group of this kind, whatever the version.
    pub fn is_of_group(self, api_version: &str) -> bool {
        self.api_versions().iter().any(|known| group(known) == group(api_version))
    }
}

/// The group of an `apiVersion`; empty for the core.
fn group(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

impl From<declared::ClusterKind> for Kind {
    fn from(kind: declared::ClusterKind) -> Self {
        match kind {
            declared::ClusterKind::ClusterNetworkPolicy => Self::ClusterNetworkPolicy,
            declared::ClusterKind::AdminNetworkPolicy => Self::AdminNetworkPolicy,
            declared::ClusterKind::BaselineAdminNetworkPolicy => Self::BaselineAdminNetworkPolicy,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
