"""The documentation and the code say the same: settings, routes, commands, options, generated tables, README."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from ci_common.verdict import ENDINGS
from scripts import generate_docs
from scripts.generate_docs import COMMANDS, SETTINGS, leaves, options_of

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
API = ROOT / "docs" / "api.md"
OPERATIONS = ROOT / "docs" / "operations.md"

# What a shell line may be wrapped in before the command itself.
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
_FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_PLACEHOLDER = re.compile(r"<[^<>\n]*>|…|\[[^\]\n]*\]")


@cache
def _text(*paths: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@cache
def _everything() -> str:
    return _text(*generate_docs.documents())


def _says(text: str, word: str) -> bool:
    """Tell whether the text has the word itself, not only as a part of a longer one."""
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


# -- settings, routes, commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("process", sorted(SETTINGS))
def test_every_setting_is_in_the_operations_manual(process: str) -> None:
    names = generate_docs.settings_of(SETTINGS[process])

    assert [name for name in names if not _says(_text(OPERATIONS), name)] == []


def test_every_route_is_in_the_api_manual() -> None:
    missing = [
        f"{method} {path}"
        for method, path, _ in generate_docs.routes()
        if f"{method} {path}" not in _text(API).replace("`", "")
    ]

    assert missing == []


def test_every_route_says_what_it_does() -> None:
    assert [path for _, path, summary in generate_docs.routes() if not summary] == []


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_every_command_and_option_is_documented(program: str) -> None:
    wanted = [path for path, _ in leaves(COMMANDS[program], program)]
    for path, command in leaves(COMMANDS[program], program):
        wanted += [f"{path}: {option.opts[-1]}" for option in options_of(command)]

    assert [name for name in wanted if not _is_documented(name)] == []


def _is_documented(name: str) -> bool:
    """An option counts when it is named near its command: in the same paragraph or row of a table."""
    path, _, option = name.partition(": ")
    paragraphs = re.split(r"\n\s*\n|\n(?=\|)", _everything())
    return any(
        _says(paragraph, path) and (not option or _says(paragraph, option)) for paragraph in paragraphs
    )


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_every_command_and_option_has_a_help_text(program: str) -> None:
    silent = [path for path, command in leaves(COMMANDS[program], program) if not command.help]
    for path, command in leaves(COMMANDS[program], program):
        silent += [f"{path} {option.opts[-1]}" for option in options_of(command) if not option.help]

    assert silent == []


# -- generated tables ------------------------------------------------------------------------------------------


def test_generated_tables_are_current() -> None:
    stale = [
        path.relative_to(ROOT)
        for path in generate_docs.documents()
        if generate_docs.renewed(_text(path)) != _text(path)
    ]

    assert stale == [], "run `make format`"


def test_the_api_manual_has_the_table_of_endings() -> None:
    assert "endings" in generate_docs.generated_in(_text(API))


def test_renewing_replaces_only_what_stands_between_the_marks() -> None:
    text = "before\n<!-- generated: endings -->\nstale\n<!-- /generated -->\nafter\n"

    renewed = generate_docs.renewed(text)

    assert renewed.startswith("before\n<!-- generated: endings -->\n")
    assert renewed.endswith("<!-- /generated -->\nafter\n")
    assert "stale" not in renewed
    assert all(ending.what in renewed for ending in ENDINGS)


# -- what the README tells people to type ----------------------------------------------------------------------


def _typed(text: str) -> Iterator[list[str]]:
    """Yield the words of every `make`, `ci`, `ci-admin` and `ci-controller` command that a text shows."""
    lines = [line for block in _FENCE.findall(text) for line in block.splitlines()]
    lines += _INLINE.findall(_FENCE.sub("", text))
    for line in lines:
        for piece in re.split(r"&&|\|\||[;|&]", line.partition("  #")[0]):
            yield from _command_in(piece)


def _command_in(piece: str) -> Iterator[list[str]]:
    try:
        words = shlex.split(_PLACEHOLDER.sub("X", piece.strip().removeprefix("$ ")), comments=True)
    except ValueError:  # half a quotation: prose, not a command
        return
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    if words and Path(words[0]).name in {*COMMANDS, "make"}:
        yield [Path(words[0]).name, *words[1:]]


def _problem(words: list[str]) -> str | None:
    """Return what is wrong with a shown command, None if it exists with all its options."""
    if words[0] == "make":
        return next((f"make {word}" for word in words[1:] if not _is_make_word(word)), None)
    command, rest = COMMANDS[words[0]], words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return " ".join(words)
        command, rest = command.commands[rest[0]], rest[1:]
    known = {opt for option in command.params for opt in (*option.opts, *option.secondary_opts)} | {
        "--help",
        "-h",
    }
    own = rest[: rest.index("--")] if "--" in rest else rest
    unknown = [word for word in own if word.startswith("-") and word.partition("=")[0] not in known]
    return f"{' '.join(words)}: {unknown}" if unknown else None


def _is_make_word(word: str) -> bool:
    targets = re.findall(r"^([a-z][a-z-]*):", _text(ROOT / "Makefile"), re.MULTILINE)
    return word in targets or "=" in word or word == "X"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CLAUDE.md", "docs/operations.md"])
def test_the_commands_a_document_shows_exist(document: str) -> None:
    problems = [_problem(words) for words in _typed(_text(ROOT / document))]

    assert [problem for problem in problems if problem] == []


def test_the_readme_shows_the_commands_a_newcomer_needs() -> None:
    shown = {" ".join(words[:3]) for words in _typed(_text(README))}

    assert {"make demo", "make test", "ci submit test", "ci-admin up"} <= shown


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("make nonsense", "make nonsense"),
        ("ci submitt test", "ci submitt test"),
        ("ci-admin user create --nonsense", "ci-admin user create --nonsense: ['--nonsense']"),
        ("CI_DB_PATH=/tmp/x ci-admin user list --json", None),
        ("ci submit test -- -k name", None),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line: str, complaint: str | None) -> None:
    (words,) = _typed(f"```bash\n{line}\n```\n")

    assert _problem(words) == complaint


def test_makefile_targets_are_all_explained() -> None:
    makefile = _text(ROOT / "Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    silent = [name for name in phony[1].split() if not re.search(rf"^{name}:.*## \S", makefile, re.MULTILINE)]

    assert silent == []
