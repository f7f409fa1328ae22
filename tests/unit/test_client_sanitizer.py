"""What a job's output may do to a terminal."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ci_client.sanitizer import TerminalSanitizer, one_line

TRICKY = st.sampled_from(
    [
        b"\x1b",
        b"[",
        b"]",
        b"\x07",
        b"\x9b",
        b"\xc2\x9b",
        b"\xc2\x9d",
        b"31m",
        b"m",
        b"\r",
        b"\n",
        b"\t",
        b"P",
        b"\\",
    ]
)
OUTPUT = st.lists(st.one_of(TRICKY, st.binary(max_size=6), st.text(max_size=6).map(str.encode))).map(b"".join)
ALLOWED = re.compile(r"(?:\x1b\[[0-9;:]*m|[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f])*")


def clean(data: bytes, *, colours: bool = True) -> bytes:
    sanitizer = TerminalSanitizer(colours=colours)
    return sanitizer.feed(data) + sanitizer.finish()


@given(OUTPUT, st.lists(st.integers(0, 60)))
@example(b"\x1b[3", [1, 2, 3])
def test_the_cut_of_the_input_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    sanitizer, out, last = TerminalSanitizer(), b"", 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        out += sanitizer.feed(data[last:cut])
        last = cut
    assert out + sanitizer.finish() == clean(data)


@given(OUTPUT)
def test_only_text_and_colours_come_out(data: bytes) -> None:
    assert ALLOWED.fullmatch(clean(data).decode())


@given(OUTPUT)
def test_clean_output_stays_as_it_is(data: bytes) -> None:
    assert clean(clean(data)) == clean(data)


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"))).map(str.encode))
def test_text_passes_untouched(data: bytes) -> None:
    assert clean(data) == data


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x1b[31mred\x1b[0m\n", b"\x1b[31mred\x1b[0m\n"),
        (b"\x1b[38;2;1;2;3mx", b"\x1b[38;2;1;2;3mx"),
        (b"a\x1b[2Jb\x1b[1;1Hc", b"abc"),  # erase, move
        (b"a\x1b]0;title\x07b", b"ab"),
        (b"a\x1b]52;c;aGk=\x1b\\b", b"ab"),  # clipboard
        (b"a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b", b"alinkb"),
        (b"a\xc2\x9b2Jb\xc2\x9d0;t\xc2\x9cc", b"abc"),  # the same with C1 controls
        (b"a\x1bPdcs\x1b\\b\x1b_apc\x1b\\c", b"abc"),
        (b"a\x1b[>4;2mb", b"ab"),  # ends in m, but switches the keyboard
        (b"a\x1b(0b\x1bcc", b"abc"),  # character set, reset
        (b"10%\r20%\r\nend\r\r\n", b"10%\r20%\r\nend\r\n"),
        (b"a\x08b\x7fc\x00d\x05e", b"abcde"),
        (b"a\x1b]0;never ended\nnext", b"a\nnext"),
        (b"a\x1b[1\nb", b"a\nb"),
        (b"a\x1b[3\x1b[32mb", b"a\x1b[32mb"),
        (b"\xff\xe2\x82", "\ufffd\ufffd".encode()),
    ],
)
def test_known_sequences(data: bytes, shown: bytes) -> None:
    assert clean(data) == shown


def test_an_unended_string_cannot_hide_the_rest_of_the_log() -> None:
    assert clean(b"\x1b]" + b"x" * 10_000 + b"the end").endswith(b"the end")


def test_without_colours_they_go_as_well() -> None:
    assert clean(b"\x1b[31mred\x1b[0m", colours=False) == b"red"


def test_text_for_one_line_is_one_line() -> None:
    assert one_line("a\n\x1b[31mb\x1b]0;t\x07\tc\udce9") == "a b c?"
