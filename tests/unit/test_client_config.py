"""Which server and which key are in force."""

from pathlib import Path

import pytest

from ci_client.config import Flags, is_loopback, resolve
from ci_common.client_config import config_path, read_config
from ci_common.errors import InvalidRequest, Unauthorized


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text("# mine\napi_key = ci_file \nserver=https://file.example/\n\nnot a setting\n")
    path.chmod(0o600)
    return path


def test_a_flag_beats_the_environment_beats_the_file(config: Path, tmp_path: Path) -> None:
    environ = {"CI_CONFIG_FILE": str(config)}
    from_file = resolve(Flags(), environ)
    assert (from_file.server_url, from_file.api_key) == ("https://file.example", "ci_file")

    environ |= {"CI_API_KEY": "ci_env", "CI_SERVER_URL": "https://env.example"}
    from_env = resolve(Flags(), environ)
    assert (from_env.server_url, from_env.api_key) == ("https://env.example", "ci_env")

    key_file = tmp_path / "key"
    key_file.write_text("ci_keyfile\n")
    flags = Flags("https://flag.example", None, str(key_file))
    assert resolve(flags, environ).api_key == "ci_keyfile"
    from_flags = resolve(Flags("https://flag.example", "ci_flag", str(key_file)), environ)
    assert (from_flags.server_url, from_flags.api_key) == ("https://flag.example", "ci_flag")


def test_the_file_holds_settings_and_whatever_else(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(b"\xef\xbb\xbfserver = 'http://a'\r\n # api_key=old\napi_key=\"ci_x=y\"\nnonsense\n")
    assert read_config(path) == {"server": "http://a", "api_key": "ci_x=y"}
    assert read_config(tmp_path / "absent") == {}


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not text", "a directory"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=str(path)):
        read_config(path)


def test_where_the_file_is() -> None:
    assert config_path({}) == Path.home() / ".ci" / "config"
    assert config_path({"CI_CONFIG_FILE": "~/mine"}) == Path.home() / "mine"


def test_the_default_server_is_this_machine(tmp_path: Path) -> None:
    environ = {"CI_CONFIG_FILE": str(tmp_path / "absent"), "CI_API_KEY": "ci_x"}
    connection = resolve(Flags(), environ)
    assert connection.server_url == "http://localhost:8000"
    assert connection.warnings == ()


def test_a_missing_key_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(Unauthorized) as caught:
        resolve(Flags(), {"CI_CONFIG_FILE": str(tmp_path / "absent")})
    for way in ("--api-key-file", "CI_API_KEY", str(tmp_path / "absent"), "ci-admin key create"):
        assert way in caught.value.detail
    assert "\n" not in caught.value.detail


def test_a_key_that_others_can_read_is_warned_about(config: Path) -> None:
    config.chmod(0o640)
    assert "chmod 600" in resolve(Flags(), {"CI_CONFIG_FILE": str(config)}).warnings[0]
    # A key from elsewhere makes the file's mode nobody's business.
    assert resolve(Flags(), {"CI_CONFIG_FILE": str(config), "CI_API_KEY": "ci_x"}).warnings == ()


def test_plain_http_over_a_network_is_warned_about(config: Path) -> None:
    flags = Flags(server="http://ci.example.org")
    warnings = resolve(flags, {"CI_CONFIG_FILE": str(config)}).warnings
    assert len(warnings) == 1
    assert "not encrypted" in warnings[0]


@pytest.mark.parametrize(
    "server", ["ci.example.org", "ftp://x", "http://", "http://x:99999", "https://me:pw@x", "https://x/?a=1"]
)
def test_what_is_no_server_address_is_said(server: str, config: Path) -> None:
    with pytest.raises(InvalidRequest, match="no server address"):
        resolve(Flags(server=server), {"CI_CONFIG_FILE": str(config)})


@pytest.mark.parametrize("key", ["ci_ä", "two words", "line\nbreak"])
def test_a_key_that_cannot_travel_is_refused_here(key: str, config: Path) -> None:
    with pytest.raises(Unauthorized, match="copied whole"):
        resolve(Flags(api_key=key), {"CI_CONFIG_FILE": str(config)})


def test_key_files_that_hold_no_key(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(Unauthorized, match="is empty"):
        resolve(Flags(api_key_file=str(tmp_path / "empty")), {})
    with pytest.raises(Unauthorized, match="cannot be read"):
        resolve(Flags(api_key_file=str(tmp_path / "absent")), {})


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.2", True),
        ("http://[::1]:1", True),
        ("http://ci.localhost", True),
        ("http://10.0.0.1", False),
        ("http://localhost.example.org", False),
    ],
)
def test_loopback(url: str, local: bool) -> None:
    assert is_loopback(url) is local
