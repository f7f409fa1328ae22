"""Who runs `ci-admin`, as the audit trail names them."""

import os
import pwd
from collections.abc import Mapping


def operator(environ: Mapping[str, str] = os.environ) -> str:
    """Return `operator (<login name>)`: the account of this process; for root under sudo, who called sudo.

    The account, not LOGNAME or USER: those are what anybody says. (Root, who may write any row, is believed.)
    """
    uid = os.getuid()
    caller = environ.get("SUDO_USER", "") if uid == 0 else ""
    return f"operator ({caller or _account(uid)})"


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
