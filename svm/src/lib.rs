//! AMD-V.

#![no_std]

extern crate alloc;

pub mod asid;
pub mod capability;
pub mod controls;
pub mod decode;
pub mod paging;
pub mod vmcb;
