//! Loads single programs and attaches them: for as long as the process lives, or pinned.

use std::{
    cell::RefCell,
    convert::Infallible,
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use aya::{
    Btf, Ebpf,
    pin::PinError,
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, Program, ProgramError,
        links::{FdLink, LinkError},
    },
};

use super::{LoadError, first};

/// Why a program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refuses it.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel refuses to attach it.
    #[error("it cannot be attached")]
    Attach(#[source] io::Error),
    /// Its link cannot be pinned.
    #[error("its link cannot be pinned")]
    Pin(#[from] PinError),
    /// As above, of a link that aya does not know.
    #[error("its link cannot be pinned")]
    PinFirst(#[source] io::Error),
    /// Its link is none that can be pinned.
    #[error("its link is of a kind that cannot be pinned")]
    Link(#[from] LinkError),
}

// Some links are of one kind only, and so cannot be of a wrong one.
impl From<Infallible> for AttachError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// What a program is attached to.
#[derive(Clone, Copy)]
pub enum Hook {
    /// The watched cgroup, as the program's section says.
    Cgroup,
    /// The same, in front of all others of this type, as far as the kernel can.
    CgroupFirst(u32),
    /// A raw tracepoint, by name.
    RawTracepoint(&'static str),
    /// A tracepoint with types, by name.
    Tracepoint(&'static str),
    /// The entry of a function, by name.
    Entry(&'static str),
}

/// Attaches the programs of an object.
pub struct Attacher<'a> {
    /// The watched cgroup.
    pub root: &'a File,
    /// The kernel's types.
    pub btf: &'a Btf,
    /// Where links are pinned, if they are.
    pub links: Option<PathBuf>,
    /// Links that are neither pinned nor aya's.
    pub held: RefCell<Vec<OwnedFd>>,
}

impl Attacher<'_> {
    /// Attaches `name` to `hook`, unless an earlier run has and it still is.
    ///
    /// # Errors
    ///
    /// The outer one when the object has no such program, the inner one when it cannot be attached.
    pub fn attach(
        &self,
        ebpf: &mut Ebpf,
        name: &'static str,
        hook: Hook,
    ) -> Result<Result<(), AttachError>, LoadError> {
        let program = ebpf.program_mut(name).ok_or(LoadError::Lacks(name))?;
        if self.is_attached(name) {
            return Ok(Ok(()));
        }
        Ok(self.load_and_attach(program, name, hook))
    }

    /// Whether an earlier run has attached `name`.
    pub fn is_attached(&self, name: &str) -> bool {
        self.links.as_ref().is_some_and(|links| links.join(name).exists())
    }

    fn load_and_attach(&self, program: &mut Program, name: &str, hook: Hook) -> Result<(), AttachError> {
        // Links allow many programs on one cgroup whatever the mode says; the kernel wants it to be this one.
        let mode = CgroupAttachMode::Single;
        // A link that stays with its program ends with it.
        macro_rules! attach {
            ($program:ident, $id:expr) => {{
                let id = $id?;
                match &self.links {
                    None => Ok(()),
                    Some(links) => {
                        let link = FdLink::try_from($program.take_link(id)?)?;
                        Ok(link.pin(links.join(name)).map(drop)?)
                    }
                }
            }};
        }
        match (program, hook) {
            (Program::CgroupSockAddr(program), Hook::Cgroup) => {
                program.load()?;
                attach!(program, program.attach(self.root, mode))
            }
            (Program::CgroupSockAddr(program), Hook::CgroupFirst(attach_type)) => {
                program.load()?;
                let link = first::attach(program.fd()?.as_fd(), self.root.as_fd(), attach_type)
                    .map_err(AttachError::Attach)?;
                match &self.links {
                    None => self.held.borrow_mut().push(link),
                    Some(links) => first::pin(&link, &links.join(name)).map_err(AttachError::PinFirst)?,
                }
                Ok(())
            }
            (Program::CgroupSock(program), Hook::Cgroup) => {
                program.load()?;
                attach!(program, program.attach(self.root, mode))
            }
            (Program::CgroupSkb(program), Hook::Cgroup) => {
                program.load()?;
                attach!(program, program.attach(self.root, CgroupSkbAttachType::Ingress, mode))
            }
            (Program::SockOps(program), Hook::Cgroup) => {
                program.load()?;
                attach!(program, program.attach(self.root, mode))
            }
            (Program::RawTracePoint(program), Hook::RawTracepoint(tracepoint)) => {
                program.load()?;
                attach!(program, program.attach(tracepoint))
            }
            (Program::BtfTracePoint(program), Hook::Tracepoint(tracepoint)) => {
                program.load(tracepoint, self.btf)?;
                attach!(program, program.attach())
            }
            (Program::FEntry(program), Hook::Entry(function)) => {
                program.load(function, self.btf)?;
                attach!(program, program.attach())
            }
            _ => Err(ProgramError::UnexpectedProgramType.into()),
        }
    }
}
