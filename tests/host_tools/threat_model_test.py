"""The threat model names the tests that show its claims: each of them has to exist."""

import re
import unittest

from gearshift_host import paths
from nested import cases


def named_tests() -> set:
    """What stands in backquotes in the last column of the tables."""
    lines = (paths.REPOSITORY / "docs/threat-model.md").read_text(encoding="utf-8").splitlines()
    return {name for line in lines if line.startswith("|") for name in re.findall(r"`([^`]+)`", line.rstrip("| ").rsplit("|", 1)[1])}


class ThreatModelTest(unittest.TestCase):
    def test_every_named_test_exists(self):
        sources = "\n".join(path.read_text(encoding="utf-8") for room in ("boot", "devices", "kernel", "machine", "memory", "svm", "tests/tests", "vcpu", "vmx")
                            for path in (paths.REPOSITORY / room).rglob("*.rs"))
        functions = set(re.findall(r"\bfn (\w+)\(", sources))
        targets = {f"fuzz {path.stem}" for path in (paths.REPOSITORY / "tests/fuzz/src/bin").glob("*.rs")}
        nested = {case.name for case in cases.ALL}
        names = named_tests()
        self.assertGreater(len(names), 50)
        self.assertEqual(names - functions - targets - nested, set())

    def test_every_fuzz_target_is_named(self):
        targets = {f"fuzz {path.stem}" for path in (paths.REPOSITORY / "tests/fuzz/src/bin").glob("*.rs")}
        self.assertEqual(targets - named_tests(), set())


if __name__ == "__main__":
    unittest.main()
