"""What every worker, thread or actor, does with a shard: encode it, say how it moves and how it ended."""

import errno

from pipeline.batching_encoder import EncoderError
from pipeline.decode_pool import NoDecodersError
from pipeline.encode_shard import ShardCancelledError
from pipeline.error_text import one_line
from pipeline.shard_driver import ShardDone, ShardFailed, WorkerEvent, WorkerLost, WorkerStatus
from pipeline.shard_schedule import LossCause
from pipeline.shard_task import ShardTask
from pipeline.storage import OutputDeniedError
from pipeline.worker_tools import WorkerTools

FATAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""No other shard can be written either."""


def is_fatal(error: BaseException) -> bool:
    """Whether every other shard would meet the same error."""
    if isinstance(error, OutputDeniedError):
        return True
    if isinstance(error, PermissionError):
        # A source that may not be read concerns that shard alone; the folder concerns all.
        return ".tmp-" in str(error.filename or "")
    return isinstance(error, OSError) and error.errno in FATAL_ERRNOS


def fatal_message(error: BaseException, output: str) -> str:
    """One line with the remedy."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free space and run the same command again"
        return f"output {output}: the disk is full ({one_line(error)}); {remedy}"
    return f"output {output}: cannot be written ({one_line(error)})"


class ShardWorker:
    """Works on shards with the tools of this process; thread-safe.

    Args:
        tools: the model, the decoders, the output.
        place: added to the errors of shards, to tell where they happened.
    """

    def __init__(self, tools: WorkerTools, place: str = "") -> None:
        self._tools = tools
        self._place = place
        self._num_moves: dict[str, int] = {}
        """By shard in flight."""

    def encode(self, worker_id: str, task: ShardTask) -> WorkerEvent | None:
        """Tokenize one shard; None if the run is ending. Errors come back as events."""
        self._num_moves[task.name] = 0

        def moved() -> None:
            self._num_moves[task.name] += 1

        try:
            return ShardDone(worker_id, self._tools.shards.encode(task, moved))
        except ShardCancelledError:
            return None
        except EncoderError as error:
            return WorkerLost(worker_id, LossCause.MODEL_FAILED, one_line(error))
        except NoDecodersError as error:
            return WorkerLost(worker_id, LossCause.DECODERS_FAILED, one_line(error))
        except Exception as error:
            fatal = is_fatal(error)
            message = fatal_message(error, self._tools.shards.folder.url) if fatal else one_line(error)
            return ShardFailed(worker_id, task.name, message + self._place, fatal)
        finally:
            self._num_moves.pop(task.name, None)

    def status(self, worker_id: str) -> WorkerStatus:
        """What it is doing."""
        statistics = self._tools.shards.batching.statistics
        return WorkerStatus(
            worker_id,
            dict(self._num_moves),
            statistics.images,
            statistics.busy_s,
            statistics.starved_s,
            resident_bytes(),
            self._tools.decoder.counts.helped,
        )

    def cancel(self) -> None:
        """Give up the shards in hand at their next sample."""
        self._tools.shards.is_cancelled.set()


def resident_bytes() -> int:
    """Memory of this process, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except (OSError, IndexError, ValueError):
        return 0
