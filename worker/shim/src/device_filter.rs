//! Which devices a group of cgroup v2 may use: there the kernel asks a BPF program (BPF_PROG_TYPE_CGROUP_DEVICE) that is
//! attached to the group and lives as long as it.
//!
//! Used by the container's creation, and by a test of skep-runtime that has it from here. The program is the plan's.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// Bytes of an instruction (`struct bpf_insn`).
const INSTRUCTION: usize = 8;

/// Attaches a program to the group whose folder is open.
pub(crate) fn attach(group: &File, program: &[u8]) -> io::Result<()> {
    let program = load(program)?;
    let attributes: [u32; 4] =
        [group.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned(), BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI];
    // SAFETY: the attributes of BPF_PROG_ATTACH begin with these four words; shorter than the kernel's union is allowed.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, attributes.as_ptr(), size_of_val(&attributes)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the program to the kernel, which checks it.
fn load(program: &[u8]) -> io::Result<OwnedFd> {
    /// The first attributes of BPF_PROG_LOAD; the rest, left out, counts as zero.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instructions: u32,
        program: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    let attributes = Attributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instructions: u32::try_from(program.len() / INSTRUCTION)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        program: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: `attributes` and the memory it points to live through the call; the fresh descriptor is nobody else's.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Attributes>());
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}
