"""The hypervisor's log, cpio archives, and options."""

import json
import tempfile
import unittest
from pathlib import Path

from gearshift_host import cpio
from gearshift_host.commandline import checked, size
from gearshift_host.errors import UserError
from gearshift_host.journal import Ending, Journal, ending_of_qemu_status
from gearshift_host.session import write_reports


class JournalTest(unittest.TestCase):
    def test_last_statistics_win(self):
        journal = Journal(b'[1] STATS {"exits": {"cpuid": 1}}\r\n[2] STATS {"exits": {"cpuid": 2}}\r\n')
        self.assertEqual(journal.statistics(), {"exits": {"cpuid": 2}})

    def test_torn_statistics_are_none(self):
        self.assertIsNone(Journal(b'STATS {"exits": {"cp').statistics())

    def test_report(self):
        self.assertEqual(Journal(b"x\r\nREPORT BEGIN\r\nexit: triple fault\r\nrip 0\r\nREPORT END\r\ny").report(), "exit: triple fault\nrip 0")

    def test_reports_of_several_machines(self):
        journal = Journal(b'REPORT BEGIN one\nvCPU 0 stopped: a\nREPORT END\nREPORT JSON {"machine":"one"}\nREPORT BEGIN two\nb\nREPORT END\nREPORT JSON {"mach')
        self.assertEqual(journal.reports(), [("one", "vCPU 0 stopped: a"), ("two", "b")])
        self.assertEqual(journal.report_objects(), [{"machine": "one"}])

    def test_brief_report_keeps_the_newest_exits(self):
        exits = "".join(f"    cpuid rip {number}\n" for number in range(20))
        text = f"vCPU 0 stopped: a\n  the last 20 of 99 exits, oldest first:\n{exits}vCPU 1, halted\n    rip 0: x\n  the last 1 of 1 exits, oldest first:\n    hlt\n"
        brief = Journal(f"REPORT BEGIN one\n{text}REPORT END\n".encode()).brief_report().splitlines()
        self.assertEqual(brief[2], "    ... 4 older ones: run with --report FILE to keep them")
        self.assertEqual(brief[3:5], ["    cpuid rip 4", "    cpuid rip 5"])
        self.assertEqual(brief[-4:], ["vCPU 1, halted", "    rip 0: x", "  the last 1 of 1 exits, oldest first:", "    hlt"])

    def test_report_files(self):
        journal = Journal(b'REPORT BEGIN one\nvCPU 0 stopped: a\nREPORT END\nREPORT JSON {"machine":"one"}\n')
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "report"
            write_reports(place, journal)
            self.assertEqual(place.read_text(), "virtual machine one\nvCPU 0 stopped: a\n")
            self.assertEqual(json.loads((Path(folder) / "report.json").read_text()), [{"machine": "one"}])
            alone = Path(folder) / "alone.json"
            write_reports(alone, journal)
            self.assertEqual(json.loads(alone.read_text()), [{"machine": "one"}])
            write_reports(place, Journal(b""))
            self.assertEqual(place.read_text(), "no virtual machine was stopped\n")

    def test_no_report(self):
        self.assertEqual(Journal(b"REPORT BEGIN\nnever ended\n").report(), "")

    def test_user_error_and_panic(self):
        self.assertEqual(Journal(b"[0.1] 0 ERROR no SVM here\r\n").user_error(), "no SVM here")
        self.assertEqual(Journal(b"fine\nPANIC at kernel/src/x.rs:1\nregisters\n").panic(), "PANIC at kernel/src/x.rs:1\nregisters")

    def test_exit_status(self):
        self.assertEqual(ending_of_qemu_status(0x21), Ending.IN_ORDER)
        self.assertEqual(ending_of_qemu_status(0x23), Ending.VM_STOPPED)
        for status in (0, 1, 0x20, 0x99):
            self.assertIsNone(ending_of_qemu_status(status))


class CpioTest(unittest.TestCase):
    def test_layout(self):
        image = cpio.of_files({"a": b"hello"})
        self.assertEqual(len(image) % 512, 0)
        self.assertEqual(image[:6], b"070701")
        self.assertEqual(int(image[54:62], 16), 5)  # file size
        self.assertEqual(int(image[94:102], 16), 2)  # name size with its zero
        self.assertEqual(image[110:112], b"a\0")
        self.assertEqual(image[112:117], b"hello")
        self.assertEqual(image[120:126], b"070701")
        self.assertIn(b"TRAILER!!!\0", image)


class OptionsTest(unittest.TestCase):
    def test_sizes(self):
        self.assertEqual([size(text) for text in ("128M", "512", "2G", "65536k", "1GiB")], [128 << 20, 512 << 20, 2 << 30, 64 << 20, 1 << 30])

    def test_refusals(self):
        for arguments in (["--memory", "17M"], ["--vcpus", "0"], ["--cpu", "intel", "--boot", "pvh"], ["--cpu", "intel", "--boot", "grub-uefi"], ["--medium", "usb"], ["--send", "x"], ["--expect", ""],
                          ["--timeout", "0"], ["--log", "/nonexistent/x"], ["--mem", "128M"]):
            with self.assertRaises(UserError, msg=str(arguments)) as caught:
                checked(arguments)
            self.assertNotIn("\n", str(caught.exception))

    def test_expect_has_a_time_limit(self):
        self.assertEqual(checked(["--expect", "x"]).timeout, 300)
        self.assertIsNone(checked([]).timeout)
