"""Cases of the command line: what scripts/run refuses, in one line."""

from .case import Case


def refusal(name: str, about: str, command: tuple, *said: str, **fields) -> Case:
    """A command line that is refused before any machine starts."""
    return Case(f"run-{name}", about, command=command, status=2, said=said, timeout=60, **fields)


CASES = [
    refusal("no-kernel", "a missing kernel is named", ("--kernel", "/nonexistent/bzImage"), "/nonexistent/bzImage", "no such file"),
    refusal("bad-memory", "a memory size that is none is refused", ("--memory", "lots"), "lots"),
    refusal("bad-option", "an unknown option is refused", ("--frobnicate",), "--frobnicate"),
    refusal("send-alone", "--send without --expect-first is refused", ("--send", "x"), "--expect-first"),
    refusal("limine-missing", "Limine without its binaries is refused and says where they belong", ("--boot", "limine-bios"), "LIMINE_DIR",
            environment={"LIMINE_DIR": "/nonexistent"}),
    refusal("usb-without-loader", "a USB stick without a loader is refused", ("--medium", "usb"), "--medium usb"),
    refusal("image-bad-place", "an image that cannot be written is refused before anything is built", ("--output", "/nonexistent/image.iso"),
            "/nonexistent", tool="image"),
    refusal("contradiction", "--kvm with --icount is refused", ("--kvm", "--icount"), "--kvm and --icount"),
    Case("host-self-test", "the hypervisor's own clock, alarms and memory work on the machine", options={"hypervisor_options": "selftest"},
         said=("self-test passed",)),
    Case("run-no-svm", "a CPU without SVM is refused in one clear line", options={"cpu_model": "qemu64,-svm"}, status=2, said=("SVM",)),
    Case("run-no-nested-paging", "a CPU without nested paging is refused in one clear line", options={"cpu_model": "EPYC,+svm,-npt"}, status=2,
         said=("nested paging",)),
    Case("run-not-a-kernel", "a kernel file that is none is refused in one clear line",
         options={"kernel": __file__}, status=2, said=("kernel",)),
    Case("run-expect-missing", "a text that does not appear in time gives status 1 and a reason",
         options={"expect": "this never appears"}, timeout=5, status=1, said=("this never appears", "5 s")),
]
