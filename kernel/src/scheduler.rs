//! Runs each CPU's tasks, one at a time on the CPU's one stack, and halts when none is ready.
//!
//! A task runs until it returns. What bounds it is the alarm: while others wait, it is set to the end of the slice; the
//! interrupt takes the CPU out of the guest, and the guest's task sees [`slice_is_over`] and returns.
//!
//! Tasks are spread: a new one goes to the CPU with the least load, and a CPU that has nothing to do takes one that waits
//! elsewhere. A task wakes another by a flag and a kick ([`Waker`]): an interrupt to the CPU that has it, whether that one
//! is halted, in a guest, or busy with a third. An external interrupt suffices: it stays pending while host code runs, so
//! that none is lost between a look at the mailbox and the entry, which an NMI would be. Where an emulator loses one for a
//! guest with interrupts off (Bochs), the run's own limit, a slice at most, ends it: the VMX preemption timer.

use crate::alarms::{Change, Slot};
use crate::idt::vector;
use crate::percpu::PerCpu;
use crate::run_queue::{Entry, LEAST_RUN, Role, SLICE, Task, Waker, Woken};
use crate::{apic, clock, cpu, percpu};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};

/// Tasks that are [`Role::Work`] and not finished, on all CPUs.
static WORK: AtomicU32 = AtomicU32::new(0);

/// Gives a task to the CPU that has the least to do.
pub fn spawn(name: &str, role: Role, weight: u32, task: Box<dyn Task>, waker: Waker) {
    if role == Role::Work {
        WORK.fetch_add(1, Ordering::SeqCst);
    }
    let least = percpu::all().min_by_key(|cpu| cpu.queue.lock().load());
    let cpu = least.expect("the boot CPU is up");
    cpu.queue.lock().add(Entry::new(name, role, weight, task, waker));
    kick(Woken::Waiting(cpu.number));
}

/// A waker for a task that is about to be spawned.
pub fn waker() -> Waker {
    Waker::new(kick)
}

/// Makes a CPU look at its queue, or at what its running task was woken for: it leaves its guest or its halt.
fn kick(woken: Woken) {
    let own = percpu::current();
    match woken {
        // Whoever woke the task that runs here is that task, or an interrupt that has taken it out of its guest.
        Woken::Running(number) if number == own.number => {}
        Woken::Waiting(number) if number == own.number => shorten_slice(own),
        Woken::Running(number) | Woken::Waiting(number) => {
            if let Some(cpu) = percpu::by_number(number) {
                apic::send(cpu.apic_id, vector::KICK);
            }
        }
    }
}

/// Runs tasks on the boot CPU until all that are [`Role::Work`] have finished, wherever they run.
pub fn run() {
    let cpu = percpu::current();
    assert_eq!(cpu.number, WAITER, "one CPU waits for the end of work");
    while WORK.load(Ordering::SeqCst) > 0 {
        step(cpu);
    }
}

/// The CPU that [`run`]s.
const WAITER: u32 = 0;

/// Runs tasks on any other CPU, for good.
pub fn serve() -> ! {
    let cpu = percpu::current();
    loop {
        step(cpu);
    }
}

/// One turn of one task, or one halt.
fn step(cpu: &'static PerCpu) {
    // What came while host code ran is dealt with here even if a guest keeps its own interrupts off for good.
    cpu::take_interrupts();
    let now = clock::now();
    let mut queue = cpu.queue.lock();
    let Some(mut task) = queue.pick(now) else {
        let next = queue.next_deadline();
        drop(queue);
        return rest(cpu, next, now);
    };
    let next = queue.next_deadline();
    let others = queue.others_ready(now);
    drop(queue);
    if others {
        wake_idle_cpu(cpu);
    }
    set_alarm(Slot::Wake, next);
    set_alarm(Slot::Slice, others.then_some(now + SLICE));
    cpu.slice_start.store(now, Ordering::Relaxed);
    cpu.slice_end.store(now + SLICE, Ordering::Relaxed);
    let answer = task.poll();
    set_alarm(Slot::Guest, None);
    cpu.slice_end.store(u64::MAX, Ordering::Relaxed);
    let ran = clock::now().saturating_sub(now);
    let finished = cpu.queue.lock().put_back(task, ran, answer);
    if let Some((role, task)) = finished {
        drop(task);
        if role == Role::Work && WORK.fetch_sub(1, Ordering::SeqCst) == 1 {
            kick(Woken::Waiting(WAITER));
        }
    }
}

/// Takes work from another CPU, else halts until there is some here.
fn rest(cpu: &'static PerCpu, next: Option<u64>, now: u64) {
    // Said before the others' queues are looked at: whoever gets more than it can run after that look sees it.
    cpu.idle.store(true, Ordering::SeqCst);
    match take_from_others(cpu, now) {
        Some(entry) => cpu.queue.lock().add(entry),
        None => {
            set_alarm(Slot::Slice, None);
            set_alarm(Slot::Wake, next);
            // Interrupts are off since before the queue was looked at, so whatever wakes a task from here on ends the halt.
            cpu.halts(now);
            cpu::halt_until_interrupt();
            cpu.goes_on(clock::now());
        }
    }
    cpu.idle.store(false, Ordering::SeqCst);
}

/// A task that has to wait for another CPU; those with the next numbers are asked first.
fn take_from_others(own: &PerCpu, now: u64) -> Option<Entry> {
    let count = percpu::count() as u32;
    let mut others = (1..count).filter_map(|step| percpu::by_number((own.number + step) % count));
    others.find_map(|other| other.queue.lock().give_away(now))
}

/// `cpu` has more than it can run: gets a CPU that has nothing to do to look.
fn wake_idle_cpu(cpu: &PerCpu) {
    let idle = percpu::all().find(|other| other.number != cpu.number && other.idle.swap(false, Ordering::SeqCst));
    if let Some(idle) = idle {
        apic::send(idle.apic_id, vector::KICK);
    }
}

/// A task became ready beside the one that runs: that one has had [`LEAST_RUN`], or goes on until it has.
fn shorten_slice(cpu: &PerCpu) {
    if cpu.slice_end.load(Ordering::Relaxed) == u64::MAX {
        return;
    }
    let least = cpu.slice_start.load(Ordering::Relaxed).saturating_add(LEAST_RUN);
    let end = cpu.slice_end.fetch_min(least, Ordering::Relaxed).min(least);
    set_alarm(Slot::Slice, Some(end));
    wake_idle_cpu(cpu);
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
    look(cpu, now);
}

/// The interrupt by which another CPU tells that something is ready here.
pub fn kicked() {
    look(percpu::current(), clock::now());
}

/// A task that became ready competes with the running one: from now on its slice counts.
fn look(cpu: &PerCpu, now: u64) {
    let ends = cpu.slice_end.load(Ordering::Relaxed);
    // Past its end the running task gives way as soon as it looks, which this interrupt has brought about.
    if ends != u64::MAX && now < ends && cpu.queue.lock().others_ready(now) {
        shorten_slice(cpu);
    }
}

fn apply(change: Change) {
    match change {
        Change::None => {}
        Change::Set(deadline) => apic::set_timer(deadline),
        Change::Stop => apic::stop_timer(),
    }
}
