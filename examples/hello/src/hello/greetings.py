"""Say hello in a few languages."""

from slugify import slugify

_WORDS = {"en": "Hello", "es": "Hola", "is": "Halló", "ja": "こんにちは"}


class UnknownLanguage(Exception):
    """Nobody has taught us that language yet."""


def greet(name: str, language: str = "en") -> str:
    """Return a greeting for somebody; an empty name is the whole world's."""
    try:
        word = _WORDS[language]
    except KeyError:
        raise UnknownLanguage(language) from None
    return f"{word}, {name.strip() or 'world'}!"


def address(name: str) -> str:
    """Return where somebody's greeting is found on the web."""
    return f"/hello/{slugify(name)}"
