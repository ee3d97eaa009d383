"""Places at which a test may kill the process. For tests only; without the variable it does nothing.

``SEED_SHARDS_FAULT=ACTION:POINT:NAME[:ONCE]`` acts when the process reaches POINT with shard NAME (``*`` is
any). ACTION is ``kill`` (SIGKILL to itself), ``fail`` (raises), ``stall`` (sleeps for ever), ``slow`` (sleeps
for 50 ms each time), ``full`` (raises as a full disk does). ONCE is a file that the first process that acts
creates; the others pass.

Points, in order: ``load`` (of the model, on a cluster; NAME is the node's id), ``start``, ``reading``,
``after_write`` (token shard written, nothing visible), ``after_ledger`` (ledger visible, token shard not),
``after_commit``.
"""

import errno
import os
import signal
import time

VARIABLE = "SEED_SHARDS_FAULT"


def reach(point: str, name: str) -> None:
    """Act if a test asked for it."""
    wish = os.environ.get(VARIABLE)
    if not wish:
        return
    action, at, shard, *once = wish.split(":", 3)
    if at != point or shard not in ("*", name):
        return
    if once and not _is_first(once[0]):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stall":
        time.sleep(1e6)
    elif action == "slow":
        time.sleep(0.05)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    else:
        raise RuntimeError(f"fault injected at {point} of {name}")


def _is_first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
