"""Simulated worlds live in memory."""

from tests.support.in_memory import home

__all__ = ["home"]
