"""Metadata files are read within limits: hostile ones are refused with a sentence, and harm nothing but themselves."""

import pytest

from ci_controller.untrusted_metadata import BadMetadata, Metadata, read_metadata


def test_what_the_files_say() -> None:
    pyproject = b'[project]\nname = "x"\ndependencies = ["a>=1"]\n[tool.x]\nwhen = 2020-01-01\n'
    found = read_metadata(pyproject, b"[metadata]\nname = x\n")
    assert found.pyproject["project"] == {"name": "x", "dependencies": ["a>=1"]}
    assert found.setup_cfg_has_name


@pytest.mark.parametrize("setup_cfg", [b"", b"[flake8]\nname = x\n", b"no section\n", b"\xff\xfe"])
def test_settings_of_tools_are_no_package(setup_cfg: bytes) -> None:
    assert read_metadata(b"", setup_cfg) == Metadata({}, setup_cfg_has_name=False)


HOSTILE = {
    "not TOML": (b"a = [", b""),
    "not UTF-8": (b'a = "\xff"', b""),
    "brackets without end": (b"a = " + b"[" * 50_000, b""),
    "a number without end": (b"a = " + b"1" * 5_000, b""),
    "a key of 26 000 parts": (b".".join([b"a"] * 26_000) + b" = 1", b""),
    "many long keys": (b"".join(b"k%d" % n + b".a" * 400 + b" = 1\n" for n in range(1_000)), b""),
    "a line of blanks": (b"", b"[metadata]\nx" + b" " * 200_000 + b"y\n"),
}


@pytest.mark.parametrize("files", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_files_are_refused_with_a_sentence(files: tuple[bytes, bytes]) -> None:
    with pytest.raises(BadMetadata, match=r"pyproject\.toml"):
        read_metadata(*files)
