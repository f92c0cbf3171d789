"""The menus of boot images."""

import os
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock

from gearshift_host import image
from gearshift_host.errors import UserError
from gearshift_host.imaging import chosen_loader, definition
from gearshift_host.session import Options

ENTRY = image.Entry("Gearshift", Path("/none"), "vm.memory=16M it's;odd $x", {"kernel": b"k", "two words": b"w"})


class Menus(unittest.TestCase):
    """What GRUB and Limine are told."""

    def test_grub_gets_words_that_its_script_does_not_read(self):
        """Quotes, semicolons and dollars reach the program as they are."""
        text = image.grub_configuration(ENTRY, image.Look(5))
        self.assertIn("multiboot2 /boot/gearshift 'vm.memory=16M' 'it'\\''s;odd' '$x'\n", text)
        self.assertIn("module2 '/modules/two words' 'two words'\n", text)
        self.assertIn("set timeout=5\n", text)

    def test_grub_keeps_the_screen_when_asked(self):
        """A stick for a real PC speaks on the screen too."""
        self.assertIn("terminal_output serial\n", image.grub_configuration(ENTRY, image.Look()))
        self.assertIn("terminal_output --append serial\n", image.grub_configuration(ENTRY, image.Look(serial_only=False)))

    def test_limine_names_each_module(self):
        """A module's name follows its path."""
        lines = image.limine_configuration(ENTRY, image.Look(7)).splitlines()
        self.assertEqual(lines[0], "timeout: 7")
        at = lines.index("    module_path: boot():/modules/two words")
        self.assertEqual(lines[at + 1], "    module_cmdline: two words")

    def test_a_kernel_is_started_as_linux(self):
        """Without the hypervisor its initrd is no module."""
        entry = image.linux_entry(Path("/none"), Path("/initrd"), "quiet")
        self.assertIn("initrd '/modules/initrd'\n", image.grub_configuration(entry, image.Look()))
        self.assertIn("    protocol: linux", image.limine_configuration(entry, image.Look()).splitlines())


class Definitions(unittest.TestCase):
    """The vms.toml of an image."""

    def test_one_guest_is_written_down(self):
        """Whatever its command line holds."""
        text = definition(Options(append='a="b" \\ c', memory=1 << 30, vcpus=2), {"kernel": b"", "initrd": b""})
        self.assertEqual(tomllib.loads(text)["vm"], [{"name": "guest", "kernel": "kernel", "initrd": "initrd", "append": 'a="b" \\ c', "memory": "1024M",
                                                      "vcpus": 2}])
        self.assertNotIn("initrd", definition(Options(), {"kernel": b""}))


class Limine(unittest.TestCase):
    """Where Limine's binaries are looked for."""

    def test_the_named_folder_is_used_when_complete(self):
        """One missing file makes it none."""
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"LIMINE_DIR": folder}):
            for name in image.LIMINE_FILES[:-1]:
                (Path(folder) / name).write_bytes(b"x")
            with mock.patch.object(image, "LIMINE_FOLDER", "/nonexistent"):
                self.assertIn(folder, image.limine_obstacle())
                self.assertEqual(chosen_loader("auto"), "grub")
                with self.assertRaises(UserError):
                    chosen_loader("limine")
            (Path(folder) / image.LIMINE_FILES[-1]).write_bytes(b"x")
            self.assertEqual(image.limine_folder(), Path(folder))
            self.assertEqual(chosen_loader("auto"), "limine")


if __name__ == "__main__":
    unittest.main()
