"""Reading apt's sources and picking the mirror."""

import unittest

from gearshift_host.archive import Bundle, Entry, Mirror, parse_deb822, parse_list, pick_mirror, sources_text

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""

LIST = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/etc/key.gpg] http://tools.example/apt bookworm main
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian/ bookworm main contrib # remark
deb http://security.example/debian-security bookworm-security main
"""


class SourcesTest(unittest.TestCase):
    def test_deb822(self):
        entries = parse_deb822(DEB822)
        self.assertEqual(entries, [Entry("http://mirror.example/debian", ("bookworm", "bookworm-updates"), ("main", "contrib"),
                                         "/usr/share/keyrings/debian-archive-keyring.gpg")])

    def test_one_line_format(self):
        entries = parse_list(LIST)
        self.assertEqual([e.uri for e in entries],
                         ["http://tools.example/apt", "http://mirror.example/debian/", "http://security.example/debian-security"])
        self.assertEqual(entries[0].signed_by, "/etc/key.gpg")
        self.assertEqual(entries[1].components, ("main", "contrib"))

    def test_the_distributions_own_mirror_is_picked(self):
        mirror = pick_mirror("debian", parse_list(LIST), {"bookworm"})
        self.assertEqual((mirror.uri, mirror.security_uri), ("http://mirror.example/debian/", "http://security.example/debian-security"))

    def test_no_mirror_without_an_entry(self):
        self.assertIsNone(pick_mirror("debian", parse_list("deb http://mirror.example/ubuntu noble main\n"), {"bookworm"}))

    def test_security_suites_come_from_their_own_archive(self):
        mirror = Mirror("debian", "http://m/debian", "http://s/debian-security", "/k.gpg")
        text = sources_text(Bundle("x", mirror, ("bookworm", "bookworm-security"), ("p",)))
        self.assertIn("URIs: http://m/debian\nSuites: bookworm\n", text)
        self.assertIn("URIs: http://s/debian-security\nSuites: bookworm-security\n", text)

    def test_security_suites_are_left_out_without_an_archive(self):
        text = sources_text(Bundle("x", Mirror("debian", "http://m/debian"), ("bookworm", "bookworm-security"), ("p",)))
        self.assertNotIn("security", text)
