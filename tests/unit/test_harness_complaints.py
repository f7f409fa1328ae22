"""What installers and pytest complain of, as uv 0.13, pip 26, poetry 2 and pytest 9 printed it."""

import pytest

from ci_controller.harness.complaints import failing_requirement, of_installer, of_pytest, plain_text

UV_UNKNOWN = """\
Using Python 3.11.2 environment at: /opt/venv
error: No solution found when resolving dependencies
  cause: Because numpyy was not found in the package registry and you require numpyy==9.9, we can conclude that \
your requirements are unsatisfiable.
"""
UV_NO_VERSION = """\
error: No solution found when resolving dependencies
  cause: Because there is no version of idna==99 and you require idna==99, we can conclude that your requirements \
are unsatisfiable.
"""
UV_OF_A_PROJECT = """\
error: No solution found when resolving dependencies
  cause: Because nope was not found in the package registry and mine==1 depends on nope>=2, we can conclude that \
mine==1 cannot be used.
         And because only mine==1 is available and you require mine, we can conclude that your requirements are \
unsatisfiable.
"""
UV_CONFLICT = """\
error: No solution found when resolving dependencies
  cause: Because requests==2.32.3 depends on idna>=2.5,<4 and you require requests==2.32.3, we can conclude that \
you require idna>=2.5,<4.
         And because you require idna==2.0, we can conclude that your requirements are unsatisfiable.
"""
UV_BUILD = """\
error: The build backend returned an error
  cause: Call to `setuptools.build_meta:__legacy__.get_requires_for_build_editable` failed (exit status: 1)

         [stderr]
         Traceback (most recent call last):
           File "<string>", line 2, in <module>
         RuntimeError: boom
"""
UV_NO_NETWORK = """\
error: Request failed after 3 retries in 8.1s
  cause: Failed to fetch: http://localhost:1/simple/idna/
  cause: error sending request for url (http://localhost:1/simple/idna/)
  cause: tcp connect error
  cause: Cannot assign requested address (os error 99)
"""
UV_NO_FILE = "error: File not found: nothere.txt\n"
PIP_UNKNOWN = """\
ERROR: Could not find a version that satisfies the requirement numpyy==9.9 (from versions: none)
ERROR: No matching distribution found for numpyy==9.9
"""
PIP_CONFLICT = """\
ERROR: Cannot install idna==2.0 and idna==3.1 because these package versions have conflicting dependencies.

The conflict is caused by:
    The user requested idna==3.1
    The user requested idna==2.0
ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/
"""
PIP_BUILD = """\
  error: subprocess-exited-with-error

  x Getting requirements to build editable did not run successfully.
  │ exit code: 1
  ╰─> [24 lines of output]
      Traceback (most recent call last):
        File "<string>", line 2, in <module>
      RuntimeError: boom
      [end of output]

ERROR: Failed to build 'file:///workspace/p' when getting requirements to build editable
"""
POETRY = "Because mine depends on numpyy (==9.9) which doesn't match any versions, version solving failed.\n"


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        (UV_UNKNOWN, "numpyy==9.9: no matching distribution"),
        (UV_NO_VERSION, "idna==99: no matching distribution"),
        (UV_OF_A_PROJECT, "nope>=2: no matching distribution"),
        (PIP_UNKNOWN, "numpyy==9.9: no matching distribution"),
        (PIP_CONFLICT, "idna==2.0 and idna==3.1: conflicting versions"),
        (POETRY, "numpyy (==9.9): no matching distribution"),
        (UV_CONFLICT, ""),
        (UV_BUILD, ""),
        (UV_NO_NETWORK, ""),
        ("", ""),
    ],
)
def test_the_requirement_that_cannot_be_had_is_found(text: str, requirement: str) -> None:
    assert failing_requirement(text) == requirement


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            PIP_UNKNOWN,
            "numpyy==9.9: no matching distribution - Could not find a version that satisfies the requirement "
            "numpyy==9.9 (from versions: none): No matching distribution found for numpyy==9.9",
        ),
        (
            UV_NO_NETWORK,
            "Request failed after 3 retries in 8.1s: Failed to fetch: http://localhost:1/simple/idna/: "
            "Cannot assign requested address (os error 99)",
        ),
        (
            UV_BUILD,
            "The build backend returned an error: RuntimeError: boom: Call to "
            "`setuptools.build_meta:__legacy__.get_requires_for_build_editable` failed (exit status: 1)",
        ),
        (
            PIP_BUILD,
            "subprocess-exited-with-error: RuntimeError: boom: "
            "Failed to build 'file:///workspace/p' when getting requirements to build editable",
        ),
        (UV_NO_FILE, "File not found: nothere.txt"),
        ("one\n\nthe last line\n\n", "the last line"),
        ("", ""),
    ],
)
def test_the_installers_own_words_are_kept(text: str, complaint: str) -> None:
    assert of_installer(text) == complaint


def test_both_sides_of_a_conflict_are_in_the_words() -> None:
    said = of_installer(UV_CONFLICT)
    assert "requests==2.32.3 depends on idna>=2.5,<4" in said
    assert "you require idna==2.0" in said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "ERROR: usage: __main__.py [options]\n__main__.py: error: unrecognized arguments: --no\n  inifile: None\n",
            "unrecognized arguments: --no",
        ),
        ("ERROR: file or directory not found: nope.py\n\n", "file or directory not found: nope.py"),
        (
            "ImportError while loading conftest '/workspace/conftest.py'.\nconftest.py:1: in <module>\n"
            "    import nope\nE   ModuleNotFoundError: No module named 'nope'\n",
            "/workspace/conftest.py could not be loaded: ModuleNotFoundError: No module named 'nope'",
        ),
        ("ImportError while loading conftest '/c.py'.\n", "/c.py could not be loaded"),
        (
            'Traceback:\nImportError: Error importing plugin "nope"\n',
            'ImportError: Error importing plugin "nope"',
        ),
        ("", ""),
    ],
)
def test_why_pytest_had_no_session_is_found(text: str, complaint: str) -> None:
    assert of_pytest(text) == complaint


def test_colours_are_no_text() -> None:
    assert plain_text(b"\x1b[1m\x1b[31merror\x1b[39m\x1b[0m: \xff") == "error: \ufffd"
