"""Loops over integers, compiled by numba where it is installed; imported only when a loop first runs."""

from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The compiled function, cached on disk too; None on a platform without numba."""
    try:
        import numba
    except ImportError:
        return None
    result: Callable[..., Any] = numba.njit(cache=True, nogil=True)(function)
    return result
