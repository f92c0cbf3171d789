"""Tests of scripts/bench's tables, comparisons and drawing."""

import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

from gearshift_host import bench
from gearshift_host.errors import UserError

MEASURED = {"flat32.cpuid": 373, "paged64.cpuid": 618, "paged64.out_80": 255}


class Tables(unittest.TestCase):
    """What is printed."""

    def test_a_row_shows_both_modes_beside_the_references(self):
        """Each number stands in its column."""
        lines = bench.exits_table(MEASURED, "amd").splitlines()
        self.assertEqual(next(line for line in lines if line.startswith("CPUID")).split()[1:4], ["373", "618", "7"])
        self.assertIn("2,681", lines[1])
        self.assertNotIn("VMCALL", "\n".join(lines))
        self.assertIn("969", bench.exits_table(MEASURED, "intel").splitlines()[1])

    def test_the_drawing_is_well_formed(self):
        """And has a bar for each number."""
        root = ElementTree.fromstring(bench.drawing(MEASURED, "amd", "c0ffee"))
        bars = [part for part in root if part.tag.endswith("rect")]
        self.assertEqual(len(bars), 1 + 2 * 2)
        self.assertIn("c0ffee", "".join(root.itertext()))


class Comparisons(unittest.TestCase):
    """What --compare says."""

    def test_changes_are_named(self):
        """A change with its share, what came and what went."""
        before = {"round_trips": {"a": 100, "b": 5, "same": 1}, "commit": "x"}
        now = {"round_trips": {"a": 110, "c": 6, "same": 1}, "commit": "y"}
        self.assertEqual(bench.differences(before, now), ["round_trips.a: 100 -> 110 (+10.0%)", "round_trips.b: 5 -> -", "round_trips.c: - -> 6"])
        self.assertEqual(bench.differences(before, before), [])

    def test_other_files_are_refused(self):
        """Missing, no JSON, other JSON."""
        with tempfile.TemporaryDirectory() as folder:
            for content in (None, "{", "[]", "{}"):
                place = Path(folder) / "file"
                if content is not None:
                    place.write_text(content, encoding="utf-8")
                with self.assertRaises(UserError):
                    bench.read_result(str(place))
