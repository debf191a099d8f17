//! What is not to be told stands nowhere: not in the log, not in files, in no words of a line; and hashed addresses are found again
//! by whoever has the secret.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use netaudit::audit::{AddressKey, PeerKind};

use super::*;

const SECRET: &str = "5f1d0c8e2b7a49346e8d1f0a9b3c7d25";
const OUTSIDE: [&str; 3] = ["203.0.113.9", "2001:db8::7", "10.96.0.1"];

fn key() -> Result<AddressKey> {
    Ok(AddressKey::new(SECRET.as_bytes())?)
}

/// Whether bytes hold a text.
fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// All bytes of all files of a store.
fn bytes(store: &Path) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut directories = vec![store.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() { directories.push(path) } else { all.extend(std::fs::read(path)?) }
        }
    }
    Ok(all)
}

fn ask(store: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netaudit"));
    Ok(command.arg("flows").arg(store).args(arguments).output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn counted(output: &Output) -> Result<usize> {
    ensure!(output.status.success(), "{}", said(output));
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// Hashing: in segments, and in files as soon as they are rolled.
pub(super) fn hashed(store: &Path) -> Result<(Made, Vec<netaudit::store::flows::segment::Closed>)> {
    let mut made = Made::new(1_000);
    made.privacy.key = Some(key()?);
    let segments = made.segments(store, 300)?;
    Ok((made, segments))
}

#[test]
fn addresses_outside_are_hashed_and_found_by_the_secret() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let (made, segments) = hashed(&store)?;
    let secret = directory.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n"))?;
    let other = directory.path().join("other");
    std::fs::write(&other, "another secret that is long enough for it")?;
    let (secret, other) = (secret.display().to_string(), other.display().to_string());
    let count = |arguments: &[&str]| ask(&store, &[&["--output", "table"], arguments].concat());

    for is_rolled in [false, true] {
        if is_rolled {
            rolled(&store, segments.clone())?.commit()?;
        }
        let (lines, _) = found(&store, &Filter::default())?;
        assert_same(&lines, &made.lines()?, "as the flow log has it");
        let text = serde_json::to_string(&lines)?;
        let stored = bytes(&store)?;
        for outside in OUTSIDE {
            assert!(!holds(text.as_bytes(), &format!("\"{outside}\"")), "{outside}, rolled: {is_rolled}");
            let hash = key()?.hash(outside.parse()?);
            assert!(holds(text.as_bytes(), &hash), "{hash} of {outside}, rolled: {is_rolled}");
        }
        assert!(!holds(&stored, "203.0.113") && !holds(&stored, "2001:db8::7"), "rolled: {is_rolled}");
        // What the cluster knows stays.
        assert!(holds(text.as_bytes(), "\"10.0.0.2\""));
        for line in &lines {
            let peer = &line["peer"];
            let is_outside = peer["kind"] == "external";
            assert_eq!(peer["ip_hashed"] == true, is_outside, "{line:#}");
            assert!(!is_outside || peer["names"] == serde_json::json!([]), "a name would tell it: {line:#}");
        }
        let outside = lines.iter().filter(|line| line["peer"]["kind"] == "external");
        let hashes: BTreeSet<String> = outside.map(|line| line["peer"]["ip"].to_string()).collect();
        assert_eq!(hashes.len(), 2, "equal addresses have equal hashes");

        for outside in OUTSIDE {
            let with_secret = count(&["--address", outside, "--hash-key", &secret, "--count"])?;
            assert_eq!(counted(&with_secret)?, weighed(&made, outside), "{outside}");
            assert!(!said(&with_secret).contains("hashed"), "{}", said(&with_secret));
            let without = count(&["--address", outside, "--count"])?;
            assert_eq!(counted(&without)?, 0);
            assert!(said(&without).contains("give the secret with --hash-key"), "{}", said(&without));
            let wrong = count(&["--address", outside, "--hash-key", &other, "--count"])?;
            assert_eq!(counted(&wrong)?, 0);
            assert!(said(&wrong).contains("hashed with another secret"), "{}", said(&wrong));
        }
        let range = count(&["--address", "203.0.113.0/24", "--hash-key", &secret, "--count"])?;
        assert!(said(&range).contains("a range (203.0.113.0/24) finds none"), "{}", said(&range));
        let incomplete = count(&["--address", "203.0.113.9", "--count", "--require-complete"])?;
        assert_eq!(incomplete.status.code(), Some(1), "{}", said(&incomplete));
        let unasked = count(&["--count"])?;
        assert!(!said(&unasked).contains("hashed"), "{}", said(&unasked));
    }
    Ok(())
}

/// Flows to an address, folded ones as often as they stand for.
fn weighed(made: &Made, address: &str) -> usize {
    let asks = |flow: &&Flow| {
        flow.peer.ip.to_string() == address
            || flow.requested.is_some_and(|asked| asked.ip().to_string() == address)
    };
    made.flows.iter().filter(asks).map(|flow| flow.observation.count() as usize).sum()
}

#[test]
fn processes_and_names_are_left_out() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let mut made = Made::new(300);
    made.privacy.omits_processes = true;
    made.privacy.omits_names = true;
    let segments = made.segments(&store, 300)?;
    for is_rolled in [false, true] {
        if is_rolled {
            rolled(&store, segments.clone())?.commit()?;
        }
        let (lines, _) = found(&store, &Filter::default())?;
        assert_same(&lines, &made.lines()?, "as the flow log has it");
        for line in &lines {
            assert_eq!((&line["actor"]["pid"], &line["actor"]["comm"]), (&0.into(), &"".into()), "{line:#}");
            assert_eq!(line["peer"]["names"], serde_json::json!([]));
            assert!(line["actor"]["kind"].is_string(), "where it is from stays: {line:#}");
        }
        let text = bytes(&store)?;
        assert!(!holds(&text, "example.com") && !holds(&text, "example.org"));
        assert!(holds(&text, "203.0.113.9"), "nothing is hashed");
    }
    Ok(())
}

/// What stands for an address that nobody could resolve, or that a proxy took as it was addressed, is hashed too.
#[test]
fn what_is_not_known_to_be_inside_is_hashed() -> Result<()> {
    let mut made = Made::new(1);
    made.privacy.key = Some(key()?);
    let mut flow = made.world.one(egress(101, 11, "10.0.0.1:40000", "203.0.113.9:443"));
    for kind in [PeerKind::Unknown, PeerKind::Loopback] {
        flow.peer.kind = kind;
        let line = made.line(&flow)?;
        assert_eq!(line["peer"]["ip"], key()?.hash("203.0.113.9".parse()?), "{line:#}");
        for inside in ["10.0.0.2", "192.168.0.1", "127.0.0.1", "::1"] {
            let flow = Flow {
                peer: netaudit::audit::Peer { ip: inside.parse()?, ..flow.peer.clone() },
                ..flow.clone()
            };
            assert_eq!(made.line(&flow)?["peer"]["ip"], inside);
        }
    }
    Ok(())
}

#[test]
fn an_agent_refuses_a_key_that_is_none_and_flows_too() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("short"), "0123456789\n")?;
    std::fs::write(file("zeros"), [b'0'; 64])?;
    let manifests = directory.path().display().to_string();
    for (name, says) in [
        ("missing", "cannot read the hash key"),
        ("short", "it has 10 bytes, and at least 32 are needed"),
        ("zeros", "one byte again and again"),
    ] {
        let key = file(name);
        let agent = Command::new(env!("CARGO_BIN_EXE_netaudit"))
            .args(["agent", "--manifests", &manifests, "--listen", "127.0.0.1:0", "--hash-key", &key])
            .output()?;
        assert!(agent.status.code() == Some(2) && said(&agent).contains(says), "{}", said(&agent));
        assert!(said(&agent).contains(&key) && said(&agent).contains("openssl rand"), "{}", said(&agent));
        let flows = ask(directory.path(), &["--address", "10.0.0.1", "--hash-key", &key])?;
        assert!(flows.status.code() == Some(2) && said(&flows).contains(says), "{}", said(&flows));
    }
    Ok(())
}
