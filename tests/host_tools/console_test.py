"""Expectations on the guest's console, and the escape key."""

import unittest

from gearshift_host.console import EscapeKey, Expectation


def after_typing(line: bytes, *chunks: bytes) -> Expectation:
    expectation = Expectation()
    expectation.feed(b"boot text with needle\r\n~ # ")
    expectation.typed(line)
    for chunk in chunks:
        expectation.feed(chunk)
    return expectation


class ExpectationTest(unittest.TestCase):
    def test_text_counts_when_it_appears_in_pieces(self):
        expectation = Expectation()
        for byte in b"login: ":
            self.assertFalse(expectation.appeared(b"login:"))
            if byte == ord(" "):
                break
            expectation.feed(bytes((byte,)))
            if expectation.appeared(b"login:"):
                break
        self.assertTrue(expectation.appeared(b"login:"))

    def test_what_came_before_typing_counts_no_more(self):
        self.assertFalse(after_typing(b"ls").appeared(b"needle"))

    def test_echo_does_not_count(self):
        self.assertFalse(after_typing(b"echo needle", b"echo needle\r\n").appeared(b"needle"))

    def test_partial_echo_does_not_count_while_it_comes(self):
        expectation = after_typing(b"echo needle; poweroff", b"echo needle")
        self.assertFalse(expectation.appeared(b"needle"))
        expectation.feed(b"; poweroff\r\n")
        self.assertFalse(expectation.appeared(b"needle"))
        expectation.feed(b"needle\r\n")
        self.assertTrue(expectation.appeared(b"needle"))

    def test_output_equal_to_the_typed_line_counts(self):
        self.assertTrue(after_typing(b"needle", b"needle\r\nneedle\r\n").appeared(b"needle"))

    def test_echo_repeated_after_a_prompt_does_not_count(self):
        self.assertFalse(after_typing(b"echo needle", b"echo needle\r\n~ # echo needle\r\n").appeared(b"needle"))

    def test_echo_wrapped_by_a_line_editor_does_not_count(self):
        expectation = after_typing(b"echo a long line and a needle", b"\x1b[6necho a long line and\r\n a needle\x1b[J\r\n")
        self.assertFalse(expectation.appeared(b"needle"))

    def test_output_without_echo_counts(self):
        self.assertTrue(after_typing(b"echo needle", b"needle\r\n").appeared(b"needle"))

    def test_broken_off_echo_counts_as_output(self):
        self.assertTrue(after_typing(b"echo needle", b"echo nee\r\nno needle").appeared(b"no needle"))


    def test_a_prompt_that_ends_like_an_echo_begins_counts(self):
        self.assertTrue(after_typing(b"echo x", b"echo x\r\nx\r\nall done").appeared(b"done"))


class EscapeKeyTest(unittest.TestCase):
    def test_quit(self):
        self.assertEqual(EscapeKey().filter(b"ab\x01xcd"), (b"ab", True))

    def test_quit_across_two_reads(self):
        escape = EscapeKey()
        self.assertEqual(escape.filter(b"ab\x01"), (b"ab", False))
        self.assertEqual(escape.filter(b"x"), (b"", True))

    def test_literal(self):
        self.assertEqual(EscapeKey().filter(b"\x01a\x01\x01"), (b"\x01a\x01\x01", False))

    def test_other_keys_pass_with_the_escape(self):
        self.assertEqual(EscapeKey().filter(b"\x01z"), (b"\x01z", False))
