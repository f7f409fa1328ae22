"""From Enter to the prompt: `ci submit test` beside what people would type instead."""

from bench.alternate import alternating, milliseconds
from bench.floors import packed
from bench.place import Place
from bench.report import Row


def warm(place: Place) -> list[Row]:
    """The tiny project again and again, everything known: beside `docker run` of a prepared image, and local pytest."""
    project, local = place.project("tiny", "ours"), place.project("tiny", "local")
    tree = packed(project)
    assert place.containers.prepared
    assert place.virtual.python
    found = alternating(
        {
            "ours": lambda: place.submit(project),
            "docker": lambda: place.containers.run_prepared(tree),
            "local": lambda: place.virtual.run_pytest(local),
        },
        place.rounds,
        before=place.rest,
    )
    name = "`ci submit test`, tiny, warm"
    in_a_row = tuple(milliseconds(lambda: place.submit(project)) for _ in range(place.rounds))
    return [
        Row(name, "ms", found["ours"], "`docker run`, prepared image", found["docker"], "warm/docker-run"),
        Row(name, "ms", found["ours"], "local pytest, warm venv", found["local"], "warm/pytest"),
        Row(f"{name}, one right after another", "ms", in_a_row),
    ]


def cold(place: Place) -> list[Row]:
    """The tiny project for a user nobody has seen: no image, no cache; beside pip and pytest in `docker run`."""
    project = place.project("tiny", "ours")
    tree, users = packed(project), (f"newcomer{number}" for number in range(10_000))
    assert place.server.running

    def ours() -> None:
        place.submit(project, user=next(users))

    rounds = max(1, place.rounds // 2)
    for number in range(rounds + 1):
        place.system.key(f"newcomer{number}")  # making a user and a key is not measured
    found = alternating({"ours": ours, "pip": lambda: place.containers.run_with_pip(tree)}, rounds)
    return [
        Row(
            "`ci submit test`, tiny, cold (a new user)",
            "ms",
            found["ours"],
            "`docker run`, pip install + pytest",
            found["pip"],
            "cold/docker-run-pip",
        )
    ]


def medium(place: Place) -> list[Row]:
    """The medium project after an edit; beside `docker run` with pip's downloads in a volume."""
    project = place.project("medium", "ours", git=True)
    test, edits = project / "test_medium.py", iter(range(10_000))

    def edit() -> None:
        with test.open("a") as file:
            file.write(f"# edit {next(edits)}\n")

    def ours() -> None:
        edit()
        place.submit(project)

    def floor() -> None:
        edit()
        place.containers.run_with_pip_cache(packed(project))

    found = alternating({"ours": ours, "pip": floor}, max(1, place.rounds // 3), before=place.rest)
    return [
        Row(
            "`ci submit test`, medium, after an edit",
            "ms",
            found["ours"],
            "`docker run`, pip cache volume",
            found["pip"],
            "medium/docker-run-pip-cache",
        )
    ]


def tox(place: Place) -> list[Row]:
    """The tiny project beside `tox -r`."""
    ours, theirs = place.project("tiny", "ours"), place.project("tiny", "tox")
    assert place.virtual.tox
    found = alternating(
        {"ours": lambda: place.submit(ours), "tox": lambda: place.virtual.run_tox(theirs)},
        max(1, place.rounds // 2),
        before=place.rest,
    )
    return [Row("`ci submit test`, tiny, warm", "ms", found["ours"], "`tox -r`", found["tox"], "warm/tox")]
