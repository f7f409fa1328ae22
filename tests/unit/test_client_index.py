"""What the client remembers of files: believed while nothing can have changed, and never otherwise."""

import dataclasses
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ci_client import file_index
from ci_client.blobs import Blob
from ci_client.file_index import FileIndex
from ci_client.scan import Scan, now, scan
from ci_client.second_look import look_again
from ci_client.selection import LookAhead, select_files

HOUR = 3_600 * 10**9


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "a.py").write_text("a = 1\n")
    (root / "pkg" / "b.py").write_text("b = 1\n")
    return root


def look(root: Path, index: FileIndex, *, began: int) -> Scan:
    return scan(select_files(root), index, began)


def long_after(root: Path) -> FileIndex:
    """Return the index of a scan that came an hour after the files were written, and so believes them all."""
    return look(root, FileIndex(), began=now() + HOUR).index


def truth(root: Path) -> bytes:
    return look(root, FileIndex(), began=now()).tree.root


def test_a_second_scan_reads_nothing(project: Path) -> None:
    index = long_after(project)
    again = look(project, index, began=now())
    assert again.files_read == 0
    assert again.tree.root == truth(project)
    assert again.index.files == index.files


def keep_times(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file so that its times of modification and access look as before, as far as a program can."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite(path: Path) -> None:
    path.write_text("a = 2\n")


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text("a = 2\n")
    other.replace(path)


def swap_with_neighbour(path: Path) -> None:
    other = path.with_name("b.py")
    spare = path.with_name("spare")
    path.rename(spare)
    other.rename(path)
    spare.rename(other)


def rewrite_by_other_name(path: Path) -> None:
    other = path.with_name("same.bin")
    os.link(path, other)
    other.write_text("a = 2\n")
    other.unlink()


def rewrite_mapped(path: Path) -> None:
    import mmap

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[4:5] = b"2"
        mapped.flush()


@pytest.mark.parametrize(
    "change", [rewrite, replace, swap_with_neighbour, rewrite_by_other_name, rewrite_mapped]
)
def test_an_edit_of_the_same_size_and_time_is_seen(project: Path, change: Callable[[Path], None]) -> None:
    index, before = long_after(project), truth(project)
    keep_times(project / "pkg" / "a.py", change)
    found = look(project, index, began=now())
    assert found.tree.root == truth(project) != before
    assert found.files_read >= 1


def test_a_changed_executable_bit_is_seen(project: Path) -> None:
    index, before = long_after(project), truth(project)
    (project / "pkg" / "a.py").chmod(0o755)
    assert look(project, index, began=now()).tree.root == truth(project) != before


def test_a_renamed_and_a_removed_file_are_seen(project: Path) -> None:
    index = long_after(project)
    (project / "pkg" / "a.py").rename(project / "pkg" / "c.py")
    assert look(project, index, began=now()).tree.root == truth(project)
    (project / "pkg" / "b.py").unlink()
    assert look(project, index, began=now()).tree.root == truth(project)


def test_a_file_as_young_as_its_scan_is_read_again(project: Path) -> None:
    """It may be written again within one tick of the clock: then not even the time of change tells."""
    index = look(project, FileIndex(), began=now()).index
    assert look(project, index, began=now()).files_read == 2


def test_files_from_the_future_are_always_read(project: Path) -> None:
    """The clock was set back, or is another machine's."""
    index = look(project, FileIndex(), began=now() - HOUR).index
    assert look(project, index, began=now() - HOUR).files_read == 2


def test_a_file_with_a_time_of_modification_from_the_future_is_always_read(project: Path) -> None:
    later = now() + 10 * HOUR
    os.utime(project / "pkg" / "a.py", ns=(later, later))
    assert look(project, long_after(project), began=now()).files_read == 1


def test_listings_that_nothing_changed_are_not_made_again(project: Path) -> None:
    index = long_after(project)
    again = scan(select_files(project), index, now(), present=index.blobs())
    assert (again.tree.root, again.tree.listings) == (truth(project), {})
    assert again.index.directories == index.directories
    assert {blob.digest for blob in again.blobs()} == index.blobs(), "the server may have lost them"


# -- the same names again ----------------------------------------------------------------------------------


def files_in(root: Path) -> list[str]:
    """Return what git would list."""
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()]


def again(root: Path, index: FileIndex) -> tuple[Scan | None, list[Blob]]:
    """Look at the project's files once more; returns also what would go up."""
    blobs: list[Blob] = []
    return look_again(LookAhead(root, index), files_in(root), now(), blobs.append), blobs


def test_of_the_same_names_only_what_changed_is_read_and_goes_up(project: Path) -> None:
    (project / "other").mkdir()
    (project / "other" / "c.py").write_text("c = 1\n")
    index = long_after(project)
    (project / "pkg" / "a.py").write_text("a = 2\n")
    found, blobs = again(project, index)
    assert found is not None
    assert found.tree.root == truth(project)
    assert (found.files_read, len(blobs)) == (1, 3), "the file, pkg/ and the root"
    assert index.files != found.index.files, "what was known is not changed"


@pytest.mark.parametrize(
    "change", [rewrite, replace, swap_with_neighbour, rewrite_by_other_name, rewrite_mapped]
)
def test_an_edit_of_the_same_size_and_time_is_seen_among_the_same_names(
    project: Path, change: Callable[[Path], None]
) -> None:
    index = long_after(project)
    keep_times(project / "pkg" / "a.py", change)
    found, _ = again(project, index)
    assert found is not None
    assert found.tree.root == truth(project)


def test_young_files_are_read_again_and_do_not_go_up(project: Path) -> None:
    index = look(project, FileIndex(), began=now()).index
    found, blobs = again(project, index)
    assert found is not None
    assert (found.files_read, blobs, found.tree.root) == (2, [], truth(project))


def test_an_executable_bit_is_seen_among_the_same_names(project: Path) -> None:
    index = long_after(project)
    (project / "pkg" / "a.py").chmod(0o755)
    found, _ = again(project, index)
    assert found is not None
    assert found.tree.root == truth(project)


def new_name(root: Path) -> None:
    (root / "new.py").touch()


def lost_name(root: Path) -> None:
    (root / "pkg" / "a.py").unlink()


def link_to_file(root: Path) -> None:
    (root / "pkg" / "a.py").unlink()
    (root / "pkg" / "a.py").symlink_to("b.py")


def link_to_directory(root: Path) -> None:
    (root / "pkg").rename(root.with_name("elsewhere"))
    (root / "pkg").symlink_to(root.with_name("elsewhere"))


def big(root: Path) -> None:
    os.truncate(root / "pkg" / "a.py", 50_000_000)


@pytest.mark.parametrize("change", [new_name, lost_name, link_to_file, link_to_directory, big])
def test_what_is_not_plain_takes_a_whole_look(project: Path, change: Callable[[Path], None]) -> None:
    index, names = long_after(project), files_in(project)
    change(project)
    listed = files_in(project) if change in (new_name, lost_name) else names
    assert look_again(LookAhead(project, index), listed, now(), lambda _: None) is None


def test_what_was_told_of_the_files_is_told_again(project: Path) -> None:
    (project / ".env").write_text("x")
    assert again(project, long_after(project))[0] is None


MOVES = st.tuples(
    st.sampled_from(("write", "remove", "rename", "executable")),
    st.sampled_from(("a.py", "b.py", "x/a.py", "x/b.py", "x/y/a.py", "z/a.py")),
    st.sampled_from(("a.py", "c.py", "x/c.py", "x/y/b.py", "w/a.py")),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(MOVES, max_size=3), min_size=1, max_size=4))
def test_whatever_changes_the_tree_is_the_one_that_a_first_look_finds(
    rounds: list[list[tuple[str, str, str]]],
) -> None:
    with TemporaryDirectory() as folder:
        root, index, count = Path(folder, "project"), FileIndex(), 0
        for moves in [[("write", "a.py", ""), ("write", "x/b.py", ""), ("write", "x/y/a.py", "")], *rounds]:
            for name, path, other in moves:
                count += 1
                move(root, name, path, other, count)
            (root / "always.py").touch()
            ahead = LookAhead(root, index)
            second = look_again(ahead, files_in(root), now() + HOUR, lambda _: None)
            if second:
                assert second.tree.root == truth(root)
                assert {blob.digest for blob in second.blobs()} == second.index.blobs()
            found = scan(select_files(root, ahead=ahead), index, now() + HOUR, present=index.blobs())
            assert found.tree.root == truth(root)
            assert found.index.listings() == set(look(root, FileIndex(), began=now()).tree.listings)
            assert second is None or second.index == dataclasses.replace(
                found.index, scanned_at=second.index.scanned_at
            )
            index = found.index


def move(root: Path, name: str, path: str, other: str, count: int) -> None:
    source, target = root / path, root / other
    source.parent.mkdir(parents=True, exist_ok=True)
    if name == "write":
        source.write_text("#" * count)  # of another size: the clock may not have ticked since
    elif source.exists() and name == "remove":
        source.unlink()
    elif source.exists() and name == "rename":
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    elif source.exists():
        source.chmod(source.stat().st_mode ^ 0o100)


def test_a_file_that_vanishes_is_left_out_and_named(project: Path) -> None:
    selection = select_files(project)
    (project / "pkg" / "a.py").unlink()
    found = scan(selection, FileIndex(), now())
    assert found.warnings == ("pkg/a.py: not sent (cannot be read: No such file or directory)",)
    assert [file[0] for file, _ in found.found()] == ["pkg/b.py"]


def test_what_was_kept_comes_back_and_only_for_its_owner(project: Path) -> None:
    index = long_after(project)
    index.accepted_by = "a server"
    file_index.save(project, index)
    assert file_index.load(project) == index
    assert stat.S_IMODE(file_index.path_of(project).stat().st_mode) == 0o600
    assert list(file_index.path_of(project).parent.glob("new-*")) == []


def test_names_of_any_kind_are_kept(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"not-utf8-\xff\n")
    root.mkdir()
    (root / "ünï cödé.py").write_text("x")
    index = long_after(root)
    file_index.save(root, index)
    assert file_index.load(root) == index


def test_an_index_of_another_project_is_none(project: Path, tmp_path: Path) -> None:
    file_index.save(project, long_after(project))
    other = tmp_path / "other"
    other.mkdir()
    file_index.path_of(project).rename(file_index.path_of(other))
    assert file_index.load(other) == FileIndex()
    assert file_index.load(project) == FileIndex()


def test_an_index_of_another_user_is_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_index.save(project, long_after(project))
    stranger = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    assert file_index.load(project) == FileIndex()


def test_a_damaged_index_is_none(project: Path) -> None:
    file_index.save(project, long_after(project))
    path = file_index.path_of(project)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at])
        assert file_index.load(project) == FileIndex()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert file_index.load(project) == FileIndex()
    path.write_bytes(whole)
    assert file_index.load(project) != FileIndex()


def test_two_processes_at_once_leave_one_whole_index(project: Path) -> None:
    first, second = long_after(project), long_after(project)
    first.accepted_by, second.accepted_by = "first", "second"
    seen: set[str] = set()
    file_index.save(project, first)

    def save_often(index: FileIndex) -> None:
        for _ in range(50):
            file_index.save(project, index)

    threads = [threading.Thread(target=save_often, args=(index,)) for index in (first, second)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(file_index.load(project).accepted_by)
    assert seen <= {"first", "second"}


def test_indexes_of_projects_long_gone_are_forgotten(project: Path) -> None:
    file_index.save(project, FileIndex())
    old = file_index.path_of(project).with_name("0" * 32 + ".index")
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    stranger = old.with_name("of-somebody-else")
    stranger.write_bytes(b"")
    os.utime(stranger, (0, 0))
    file_index.save(project, FileIndex())
    assert not old.exists()
    assert stranger.exists()
