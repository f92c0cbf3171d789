"""Gearshift's host tools: what scripts/run, scripts/test and scripts/bench are made of.

Standard library only. Rooms: `archive` (Debian packages without touching the system's apt),
`setup` (what must be there before anything runs), `guests` and `cpio` (guest images), `build`
(cargo), `qemu` and `bochs` (the machines Gearshift runs in), `console` (the guest's serial line),
`journal` (the hypervisor's own log), `session` (one run, put together), `commandline` (scripts/run),
`checks` (scripts/test), `bench` (scripts/bench).
"""
