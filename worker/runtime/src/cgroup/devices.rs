//! Which devices a container may use. On v1 that is a list for the devices controller; on v2 the kernel asks a BPF program
//! (BPF_PROG_TYPE_CGROUP_DEVICE) that is attached to the container's group. Without it a container with CAP_MKNOD could
//! make and read the host's disks. Pure: the monitor writes the one and attaches the other.

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

impl Instruction {
    fn bytes(self) -> [u8; 8] {
        let (offset, immediate) = (self.offset.to_ne_bytes(), self.immediate.to_ne_bytes());
        let [i0, i1, i2, i3] = immediate;
        [self.code, self.registers, offset[0], offset[1], i0, i1, i2, i3]
    }
}

/// The list as the v1 devices controller takes it, one rule for each write, after everything was denied.
pub(crate) fn rules() -> Vec<String> {
    let number = |number: Option<i32>| number.map_or("*".to_owned(), |number| number.to_string());
    let rule = |(kind, rights, major, minor): (i32, i32, Option<i32>, Option<i32>)| {
        let kind = if kind == BLOCK { 'b' } else { 'c' };
        let rights = if rights == MKNOD { "m" } else { "rwm" };
        format!("{kind} {}:{} {rights}", number(major), number(minor))
    };
    ALLOWED.map(rule).to_vec()
}

/// The list as a program for v2, as it lies in memory.
pub(crate) fn program() -> Vec<u8> {
    instructions().into_iter().flat_map(Instruction::bytes).collect()
}

/// 1 for the first rule that fits, else 0.
fn instructions() -> Vec<Instruction> {
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
#[path = "../../../shim/src/device_filter.rs"]
mod device_filter;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, File};
    use std::path::Path;

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    use super::*;
    use crate::cgroup::Cgroups;

    #[test]
    fn v1_rules_are_dockers() {
        let rules = rules();
        assert_eq!(rules[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(rules.last().map(String::as_str), Some("c 136:* rwm"));
    }

    /// Runs the program as the kernel would (Documentation/bpf/standardization/instruction-set.rst).
    fn allows(kind: i32, rights: i32, major: i32, minor: i32) -> bool {
        let context = [rights << 16 | kind, major, minor];
        let mut registers = [0i64; 11];
        let (program, mut at) = (instructions(), 0);
        loop {
            let step = program[at];
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            at += 1;
            match step.code {
                LOAD_WORD => registers[to] = i64::from(context[usize::try_from(step.offset / 4).unwrap_or(9)]),
                MOVE => registers[to] = registers[from],
                MOVE_NUMBER => registers[to] = i64::from(step.immediate),
                AND_NUMBER => registers[to] &= i64::from(step.immediate),
                SHIFT_RIGHT => registers[to] >>= step.immediate,
                JUMP_UNLESS_EQUAL if registers[to] != i64::from(step.immediate) => {
                    at += usize::try_from(step.offset).unwrap_or(usize::MAX);
                }
                JUMP_UNLESS_EQUAL => {}
                EXIT => return registers[usize::from(RESULT)] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_list_says() {
        assert!(allows(CHARACTER, ALL, 1, 3) && allows(CHARACTER, 2, 136, 77));
        assert!(allows(BLOCK, MKNOD, 8, 0), "any node may be made");
        assert!(!allows(BLOCK, 2, 8, 0) && !allows(CHARACTER, 2, 1, 11), "disks and the kernel's log stay closed");
        assert!(!allows(BLOCK, ALL, 1, 3), "another kind with the same numbers");
    }

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
        device_filter::attach(&File::open(&group).unwrap(), &program()).unwrap();
        let restricted = (open_inside(&group, &null), open_inside(&group, &kmsg));
        fs::remove_dir(&group).unwrap();
        assert_eq!(outcome, [(0, 0)], "before");
        assert_eq!(restricted, (0, libc::EPERM));
    }
}
