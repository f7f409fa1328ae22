"""Greetings, their addresses on the web and a countdown."""

from hello.greetings import UnknownLanguage, address, greet
from hello.launch import countdown

__all__ = ["UnknownLanguage", "address", "countdown", "greet"]
