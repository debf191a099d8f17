//! What flags and files make of one another.

use super::*;

fn merged(flags: &Flags, yaml: &str) -> anyhow::Result<Config> {
    Config::merge(flags, parse(yaml)?, || "default-node".to_owned())
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let flags = Flags { node: Some("flag".to_owned()), ..Flags::default() };
    let config = merged(&flags, "node: file\nlisten: 127.0.0.1:1\nunusedAfter: 7d\n").unwrap();
    assert_eq!(config.node, "flag");
    assert_eq!(config.listen, "127.0.0.1:1".parse().unwrap());
    assert_eq!(config.unused_after, Duration::from_secs(604_800));
    assert_eq!(config.ring_bytes, 8 << 20);
    assert_eq!(config.source, Source::Api(None));
}

#[test]
fn what_is_printed_reads_back_as_the_same() {
    for yaml in [
        "manifests: /m\nflowLog: '-'\n",
        "kubeconfig: /k\npinDirectory: /sys/fs/bpf/x\ndrainInterval: 50ms\nunusedAfter: 36h\n",
        "kubeconfig: /k\nstateDirectory: /var/lib/x\nfoldKeys: 70000\ndrainInterval: 50ms\nunusedAfter: 36h\n",
        "events: true\nreports: true\nreportsEvery: 1m\n",
        "dnsNames: true\ndnsServers: [openshift-dns, 10.0.0.2, '::ffff:10.0.0.3', 'fd00::a']\n",
        "dnsServers: []\n",
        "flowStore: /f\nflowBucket: s3://flows/a\nflowBucketEndpoint: http://127.0.0.1:1\nflowBucketRegion: here\nflowBucketVirtualHosted: true\n",
        "otlpEndpoint: http://collector:4318\notlpHeaders: /h\notlpFlows: findings\n",
        "hashKey: /run/secrets/key\nomitDnsNames: true\nomitProcesses: true\n",
        "# nothing\n",
    ] {
        let config = merged(&Flags::default(), yaml).unwrap();
        let again = merged(&Flags::default(), &config.to_yaml().unwrap()).unwrap();
        assert_eq!(config, again, "{yaml}");
    }
}

#[test]
fn wrong_values_say_what_would_be_right() {
    for (yaml, says) in [
        ("ringBytes: 1000000\n", "power of two"),
        ("foldKeys: 1\n", "from 64 to 1048576"),
        ("foldKeys: 1048577\n", "from 64 to 1048576"),
        ("drainInterval: 2s\n", "1ms to 1s"),
        ("drainInterval: soon\n", "20ms"),
        ("unusedAfter: -3h\n", "unusedAfter"),
        ("discoverEvery: 10ms\n", "at least 1s"),
        ("lookEvery: 10ms\n", "at least 1s"),
        ("reportsEvery: 10ms\n", "at least 1s"),
        ("manifests: /m\nevents: true\n", "leave out events or manifests"),
        ("manifests: /m\nreports: true\n", "leave out reports or manifests"),
        ("unusedCoverage: 99\n", "from 0 to 1"),
        ("flowBucket: s3://flows\n", "name its directory"),
        ("flowStore: /f\nflowBucket: flows\n", "s3://bucket/prefix"),
        ("otlpFlows: none\n", "findings"),
        ("otlpHeaders: /h\n", "otlpEndpoint"),
        ("violationSeries: 0\n", "at least 1"),
        ("manifests: /m\nkubeconfig: /k\n", "keep one"),
        ("flowlog: /x\n", "flowlog"),
        ("listen: nowhere\n", "listen"),
        ("dnsServers: [10.0.0.0/8]\n", "namespaces and addresses"),
        ("dnsServers: ['']\n", "namespaces and addresses"),
    ] {
        let error = format!("{:#}", merged(&Flags::default(), yaml).unwrap_err());
        assert!(error.contains(says), "{yaml:?} says {error:?}");
    }
}
