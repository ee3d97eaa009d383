"""Loops over integers, compiled by numba where it is installed."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The compiled function, cached on disk where that is possible; None on a platform without numba."""
    try:
        import numba
    except ImportError:
        return None
    result: Callable[..., Any]
    try:
        result = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no writable cache folder: compile in each process (about 2 s)
        logger.info("numba finds no writable cache folder; set NUMBA_CACHE_DIR to save its compile time")
        result = numba.njit(nogil=True)(function)
    return result
