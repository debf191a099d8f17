//! Other kernels: the shipped agent's programs are loaded and tried on each, in a virtual machine that boots in seconds.
//!
//! A machine is a kernel of Debian's and an initramfs with two static programs: busybox and the agent. Its `/init` runs
//! `netaudit doctor`, which makes connections and looks for them in what the programs record, then agents that are killed, and
//! `netaudit uninstall`; what they say comes over the serial line. Emulated, without KVM, so that it runs wherever this does.

use std::{
    fs::{self, File},
    io::{Read as _, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

use crate::{
    process::{command, on_path, quiet},
    programs::cache_directory,
};

/// The series that are tried, the oldest that is supported first.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// How long a machine may take; ten seconds are usual.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the answer stands between on the serial line.
const BEGIN: &str = "--- netaudit doctor";
const END: &str = "--- end, status ";

/// Why no kernel can be tried here; `None` where they can.
pub fn cannot() -> Option<&'static str> {
    let lacks = |program| on_path(program).is_none();
    if cfg!(not(target_arch = "x86_64")) {
        Some("written for x86-64")
    } else if lacks("apt-get") || lacks("dpkg-deb") {
        Some("no apt-get to have Debian's kernels from")
    } else if lacks("qemu-system-x86_64") || lacks("busybox") {
        Some("no qemu-system-x86_64 or busybox: `cargo xtask setup` installs them")
    } else {
        None
    }
}

/// Boots each kernel, and fails where one does not see what it should.
pub fn run(agent: &Path) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let initramfs = directory.path().join("initramfs.gz");
    write_initramfs(&initramfs, agent)?;
    let mut failed = 0;
    for series in SERIES {
        let kernel = kernel(series)?;
        let begun = Instant::now();
        let said = boot(&kernel, &initramfs).with_context(|| format!("kernel {series}"))?;
        let seconds = begun.elapsed().as_secs_f64();
        match judge(&said) {
            Ok(found) => println!("kernels: {series}: ok in {seconds:.0} s: {found}"),
            Err(error) => {
                failed += 1;
                println!("kernels: {series}: FAILED: {error:#}\n{said}");
            }
        }
    }
    println!("kernels: {} passed, {failed} failed", SERIES.len() - failed);
    ensure!(failed == 0, "{failed} kernels do not see what they should");
    Ok(())
}

/// What a machine said; an error where something was not seen.
fn judge(said: &str) -> Result<String> {
    let begin = said.find(BEGIN).context("the machine never came to the agent")? + BEGIN.len();
    let end = said.find(END).context("the agent never came to its end")?;
    let answer = said.get(begin..end).context("what was said is in disorder")?;
    let report: Value = serde_json::from_str(answer.trim()).context("what the agent said is no JSON")?;
    let list = |name: &str| report[name].as_array().with_context(|| format!("no {name}"));
    let unseen: Vec<String> =
        list("trials")?.iter().filter(|it| it["result"] != "works").map(Value::to_string).collect();
    ensure!(unseen.is_empty(), "not seen: {}", unseen.join(", "));
    let absent: Vec<&str> = list("hooks")?
        .iter()
        .filter(|it| it["attached"] != true)
        .filter_map(|it| it["hook"].as_str())
        .collect();
    let status = said[end + END.len()..].split_whitespace().next();
    ensure!(status == Some("0"), "the doctor ended with {status:?}");
    // A killed agent's programs are taken over by the next, and removed when that is asked for.
    for says in ["--- run 1: ", "resumed=false", "--- run 2: ", "resumed=true", "--- removed from "] {
        ensure!(said.contains(says), "what outlives an agent: no {says:?}");
    }
    let release = list("node")?.iter().find(|it| it["name"] == "kernel").and_then(|it| it["value"].as_str());
    let without = if absent.is_empty() { String::new() } else { format!(", without {}", absent.join(", ")) };
    Ok(format!(
        "{}, {} hooks, {} of {} trials seen, programs outlive an agent{without}",
        release.unwrap_or("?"),
        list("hooks")?.len() - absent.len(),
        list("trials")?.len(),
        list("trials")?.len()
    ))
}

/// The newest kernel of a series that Debian offers, unpacked; kept for the next time.
fn kernel(series: &str) -> Result<PathBuf> {
    let here = Path::new("/");
    let find = || -> Result<Option<String>> {
        let names = quiet(&mut command(here, "apt-cache", ["pkgnames", &format!("linux-image-{series}.")]))?;
        let plain = |name: &&str| name.ends_with("-cloud-amd64");
        Ok(names.lines().filter(plain).max_by_key(|name| numbers(name)).map(str::to_owned))
    };
    let kept = cache_directory()?.join("kernels");
    fs::create_dir_all(&kept).with_context(|| format!("making {}", kept.display()))?;
    let name = match find()? {
        Some(name) => name,
        None => {
            quiet(&mut command(here, "apt-get", ["update", "-qq"]))?;
            find()?.with_context(|| format!("Debian offers no kernel {series} here"))?
        }
    };
    let target = kept.join(&name);
    if target.is_file() {
        return Ok(target);
    }
    println!("kernels: fetching {name} (once)");
    let work = tempfile::tempdir_in(&kept)?;
    let download = || quiet(&mut command(work.path(), "apt-get", ["download", "-qq", &name]));
    if download().is_err() {
        // What the lists name may be gone by now.
        quiet(&mut command(here, "apt-get", ["update", "-qq"]))?;
        download()?;
    }
    let archive = files(work.path())?.into_iter().next().context("apt-get brought nothing")?;
    quiet(&mut command(work.path(), "dpkg-deb", [Path::new("-x"), &archive, Path::new("unpacked")]))?;
    let boot = files(&work.path().join("unpacked/boot"))?;
    let is_kernel =
        |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    let kernel = boot.iter().find(is_kernel).with_context(|| format!("no kernel in {name}"))?;
    fs::rename(kernel, &target)?;
    Ok(target)
}

/// The numbers of a name, for comparing: 6.1.100 is newer than 6.1.99.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|it: char| !it.is_ascii_digit()).filter_map(|it| it.parse().ok()).collect()
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.is_file()).collect())
}

/// Runs a machine to its end, and returns what it wrote to its serial line.
fn boot(kernel: &Path, initramfs: &Path) -> Result<String> {
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=single", "-M", "q35", "-cpu", "max", "-smp", "2", "-m", "512"])
        .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 rdinit=/init panic=-1 quiet"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let mut line = machine.stdout.take().context("it is piped")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut said = Vec::new();
        let read = line.read_to_end(&mut said);
        // Who does not wait any more needs no answer.
        let _ = sender.send(read.map(|_| said));
    });
    let said = receiver.recv_timeout(PATIENCE);
    if said.is_err() {
        machine.kill()?;
    }
    machine.wait()?;
    match said {
        Ok(said) => Ok(String::from_utf8_lossy(&said?).replace('\r', "")),
        Err(_) => bail!("the machine did not end within {PATIENCE:?}"),
    }
}

const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t cgroup2 none /sys/fs/cgroup
/bin/busybox ip link set lo up
echo '--- netaudit doctor'
/netaudit doctor --output json 2>/dev/null
echo \"--- end, status $?\"
/bin/busybox mount -t bpf none /sys/fs/bpf
/bin/busybox mkdir /manifests
for run in 1 2; do
  /netaudit agent --manifests /manifests --listen 127.0.0.1:9464 --pin-directory /sys/fs/bpf/netaudit 2>/log$run &
  agent=$!
  for wait in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    /bin/busybox grep -qs watching /log$run && break
    /bin/busybox sleep 1
  done
  /bin/busybox kill -9 $agent
  echo \"--- run $run: $(/bin/busybox grep watching /log$run || /bin/busybox cat /log$run)\"
done
echo \"--- $(/netaudit uninstall 2>&1)\"
/bin/busybox poweroff -f
";

fn write_initramfs(path: &Path, agent: &Path) -> Result<()> {
    let busybox = on_path("busybox").context("no busybox")?;
    let mut archive = GzEncoder::new(File::create(path)?, Compression::fast());
    let mut number = 0;
    let mut add = |name: &str, mode: u32, bytes: &[u8]| {
        number += 1;
        entry(&mut archive, number, name, mode, bytes)
    };
    for directory in ["bin", "dev", "proc", "sys", "tmp"] {
        add(directory, 0o040_755, &[])?;
    }
    add("bin/busybox", 0o100_755, &fs::read(busybox)?)?;
    let agent = fs::read(agent).with_context(|| format!("reading {}", agent.display()))?;
    add("netaudit", 0o100_755, &agent)?;
    add("init", 0o100_755, INIT.as_bytes())?;
    add("TRAILER!!!", 0, &[])?;
    archive.finish()?;
    Ok(())
}

/// An entry of a cpio archive in the "newc" form, which the kernel's documentation of initramfs describes: thirteen numbers of
/// eight hexadecimal digits, the name, the bytes; each part is padded to four bytes.
fn entry(archive: &mut impl Write, number: u32, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let length = u32::try_from(bytes.len()).context("a file that is too large")?;
    let name_length = u32::try_from(name.len() + 1).context("a name that is too long")?;
    let fields = [number, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
    let mut head = "070701".to_owned();
    for field in fields {
        head.push_str(&format!("{field:08x}"));
    }
    head.push_str(name);
    head.push('\0');
    for part in [head.as_bytes(), bytes] {
        archive.write_all(part)?;
        archive.write_all(&[0; 3][..part.len().next_multiple_of(4) - part.len()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(result: &str, status: &str) -> String {
        format!(
            "boot noise\n{BEGIN}\n{{\"node\": [{{\"name\": \"kernel\", \"value\": \"6.1.0\"}}], \"hooks\": [{{\"hook\": \
             \"a\", \"attached\": true}}, {{\"hook\": \"b\", \"attached\": false}}], \"trials\": [{{\"trial\": \"tcp4\", \
             \"result\": {result}}}]}}\n{END}{status}\n--- run 1: watching resumed=false\n--- run 2: watching resumed=true\n--- removed from \
             /pins\n[    9.8] reboot: Power down\n"
        )
    }

    #[test]
    fn a_machine_that_sees_everything_passes() {
        let found = judge(&said("\"works\"", "0")).unwrap();
        assert_eq!(found, "6.1.0, 1 hooks, 1 of 1 trials seen, programs outlive an agent, without b");
    }

    #[test]
    fn anything_else_fails_and_says_what() {
        let says = |said: &str| judge(said).unwrap_err().to_string();
        assert!(says(&said("{\"unseen\": \"no flow\"}", "1")).contains("no flow"));
        assert!(says(&said("\"works\"", "1")).contains("ended with"));
        assert!(says(&said("\"works\"", "0").replace("=true", "=false")).contains("resumed=true"));
        assert!(says("Kernel panic").contains("never came to the agent"));
        assert!(says(&format!("{BEGIN}\nSegmentation fault")).contains("never came to its end"));
        assert!(says(&format!("{BEGIN}\nerror\n{END}2\n")).contains("no JSON"));
    }

    #[test]
    fn the_newest_is_found_by_number() {
        let names = ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64"];
        assert_eq!(names.into_iter().max_by_key(|name| numbers(name)), Some(names[1]));
    }

    #[test]
    fn entries_are_padded_to_four_bytes() {
        let mut archive = Vec::new();
        entry(&mut archive, 1, "init", 0o100_755, b"12345").unwrap();
        // 110 bytes of numbers, five of the name, one of padding; five of content and three of padding.
        assert_eq!(archive.len(), 116 + 8);
        assert!(archive.starts_with(b"07070100000001000081ed"));
        assert_eq!(&archive[110..115], b"init\0");
    }
}
