"""Connects to the Ray cluster of RAY_ADDRESS, or starts a quiet private one."""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.shard_driver import PoolError

SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in drivers that came by `ray job submit`."""
LOCAL_OBJECT_STORE_BYTES = 100 << 20
"""Only shard names and reports go through Ray."""


def connect() -> None:
    """``ray.init`` for the cluster that RAY_ADDRESS names, or for a quiet private one.

    Raises:
        PoolError: if that cluster does not answer.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _initialize()
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray puts its own in their place
            signal.signal(number, handler)


def _own_code() -> dict[str, Any]:
    """A runtime environment that brings our packages to every node.

    Empty for a submitted job, which brings its working directory, and for an installed copy, which is taken
    to be installed on all nodes.
    """
    root = Path(__file__).resolve().parent.parent
    if SUBMITTED_JOB_VARIABLE in os.environ or not (root / "pyproject.toml").exists():
        return {}
    packages = [root / name for name in ("schemas", "tokenizer", "pipeline", "jobs")]
    return {"py_modules": [str(package) for package in packages], "excludes": ["__pycache__"]}


def _initialize() -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, logging_level=logging.WARNING, runtime_env=_own_code())
        except (ConnectionError, RayError, ValueError) as error:
            raise PoolError(
                f"the Ray cluster at {address} (RAY_ADDRESS) cannot be reached: {error}"
            ) from error
        return
    ray.init(
        address="local",
        include_dashboard=False,
        logging_level=logging.WARNING,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )
