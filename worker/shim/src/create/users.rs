//! A user namespace of the container's own: the host's view of its ids, and the step into it.
//!
//! Used by the container's creation. The tree is put together with the rights of the host's root, since a namespace that is
//! not the host's may mount little; what is made on the way belongs to the container's root. The step comes when all is in
//! place, and from then on this process can do to the host what an ordinary user can. The namespaces of mounts, processes
//! and names stay the host's: the container may not even undo what it was given where it holds capabilities.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use skep_shim::ids;
use skep_shim::plan::Plan;
use skep_shim::user::User;

use super::{Failure, at};
use crate::sys::{c_string, check};
use crate::tree;

/// linux/capability.h
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// A change of the file system's user takes no capability (linux/securebits.h).
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// A container's user namespace.
pub(super) struct Users {
    namespace: File,
    /// The host's ids of the container's root.
    pub(super) root: (u32, u32),
}

/// Opens the plan's; `None`: it has the host's. `/proc` is still the host's.
pub(super) fn open(plan: &Plan) -> Result<Option<Users>, Failure> {
    if plan.user_namespace.is_empty() {
        return Ok(None);
    }
    let namespace = File::open(&plan.user_namespace)
        .map_err(at(format!("cannot open the user namespace {}", plan.user_namespace)))?;
    let (Some(uid), Some(gid)) = (ids::outside(&plan.uids, 0), ids::outside(&plan.gids, 0)) else {
        return Err(Failure::new("the ids of this host's containers have none for root"));
    };
    Ok(Some(Users { namespace, root: (uid, gid) }))
}

/// The host's ids of the container's user.
pub(super) fn outside(plan: &Plan, user: &User) -> Result<(u32, u32), Failure> {
    let missing = |what: &str, id: u32| {
        Failure::new(format!("the container's {what} {id} is none of those that this host remaps"))
    };
    let uid = ids::outside(&plan.uids, user.uid).ok_or_else(|| missing("user", user.uid))?;
    let gid = ids::outside(&plan.gids, user.gid).ok_or_else(|| missing("group", user.gid))?;
    match user.groups.iter().find(|group| ids::outside(&plan.gids, **group).is_none()) {
        Some(group) => Err(missing("group", *group)),
        None => Ok((uid, gid)),
    }
}

impl Users {
    /// Lets a layer's files belong, in this process' mount namespace, to the ids that the container has for their owners.
    pub(super) fn show(&self, layer: &str) -> Result<(), Failure> {
        let show = || {
            let place = tree::open_path(&c_string(layer)?)?;
            let copy = tree::copy(&place, false)?;
            tree::map_ids(&copy, self.namespace.as_raw_fd())?;
            tree::attach(&copy, &place)
        };
        show().map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS) => Failure::new(format!(
                "cannot remap ids of {layer}: this host's kernel, or the file system below, has no idmapped mounts"
            )),
            _ => at(format!("cannot remap ids of {layer}"))(error),
        })
    }

    /// What is made from here on belongs to the container's root.
    pub(super) fn make_as_root(&self) -> Result<(), Failure> {
        let (uid, gid) = self.root;
        // SAFETY: plain numbers.
        unsafe {
            check(libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
                .map_err(at("cannot keep rights while files are made"))?;
            // The calls return what was; a second one tells what is.
            libc::setfsgid(gid);
            libc::setfsuid(uid);
            if (libc::setfsgid(gid), libc::setfsuid(uid)) != (gid as libc::c_int, uid as libc::c_int) {
                return Err(Failure::new("cannot make files as the container's root"));
            }
        }
        Ok(())
    }

    /// Enters it: all capabilities now count in it alone. One that may mount there gets the tree as a copy of its own, in
    /// which it can undo nothing of what it was given (mount_namespaces(7), "locked").
    pub(super) fn enter(self, plan: &Plan) -> Result<(), Failure> {
        // SAFETY: the descriptor is open; plain flags; the process has one thread.
        unsafe {
            check(libc::setns(self.namespace.as_raw_fd(), libc::CLONE_NEWUSER))
                .map_err(at("cannot enter the user namespace"))?;
            if plan.capabilities & CAP_SYS_ADMIN != 0 {
                check(libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS))
                    .map_err(at("cannot make namespaces of its own"))?;
            }
        }
        Ok(())
    }
}

/// Makes a folder of the container's directory the container's root's.
pub(super) fn give(users: &Users, folder: &str) -> Result<(), Failure> {
    let give = || {
        let place: OwnedFd = File::open(folder)?.into();
        // SAFETY: the descriptor is open; plain numbers.
        check(unsafe { libc::fchown(place.as_raw_fd(), users.root.0, users.root.1) }).map(drop)
    };
    give().map_err(at("cannot hand the writable layer over"))
}
