//! Which devices a container may use, on cgroup v2: there the kernel asks a BPF program (BPF_PROG_TYPE_CGROUP_DEVICE) that
//! is attached to the container's group. On v1 libcontainer writes the same list to the devices controller; on v2 it does
//! nothing, and a container with CAP_MKNOD could make and read the host's disks.
//!
//! The creator attaches the program before the container's command runs. The program lives as long as the group.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
/// Making nodes, reading and writing.
const ALL: i32 = 7;

/// What is allowed: kind, rights, major and minor number (`None`: any). Docker's list (moby `oci/devices_linux.go`, runc
/// `specconv`): any node may be made, and the harmless ones of /dev may be used.
const ALLOWED: [(i32, i32, Option<i32>, Option<i32>); 11] = [
    (CHARACTER, MKNOD, None, None),
    (BLOCK, MKNOD, None, None),
    (CHARACTER, ALL, Some(1), Some(3)), // null
    (CHARACTER, ALL, Some(1), Some(5)), // zero
    (CHARACTER, ALL, Some(1), Some(7)), // full
    (CHARACTER, ALL, Some(1), Some(8)), // random
    (CHARACTER, ALL, Some(1), Some(9)), // urandom
    (CHARACTER, ALL, Some(5), Some(0)), // tty
    (CHARACTER, ALL, Some(5), Some(1)), // console
    (CHARACTER, ALL, Some(5), Some(2)), // ptmx
    (CHARACTER, ALL, Some(136), None),  // pts
];

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Operations (linux/bpf_common.h, linux/bpf.h): class, size or source, and operation in one byte.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// Registers: the context, its fields, and one to work in.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const WORK: u8 = 6;

/// Restricts the group in `folder` (a folder of the cgroup2 mount).
pub(crate) fn restrict(folder: &Path) -> io::Result<()> {
    let program = load(&program())?;
    let group = File::open(folder)?;
    let attributes: [u32; 4] =
        [group.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned(), BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI];
    // SAFETY: the attributes of BPF_PROG_ATTACH begin with these four words; shorter than the kernel's union is allowed.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, attributes.as_ptr(), size_of_val(&attributes)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the program to the kernel, which checks it.
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
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
        instructions: u32::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
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
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?))
    }
}

/// The list as a program: 1 for the first rule that fits, else 0.
fn program() -> Vec<Instruction> {
    let op = |code, destination: u8, source: u8, offset, immediate| Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    };
    // `struct bpf_cgroup_dev_ctx`: access << 16 | kind, major, minor.
    let mut all = vec![
        op(LOAD_WORD, KIND, CONTEXT, 0, 0),
        op(MOVE, ACCESS, KIND, 0, 0),
        op(AND_NUMBER, KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for (kind, rights, major, minor) in ALLOWED {
        let mut rule = vec![
            op(JUMP_UNLESS_EQUAL, KIND, 0, 0, kind),
            // Nothing may be asked beyond the rights.
            op(MOVE, WORK, ACCESS, 0, 0),
            op(AND_NUMBER, WORK, 0, 0, !rights),
            op(JUMP_UNLESS_EQUAL, WORK, 0, 0, 0),
        ];
        rule.extend(major.map(|major| op(JUMP_UNLESS_EQUAL, MAJOR, 0, 0, major)));
        rule.extend(minor.map(|minor| op(JUMP_UNLESS_EQUAL, MINOR, 0, 0, minor)));
        rule.extend([op(MOVE_NUMBER, RESULT, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
        // A mismatch leads behind the rule.
        let length = rule.len();
        for (at, step) in rule.iter_mut().enumerate().filter(|(_, step)| step.code == JUMP_UNLESS_EQUAL) {
            step.offset = (length - at - 1) as i16;
        }
        all.extend(rule);
    }
    all.extend([op(MOVE_NUMBER, RESULT, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    use super::*;
    use crate::cgroup::Cgroups;

    /// Opens `path` in a child that has joined `group`: an errno, 0 for success.
    fn open_inside(group: &Path, path: &Path) -> i32 {
        let procs = std::ffi::CString::new(group.join("cgroup.procs").to_str().unwrap()).unwrap();
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the child makes system calls only, and ends without unwinding.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let fd = libc::open(procs.as_ptr(), libc::O_WRONLY);
                if libc::write(fd, c"0".as_ptr().cast(), 1) != 1 {
                    libc::_exit(255);
                }
                let opened = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK);
                libc::_exit(if opened < 0 { *libc::__errno_location() } else { 0 });
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            libc::WEXITSTATUS(status)
        }
    }

    #[test]
    fn only_harmless_devices_open_in_a_restricted_group() {
        let Some(mount) = Cgroups::detect().unwrap().and_then(|cgroups| cgroups.v2_mount()) else {
            eprintln!("skipped: cgroup2 is not mounted here");
            return;
        };
        let group = mount.join(format!("skep-devices-test-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let node = |name: &str, kind, major, minor| {
            mknod(&dir.path().join(name), kind, Mode::from_bits_truncate(0o600), makedev(major, minor)).unwrap();
            dir.path().join(name)
        };
        let (null, kmsg) = (node("null", SFlag::S_IFCHR, 1, 3), node("kmsg", SFlag::S_IFCHR, 1, 11));
        let outcome = [(open_inside(&group, &null), open_inside(&group, &kmsg))];
        restrict(&group).unwrap();
        let restricted = (open_inside(&group, &null), open_inside(&group, &kmsg));
        fs::remove_dir(&group).unwrap();
        assert_eq!(outcome, [(0, 0)], "before");
        assert_eq!(restricted, (0, libc::EPERM));
    }
}
