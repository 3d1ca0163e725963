//! Programs of one system call: an ELF file written by hand, so that a container needs no compiler and no library to try
//! any call there is. Its exit code is the call's errno, 0 for success. For x86-64 only.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// An argument.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Number(i64),
    /// The address of a C string.
    Text(&'static str),
}

pub use Arg::{Number, Text};

/// How the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As 64-bit programs do.
    Native,
    /// As 32-bit programs do (`int $0x80`), with their numbers.
    Old,
}

/// Where the file is mapped.
const BASE: u64 = 0x40_0000;
/// Of the ELF header and one program header.
const HEADERS: u64 = 64 + 56;

/// The program, as it lies in a file.
pub fn program(way: Way, number: i64, args: &[Arg]) -> Vec<u8> {
    let code = |texts: u64| code(way, number, args, texts);
    let length = code(0).len() as u64;
    let mut body = code(BASE + HEADERS + length);
    for arg in args {
        if let Text(text) = arg {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // ET_EXEC, EM_X86_64, version, entry point, program headers, no sections.
    file.extend([2u16, 62].iter().flat_map(|field| field.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([BASE + HEADERS, 64, 0].iter().flat_map(|field| field.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|field| field.to_le_bytes()));
    // PT_LOAD, readable and executable, the whole file.
    file.extend([1u32, 5].iter().flat_map(|field| field.to_le_bytes()));
    let size = HEADERS + body.len() as u64;
    file.extend([0, BASE, BASE, size, size, 0x1000].iter().flat_map(|field| field.to_le_bytes()));
    file.extend(body);
    file
}

fn code(way: Way, number: i64, args: &[Arg], texts: u64) -> Vec<u8> {
    // mov $imm64, register: rdi, rsi, rdx, r10, r8, r9; or rbx, rcx, rdx, rsi, rdi, rbp.
    const NATIVE: [[u8; 2]; 6] = [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba], [0x49, 0xb8], [0x49, 0xb9]];
    const OLD: [[u8; 2]; 6] = [[0x48, 0xbb], [0x48, 0xb9], [0x48, 0xba], [0x48, 0xbe], [0x48, 0xbf], [0x48, 0xbd]];
    let registers = if way == Way::Native { NATIVE } else { OLD };
    let (mut out, mut text_at) = (Vec::new(), texts);
    for (register, arg) in registers.iter().zip(args) {
        let value = match arg {
            Number(number) => *number as u64,
            Text(text) => {
                let at = text_at;
                text_at += text.len() as u64 + 1;
                at
            }
        };
        out.extend(register);
        out.extend(value.to_le_bytes());
    }
    out.extend([0x48, 0xb8]);
    out.extend(number.to_le_bytes());
    out.extend(if way == Way::Native { [0x0f, 0x05] } else { [0xcd, 0x80] });
    // A 32-bit result has to become a 64-bit one (cdqe).
    out.extend(if way == Way::Native { vec![] } else { vec![0x48, 0x98] });
    // result < 0 ? -result : 0; exit(2) with it.
    out.extend([0x48, 0x85, 0xc0, 0x79, 0x05, 0x48, 0xf7, 0xd8, 0xeb, 0x02, 0x31, 0xc0, 0x89, 0xc7]);
    out.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    out
}

/// Puts one into a folder of an image.
pub fn install(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
