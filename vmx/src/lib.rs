//! Intel VT-x.

#![no_std]

extern crate alloc;

pub mod capability;
pub mod checks;
pub mod controls;
pub mod decode;
pub mod entry;
pub mod field;
pub mod instr;
pub mod paging;
pub mod region;
pub mod vpid;
