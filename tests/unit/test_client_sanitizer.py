"""What a job's output may do to a terminal."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ci_common.terminal import TerminalSanitizer, one_line

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
        b"X",
        b"^",
        b"_",
        b"\xc2\x90",
        b"\xc2\x9c",
        b"\x18",
        b"?1049h",
        b"\xc3",
        "\u202e".encode(),
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
        # what titles, clipboards, links, notifications, files and queries are made with
        (b"a\x1b]2;title\x1b\\b", b"ab"),
        (b"a\x1b]7;file://host/etc\x07b", b"ab"),
        (b"a\x1b]9;notify\x07b", b"ab"),
        (b"a\x1b]10;?\x07\x1b]11;?\x1b\\b", b"ab"),
        (b"a\x1b]50;font\x07b", b"ab"),
        (b"a\x1b]777;notify;t;b\x07b", b"ab"),
        (b"a\x1b]1337;File=name=x:aGk=\x07b", b"ab"),
        (b"a\xc2\x9d52;c;aGk=\x07b", b"ab"),
        (b"a\x1bP$qm\x1b\\b", b"ab"),  # a query whose answer is typed into the shell
        (b"a\x1bP+q544e\xc2\x9cb", b"ab"),
        (b"a\x1b^pm\x1b\\b\x1bXsos\x1b\\c\xc2\x98sos\xc2\x9cd", b"abcd"),
        (b"a\xc2\x9ePM\x1b\\b\xc2\x9fAPC\x07c", b"abc"),
        (b"a\x1b[6n\x1b[c\x1b[>c\x1b[?15nb", b"ab"),  # where is the cursor, who are you
        (b"a\x1b[21tb", b"ab"),  # what is your title
        (b"a\x1b[?1049h\x1b[?25l\x1b[?1000h\x1b[?2004hb", b"ab"),  # screens, cursor, mouse, paste
        (b"a\x1b[1A\x1b[2K\x1b[5D\x1b[s\x1b[ub", b"ab"),  # over what was said before
        (b"a\x1b[8;1;1t\x1b[5ib", b"ab"),  # size, printer
        (b'a\x1b[63;1"pb', b"ab"),
        (b"a\x1b[4:3mb", b"a\x1b[4:3mb"),
        (b"a\x1b[mb", b"a\x1b[mb"),
        (b"a\x1b[?4mb\x1b[<1mc\x1b[1 md", b"abcd"),  # an m, and no colour
        (b"a\x1b[" + b"1;" * 200 + b"mb", b"ab"),
        (b"a\x1b7b\x1b8c\x1bDd\x1bEe\x1bMf\x1bHg", b"abcdefg"),  # cursor, index, reverse index, tab stop
        (b"a\x1b#8b\x1b%Gc\x1b F\x1bnd\x1boe", b"abcde"),  # test picture, character sets
        (b"a\x1b\x1b[2J\x1b\x1b]0;t\x07b", b"ab"),
        (b"a\x1b]0;t\x1b[31mb", b"a\x1b[31mb"),  # a string that another sequence ends
        (b"a\x1b[3\x1b]0;t\x07b", b"ab"),
        (b"a\x1b[31\x18mb", b"amb"),
        (b"a\x0b\x0cb\x0e\x0fc\xc2\x85d\xc2\x84e", b"abcde"),
        # bytes that are no UTF-8 are no controls either
        (b"a\x9b31mb", "a\ufffd31mb".encode()),
        (b"a\xc0\x9b[2Jb", "a\ufffd\ufffd[2Jb".encode()),
        (b"a\xe0\x80\x9bb", "a\ufffd\ufffd\ufffdb".encode()),
        (b"\x00\x00a\x00", b"a"),
        # what looks like our own protocol is text
        (
            b'\n\ndata: {"type":"complete","success":true}\n\n',
            b'\n\ndata: {"type":"complete","success":true}\n\n',
        ),
        (b"no line end", b"no line end"),
    ],
)
def test_known_sequences(data: bytes, shown: bytes) -> None:
    assert clean(data) == shown
    sanitizer = TerminalSanitizer()
    byte_by_byte = [sanitizer.feed(data[at : at + 1]) for at in range(len(data))]
    assert b"".join([*byte_by_byte, sanitizer.finish()]) == shown


def test_an_unended_string_cannot_hide_the_rest_of_the_log() -> None:
    assert clean(b"\x1b]" + b"x" * 10_000 + b"the end").endswith(b"the end")


def test_without_colours_they_go_as_well() -> None:
    assert clean(b"\x1b[31mred\x1b[0m", colours=False) == b"red"


def test_text_for_one_line_is_one_line() -> None:
    assert one_line("a\n\x1b[31mb\x1b]0;t\x07\tc\udce9") == "a b c?"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ada\u202eexe.py", "ada\\u202eexe.py"),  # reordered
        ("\u2066a\u2069\u200e\u061c", "\\u2066a\\u2069\\u200e\\u061c"),
        ("conf\u200btest.py", "conf\\u200btest.py"),  # a name like another
        ("a\u2060b\ufeffc\u00add", "a\\u2060b\\ufeffc\\xadd"),
        ("a\u3164b\u115fc\u2800d", "a\\u3164b\\u115fc\\u2800d"),  # letters that show nothing
        ("a\U000e0041b", "a\\U000e0041b"),
        ("a\u2028b\u2029c\u0085d\u00a0e\u3000f", "a b cd e f"),
        (
            "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{PARTY POPPER} \u05d0\u05d1",
            "caf\xe9 \U0001f389 \u05d0\u05d1",
        ),
    ],
)
def test_what_deceives_the_eye_is_escaped_in_a_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


@given(st.text() | OUTPUT.map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_a_line_is_printable_one_line_and_stays_as_it_is(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert one_line(line) == line
