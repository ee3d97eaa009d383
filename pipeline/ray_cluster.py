"""Joins the Ray cluster of RAY_ADDRESS, or starts a quiet private one.

Ray is imported when it is needed, because it reads from the environment only once how to authenticate. A
private cluster gets a token that only this process and its children know: Ray's own default would leave a
token in the home folder, which makes later clusters of the user demand it from clients that do not send it.
Where RAY_ADDRESS or RAY_AUTH_MODE is set, the cluster's rule is not ours to change.
"""

import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.shard_driver import PoolError

SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in drivers that came by `ray job submit`."""
LOCAL_OBJECT_STORE_BYTES = 100 << 20
"""Only names and reports go through Ray."""
HEALTH_TIMEOUT_S = 10.0
MAX_REASON_CHARS = 300
JOIN_REMEDY = (
    "give its RAY_AUTH_MODE and RAY_AUTH_TOKEN, and start the job on a machine of the cluster (`ray start`)"
    " or by `ray job submit`"
)
RAY_PATIENCE_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
PATIENCE_FRACTION = 0.5
"""Of the time for which Ray hopes that a head comes back."""
ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def connected() -> Iterator[None]:
    """A connection for the length of the block, unless there is one already."""
    settle_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    connect()
    try:
        yield
    finally:
        ray.shutdown()


def settle_environment() -> None:
    """Set what Ray reads from the environment, unless the user chose otherwise or Ray is imported already.

    A private cluster gets a token, and says nothing of an autoscaler, for it has none. Lines that Ray prints
    for workers have colours on a terminal only.
    """
    if "ray" in sys.modules:
        return
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if "RAY_ADDRESS" in os.environ:
        return
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def connect(runtime_env: Mapping[str, Any] | None = None) -> None:
    """``ray.init``; signals keep the handlers that the job gave them.

    Args:
        runtime_env: of the workers; left out: on a cluster, what brings our packages to every node.

    Raises:
        PoolError: if the cluster of RAY_ADDRESS does not answer.
    """
    settle_environment()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _initialize(runtime_env)
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray puts its own in their place
            if handler not in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, handler)


def _initialize(runtime_env: Mapping[str, Any] | None) -> None:
    import ray
    from ray.exceptions import RayError

    options: dict[str, Any] = {"logging_level": logging.WARNING, "runtime_env": runtime_env}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **options,
        )
        return
    if runtime_env is None:
        options["runtime_env"] = _own_code()
    remedy = "start it, correct RAY_ADDRESS, or unset it to run on this machine"
    try:
        _check_health(address)
        remedy = f"its head answers: {JOIN_REMEDY}"
        ray.init(address=address, **options)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_CHARS].rstrip(".")
        raise PoolError(
            f"the Ray cluster at {address} (RAY_ADDRESS) cannot be reached: {reason}; {remedy}"
        ) from error


def _check_health(address: str) -> None:
    """Ask the head for its health, by gRPC's own protocol: Ray would try for 14 minutes, or just exit.

    Raises:
        ConnectionError: if no Ray answers.
    """
    from ray._private.services import canonicalize_bootstrap_address

    scheme, _, host = address.rpartition("://")
    if scheme not in ("", "ray"):
        raise ConnectionError(
            f"{scheme}:// is for `ray job submit`; a driver needs the head's HOST:PORT (6379)"
        )
    target = host if scheme else canonicalize_bootstrap_address(address)
    if target is not None:  # `local`
        _ask(target, knows_health=not scheme)


def _ask(target: str, knows_health: bool = True) -> None:
    import grpc

    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=HEALTH_TIMEOUT_S)
        except grpc.RpcError as error:
            status = error.code()
            if status is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ConnectionError(f"no answer in {HEALTH_TIMEOUT_S:g} s") from error
            if status is grpc.StatusCode.UNAVAILABLE:
                raise ConnectionError(error.details()) from error
            # The port of Ray Client knows no health, but answers.
            if status is grpc.StatusCode.UNIMPLEMENTED and knows_health:
                raise ConnectionError("what answers there is no head of a Ray cluster") from error


class HeadWatch:
    """Notices that the head of the cluster is gone before Ray does, which just ends the process then.

    Calls of Ray that ask the head wait for it: whoever must be able to act asks here before.

    Args:
        address: of the head.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        ray_patience_s = float(os.environ.get(RAY_PATIENCE_VARIABLE, "60"))
        self._patience_s = PATIENCE_FRACTION * ray_patience_s
        self._silent_since_s: float | None = None

    def is_there(self) -> bool:
        """Whether the head answers.

        Raises:
            PoolError: if it has not for most of the time after which Ray ends this process.
        """
        try:
            _ask(self._address)
        except ConnectionError as error:
            now = time.monotonic()
            self._silent_since_s = self._silent_since_s or now
            if now - self._silent_since_s < self._patience_s:
                return False
            raise PoolError(
                f"the Ray cluster is gone: its head at {self._address} does not answer any more ({error});"
                " start a cluster and run the same command again"
            ) from error
        self._silent_since_s = None
        return True


def travels_with_its_folder() -> bool:
    """Whether this is a submitted job whose working directory is a copy that Ray made, and removes."""
    return "working_dir" in _submitted_environment()


def _submitted_environment() -> dict[str, Any]:
    """The runtime environment of a submitted job; empty if there is none."""
    job = json.loads(os.environ.get(SUBMITTED_JOB_VARIABLE) or "{}")
    return job.get("runtime_env") or {}


def _own_code() -> dict[str, Any]:
    """A runtime environment that brings our packages to every node.

    Empty for a submitted job that brings a working directory or modules of its own, and for an installed
    copy, which is taken to be installed on all nodes.
    """
    brought = _submitted_environment().keys() & {"working_dir", "py_modules"}
    if brought or not (ROOT / "pyproject.toml").exists():
        return {}
    packages = [ROOT / name for name in ("schemas", "tokenizer", "pipeline", "jobs")]
    return {"py_modules": [str(package) for package in packages], "excludes": ["__pycache__"]}
