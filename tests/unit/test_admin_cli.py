"""What `ci-admin` prints and how it exits, with nothing replaced but the terminal."""

import asyncio
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ci_admin.location import database_in_force, personal_database
from ci_common.api_keys import is_well_formed, key_prefix
from ci_persistence.sqlite_repository import SQLiteJobRepository
from tests.support.admin import Admin, Said, admin
from tests.support.repository_contract.dead_letters import a_dead_job
from tests.support.repository_contract.story import Story

__all__ = ["admin"]


@pytest.fixture
def ada(admin: Admin) -> dict[str, Any]:
    return admin("user", "create", "--name", "Your Name", "--email", "you@example.com", "--json").json


def test_an_agent_is_listed_drained_and_removed(admin: Admin, ada: dict[str, Any], tmp_path: Path) -> None:
    assert "ci-admin key create" in admin("agent", "list").out
    asked = ("--email", ada["email"], "--name", "rack-1", "--scope", "agent", "--json")
    key_id = admin("key", "create", *asked).json["id"]
    db = sqlite3.connect(tmp_path / "ci_jobs.db")
    with db:
        db.execute(
            "INSERT INTO agents (id, name, pool, slots, labels, version, state, registered_at, last_heartbeat) "
            "VALUES (?, 'rack-1', 'gpu', 4, '', '1', 'active', ?, ?)",
            (key_id, "2026-01-02T03:04:05.000000Z", "2026-01-02T03:04:05.000000Z"),
        )
    db.close()
    [listed] = admin("agent", "list", "--json").json
    assert admin("pool", "limit", "gpu", "3").out == "✓ Pool gpu runs at most 3 jobs at the same time\n"
    [pool] = admin("pool", "list", "--json").json
    assert pool == {"pool": "gpu", "agents": 1, "slots": 4, "jobs_running": 0, "max_running": 3}
    assert "any number" in admin("pool", "limit", "gpu", "none").out
    assert [admin("pool", "limit", *wrong).code for wrong in (("gpu", "0"), ("GPU", "1"))] == [64, 64]
    assert (listed["agent_id"], listed["pool"], listed["health"]) == (key_id, "gpu", "lost")
    assert admin("agent", "drain", "rack-1") == Said(0, "✓ rack-1 claims no more\n", "")
    assert admin("agent", "resume", key_id, "--json").json["state"] == "active"
    assert admin("agent", "drain", "rack-2").code == 66
    assert admin("agent", "remove", "rack-1").code == 0
    assert admin("agent", "list", "--json").json == []
    assert admin("agent", "list", "--all", "--json").json[0]["state"] == "removed"
    [key] = admin("key", "list", "--json").json
    assert key["is_active"] is False


def test_creating_a_user_says_what_the_documents_say(admin: Admin) -> None:
    said = admin("user", "create", "--name", "Your Name", "--email", "you@example.com")
    (user,) = admin("user", "list", "--json").json

    assert said == Said(
        0, f"✓ User created successfully\nID:    {user['id']}\nName:  Your Name\nEmail: you@example.com\n", ""
    )


@pytest.mark.usefixtures("ada")
def test_creating_a_key_says_what_the_documents_say(admin: Admin) -> None:
    said = admin("key", "create", "--email", "you@example.com", "--name", "My Dev Key")
    first, _, rest = said.out.partition("API Key: ")
    secret, _, rest = rest.partition("\n")

    assert said.code == 0
    assert is_well_formed(secret)
    assert first == "✓ API key created successfully\n\n"
    assert rest == (
        "Name:    My Dev Key\n"
        "User:    you@example.com\n"
        "\n"
        "⚠️  IMPORTANT: This is the only time you'll see this key!\n"
        "   Save it securely now.\n"
    )


@pytest.mark.usefixtures("ada")
def test_a_key_is_shown_once(admin: Admin) -> None:
    issued = admin("key", "create", "--email", "you@example.com", "--name", "laptop", "--json").json
    listed = admin("key", "list").out + admin("key", "list", "--json").out

    assert is_well_formed(issued["api_key"])
    assert issued["api_key"] not in listed
    assert key_prefix(issued["api_key"]) in listed


@pytest.mark.usefixtures("ada")
def test_rotating_a_key_shows_the_new_one_and_how_long_the_old_one_works(admin: Admin) -> None:
    old = admin("key", "create", "--email", "you@example.com", "--name", "laptop", "--json").json
    said = admin("key", "rotate", old["prefix"], "--keep", "36h")

    assert said.code == 0
    first, *lines = said.out.splitlines()
    secret = lines[1].removeprefix("API Key: ")
    assert first == "✓ API key rotated successfully"
    assert is_well_formed(secret)
    assert lines[2:4] == ["Name:    laptop", "User:    you@example.com"]
    assert lines[4].startswith(f"Replaces: {old['prefix']}, which works until 20")
    kept, new = admin("key", "list", "--json").json
    assert (kept["prefix"], new["prefix"]) == (old["prefix"], key_prefix(secret))
    overlap = datetime.fromisoformat(kept["expires_at"]) - datetime.fromisoformat(new["created_at"])
    assert overlap == timedelta(hours=36)
    assert new["scopes"] == old["scopes"]


@pytest.mark.usefixtures("ada")
def test_json_of_a_rotation_is_that_of_a_new_key_and_the_one_it_replaces(admin: Admin) -> None:
    old = admin("key", "create", "--email", "you@example.com", "--name", "laptop", "--json").json
    new = admin("key", "rotate", old["id"], "--json").json

    assert list(new)[:4] == ["api_key", "id", "prefix", "name"]
    assert list(new)[-1] == "replaces"
    assert new["replaces"]["id"] == old["id"]
    assert "api_key" not in new["replaces"]


@pytest.mark.usefixtures("ada")
def test_a_third_live_key_of_one_name_is_refused(admin: Admin) -> None:
    old = admin("key", "create", "--email", "you@example.com", "--name", "laptop", "--json").json
    new = admin("key", "rotate", old["id"], "--json").json
    said = admin("key", "rotate", new["id"])

    assert (said.code, said.out) == (65, "")
    assert "2 live keys" in said.err
    admin("key", "revoke", old["id"])
    assert admin("key", "rotate", new["id"]).code == 0


def test_a_key_that_was_made_for_a_time_is_renewed_for_as_long(admin: Admin, ada: dict[str, Any]) -> None:
    arguments = ("key", "create", "--email", ada["email"], "--name", "ci", "--expires", "30d", "--json")
    new = admin("key", "rotate", admin(*arguments).json["id"], "--json").json

    lifetime = datetime.fromisoformat(new["expires_at"]) - datetime.fromisoformat(new["created_at"])
    assert lifetime == timedelta(days=30)


def test_names_in_the_database_have_no_power_over_a_terminal(
    admin: Admin, ada: dict[str, Any], tmp_path: Path
) -> None:
    """Such names are refused; a database that somebody else wrote may hold them all the same."""
    hostile = "\x1b]0;owned\x07\x1b[2J\u202ehi\r\nFORGED \x9b31mred\x08"
    admin("key", "create", "--email", ada["email"], "--name", "laptop")
    db = sqlite3.connect(tmp_path / "ci_jobs.db")
    with db:
        db.execute("UPDATE users SET name = ?, email = ?", (hostile, hostile))
        db.execute("UPDATE api_keys SET name = ?", (hostile,))
        db.execute("UPDATE audit_events SET actor = ?", (hostile,))
    db.close()
    for command in (("user", "list"), ("user", "get", "--email", ada["id"]), ("key", "list"), ("audit",)):
        for arguments in (command, (*command, "--json")):
            said = admin(*arguments)
            assert said.code == 0
            assert {char for char in said.out if not char.isprintable()} == {"\n"}, arguments
            assert not [line for line in said.out.splitlines() if line.startswith("FORGED")]
        assert repr(hostile)[1:-1] in str(admin(*command, "--json").json), "nothing is lost for scripts"
    told = admin("user", "get", "--email", hostile + "!")
    assert told.code == 66
    assert {char for char in told.err if not char.isprintable()} == {"\n"}


def test_the_audit_trail_is_one_line_an_event(admin: Admin, ada: dict[str, Any]) -> None:
    header, _, line = admin("audit").out.splitlines()

    assert header.split() == ["AT", "ACTOR", "ACTION", "SUBJECT", "REQUEST", "DETAILS"]
    assert "user.create" in line
    assert ada["id"] in line
    assert "email=you@example.com role=user" in line


def test_json_of_the_audit_trail_has_stable_keys(admin: Admin, ada: dict[str, Any]) -> None:
    (event,) = admin("audit", "--json").json

    assert list(event) == ["at", "actor", "action", "subject", "request_id", "details"]
    assert event["subject"] == ada["id"]


def test_json_of_a_user_has_stable_keys(ada: dict[str, Any]) -> None:
    assert sorted(ada) == [
        "created_at",
        "email",
        "id",
        "is_active",
        "max_priority",
        "max_running",
        "name",
        "role",
    ]


def test_json_of_a_key_has_stable_keys(admin: Admin, ada: dict[str, Any]) -> None:
    arguments = ("key", "create", "--email", ada["id"], "--name", "ci", "--expires", "2099-01-01")
    issued = admin(*arguments, "--scope", "read", "--json").json

    assert list(issued)[:4] == ["api_key", "id", "prefix", "name"]
    assert list(issued)[4:8] == ["user_id", "email", "scopes", "is_active"]
    assert list(issued)[8:] == ["created_at", "expires_at", "last_used_at"]
    assert (issued["scopes"], issued["expires_at"]) == (["read"], "2099-01-01T00:00:00Z")
    assert issued["user_id"] == ada["id"]


def test_keys_are_listed_for_one_user_or_for_all(admin: Admin, ada: dict[str, Any]) -> None:
    admin("user", "create", "--name", "Bob", "--email", "bob@example.com")
    for owner in (ada["email"], "bob@example.com"):
        admin("key", "create", "--email", owner, "--name", f"key of {owner}")

    mine = admin("key", "list", "--email", "you@example.com", "--json").json
    everybodys = admin("key", "list", "--json").json

    assert [key["email"] for key in mine] == ["you@example.com"]
    assert [key["email"] for key in everybodys] == ["you@example.com", "bob@example.com"]


def test_tables_show_every_state(admin: Admin, ada: dict[str, Any]) -> None:
    for name in ("good", "bad"):
        admin("key", "create", "--email", ada["email"], "--name", name)
    admin("key", "revoke", admin("key", "list", "--json").json[1]["id"])
    admin("user", "deactivate", ada["id"])

    keys, users = admin("key", "list").out.splitlines(), admin("user", "list").out.splitlines()

    assert keys[0].split()[:5] == ["ID", "PREFIX", "NAME", "USER", "SCOPES"]
    assert ["active" in keys[2], "revoked" in keys[3]] == [True, True]
    assert "✗" in users[2]


@pytest.mark.parametrize("named_by", ["id", "email"])
def test_a_user_is_named_by_id_or_address(admin: Admin, ada: dict[str, Any], named_by: str) -> None:
    assert admin("user", "get", "--email", ada[named_by], "--json").json == ada
    assert admin("user", "deactivate", ada[named_by], "--json").json["is_active"] is False
    assert admin("user", "activate", ada[named_by], "--json").json["is_active"] is True


def test_what_a_user_may_take_of_the_queue_is_set_and_shown(admin: Admin, ada: dict[str, Any]) -> None:
    changed = admin("user", "set", ada["email"], "--max-priority", "critical", "--json").json

    assert (ada["max_priority"], changed["max_priority"]) == ("normal", "critical")
    assert "Highest priority: critical" in admin("user", "get", "--email", ada["id"]).out
    assert "user.set" in admin("audit").out


def test_how_many_jobs_of_a_user_run_at_once_is_set_and_taken_away(admin: Admin, ada: dict[str, Any]) -> None:
    assert ada["max_running"] is None
    limited = admin("user", "set", ada["email"], "--max-running", "2", "--json").json
    assert (limited["max_running"], limited["max_priority"]) == (2, "normal")
    assert "Jobs at the same time: 2" in admin("user", "set", ada["email"], "--max-priority", "low").out
    assert admin("user", "set", ada["email"], "--max-running", "none", "--json").json["max_running"] is None


def test_a_new_user_has_the_limit_of_the_environment(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_MAX_RUNNING_PER_USER", "3")
    bob = admin("user", "create", "--name", "Bob", "--email", "bob@example.com", "--json").json
    assert bob["max_running"] == 3


def test_the_queue_is_paused_and_resumed(admin: Admin) -> None:
    assert admin("queue", "resume", "--json").json == {"resumed": False}
    paused = admin("queue", "pause", "--reason", "new disks", "--json").json
    assert (list(paused), paused["reason"]) == (["paused_at", "paused_by", "reason"], "new disks")
    assert "Reason: new disks" in admin("queue", "pause").out
    assert admin("queue", "resume").out == "✓ Queue resumed\n"


def test_the_statistics_of_the_queue_are_a_table_or_json(admin: Admin) -> None:
    shown = admin("queue", "stats", "--window", "2h", "--json").json
    assert (shown["window_seconds"], shown["queued"], shown["failure_rate"]) == (7200, 0, None)
    lines = admin("queue", "stats").out.splitlines()
    assert lines[0].split() == ["NOW", "QUEUED", "CLAIMED", "RUNNING"]
    assert any(line.split() == ["priority", "critical", "0", "0", "0"] for line in lines)
    assert any(line.split()[:2] == ["LAST", "3600"] for line in lines)
    assert admin("queue", "stats", "--window", "8d").code == 64


def test_deactivating_tells_how_many_jobs_it_ended(admin: Admin, ada: dict[str, Any]) -> None:
    assert admin("user", "deactivate", ada["id"], "--json").json["cancelled_jobs"] == 0


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (64, ["user", "create", "--name", "x"]),
        (64, ["user", "list", "--nonsense"]),
        (64, ["nonsense"]),
        (64, ["user"]),
        (64, ["user", "create", "--name", "x", "--email", "no-address"]),
        (64, ["key", "create", "--email", "you@example.com", "--name", "x", "--expires", "2000-01-01"]),
        (64, ["key", "create", "--email", "you@example.com", "--name", "x", "--scope", "everything"]),
        (65, ["user", "create", "--name", "x", "--email", "YOU@example.com"]),
        (66, ["user", "get", "--email", "nobody@example.com"]),
        (66, ["key", "list", "--email", "nobody@example.com"]),
        (66, ["key", "revoke", "no-such-key"]),
        (66, ["key", "rotate", "no-such-key"]),
        (64, ["key", "rotate", "no-such-key", "--keep", "soon"]),
        (64, ["key", "rotate", "no-such-key", "--keep", "999999y"]),
        (64, ["audit", "--since", "yesterday"]),
        (64, ["audit", "--since", "999999y"]),
        (66, ["user", "list", "--db-path", "/no/such/folder/ci_jobs.db"]),
    ],
)
@pytest.mark.usefixtures("ada")
def test_a_mistake_is_one_sentence_and_an_exit_code(admin: Admin, code: int, arguments: list[str]) -> None:
    said = admin(*arguments)

    assert (said.code, said.out) == (code, "")
    assert said.err.strip()
    assert "Traceback" not in said.err


def test_help_ends_well_and_names_the_exit_codes(admin: Admin) -> None:
    said = admin("--help")

    assert said.code == 0
    assert "Exit codes:" in said.out


# -- which database ----------------------------------------------------------------------------------------------


def test_the_flag_beats_the_environment(admin: Admin, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    admin("user", "create", "--name", "x", "--email", "x@example.com", "--db-path", str(other))

    assert admin("user", "list", "--json").json == []
    assert len(admin("user", "list", "--json", "--db-path", str(other)).json) == 1


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (set[str](), "here"),
        ({"here"}, "here"),
        ({"personal"}, "personal"),
        ({"here", "personal"}, "here"),
    ],
)
def test_unnamed_the_database_here_comes_before_the_personal_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: set[str], expected: str
) -> None:
    environ = {"XDG_DATA_HOME": str(tmp_path / "data")}
    places = {"here": Path("ci_jobs.db"), "personal": personal_database(environ)}
    monkeypatch.chdir(tmp_path)
    for name in there:
        places[name].parent.mkdir(parents=True, exist_ok=True)
        places[name].touch()

    assert database_in_force(None, environ) == places[expected]


def test_a_named_database_is_taken_as_it_is(tmp_path: Path) -> None:
    assert database_in_force(tmp_path / "mine.db") == tmp_path / "mine.db"


@pytest.fixture
def dead(tmp_path: Path) -> str:
    """A job was lost by infrastructure as often as may be; returns its id."""

    async def made() -> str:
        repository = SQLiteJobRepository(tmp_path / "ci_jobs.db")
        try:
            await repository.initialize()
            story = Story(repository)
            await story.begin()
            return (await a_dead_job(story)).id
        finally:
            await repository.close()

    return asyncio.run(made())


def test_dead_letters_are_listed_shown_and_requeued_once(admin: Admin, dead: str) -> None:
    [listed] = admin("queue", "dead", "list", "--json").json
    assert (listed["job_id"], listed["email"], listed["reason"]) == (dead, "ada@example.org", "infra")
    assert (listed["attempt"], listed["requeued_as"]) == (2, None)
    shown = admin("queue", "dead", "show", dead, "--json").json
    assert [(one["attempt"], one["reason"]) for one in shown["attempts"]] == [(1, "infra"), (2, "infra")]
    text = admin("queue", "dead", "show", dead).out
    assert f"Job:       {dead}" in text
    assert [line.split()[0] for line in text.splitlines()[-2:]] == ["1", "2"]

    [done] = admin("queue", "dead", "requeue", dead, "--json").json
    assert done["job_id"] == dead
    assert done["requeued_as"] in admin("queue", "dead", "list").out
    again = admin("queue", "dead", "requeue", dead)
    assert (again.code, again.out) == (65, "")
    assert f"as job {done['requeued_as']}" in again.err
    assert admin("audit", "--json").json[-1]["action"] == "job.requeue"


@pytest.mark.usefixtures("ada")
def test_what_is_no_dead_letter_is_said_to_be_none(admin: Admin) -> None:
    assert admin("queue", "dead", "list", "--json").json == []
    for command in ("show", "requeue"):
        assert admin("queue", "dead", command, "nobody").code == 66
