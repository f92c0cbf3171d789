"""One run of Gearshift in a machine, from its options to its outcome.

`Session.run` starts the machine, moves bytes between the guest's console, the log and the user, watches for the expected text
and the time limit, and ends the machine. Key types: `Options` (what scripts/run was asked), `Outcome` (what came of it).
"""

import enum
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import bochs, build, console, cpio, guests, image, journal, machines, qemu, setup
from .archive import Program
from .dialogue import Dialogue
from .errors import UserError
from .journal import Ending, Journal
from .lines import READ_SIZE, Line
from .progress import say

SUCCESS, FAILED, HYPERVISOR_FAILED = 0, 1, 3
# How long the hypervisor gets to write its statistics once it is told to end.
END_GRACE_SECONDS = 3.0
END_LINE = b"quit\n"
LIFE_CHECK_SECONDS = 1.0
MACHINE_ENDS_SECONDS = 5.0  # for a machine that has closed its serial lines
KERNEL_MODULE, INITRD_MODULE, COMMAND_LINE_MODULE = "kernel", "initrd", "vm.cmdline"


@dataclass
class Options:
    """What to run and what to expect of it; the fields are the options of scripts/run.

    `prebuilt` is the hypervisor, `iso` an image that holds it and its guests already, `dialogue` a script of several steps.
    """

    cpu: str = "auto"
    kernel: str | None = None
    vms: str | None = None
    initrd: str | None = None
    append: str = "console=ttyS0"
    modules: list = field(default_factory=list)
    memory: int = 512 << 20
    vcpus: int = 1
    host_cpus: int = 1
    host_memory: int | None = None
    boot: str | None = None
    medium: str = "cd"
    iso: Path | None = None
    expect: str | None = None
    timeout: float | None = None
    expect_first: str | None = None
    send: str | None = None
    icount: bool = False
    log: str | None = None
    stats: str | None = None
    report: str | None = None
    kvm: bool = False
    cpu_model: str = ""
    hypervisor_options: str = ""
    without_hypervisor: bool = False
    prebuilt: Path | None = None
    dialogue: tuple = ()


@dataclass
class Outcome:
    """How a run ended. `reason` is one line for the user when `status` is not 0 (or a remark when it is)."""

    status: int
    reason: str
    seconds: float
    console: bytes
    journal: Journal
    ending: Ending | None = None
    statistics: dict | None = None
    arrivals: list = field(default_factory=list)
    moments: list = field(default_factory=list)

    def text(self) -> str:
        """What the guest printed."""
        return self.console.decode(errors="replace").replace("\r\n", "\n")

    def moment(self, text: bytes) -> float | None:
        """Seconds from the start until `text` had arrived whole on the console; None if it never did."""
        found = self.console.find(text)
        if found < 0:
            return None
        return next(when for length, when in self.arrivals if length >= found + len(text))


def module_files(options: Options) -> dict:
    """The files that the hypervisor gets, by the names it knows them by."""
    if options.vms:
        files = dict(machines.read(Path(options.vms)).files)
    else:
        files = {KERNEL_MODULE: Path(options.kernel) if options.kernel else guests.kernel()}
        if options.initrd:
            files[INITRD_MODULE] = Path(options.initrd)
        elif not options.kernel:
            files[INITRD_MODULE] = guests.shell_initramfs()
        files[COMMAND_LINE_MODULE] = options.append.encode()
    for module in options.modules:
        name = Path(module).name
        if name in files:
            raise UserError(f"two modules are named {name}")
        files[name] = Path(module)
    return files


def command_line(options: Options, files: dict) -> str:
    """The hypervisor's command line: the one VM, as words `vm.key=value`, unless a file describes them."""
    if options.vms:
        return options.hypervisor_options
    words = [f"vm.memory={options.memory}", f"vm.vcpus={options.vcpus}", f"vm.kernel={KERNEL_MODULE}"]
    if INITRD_MODULE in files:
        words.append(f"vm.initrd={INITRD_MODULE}")
    if options.hypervisor_options:
        words.append(options.hypervisor_options)
    return " ".join(words)


def machine_memory(options: Options, module_bytes: int) -> int:
    """Memory of the machine that runs the hypervisor and its guests, in bytes."""
    if options.host_memory:
        return options.host_memory
    return qemu.memory_for(machines.read(Path(options.vms)).memory if options.vms else options.memory, module_bytes)


class Session:
    """A run. `echo` shows the guest's console on standard output, `terminal` attaches the user's terminal, `typing` standard input."""

    def __init__(self, options: Options, echo: bool = True, terminal: bool = False, typing: bool = False):
        self.options = options
        self._echo = echo
        self._terminal = terminal
        self._typing = typing
        self._console = bytearray()
        self._log = bytearray()
        self._outgoing = bytearray()
        self._expectation = console.Expectation()
        self._escape = console.EscapeKey()
        self._sent = options.send is None
        self._dialogue = Dialogue(options.dialogue) if options.dialogue else None
        self._process: subprocess.Popen | None = None
        self._arrivals: list = []
        self._start = 0.0

    def run(self) -> Outcome:
        """Starts the machine and stays until it ends or need run no longer."""
        hypervisor = None if self.options.without_hypervisor else self.options.prebuilt or build.hypervisor()
        files = module_files(self.options)
        with tempfile.TemporaryDirectory(prefix="gearshift-") as folder:
            start = self._on_bochs if self.options.cpu == "intel" else self._on_qemu
            launch = start(hypervisor, files, Path(folder))
            outcome = self._attached(launch)
        self._write_files(outcome)
        return outcome

    def _on_qemu(self, hypervisor: Path | None, files: dict, folder: Path) -> "Launch":
        options = self.options
        lines = (Line.by_socket(), Line.by_socket())
        direct = options.boot in (None, "pvh")
        if not direct:
            start, memory = self._disc(hypervisor, files, folder)
        elif hypervisor is None:
            start = qemu.Direct(files[KERNEL_MODULE], options.append, files.get(INITRD_MODULE))
            memory = options.memory
        else:
            modules = folder / "modules.cpio"
            modules.write_bytes(cpio.of_files(files))
            start = qemu.Direct(hypervisor, command_line(options, files), modules)
            memory = machine_memory(options, modules.stat().st_size)
        machine = qemu.Machine(start, memory, *(line.theirs for line in lines), icount=options.icount, kvm=options.kvm,
                               cpu_model=options.cpu_model, cpus=options.host_cpus)
        return Launch(*qemu.command(machine), *lines, None)

    def _disc(self, hypervisor: Path | None, files: dict, folder: Path) -> tuple:
        """The image that the machine's firmware boots, and how much memory the machine needs."""
        options = self.options
        iso = self._image(hypervisor, files, folder)
        memory = options.memory if hypervisor is None else machine_memory(options, iso.stat().st_size)
        variables = None
        if options.boot.endswith("-uefi"):
            variables = folder / "uefi-variables"
            variables.write_bytes(setup.ovmf()[1].read_bytes())
            memory += qemu.UEFI_MEMORY
        return qemu.Disc(iso, options.medium == "usb", variables), memory

    def _image(self, hypervisor: Path | None, files: dict, folder: Path) -> Path:
        """The image that a loader boots, with GRUB if nothing else is said."""
        options = self.options
        if options.iso:
            return options.iso
        if hypervisor is None:
            entry = image.linux_entry(files[KERNEL_MODULE], files.get(INITRD_MODULE), options.append)
        else:
            entry = image.hypervisor_entry(hypervisor, command_line(options, files), files)
        maker = image.ISO_MAKERS[(options.boot or "grub-bios").partition("-")[0]]
        return maker(folder / "gearshift.iso", entry, image.Look(), folder)

    def _on_bochs(self, hypervisor: Path | None, files: dict, folder: Path) -> "Launch":
        options = self.options
        iso = self._image(hypervisor, files, folder)
        memory = options.memory if hypervisor is None else machine_memory(options, iso.stat().st_size)
        if memory > bochs.MEMORY_MOST:
            raise UserError(f"--cpu intel: the machine has at most {bochs.MEMORY_MOST >> 30} GiB, too little for this guest")
        lines = (Line.by_terminal(), Line.by_terminal())
        machine = bochs.Machine(iso, memory, lines[0].path(), lines[1].path(), options.cpu_model or bochs.CPU_MODEL,
                                options.host_cpus)
        return Launch(*bochs.command(machine, folder)[:2], *lines, folder / bochs.LOG_NAME)

    def _attached(self, launch: "Launch") -> Outcome:
        lines = (launch.console, launch.log)
        with tempfile.TemporaryFile() as complaints, console.RawTerminal(self._terminal), interrupts_raised():
            start = self._start = time.monotonic()
            inherited = [line.theirs for line in lines] if launch.machine_log is None else []
            self._process = subprocess.Popen(launch.arguments, env=launch.program.env(), stdin=subprocess.DEVNULL, stdout=complaints,
                                             stderr=complaints, pass_fds=inherited, start_new_session=True)
            RUNNING.add(self._process)
            if launch.machine_log is None:
                for line in lines:
                    line.given_away()
            try:
                stop = self._pump(*lines)
                if stop is not None:
                    self._end_in_order(*lines)
                self._process_ended(0 if stop else MACHINE_ENDS_SECONDS)
            finally:
                end_process(self._process)
                RUNNING.discard(self._process)
                for line in lines:
                    line.close()
            seconds = time.monotonic() - start
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip()
            if launch.machine_log is not None:
                said = bochs.ending(launch.machine_log.read_text(errors="replace") if launch.machine_log.exists() else "")[1] or said
        return self._judge(stop, seconds, said)

    def _pump(self, console_end: Line, log_end: Line) -> "Stop | None":
        """Moves bytes until the machine ends (None) or there is a reason to stop it."""
        deadline = self._start + self.options.timeout if self.options.timeout is not None else None
        with selectors.DefaultSelector() as selector:
            selector.register(console_end, selectors.EVENT_READ, self._console)
            selector.register(log_end, selectors.EVENT_READ, self._log)
            if self._typing:
                try:
                    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
                except PermissionError:
                    # A regular file is always ready and cannot be waited for: type it at once.
                    self._outgoing += sys.stdin.buffer.read()
            open_ends = {console_end, log_end}
            while open_ends and self._process.poll() is None or self._drain(open_ends):
                look_again = LIFE_CHECK_SECONDS
                if self._dialogue:
                    look_again = self._converse(log_end)
                    if self._dialogue.done():
                        return Stop.EXPECTED
                if console_end in open_ends:
                    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
                    selector.modify(console_end, wanted, self._console)
                left = look_again if deadline is None else min(look_again, deadline - time.monotonic())
                if left <= 0:
                    return Stop.TIMEOUT
                for key, events in selector.select(left):
                    if events & selectors.EVENT_WRITE:
                        self._type(console_end)
                    if not events & selectors.EVENT_READ:
                        continue
                    if key.data is None:
                        if not self._keys(selector):
                            return Stop.QUIT
                        continue
                    data = key.fileobj.read()
                    if data is None:
                        continue
                    if not data:
                        selector.unregister(key.fileobj)
                        open_ends.discard(key.fileobj)
                        continue
                    key.data.extend(data)
                    if key.data is self._console:
                        self._arrivals.append((len(self._console), time.monotonic() - self._start))
                    if key.data is self._console and self._printed(data):
                        return Stop.EXPECTED
        return None

    def _converse(self, log_end: Line) -> float:
        """Goes on with the dialogue; seconds until it is to be looked at again at the latest."""
        said, ordered = self._dialogue.advance(bytes(self._console), bytes(self._log))
        self._outgoing += said
        if ordered:
            log_end.write(ordered)  # a short line: it fits
        pause = self._dialogue.pause_left()
        return LIFE_CHECK_SECONDS if pause is None else max(pause, 0.001)

    def _drain(self, open_ends: set) -> bool:
        """Whether something is left to read after the machine ended."""
        return bool(open_ends) and bool(select.select(list(open_ends), [], [], 0)[0])

    def _type(self, console_end: Line) -> None:
        sent = console_end.write(self._outgoing)
        del self._outgoing[:len(self._outgoing) if sent is None else sent]

    def _keys(self, selector: selectors.BaseSelector) -> bool:
        """Takes what the user typed; False if the user wants to quit."""
        data = os.read(sys.stdin.fileno(), READ_SIZE)
        if not data:
            selector.unregister(sys.stdin.fileno())
            return True
        if self._terminal:
            data, leave = self._escape.filter(data)
            if leave:
                return False
        self._outgoing += data
        return True

    def _printed(self, data: bytes) -> bool:
        """Takes what the guest printed; True if the expected text has appeared."""
        if self._echo:
            console.write_out(data)
        options = self.options
        if options.expect is None and self._sent:
            return False
        self._expectation.feed(data)
        if not self._sent:
            if options.expect_first is None or self._expectation.appeared(options.expect_first.encode()):
                self._sent = True
                line = options.send.rstrip("\r\n") if options.send.endswith(("\r", "\n")) else options.send
                self._expectation.typed(line.encode())
                self._outgoing += line.replace("\n", "\r").encode() + b"\r"
            return False
        return options.expect is not None and self._expectation.appeared(options.expect.encode())

    def _end_in_order(self, console_end: Line, log_end: Line) -> None:
        """Tells the hypervisor to end, for its statistics; it may be unable to."""
        if self.options.without_hypervisor or not log_end.write(END_LINE):
            return
        deadline = time.monotonic() + END_GRACE_SECONDS
        ends = {console_end: self._console, log_end: self._log}
        with selectors.DefaultSelector() as selector:
            for end in ends:
                selector.register(end, selectors.EVENT_READ)
            while selector.get_map() and self._process.poll() is None and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(min(left, LIFE_CHECK_SECONDS)):
                    data = key.fileobj.read()
                    if data == b"":
                        selector.unregister(key.fileobj)
                    elif data:
                        ends[key.fileobj].extend(data)

    def _process_ended(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass

    def _judge(self, stop, seconds: float, said: str) -> Outcome:
        log = Journal(bytes(self._log))
        status = self._process.returncode
        ending = log.ending() or (journal.ending_of_qemu_status(status) if status is not None and status >= 0 else None)
        outcome = Outcome(SUCCESS, "", seconds, bytes(self._console), log, ending, log.statistics(), self._arrivals,
                          [moment - self._start for moment in self._dialogue.moments] if self._dialogue else [])
        expect = self.options.expect
        if stop is Stop.EXPECTED:
            return outcome
        if stop is Stop.QUIT:
            outcome.reason = "left by Ctrl-A x"
        elif stop is Stop.TIMEOUT:
            outcome.status = FAILED
            awaited = self._dialogue.awaited() if self._dialogue else self.options.expect_first if not self._sent else expect
            what = f"{awaited!r} did not appear on the guest's console" if awaited else "the run did not end"
            outcome.reason = f"{what} within {self.options.timeout:g} s"
        elif ending is Ending.VM_STOPPED:
            outcome.status, outcome.reason = FAILED, "the VM was stopped; its report is above"
        elif ending is Ending.PANIC or log.panic():
            outcome.status, outcome.reason = HYPERVISOR_FAILED, "the hypervisor panicked"
        elif ending is Ending.USER_ERROR:
            outcome.status, outcome.reason = 2, log.user_error() or "the hypervisor refused to run and did not say why"
        elif ending is None and not (self.options.without_hypervisor and self._machine_ended_well(said)):
            outcome.status = HYPERVISOR_FAILED
            outcome.reason = said.splitlines()[-1] if said else f"the machine reset or stopped without a word (QEMU status {status})"
        elif not self._sent or expect is not None or self._dialogue and not self._dialogue.done():
            awaited = self._dialogue.awaited() if self._dialogue else expect if self._sent else self.options.expect_first
            outcome.status, outcome.reason = FAILED, f"the guest ended before {awaited!r} appeared on its console"
        return outcome

    def _machine_ended_well(self, said: str) -> bool:
        """Whether a machine without Gearshift ended as its guest wished."""
        if self.options.cpu == "intel":
            return bochs.ending(said)[0] in (bochs.MachineEnding.ACPI_POWER_OFF, bochs.MachineEnding.SHUTDOWN_PORT)
        return self._process.returncode == 0

    def _write_files(self, outcome: Outcome) -> None:
        try:
            if self.options.log:
                Path(self.options.log).write_bytes(bytes(self._log))
            if self.options.report:
                write_reports(Path(self.options.report), outcome.journal)
            if self.options.stats:
                record = {
                    **(outcome.statistics or {}),
                    "complete": outcome.statistics is not None,
                    "outcome": (outcome.ending.name.lower() if outcome.ending else "ended_from_outside"),
                    "status": outcome.status,
                    "machine": "bochs" if self.options.cpu == "intel" else "qemu-kvm" if self.options.kvm else "qemu-tcg",
                    "icount": self.options.icount,
                    "wall_seconds": round(outcome.seconds, 3),
                }
                if not self.options.icount:
                    record.pop("instructions", None)
                Path(self.options.stats).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {error.filename}: {error.strerror}") from None


class Stop(enum.Enum):
    """A reason to end the machine from outside."""

    EXPECTED = "the expected text appeared"
    QUIT = "the user quit"
    TIMEOUT = "the time was up"


@dataclass(frozen=True)
class Launch:
    """A machine about to be started. `machine_log` is the emulator's own log where it is the one that says why it ended."""

    program: Program
    arguments: list
    console: Line
    log: Line
    machine_log: Path | None


# The machines that this process runs now.
RUNNING: set = set()


class Interrupted(Exception):
    """A signal asked this process to end; `args[0]` is its number."""


class interrupts_raised:
    """Turns the ending signals into `Interrupted`, so that everything is put back on the way out."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self):
        self._former = []
        if threading.current_thread() is not threading.main_thread():
            return self  # the main thread gets the signals and ends RUNNING

        def raise_interrupted(number, _frame):
            raise Interrupted(number)

        self._former = [(number, signal.signal(number, raise_interrupted)) for number in self.SIGNALS]
        return self

    def __exit__(self, *_):
        for number, handler in self._former:
            signal.signal(number, handler)


def end_process(process: subprocess.Popen) -> None:
    """Ends a machine that still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_reports(place: Path, log: Journal) -> None:
    """Keeps the reports of stopped VMs: as text, and as JSON beside it with `.json` added; or as JSON alone if the name ends so."""
    as_json = json.dumps(log.report_objects(), indent=2) + "\n"
    if place.suffix == ".json":
        place.write_text(as_json, encoding="utf-8")
        return
    texts = [f"virtual machine {name}\n{text}\n" if name else f"{text}\n" for name, text in log.reports()]
    place.write_text("\n".join(texts) or "no virtual machine was stopped\n", encoding="utf-8")
    place.with_name(place.name + ".json").write_text(as_json, encoding="utf-8")


def show_ending(outcome: Outcome) -> None:
    """Tells the user what a run left behind: a VM's report, a crash dump, a summary of the exits."""
    report = outcome.journal.brief_report()
    if report:
        print(report, file=sys.stderr)
    if outcome.ending is Ending.PANIC or (outcome.journal.panic() and outcome.status):
        print(outcome.journal.panic() or outcome.journal.tail(), file=sys.stderr)
    if outcome.statistics:
        for line in summary(outcome.statistics, outcome.seconds):
            say(line)
    if outcome.status:
        say(f"error: {outcome.reason}")
    elif outcome.reason:
        say(outcome.reason)


def summary(statistics: dict, wall_seconds: float) -> list:
    """The summary of a run as lines."""
    exits = statistics.get("exits", {})
    run = statistics.get("run_time_ns")
    times = f"ran {run / 1e9:.2f} s, " if isinstance(run, (int, float)) else ""
    lines = [f"{times}{wall_seconds:.2f} s of wall time, {sum(exits.values())} exits"]
    width = max((len(reason) for reason in exits), default=0)
    for reason, count in sorted(exits.items(), key=lambda item: (-item[1], item[0])):
        if count:
            lines.append(f"  {reason:<{width}} {count:>10}")
    return lines
