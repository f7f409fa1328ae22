"""What composition roots get for their settings."""

from pathlib import Path

from ci_common.settings import StorageSettings
from ci_persistence.factory import open_repository, open_stores


def settings_in(directory: Path) -> StorageSettings:
    return StorageSettings(db_path=directory / "ci_jobs.db", data_dir=None)


def test_directories_are_shared_with_the_group_and_nobody_else(tmp_path: Path) -> None:
    for _ in range(2):
        open_stores(settings_in(tmp_path))
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in tmp_path.rglob("*")}
    # The directory of logs is made by the first writer of one, so that it is the controller's own.
    assert modes == {"ci_jobs.db.data": "0o2770", "archives": "0o2770", "blobs": "0o2770"}


async def test_repository_and_stores_are_of_one_installation(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    repository, stores = open_repository(settings), open_stores(settings)
    await repository.initialize()
    await stores.hub.start()
    writer = stores.logs.writer("job", 1)
    with stores.hub.log("job") as changes:
        writer.write(0, b"line")
        assert await changes.wait(5)
    writer.close()
    await stores.hub.close()
    await repository.close()
