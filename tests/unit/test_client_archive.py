"""What is uploaded of a tree: as git would, as a deterministic zip, and nothing by surprise."""

import os
import resource
import shutil
import socket
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from ci_client.archive import build_archive, pack
from ci_client.selection import select_files
from ci_common.errors import InvalidRequest, NotAProject, StorageFull


def write(root: Path, *names: str, text: str = "x = 1\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a committed file and an ignored directory."""
    root = tmp_path / "project"
    write(root, "src/app.py", "tests/test_app.py", "build/out.py")
    (root / ".gitignore").write_text("build/\n*.log\n")
    git(root.parent, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def sent(root: Path, *, include_ignored: bool = False) -> list[str]:
    return [entry.path for entry in select_files(root, include_ignored=include_ignored).entries]


def skipped(root: Path) -> dict[str, str]:
    return select_files(root).skipped


def test_a_work_tree_goes_as_git_would_take_it(repository: Path) -> None:
    write(repository, "new.py", "debug.log", ".coveragerc")
    (repository / "src/app.py").write_text("changed = True\n")
    assert sent(repository) == [".coveragerc", ".gitignore", "new.py", "src/app.py", "tests/test_app.py"]
    assert skipped(repository) == {"build/": "ignored by git", "debug.log": "ignored by git"}


def test_a_deleted_file_stays_away(repository: Path) -> None:
    (repository / "tests/test_app.py").unlink()
    assert "tests/test_app.py" not in sent(repository)
    assert skipped(repository)["tests/test_app.py"] == "deleted"


def test_a_tracked_file_goes_although_it_is_ignored(repository: Path) -> None:
    git(repository, "add", "-f", "build/out.py")
    assert "build/out.py" in sent(repository)


def test_a_subdirectory_is_a_project_of_its_own(repository: Path) -> None:
    assert sent(repository / "src") == ["app.py"]


def test_ciignore_keeps_back_more(repository: Path) -> None:
    write(repository, "data/big.bin", "data/keep.bin")
    (repository / ".ciignore").write_text("data/*\n!data/keep.bin\n")
    assert "data/keep.bin" in sent(repository)
    assert skipped(repository)["data/big.bin"] == "excluded by .ciignore"


def test_include_ignored_sends_what_git_ignores_save_artefacts(repository: Path) -> None:
    write(repository, "local/settings.log", ".venv/lib/x.py")
    assert "local/settings.log" in sent(repository, include_ignored=True)
    assert not [
        path for path in sent(repository, include_ignored=True) if path.startswith((".venv", ".git/"))
    ]


def test_a_submodule_and_a_nested_repository_go_with_their_files(repository: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    write(library, "lib.py", "junk.log")
    (library / ".gitignore").write_text("*.log\n")
    git(tmp_path, "init", "-q", str(library))
    git(library, "add", "lib.py", ".gitignore")
    git(library, "commit", "-q", "-m", "lib")
    git(repository, "submodule", "add", "-q", str(library), "vendor/lib")
    write(repository / "vendor/lib", "untracked.py", "junk.log")
    git(tmp_path, "init", "-q", str(repository / "nested"))
    write(repository / "nested", "inner.py")
    paths = sent(repository)
    assert {"vendor/lib/lib.py", "vendor/lib/untracked.py", "nested/inner.py"} <= set(paths)
    assert not [path for path in paths if "junk" in path or "/.git" in path.replace("/.gitignore", "")]


def test_a_submodule_that_is_not_checked_out_is_told(repository: Path, tmp_path: Path) -> None:
    write(tmp_path / "library", "lib.py")
    git(tmp_path, "init", "-q", "library")
    git(tmp_path / "library", "add", ".")
    git(tmp_path / "library", "commit", "-q", "-m", "lib")
    git(repository, "submodule", "add", "-q", str(tmp_path / "library"), "lib")
    git(repository, "submodule", "deinit", "-q", "-f", "lib")
    selection = select_files(repository)
    assert selection.skipped["lib"] == "submodule that is not checked out"
    assert any("not checked out" in warning for warning in selection.warnings)


def test_variables_of_a_git_hook_do_not_lead_astray(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", "index")
    assert "src/app.py" in sent(repository)


def test_a_project_inside_an_ignored_directory_is_sent_whole(repository: Path) -> None:
    write(repository, "build/sub/app.py")
    assert sent(repository / "build/sub") == ["app.py"]


def test_a_repository_that_git_refuses_is_sent_with_a_warning(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(repository / ".git/objects")
    (repository / ".git/HEAD").write_text("nonsense")
    selection = select_files(repository)
    assert "src/app.py" in [entry.path for entry in selection.entries]
    assert any("git does not list" in warning for warning in selection.warnings)
    assert not [entry for entry in selection.entries if entry.path.startswith(".git/")]


def test_outside_of_git_everything_but_artefacts_goes(tmp_path: Path) -> None:
    write(tmp_path, "app.py", ".env.example", "src/build/code.py")
    write(tmp_path, ".venv/a.py", "node_modules/b.py", "src/__pycache__/c.pyc", "build/d.py", "x.egg-info/e")
    write(tmp_path, "myenv/pyvenv.cfg", "myenv/lib/f.py", "stale.pyc")
    assert sent(tmp_path) == [".env.example", "app.py", "src/build/code.py"]
    assert skipped(tmp_path)["myenv/"] == "not sent by default"


def test_executable_bits_are_kept(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "run.sh")
    (tmp_path / "run.sh").chmod(0o700)
    (tmp_path / "app.py").chmod(0o600)
    with build_archive(tmp_path) as archive, zipfile.ZipFile(archive.file) as unpacked:
        modes = {info.filename: info.external_attr >> 16 for info in unpacked.infolist()}
    assert modes == {"app.py": stat.S_IFREG | 0o644, "run.sh": stat.S_IFREG | 0o755}


@pytest.mark.parametrize("compress", [True, False])
def test_the_same_tree_gives_the_same_bytes(tmp_path: Path, compress: bool) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, "b.py", "a/é.py", "a.py", text="text\n" * 1000)
    write(two, "a.py", "a/é.py", "b.py", text="text\n" * 1000)  # made in another order
    for path in two.rglob("*.py"):
        os.utime(path, (0, 0))  # 1970, which a zip cannot even express
    with build_archive(one, compress=compress) as first, build_archive(two, compress=compress) as second:
        assert first.file.read() == second.file.read()
        assert (first.size < 3000) is compress


def test_a_link_goes_as_a_copy_of_what_it_points_to(repository: Path) -> None:
    (repository / "link.py").symlink_to("src/app.py")
    (repository / "code").symlink_to("src")
    (repository / "src/app.py").write_text("content = 1\n")
    with build_archive(repository) as archive, zipfile.ZipFile(archive.file) as unpacked:
        assert unpacked.read("link.py") == unpacked.read("code/app.py") == b"content = 1\n"
        assert all(
            info.external_attr >> 16 & stat.S_IFMT(0o177777) == stat.S_IFREG for info in unpacked.infolist()
        )


def test_links_out_of_the_project_stay_behind_with_a_warning(repository: Path, tmp_path: Path) -> None:
    write(tmp_path, "secret.py")
    (repository / "out.py").symlink_to(tmp_path / "secret.py")
    (repository / "up").symlink_to("../")
    (repository / "dangling").symlink_to("nowhere")
    (repository / "config").symlink_to(".git/config")
    (repository / "loop").symlink_to("loop")
    selection = select_files(repository)
    assert {name: selection.skipped[name] for name in ("out.py", "up", "dangling", "config", "loop")} == {
        "out.py": "symbolic link out of the project",
        "up": "symbolic link out of the project",
        "dangling": "symbolic link to nothing",
        "config": "symbolic link into .git",
        "loop": "symbolic link to nothing",
    }
    assert len([warning for warning in selection.warnings if "not sent" in warning]) == 5


@pytest.mark.parametrize(
    ("link", "target", "ignore_file", "reason"),
    [
        ("cfg", ".env", ".gitignore", "symbolic link to .env, which is not sent: ignored by git"),
        ("cfg", ".env", ".ciignore", "symbolic link to .env, which is not sent: excluded by .ciignore"),
        (
            "out.py",
            "build/out.py",
            ".gitignore",
            "symbolic link to build/out.py, which is not sent: ignored by git",
        ),
        ("made", "build", ".gitignore", "symbolic link to build, of which nothing is sent"),
    ],
)
def test_a_link_brings_in_nothing_that_would_not_go_by_itself(
    repository: Path, link: str, target: str, ignore_file: str, reason: str
) -> None:
    write(repository, ".env", "build/out.py")
    with (repository / ignore_file).open("a") as patterns:
        patterns.write(".env\n")
    (repository / link).symlink_to(target)
    selection = select_files(repository)
    assert not [entry for entry in selection.entries if entry.path.startswith(link)]
    assert selection.skipped[link] == reason
    assert f"{link!r}: not sent ({reason})" in selection.warnings


def test_a_link_is_judged_alike_by_its_own_name_and_inside_of_a_linked_directory(repository: Path) -> None:
    write(repository, "d/code.py", ".env")
    with (repository / ".gitignore").open("a") as patterns:
        patterns.write(".env\n")
    (repository / "d/link").symlink_to("../.git/config")
    (repository / "d/env").symlink_to("../.env")
    (repository / "d/out").symlink_to("/etc/hostname")
    (repository / "e").symlink_to("d")
    selection = select_files(repository)
    paths = [entry.path for entry in selection.entries]
    assert [path for path in paths if path.startswith(("d/", "e/"))] == ["d/code.py", "e/code.py"]
    for name in ("link", "env", "out"):
        assert selection.skipped[f"e/{name}"] == selection.skipped[f"d/{name}"]
        assert any(f"e/{name}" in warning for warning in selection.warnings)


def test_a_tracked_name_that_now_leads_through_a_link_is_judged_as_one(
    repository: Path, tmp_path: Path
) -> None:
    write(repository, "e/config", "f/secret.py")
    write(tmp_path, "outside/secret.py")
    git(repository, "add", ".")
    for name, target in (("e", ".git"), ("f", tmp_path / "outside")):
        shutil.rmtree(repository / name)
        (repository / name).symlink_to(target)
    selection = select_files(repository)
    assert not [entry for entry in selection.entries if entry.path.startswith(("e", "f"))]
    assert selection.skipped["e/config"] == "symbolic link into .git"
    assert selection.skipped["f/secret.py"] == "symbolic link out of the project"


@pytest.mark.parametrize(
    "crafted", ["./../xsecret.py", "../../secret.py", "sub/.GIT/hooks", "sub/.git/config"]
)
def test_an_index_that_names_what_is_no_file_of_the_project(
    repository: Path, tmp_path: Path, crafted: str
) -> None:
    write(tmp_path, "secret.py", "xsecret.py", "project/sub/.GIT/hooks")
    harmless = "x" * len(crafted)
    write(repository, harmless)
    git(repository, "add", harmless)
    index = repository / ".git/index"
    index.write_bytes(index.read_bytes().replace(harmless.encode(), crafted.encode()))
    selection = select_files(repository)
    assert [entry.path for entry in selection.entries if entry.path == crafted] == []
    assert selection.skipped[crafted] == "no file of a project has such a path"


def test_a_copy_by_a_link_keeps_to_the_rules_for_names(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 31)
    write(tmp_path, "app.py", "lib/sub/code.py", f"{deep}/x.py")
    (tmp_path / deep / "lib").symlink_to(tmp_path / "lib")
    selection = select_files(tmp_path)
    assert "directories deep" in selection.skipped[f"{deep}/lib/sub/code.py"]


def _program(path: Path) -> Path:
    """Return the file that is there once the program at that path has run."""
    ran = path.with_suffix(".ran")
    path.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    path.chmod(0o755)
    return ran


def test_no_program_that_a_repository_names_is_run(repository: Path, tmp_path: Path) -> None:
    nested = repository / "nested"
    write(nested, "inner.py")
    git(tmp_path, "init", "-q", str(nested))
    ran = _program(tmp_path / "program")
    for root in (repository, nested):
        for setting in ("core.fsmonitor", "core.sshCommand", "core.pager", "diff.external", "filter.x.clean"):
            git(root, "config", setting, str(tmp_path / "program"))
        hooks = root / ".git/hooks"
        git(root, "config", "core.hooksPath", str(hooks))
        for hook in ("post-index-change", "fsmonitor-watchman"):
            shutil.copy(tmp_path / "program", hooks / hook)
        (root / ".gitattributes").write_text("* filter=x\n")
    assert {"src/app.py", "nested/inner.py"} <= set(sent(repository))
    assert not ran.exists()


def test_nothing_is_fetched_to_list_a_repository(repository: Path, tmp_path: Path) -> None:
    """A partial clone asks its remote for what it lacks, by whatever program its configuration names."""
    git(repository, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--no-checkout", "--filter=blob:none", repository.as_uri(), str(clone))
    git(clone, "read-tree", "HEAD")
    git(clone, "update-index", "--skip-worktree", ".gitignore", "src/app.py", "tests/test_app.py")
    write(clone, "new.py")
    ran = _program(tmp_path / "program")
    git(clone, "config", "remote.origin.uploadpack", str(tmp_path / "program"))
    git(clone, "config", "protocol.file.allow", "always")
    assert "new.py" in sent(clone)
    assert not ran.exists()


def test_a_repository_of_somebody_else_is_told_with_the_way_out(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    (warning,) = select_files(repository).warnings
    assert "belongs to somebody else" in warning
    assert f"git config --global --add safe.directory {repository}" in warning


def test_links_in_a_circle_end(repository: Path) -> None:
    (repository / "src/self").symlink_to(".")
    (repository / "src/root").symlink_to("..")
    (repository / "tests/root").symlink_to("..")
    paths = sent(repository)
    assert {"src/self/app.py", "src/root/tests/test_app.py", "tests/root/src/app.py"} <= set(paths)
    assert len(paths) < 30


def test_what_is_no_file_stays_behind(tmp_path: Path) -> None:
    write(tmp_path, "app.py")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        assert skipped(tmp_path) == {"pipe": "named pipe, not a file", "sock": "socket, not a file"}


def test_names_no_archive_may_hold_are_told(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "back\\slash.py", "colon:.py", "bell\x07.py", f"{'d/' * 32}deep.py")
    (tmp_path / os.fsdecode(b"latin-\xe9.py")).touch()
    selection = select_files(tmp_path)
    assert [entry.path for entry in selection.entries] == ["app.py"]
    assert len(selection.skipped) == len(selection.warnings) == 5
    assert all(warning.isprintable() for warning in selection.warnings)
    assert "its name is not UTF-8" in selection.skipped.values()


def test_composed_and_decomposed_names_become_one_form(tmp_path: Path) -> None:
    write(tmp_path, "cafe\u0301.py")
    assert sent(tmp_path) == ["caf\u00e9.py"]


def test_a_file_that_vanishes_meanwhile_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "gone.py")
    selection = select_files(tmp_path)
    (tmp_path / "gone.py").unlink()
    with pack(selection) as archive, zipfile.ZipFile(archive.file) as unpacked:
        assert unpacked.namelist() == ["app.py"]
        assert archive.files == 1
        assert "gone.py" in archive.warnings[0]


def test_secrets_and_big_files_are_warned_about(tmp_path: Path) -> None:
    write(tmp_path, "app.py", ".env", ".env.example", "certs/server.pem", "id_rsa")
    with (tmp_path / "big.bin").open("wb") as big:
        big.truncate(60_000_000)
    secret, large = select_files(tmp_path).warnings
    assert ".env, certs/server.pem, id_rsa" in secret
    assert "example" not in secret
    assert "big.bin (60 MB)" in large


def test_a_file_that_packs_like_a_bomb_goes_unpacked(tmp_path: Path) -> None:
    write(tmp_path, "app.py", text="x = 1\n" * 1000)
    (tmp_path / "zeros.bin").write_bytes(bytes(2_000_000))
    with build_archive(tmp_path) as archive, zipfile.ZipFile(archive.file) as unpacked:
        ratios = [info.file_size / info.compress_size for info in unpacked.infolist()]
        assert unpacked.testzip() is None
    assert ratios[0] > 10
    assert ratios[1] == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [((), "is empty"), (("README.md",), "no Python file"), ((".venv/a.py",), "not sent by default")],
)
def test_what_is_no_project_is_told(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    write(tmp_path, *files)
    with pytest.raises(NotAProject, match=words) as caught:
        select_files(tmp_path)
    assert str(tmp_path) in caught.value.detail
    assert "-C" in caught.value.detail


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotAProject, match="not a directory"):
        select_files(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"!\n"], ids=["not UTF-8", "not a pattern"])
def test_a_ciignore_that_cannot_be_used(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, "app.py")
    (tmp_path / ".ciignore").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"\.ciignore"):
        select_files(tmp_path)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    write(tmp_path, "app.py", text="x = 1\n" * 10_000)
    selection = select_files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageFull, match="cannot be made"):
            pack(selection, compress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_virtual_environment_stays_behind_even_where_git_does_not_ignore_it(repository: Path) -> None:
    before = sent(repository)
    write(repository, "env/pyvenv.cfg", "env/lib/b.py")
    assert sent(repository) == before
    assert skipped(repository)["env/"] == "not sent by default"
