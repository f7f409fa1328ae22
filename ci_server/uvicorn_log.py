"""uvicorn's own log, made part of ours."""

import logging


def adopt_uvicorn() -> None:
    """uvicorn's messages come out in our form; its access log is replaced by ours, which knows the user."""
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
