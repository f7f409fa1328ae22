"""requirement_files: which lines are met from elsewhere, and which files decide."""

import posixpath
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_controller.requirement_files import MAX_FILES, deciding_files, is_remote_requirement


def deciding(files: Mapping[str, str | bytes], root: str = "requirements.txt") -> set[str] | None:
    contents = {path: text if isinstance(text, bytes) else text.encode() for path, text in files.items()}
    found = deciding_files(root, contents.get)
    assert found is None or all(content == contents[path] for path, content in found.items())
    return None if found is None else set(found)


@pytest.mark.parametrize(
    "text",
    [
        "attrs",
        "attrs>=22,<30",
        "attrs (>=22)",
        "Flask[async, dotenv]==3.0",
        "foo~=1.0; python_version < '3.12'",
        "foo;sys_platform=='linux'",
        "foo==1 --hash=sha256:abc",
        "foo @ https://example.org/foo-1.whl",
        "foo[x]@git+https://example.org/foo.git@main",
        "foo @ git+ssh://git@example.org/foo",
        "https://example.org/foo-1.tar.gz",
        "git+https://example.org/foo.git#egg=foo",
        "zipp",
    ],
)
def test_what_comes_from_elsewhere(text: str) -> None:
    assert is_remote_requirement(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        ".[test]",
        "./pkg",
        "../pkg",
        "pkg/sub",
        "/abs/pkg",
        "file:pkg",
        "file:///workspace/pkg",
        "foo @ file:///workspace/pkg",
        "foo @ ./pkg",
        "foo @ git+file:///workspace/pkg",
        "foo-1.0-py3-none-any.whl",
        "foo-1.0.tar.gz",
        "foo.zip[extra]",
        "foo @ https://${HOST}/x.whl",
        "${PACKAGE}",
        "foo bar",
        "a\\b",
    ],
)
def test_what_needs_the_tree_or_is_not_understood(text: str) -> None:
    assert not is_remote_requirement(text)


@pytest.mark.parametrize(
    ("line", "is_fine"),
    [
        ("# -e .", True),
        ("", True),
        ("attrs  # needed", True),
        ("foo @ https://example.org/x#egg=foo", True),
        ("--index-url https://example.org/simple", True),
        ("--index-url=https://example.org/simple", True),
        ("-i https://example.org/simple", True),
        ("-f https://example.org/wheels", True),
        ("--pre", True),
        ("--no-binary :all:", True),
        ("foo==1 \\\n    --hash=sha256:a \\\n    --hash=sha256:b", True),
        ("# a comment that ends so \\\nattrs", True),
        ("-e .", False),
        ("-e git+https://example.org/x", False),
        ("--editable=.", False),
        (".", False),
        ("--find-links wheels", False),
        ("-f ./wheels", False),
        ("--extra-index-url file:///workspace/index", False),
        ("-r https://example.org/requirements.txt", False),
        ("-c missing.txt", False),
        ("-r ../outside.txt", False),
        ("-r /etc/passwd", False),
        ("-r 'quoted.txt'", False),
        ("-r a.txt -c b.txt", False),
        ("--some-new-option", False),
        ("attrs\v-e .", False),
        ("attrs\u2028-e .", False),
    ],
)
def test_a_line_decides_about_its_file(line: str, is_fine: bool) -> None:
    assert (deciding({"requirements.txt": f"idna\n{line}\n"}) is not None) == is_fine


@pytest.mark.parametrize(
    "form", ["-r {}", "-r{}", "--requirement {}", "--requirement={}", "-c {}", "--constraint={}"]
)
def test_includes_are_relative_to_the_file_that_has_them(form: str) -> None:
    files = {
        "requirements/dev.txt": form.format("../base.txt") + "\n" + form.format("pins/all.txt"),
        "base.txt": "attrs",
        "requirements/pins/all.txt": "attrs==1",
        "requirements/unused.txt": "-e .",
    }
    assert deciding(files, "requirements/dev.txt") == {
        "requirements/dev.txt",
        "base.txt",
        "requirements/pins/all.txt",
    }


def test_includes_may_go_in_circles() -> None:
    files = {"requirements.txt": "-r a.txt", "a.txt": "-r ./b.txt", "b.txt": "-r requirements.txt\n-r b.txt"}
    assert deciding(files) == set(files)


def test_a_nested_file_with_a_local_path_decides_for_all() -> None:
    assert deciding({"requirements.txt": "-r a.txt", "a.txt": "-r b.txt", "b.txt": "./pkg"}) is None


def test_includes_have_a_bound() -> None:
    files = {f"{number}.txt": f"-r {number + 1}.txt" for number in range(MAX_FILES + 1)}
    assert deciding(files | {f"{MAX_FILES - 1}.txt": ""}, "0.txt") is not None
    assert deciding(files | {f"{MAX_FILES + 1}.txt": ""}, "0.txt") is None


def test_a_byte_order_mark_is_no_part_of_a_requirement() -> None:
    assert deciding({"requirements.txt": "\ufeffattrs"}) is not None


def test_what_is_no_text_is_not_understood() -> None:
    assert deciding({"requirements.txt": b"\xff\xfe"}) is None


_NAMES = st.sampled_from(["requirements.txt", "a.txt", "d/b.txt", "d/c.txt", "d/e/f.txt"])


@given(st.dictionaries(_NAMES, st.lists(_NAMES, max_size=4)).filter(lambda tree: "requirements.txt" in tree))
def test_exactly_what_can_be_reached_decides(tree: dict[str, list[str]]) -> None:
    files = {
        path: "".join(f"-r {posixpath.relpath(one, posixpath.dirname(path) or '.')}\n" for one in includes)
        for path, includes in tree.items()
    }
    reached, waiting = set[str](), ["requirements.txt"]
    while waiting:
        if (one := waiting.pop()) not in reached:
            reached.add(one)
            waiting += tree.get(one, [])
    assert deciding(files) == (reached if reached <= tree.keys() else None)


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(content: bytes) -> None:
    deciding({"requirements.txt": content})
