"""The shared vocabulary: domain models, errors, wire events and the seams; imports nothing of the other packages."""

__version__ = "0.1.0"
