//! AMD-V.

#![no_std]

extern crate alloc;

pub mod capability;
pub mod controls;
pub mod decode;
pub mod vmcb;
