"""One run of Gearshift in a machine, from its options to its outcome.

`Session.run` starts the machine, moves bytes between the guest's console, the log and the user, watches for the expected text
and the time limit, and ends the machine. Key types: `Options` (what scripts/run was asked), `Outcome` (what came of it).
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import build, console, cpio, guests, journal, qemu
from .archive import Program
from .errors import UserError
from .journal import Ending, Journal
from .progress import say

SUCCESS, FAILED, HYPERVISOR_FAILED = 0, 1, 3
READ_SIZE = 1 << 16
# How long the hypervisor gets to write its statistics once it is told to end.
END_GRACE_SECONDS = 3.0
END_LINE = b"quit\n"
KERNEL_MODULE, INITRD_MODULE, COMMAND_LINE_MODULE = "kernel", "initrd", "vm.cmdline"


@dataclass
class Options:
    """What to run and what to expect of it; the fields are the options of scripts/run."""

    cpu: str = "auto"
    kernel: str | None = None
    initrd: str | None = None
    append: str = "console=ttyS0"
    modules: list = field(default_factory=list)
    memory: int = 512 << 20
    vcpus: int = 1
    boot: str = "pvh"
    expect: str | None = None
    timeout: float | None = None
    expect_first: str | None = None
    send: str | None = None
    icount: bool = False
    log: str | None = None
    stats: str | None = None
    kvm: bool = False
    cpu_model: str = ""
    hypervisor_options: str = ""
    without_hypervisor: bool = False
    prebuilt: Path | None = None


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
    kernel = Path(options.kernel) if options.kernel else guests.kernel()
    files: dict = {KERNEL_MODULE: kernel}
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
    """The hypervisor's command line: the one VM, as words `vm.key=value`."""
    words = [f"vm.memory={options.memory}", f"vm.vcpus={options.vcpus}", f"vm.kernel={KERNEL_MODULE}"]
    if INITRD_MODULE in files:
        words.append(f"vm.initrd={INITRD_MODULE}")
    if options.hypervisor_options:
        words.append(options.hypervisor_options)
    return " ".join(words)


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
        self._process: subprocess.Popen | None = None
        self._arrivals: list = []
        self._start = 0.0

    def run(self) -> Outcome:
        """Starts the machine and stays until it ends or need run no longer."""
        hypervisor = None if self.options.without_hypervisor else self.options.prebuilt or build.hypervisor()
        files = module_files(self.options)
        with tempfile.TemporaryDirectory(prefix="gearshift-") as folder:
            ours, theirs = zip(*(socket.socketpair() for _ in range(2)))
            program, arguments = self._machine(hypervisor, files, Path(folder), [end.fileno() for end in theirs])
            outcome = self._attached(program, arguments, ours, theirs)
        self._write_files(outcome)
        return outcome

    def _machine(self, hypervisor: Path | None, files: dict, folder: Path, descriptors: list) -> tuple:
        options = self.options
        if hypervisor is None:
            image, words, modules = files[KERNEL_MODULE], options.append, files.get(INITRD_MODULE)
        else:
            image, words, modules = hypervisor, command_line(options, files), folder / "modules.cpio"
            modules.write_bytes(cpio.of_files(files))
        memory = qemu.memory_for(options.memory, modules.stat().st_size if modules else 0)
        machine = qemu.Machine(image, words, modules, memory if hypervisor else options.memory, *descriptors,
                               icount=options.icount, kvm=options.kvm, cpu_model=options.cpu_model)
        return qemu.command(machine)

    def _attached(self, program: Program, arguments: list, ours: tuple, theirs: tuple) -> Outcome:
        start = self._start = time.monotonic()
        with tempfile.TemporaryFile() as complaints, console.RawTerminal(self._terminal), interrupts_raised():
            self._process = subprocess.Popen(arguments, env=program.env(), stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints,
                                             pass_fds=[end.fileno() for end in theirs], start_new_session=True)
            RUNNING.add(self._process)
            for end in theirs:
                end.close()
            try:
                stop = self._pump(*ours, start)
                if stop is not None and stop.ask_hypervisor:
                    self._end_in_order(*ours)
                self._process_ended(0 if stop else 5)
            finally:
                end_process(self._process)
                RUNNING.discard(self._process)
                for end in ours:
                    end.close()
            seconds = time.monotonic() - start
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip()
        return self._judge(stop, seconds, said)

    def _pump(self, console_end: socket.socket, log_end: socket.socket, start: float):
        """Moves bytes until the machine ends (None) or a `Stop` is reached."""
        deadline = start + self.options.timeout if self.options.timeout is not None else None
        with selectors.DefaultSelector() as selector:
            console_end.setblocking(False)
            log_end.setblocking(False)
            selector.register(console_end, selectors.EVENT_READ, self._console)
            selector.register(log_end, selectors.EVENT_READ, self._log)
            if self._typing:
                try:
                    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
                except PermissionError:
                    # A regular file is always ready and cannot be waited for: type it at once.
                    self._outgoing += sys.stdin.buffer.read()
            open_ends = 2
            while open_ends:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
                if console_end in [key.fileobj for key in selector.get_map().values()]:
                    selector.modify(console_end, wanted, self._console)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return STOP_TIMEOUT
                for key, events in selector.select(left):
                    if events & selectors.EVENT_WRITE:
                        self._type(console_end)
                    if not events & selectors.EVENT_READ:
                        continue
                    if key.data is None:
                        if not self._keys(selector):
                            return STOP_QUIT
                        continue
                    data = received(key.fileobj)
                    if data is None:
                        continue
                    if not data:
                        selector.unregister(key.fileobj)
                        open_ends -= 1
                        continue
                    key.data.extend(data)
                    if key.data is self._console:
                        self._arrivals.append((len(self._console), time.monotonic() - self._start))
                    if key.data is self._console and self._printed(data):
                        return STOP_EXPECTED
        return None

    def _type(self, console_end: socket.socket) -> None:
        try:
            del self._outgoing[:console_end.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self._outgoing.clear()

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

    def _end_in_order(self, console_end: socket.socket, log_end: socket.socket) -> None:
        """Tells the hypervisor to end, for its statistics; it may be unable to."""
        if self.options.without_hypervisor:
            return
        deadline = time.monotonic() + END_GRACE_SECONDS
        try:
            log_end.send(END_LINE)
        except OSError:
            return
        ends = {console_end: self._console, log_end: self._log}
        with selectors.DefaultSelector() as selector:
            for end in ends:
                selector.register(end, selectors.EVENT_READ)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    data = received(key.fileobj)
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
        ending = journal.ending_of_qemu_status(status) if status is not None and status >= 0 else None
        outcome = Outcome(SUCCESS, "", seconds, bytes(self._console), log, ending, log.statistics(), self._arrivals)
        expect = self.options.expect
        if stop is STOP_EXPECTED:
            return outcome
        if stop is STOP_QUIT:
            outcome.reason = "left by Ctrl-A x"
        elif stop is STOP_TIMEOUT:
            outcome.status = FAILED
            awaited = self.options.expect_first if not self._sent else expect
            what = f"{awaited!r} did not appear on the guest's console" if awaited else "the run did not end"
            outcome.reason = f"{what} within {self.options.timeout:g} s"
        elif ending is Ending.VM_STOPPED:
            outcome.status, outcome.reason = FAILED, "the VM was stopped; its report is above"
        elif ending is Ending.PANIC or log.panic():
            outcome.status, outcome.reason = HYPERVISOR_FAILED, "the hypervisor panicked"
        elif ending is Ending.USER_ERROR:
            outcome.status, outcome.reason = 2, log.user_error() or "the hypervisor refused to run and did not say why"
        elif ending is None and not (self.options.without_hypervisor and status == 0):
            outcome.status = HYPERVISOR_FAILED
            outcome.reason = said.splitlines()[-1] if said else f"the machine reset or stopped without a word (QEMU status {status})"
        elif not self._sent or expect is not None:
            awaited = expect if self._sent else self.options.expect_first
            outcome.status, outcome.reason = FAILED, f"the guest ended before {awaited!r} appeared on its console"
        return outcome

    def _write_files(self, outcome: Outcome) -> None:
        try:
            if self.options.log:
                Path(self.options.log).write_bytes(bytes(self._log))
            if self.options.stats:
                record = {
                    **(outcome.statistics or {}),
                    "complete": outcome.statistics is not None,
                    "outcome": (outcome.ending.name.lower() if outcome.ending else "ended_from_outside"),
                    "status": outcome.status,
                    "machine": "qemu-kvm" if self.options.kvm else "qemu-tcg",
                    "icount": self.options.icount,
                    "wall_seconds": round(outcome.seconds, 3),
                }
                if not self.options.icount:
                    record.pop("instructions", None)
                Path(self.options.stats).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {error.filename}: {error.strerror}") from None


@dataclass(frozen=True)
class Stop:
    """A reason to end the machine from outside."""

    name: str
    ask_hypervisor: bool


STOP_EXPECTED = Stop("expected", True)
STOP_QUIT = Stop("quit", True)
STOP_TIMEOUT = Stop("timeout", True)


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


def received(end: socket.socket) -> bytes | None:
    """What has arrived; empty at the end of the stream, None if there is nothing yet."""
    try:
        return end.recv(READ_SIZE)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def end_process(process: subprocess.Popen) -> None:
    """Ends a machine that still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def show_ending(outcome: Outcome) -> None:
    """Tells the user what a run left behind: a VM's report, a crash dump, a summary of the exits."""
    report = outcome.journal.report()
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
