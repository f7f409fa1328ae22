"""The format of API keys."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_common.api_keys import generate_api_key, hash_api_key, is_same_hash, is_well_formed, key_prefix

KEY = generate_api_key()


def test_a_key_has_a_public_id_a_secret_and_a_checksum() -> None:
    name, public, secret, checksum = KEY.split("_")

    assert (name, len(public), len(secret), len(checksum)) == ("ci", 8, 43, 6)
    assert set(public + secret + checksum) <= set(string.ascii_letters + string.digits)
    assert is_well_formed(KEY)
    assert key_prefix(KEY) == f"ci_{public}"


def test_the_secret_has_256_bits() -> None:
    assert 62**43 > 2**256


def test_no_two_keys_have_anything_in_common() -> None:
    keys = [generate_api_key() for _ in range(200)]

    assert len({key_prefix(key) for key in keys}) == 200
    assert len({hash_api_key(key) for key in keys}) == 200


@pytest.mark.parametrize("at", range(len(KEY)))
def test_one_wrong_character_anywhere_is_noticed(at: int) -> None:
    other = "x" if KEY[at] != "x" else "y"

    assert not is_well_formed(KEY[:at] + other + KEY[at + 1 :])


@pytest.mark.parametrize(
    "spoilt",
    ["", "ci", "ci___", "{key} ", " {key}", "{key}0", "{key}_"],  # the same in every worker: keys are not
)
def test_what_is_not_a_whole_key_is_none(spoilt: str) -> None:
    assert not is_well_formed(spoilt.format(key=KEY))


def test_a_key_cut_short_or_in_capitals_is_none() -> None:
    assert not is_well_formed(KEY[:-1])
    assert not is_well_formed(KEY.upper())


@given(st.text())
def test_any_text_is_judged_without_a_failure(text: str) -> None:
    assert not is_well_formed(text)


def test_hashes_are_compared_whole() -> None:
    assert is_same_hash(hash_api_key(KEY), hash_api_key(KEY))
    assert not is_same_hash(hash_api_key(KEY), hash_api_key(generate_api_key()))
