import pytest

from hello import UnknownLanguage, address, greet


def test_greets_the_world_when_nobody_is_named():
    assert greet("") == "Hello, world!"


@pytest.mark.parametrize(
    ("language", "expected"),
    [("en", "Hello, Ada!"), ("is", "Halló, Ada!"), ("ja", "こんにちは, Ada!")],
    ids=["English", "Icelandic", "Japanese"],
)
def test_greets_in_many_languages(language: str, expected: str):
    assert greet("Ada", language) == expected


def test_refuses_a_language_it_does_not_know():
    with pytest.raises(UnknownLanguage, match="tlh"):
        greet("Worf", "tlh")


def test_makes_an_address_from_any_name():
    assert address("Þórunn Ámundadóttir") == "/hello/thorunn-amundadottir"
