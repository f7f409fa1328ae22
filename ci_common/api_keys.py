"""The format of API keys: `ci_<id>_<secret>_<checksum>`; scanners can find one, typing errors are seen offline.

Layout as GitHub's tokens (prefix and CRC-32, https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/):
8 characters of public id, 43 of base62 carrying 256 random bits, 6 of checksum over all before it.
"""

import hashlib
import secrets
import string
import zlib

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH = 8
_SECRET_LENGTH = 43  # 62**43 > 2**256
_CHECKSUM_LENGTH = 6  # 62**6 > 2**32
_VISIBLE = len("ci_") + _ID_LENGTH


def generate_api_key() -> str:
    """Return a new key; the only moment at which it exists in clear on our side."""
    body = f"ci_{_random(_ID_LENGTH)}_{_random(_SECRET_LENGTH)}"
    return f"{body}_{_checksum(body)}"


def hash_api_key(key: str) -> str:
    """Return the hex SHA-256 under which the key is stored; 256 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_prefix(key: str) -> str:
    """Return the part of a key that may be shown in lists and logs."""
    return key[:_VISIBLE]


def is_well_formed(key: str) -> bool:
    """Tell whether this can be a key of ours at all: shape and checksum, no look-up."""
    parts = key.split("_")
    if len(parts) != 4 or parts[0] != "ci":
        return False
    lengths = tuple(len(part) for part in parts[1:])
    if lengths != (_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH):
        return False
    return parts[3] == _checksum("_".join(parts[:3]))


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    value = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    digits: list[str] = []
    for _ in range(_CHECKSUM_LENGTH):
        value, digit = divmod(value, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
