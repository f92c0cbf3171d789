//! What every device model is to the bus: a register file.

use crate::Nanos;

/// A device on a bus.
///
/// The bus hands it the offset within the range that it claimed (plus the offset at which that range starts inside
/// the device, see [`crate::Bus::claim`]) and the bytes of the access, 1 to 8 of them, little-endian. The device knows
/// neither its port or address nor who accesses it; interrupt lines, clock and sinks were injected when it was made.
///
/// No access can fail: an offset or size that the device does not decode reads as all ones and ignores writes, as the
/// open bus does. No access may block, allocate or loop longer than a bound that the device fixes.
pub trait Device: Send {
    /// Fills all of `data` with what the registers at `offset` hold.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` to the registers at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);

    /// When the device next has to act by itself; `None` while it has nothing to wait for.
    ///
    /// Asked after every access and after every [`Device::expire`], so it must be cheap.
    fn deadline(&self) -> Option<Nanos> {
        None
    }

    /// Acts on everything that is due at `now`. Missed periods are coalesced or replayed as the real chip's driver
    /// can bear it, in bounded work.
    fn expire(&mut self, _now: Nanos) {}

    /// Back to the state after a platform reset (RESET#). Contents that real hardware keeps, such as CMOS, stay.
    fn reset(&mut self);
}
