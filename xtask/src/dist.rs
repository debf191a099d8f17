//! `cargo xtask dist`: the agent as it is shipped, a static program with the eBPF programs inside, and an image with
//! nothing else.
//!
//! The GNU target links statically too, and its C library has the resolver for hosts files and DNS inside since 2.34, so
//! that a kubeconfig may name its server by a host's name; in a cluster the agent needs no resolver at all.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    Endianness, Object as _, elf,
    read::elf::{ElfFile64, ProgramHeader as _},
};
use serde::Deserialize;

use crate::{
    build_ebpf::{UNIT, build_ebpf},
    image::{Architecture, Entry, Image, rfc3339},
    process::{cargo, command, on_path, run},
    remap,
    tools::target,
};

/// The profile that it is built with.
const PROFILE: &str = "dist";

/// What to build, and where to put it.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Where the results go instead of `target/dist`
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// What the agent shall run on, if not this machine's
    #[arg(long, value_enum)]
    arch: Option<Architecture>,
    /// Build again from a copy in another directory, and compare
    #[arg(long)]
    check_reproducible: bool,
}

/// Builds, says where the results lie, and fails if a second build differs that was asked for.
pub fn dist(root: &Path, options: &Options) -> Result<()> {
    let architecture = match options.arch {
        Some(architecture) => architecture,
        None => host()?,
    };
    let output = options.output.clone().unwrap_or_else(|| target(root).join("dist"));
    let about = About::read(root)?;
    let built = build(root, &build_directory(root), architecture, &about, &output)?;
    println!("program: {} ({} bytes)", built.program.display(), length(&built.program)?);
    println!("image:   {} ({} bytes)", built.archive.display(), length(&built.archive)?);
    println!("         {} {}", about.reference(), built.digest);
    if options.check_reproducible {
        check_reproducible(root, architecture, &about, &built)?;
    }
    Ok(())
}

/// Builds for this machine, for whoever runs the result.
pub fn for_this_machine(root: &Path) -> Result<Built> {
    build(root, &build_directory(root), host()?, &About::read(root)?, &target(root).join("dist"))
}

/// The results of one build.
pub struct Built {
    object: PathBuf,
    /// The agent.
    pub program: PathBuf,
    /// An archive of its image.
    pub archive: PathBuf,
    digest: String,
}

fn build(
    root: &Path,
    directory: &Path,
    architecture: Architecture,
    about: &About,
    output: &Path,
) -> Result<Built> {
    let platform = Platform::of(architecture);
    platform.check()?;
    let start = Instant::now();
    let object = build_ebpf(root)?;
    run(&mut as_shipped(root, directory, &platform, &object, &["build", "-p", "netaudit"])?)?;
    println!("dist: built in {:.0} s", start.elapsed().as_secs_f64());

    let built = directory.join(platform.triple).join(PROFILE).join("netaudit");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    check_program(&bytes, architecture)?;
    fs::create_dir_all(output).with_context(|| format!("making {}", output.display()))?;
    let arch = architecture.name();
    // Beside the one for this machine, another's must not be taken for it.
    let name =
        if host().ok() == Some(architecture) { "netaudit".to_owned() } else { format!("netaudit-{arch}") };
    let program = output.join(name);
    install(&built, &program).with_context(|| format!("writing {}", program.display()))?;
    let archive = output.join(format!("netaudit-{}-{arch}.oci.tar", about.version));
    let digest = about.image(architecture, &program)?.write_archive(&archive)?;
    Ok(Built { object, program, archive, digest })
}

/// Cargo with the profile, the target, the flags and the eBPF object of what is shipped.
fn as_shipped(
    root: &Path,
    directory: &Path,
    platform: &Platform,
    object: &Path,
    arguments: &[&str],
) -> Result<Command> {
    let mut flags = remap::flags(root, || command(root, "rustc", [""; 0]))?;
    flags.push("-Ctarget-feature=+crt-static".to_owned());
    let mut command = cargo(root, arguments);
    command
        .args(["--locked", "--profile", PROFILE, "--target", platform.triple])
        .env("CARGO_TARGET_DIR", directory)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(UNIT))
        .env(platform.linker_variable(), platform.linker)
        .env("NETAUDIT_BPF_OBJECT", object);
    Ok(command)
}

/// Cargo for a benchmark of what is shipped on this machine. Built for [`for_this_machine`] too, most of it is built once.
pub fn bench_as_shipped(root: &Path, bench: &str) -> Result<Command> {
    let platform = Platform::of(host()?);
    platform.check()?;
    let object = build_ebpf(root)?;
    let arguments = ["bench", "-p", "netaudit", "--bench", bench];
    as_shipped(root, &build_directory(root), &platform, &object, &arguments)
}

fn build_directory(root: &Path) -> PathBuf {
    target(root).join("dist-build")
}

/// Puts a program where one may be running.
fn install(from: &Path, to: &Path) -> std::io::Result<()> {
    let beside = to.with_extension("new");
    fs::copy(from, &beside)?;
    fs::rename(beside, to)
}

fn length(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len())
}

/// Builds a copy of the sources, as git knows them, below another directory, and compares each result.
fn check_reproducible(root: &Path, architecture: Architecture, about: &About, first: &Built) -> Result<()> {
    let copy = tempfile::Builder::new().prefix("netaudit-again-").tempdir().context("making a directory")?;
    let files = remap::output(&mut command(root, "git", ["ls-files", "-z"]))
        .context("what belongs to the sources is for git to say")?;
    for name in files.split_terminator('\0') {
        let to = copy.path().join(name);
        fs::create_dir_all(to.parent().context("a file has a directory")?)?;
        fs::copy(root.join(name), &to).with_context(|| format!("copying {name}"))?;
    }
    println!("dist: building again in {}", copy.path().display());
    let directory = copy.path().join("target/other");
    let again = build(copy.path(), &directory, architecture, about, &copy.path().join("target/results"))?;

    let cargo_home = remap::cargo_home()?;
    let mut differences = Vec::new();
    for (what, one, other) in [
        ("the eBPF object", &first.object, &again.object),
        ("the program", &first.program, &again.program),
        ("the image", &first.archive, &again.archive),
    ] {
        let one = fs::read(one).with_context(|| format!("reading {}", one.display()))?;
        if one != fs::read(other).with_context(|| format!("reading {}", other.display()))? {
            differences.push(format!("{what} differs"));
        }
        // The two builds share this directory, so comparing them does not find it.
        if contains(&one, cargo_home.as_os_str().as_encoded_bytes()) {
            differences.push(format!("{what} names {}", cargo_home.display()));
        }
    }
    ensure!(differences.is_empty(), "not reproducible: {}", differences.join(", "));
    println!("reproducible: the same bytes from another directory, image {}", again.digest);
    Ok(())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// An error unless this is a program for the architecture that needs no loader and no libraries.
fn check_program(bytes: &[u8], architecture: Architecture) -> Result<()> {
    let file = ElfFile64::<Endianness>::parse(bytes).context("the program is no 64-bit ELF file")?;
    let built_for = file.architecture();
    let expected = match architecture {
        Architecture::Amd64 => object::Architecture::X86_64,
        Architecture::Arm64 => object::Architecture::Aarch64,
    };
    ensure!(built_for == expected, "the program is for {built_for:?}, not for {}", architecture.name());
    let endian = file.endian();
    ensure!(
        !file.elf_program_headers().iter().any(|header| header.p_type(endian) == elf::PT_INTERP),
        "the program asks for a loader: it is not linked statically"
    );
    Ok(())
}

/// This machine's architecture.
fn host() -> Result<Architecture> {
    match env::consts::ARCH {
        "x86_64" => Ok(Architecture::Amd64),
        "aarch64" => Ok(Architecture::Arm64),
        other => bail!("no image for {other}: give --arch"),
    }
}

/// What building for an architecture takes.
struct Platform {
    triple: &'static str,
    linker: &'static str,
    /// Debian's packages with the linker and the static C library.
    packages: &'static str,
}

impl Platform {
    fn of(architecture: Architecture) -> Self {
        let native = host().ok() == Some(architecture);
        let (triple, linker, packages) = match architecture {
            Architecture::Amd64 => (
                "x86_64-unknown-linux-gnu",
                "x86_64-linux-gnu-gcc",
                "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
            ),
            Architecture::Arm64 => (
                "aarch64-unknown-linux-gnu",
                "aarch64-linux-gnu-gcc",
                "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
            ),
        };
        let (linker, packages) = if native { ("cc", "gcc libc6-dev") } else { (linker, packages) };
        Self { triple, linker, packages }
    }

    /// The variable that tells cargo of the linker.
    fn linker_variable(&self) -> String {
        format!("CARGO_TARGET_{}_LINKER", self.triple.to_uppercase().replace('-', "_"))
    }

    /// An error that says all that is missing, and how to get it.
    fn check(&self) -> Result<()> {
        let mut missing = Vec::new();
        let library =
            remap::output(Command::new("rustc").args(["--print", "target-libdir", "--target", self.triple]))?;
        if !Path::new(&library).is_dir() {
            missing.push(format!("Rust's standard library for it: rustup target add {}", self.triple));
        }
        let install = format!("apt-get install {}", self.packages);
        if on_path(self.linker).is_none() {
            missing.push(format!("{}: {install}", self.linker));
        } else if !self.has_static_library()? {
            missing.push(format!("a static C library for {}: {install}", self.linker));
        }
        ensure!(missing.is_empty(), "building for {} needs\n  {}", self.triple, missing.join("\n  "));
        Ok(())
    }

    fn has_static_library(&self) -> Result<bool> {
        // It answers with the bare name where it finds none.
        let found = remap::output(Command::new(self.linker).arg("-print-file-name=libc.a"))?;
        Ok(Path::new(&found).is_absolute())
    }
}

/// What the image says of itself.
#[derive(Debug)]
struct About {
    version: String,
    description: String,
    license: String,
    repository: Option<String>,
    revision: Option<String>,
    created: Option<u32>,
}

/// What `cargo metadata` says of a package.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    description: Option<String>,
    license: Option<String>,
    repository: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

impl About {
    fn read(root: &Path) -> Result<Self> {
        let metadata = remap::output(&mut cargo(
            root,
            ["metadata", "--no-deps", "--locked", "--offline", "--format-version", "1"],
        ))?;
        let metadata: Metadata =
            serde_json::from_str(&metadata).context("reading what cargo metadata says")?;
        let package = metadata
            .packages
            .into_iter()
            .find(|package| package.name == "netaudit")
            .context("no package netaudit in the workspace")?;
        // Sources without a repository of their own may lie in somebody else's.
        let git = |arguments: &[&str]| remap::output(&mut command(root, "git", arguments)).ok();
        let ours = git(&["ls-files", "--error-unmatch", "Cargo.toml"]).is_some();
        let git = |arguments: &[&str]| git(arguments).filter(|_| ours);
        let created = match env::var("SOURCE_DATE_EPOCH") {
            Ok(seconds) => Some(
                seconds.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {seconds:?}, not a number"))?,
            ),
            Err(_) => {
                git(&["show", "--no-patch", "--format=%ct", "HEAD"]).and_then(|seconds| seconds.parse().ok())
            }
        };
        Ok(Self {
            version: package.version,
            description: package.description.context("netaudit has no description")?,
            license: package.license.context("netaudit has no license")?,
            repository: package.repository,
            revision: git(&["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]),
            created,
        })
    }

    /// The image's name; who pushes it gives it another.
    fn reference(&self) -> String {
        format!("localhost/netaudit:{}", self.version)
    }

    /// The program and nothing else: it writes no files, takes the API server's certificates from the service account
    /// that is mounted into it, and runs as the user that its manifest says.
    fn image(&self, architecture: Architecture, program: &Path) -> Result<Image> {
        Ok(Image {
            reference: self.reference(),
            architecture,
            entrypoint: vec!["/netaudit".to_owned()],
            labels: self.labels()?,
            created: self.created,
            files: vec![Entry::file("/netaudit", 0o755, program)],
            ..Image::default()
        })
    }

    fn labels(&self) -> Result<BTreeMap<String, String>> {
        let created = self.created.map(rfc3339).transpose()?;
        let labels = [
            ("title", Some("netaudit")),
            ("description", Some(&*self.description)),
            ("version", Some(&*self.version)),
            ("licenses", Some(&*self.license)),
            ("revision", self.revision.as_deref()),
            ("source", self.repository.as_deref()),
            ("created", created.as_deref()),
        ];
        Ok(labels
            .into_iter()
            .filter_map(|(name, value)| Some((format!("org.opencontainers.image.{name}"), value?.to_owned())))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            version: "1.2.3".to_owned(),
            description: "what it does".to_owned(),
            license: "Apache-2.0".to_owned(),
            repository: None,
            revision: Some("abc".to_owned()),
            created: Some(0),
        }
    }

    #[test]
    fn the_image_holds_the_program_and_says_what_it_is() {
        let image = about().image(Architecture::Arm64, Path::new("/somewhere/netaudit")).expect("an image");
        assert_eq!(image.reference, "localhost/netaudit:1.2.3");
        let files: Vec<(&str, u32)> = image.files.iter().map(|entry| (&*entry.path, entry.mode)).collect();
        assert_eq!(files, [("/netaudit", 0o755)]);
        let labels: Vec<(&str, &str)> = image
            .labels
            .iter()
            .map(|(name, value)| {
                (name.strip_prefix("org.opencontainers.image.").expect("a label of OCI"), &**value)
            })
            .collect();
        assert_eq!(
            labels,
            [
                ("created", "1970-01-01T00:00:00Z"),
                ("description", "what it does"),
                ("licenses", "Apache-2.0"),
                ("revision", "abc"),
                ("title", "netaudit"),
                ("version", "1.2.3"),
            ]
        );
    }

    /// The Containerfile repeats what this file, setup and Cargo.toml say: a builder reads none of them.
    #[test]
    fn the_containerfile_makes_the_same_image() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |path: &str| fs::read_to_string(root.join(path)).expect("a file of ours");
        let text = read("deploy/image/Containerfile");
        // Continued lines, as one.
        let text = text.replace("\\\n", " ");
        let instructions: Vec<String> = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let has = |wanted: &str| {
            assert!(instructions.iter().any(|line| line == wanted), "no {wanted:?} in {instructions:#?}");
        };

        let about = About::read(&root).expect("what we say of ourselves");
        let (_, last) = instructions
            .split_at(instructions.iter().position(|line| line == "FROM scratch").expect("a last stage"));
        assert_eq!(last.len(), 4, "labels, the program, and how it starts: {last:#?}");
        // What it was built from is for dist to say: a builder sees no repository.
        let mut labels = about.labels().expect("labels");
        for of_git in ["revision", "source", "created"] {
            labels.remove(&format!("org.opencontainers.image.{of_git}"));
        }
        let words = ["title", "description", "version", "licenses"].map(|name| {
            let name = format!("org.opencontainers.image.{name}");
            let value = labels.remove(&name).expect("a label that we have");
            format!("{name}=\"{value}\"")
        });
        assert!(labels.is_empty(), "labels that the Containerfile lacks: {labels:?}");
        has(&format!("LABEL {}", words.join(" ")));
        let image = about.image(Architecture::Amd64, Path::new("netaudit")).expect("an image");
        has(&format!("COPY --from=build /out/netaudit {}", image.files[0].path));
        has(&format!("ENTRYPOINT [\"{}\"]", image.entrypoint.join("\", \"")));

        for (name, version) in crate::setup::CRATES {
            has(&format!("RUN cargo install {name} --version {version} --locked"));
        }
        // The very flags of dist, since it is what runs there.
        has("RUN cargo xtask dist --output /out");
        let rust = read("Cargo.toml");
        let rust =
            rust.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version of Rust");
        has(&format!("FROM rust:{}-slim-bookworm AS build", rust.trim_matches('"')));
        let install = instructions.iter().find(|line| line.contains("apt-get install")).expect("packages");
        let packages =
            install.split("--no-install-recommends").nth(1).and_then(|rest| rest.split("&&").next());
        for package in packages.expect("a list of packages").split_whitespace() {
            assert!(
                crate::setup::PACKAGES.iter().any(|(name, _)| *name == package),
                "setup does not install {package}"
            );
        }

        // And the name that the manifests and the document give it.
        for (path, says) in [
            ("deploy/image/Containerfile", format!("-t {} .", image.reference)),
            ("README.md", format!("-t {} .", image.reference)),
            ("README.md", format!("netaudit-{}-amd64.oci.tar", about.version)),
            ("deploy/base/kustomization.yaml", format!("newTag: \"{}\"", about.version)),
        ] {
            assert!(read(path).contains(&says), "{path} does not say {says:?}");
        }
    }

    #[test]
    fn a_program_with_a_loader_or_for_something_else_is_refused() {
        // Whatever runs this test is such a program.
        let bytes = fs::read("/proc/self/exe").expect("this program");
        let here = host().expect("one of the two");
        let elsewhere = match here {
            Architecture::Amd64 => Architecture::Arm64,
            Architecture::Arm64 => Architecture::Amd64,
        };
        let message =
            |bytes, architecture| check_program(bytes, architecture).expect_err("refused").to_string();
        assert_eq!(message(&bytes, here), "the program asks for a loader: it is not linked statically");
        assert!(message(&bytes, elsewhere).contains("not for"));
        assert_eq!(message(b"#!/bin/sh", here), "the program is no 64-bit ELF file");
    }

    #[test]
    fn what_a_build_lacks_is_said_at_once() {
        let platform = Platform {
            // A target without a standard library for programs.
            triple: "bpfel-unknown-none",
            linker: "no-such-gcc",
            packages: "gcc-of-another-kind",
        };
        let message = platform.check().expect_err("nothing is there").to_string();
        assert_eq!(
            message,
            "building for bpfel-unknown-none needs\n  \
             Rust's standard library for it: rustup target add bpfel-unknown-none\n  \
             no-such-gcc: apt-get install gcc-of-another-kind"
        );
        let platform = Platform::of(Architecture::Arm64);
        assert_eq!(platform.linker_variable(), "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER");
    }
}
