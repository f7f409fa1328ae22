"""The format of API keys: `ci_<id>_<secret>_<checksum>`; scanners can find one, typing errors are seen offline.

Layout as GitHub's tokens (prefix and CRC-32, https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/):
8 characters of public id, 43 of secret, 6 of checksum over all before it. The secret's alphabet is base64url without
its `-` and `_`, so that the parts have one separator and a double click selects the whole: 43 of these still carry
256 random bits.
"""

import hashlib
import hmac
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
    return f"{body}_{checksum(body)}"


def hash_api_key(key: str) -> str:
    """Return the hex SHA-256 under which the key is stored; 256 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_prefix(key: str) -> str:
    """Return the public part of a key, `ci_<id>`: it is looked up by, and may be shown in lists and logs."""
    return key[:_VISIBLE]


def is_same_hash(one: str, other: str) -> bool:
    """Tell whether two hashes are equal, in a time that does not tell how much of them is."""
    return hmac.compare_digest(one, other)


def is_well_formed(key: str) -> bool:
    """Tell whether this can be a key of ours at all: shape and checksum, no look-up."""
    parts = key.split("_")
    if len(parts) != 4 or parts[0] != "ci":
        return False
    lengths = tuple(len(part) for part in parts[1:])
    if lengths != (_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH):
        return False
    return parts[3] == checksum("_".join(parts[:3]))


def checksum(text: str) -> str:
    """Return the CRC-32 of the parts before it, in six characters of the alphabet."""
    value = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    digits: list[str] = []
    for _ in range(_CHECKSUM_LENGTH):
        value, digit = divmod(value, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
