//! Runs this CPU's tasks, one at a time on the one stack, and halts when none is ready.
//!
//! A task runs until it returns. What bounds it is the alarm: while others wait, it is set to the end of the slice; the
//! interrupt takes the CPU out of the guest, and the guest's task sees [`slice_is_over`] and returns.

use crate::alarms::{Change, Slot};
use crate::idt::vector;
use crate::run_queue::{Role, SLICE, Task, Waker};
use crate::{apic, clock, cpu, percpu};
use alloc::boxed::Box;
use core::sync::atomic::Ordering;

/// Gives this CPU a task.
pub fn spawn(name: &'static str, role: Role, weight: u32, task: Box<dyn Task>, waker: Waker) {
    percpu::current().queue.lock().add(name, role, weight, task, waker);
}

/// A waker for a task that is about to be spawned.
pub fn waker() -> Waker {
    Waker::new(kick)
}

/// Makes CPU `number` look at its queue: it leaves its guest or its halt.
fn kick(number: u32) {
    if number != percpu::number()
        && let Some(cpu) = percpu::by_number(number)
    {
        apic::send(cpu.apic_id, vector::KICK);
    }
}

/// Runs tasks until all that are [`Role::Work`] have finished.
pub fn run() {
    let cpu = percpu::current();
    loop {
        let now = clock::now();
        let mut queue = cpu.queue.lock();
        if !queue.has_work() {
            return;
        }
        let Some(mut turn) = queue.pick(now) else {
            let next = queue.next_deadline();
            drop(queue);
            set_alarm(Slot::Slice, None);
            set_alarm(Slot::Wake, next);
            // Interrupts are off since before the queue was looked at, so whatever wakes a task from here on ends the halt.
            cpu::halt_until_interrupt();
            cpu.idle_time.fetch_add(clock::now().saturating_sub(now), Ordering::Relaxed);
            continue;
        };
        let next = queue.next_deadline();
        let slice_end = queue.others_ready(now).then_some(now + SLICE);
        drop(queue);
        set_alarm(Slot::Wake, next);
        set_alarm(Slot::Slice, slice_end);
        cpu.slice_end.store(now + SLICE, Ordering::Relaxed);
        let answer = turn.task.poll();
        set_alarm(Slot::Guest, None);
        let ran = clock::now().saturating_sub(now);
        let finished = cpu.queue.lock().put_back(turn, ran, answer);
        drop(finished);
    }
}

/// Whether the running task should give the CPU back because its slice is over and another task is ready.
pub fn slice_is_over() -> bool {
    let cpu = percpu::current();
    let now = clock::now();
    now >= cpu.slice_end.load(Ordering::Relaxed) && cpu.queue.lock().others_ready(now)
}

/// Sets or clears one of this CPU's alarms, in nanoseconds of the clock.
pub fn set_alarm(slot: Slot, deadline: Option<u64>) {
    let change = percpu::current().alarms.lock().set(slot, deadline);
    apply(change);
}

/// The earliest of this CPU's alarms.
pub fn next_alarm() -> Option<u64> {
    percpu::current().alarms.lock().next()
}

/// The alarm interrupt.
pub fn alarm_fired() {
    let cpu = percpu::current();
    let now = clock::now();
    let change = cpu.alarms.lock().fired(now);
    apply(change);
    // A blocked task that became ready competes with the running one: from now on its slice counts.
    if cpu.queue.lock().others_ready(now) {
        let end = cpu.slice_end.load(Ordering::Relaxed).max(now);
        set_alarm(Slot::Slice, Some(end).filter(|&end| end > now));
    }
}

fn apply(change: Change) {
    match change {
        Change::None => {}
        Change::Set(deadline) => apic::set_timer(deadline),
        Change::Stop => apic::stop_timer(),
    }
}
