"""Reading and writing all that was asked for, whatever the kernel does at once."""

import os


def read_fully(descriptor: int, offset: int, length: int) -> bytes:
    """Return so many bytes from there: fewer only at the end of the file."""
    parts: list[bytes] = []
    while length > 0 and (part := os.pread(descriptor, length, offset)):
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def write_fully(descriptor: int, data: bytes) -> None:
    """All of it is written, where the descriptor stands."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
