"""The decode pool under real crashes, hangs and kills: each costs one task and nothing else."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

import numpy as np
import pytest

from pipeline import decode_pool, decode_process
from pipeline.decode import DecodedFrames, DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig, NoDecodersError
from pipeline.decode_worker import WorkerSettings
from schemas.quarantine import Reason, RefusedError
from tests.pipeline.hostile_decoders import MISDEEDS, NO_FRAMES, NONSENSE
from tokenizer.preprocess import PreprocessConfig, load_image

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
HOSTILE_DECODER = "tests.pipeline.hostile_decoders:decode"
PATIENCE_S = 120.0

EXPECTED_REASONS = {
    b"segfault": Reason.DECODER_CRASHED,
    b"sigsegv": Reason.DECODER_CRASHED,
    b"sigkill": Reason.DECODER_CRASHED,
    b"exit": Reason.DECODER_CRASHED,
    b"loop": Reason.DECODE_TIMEOUT,
    b"loop in C": Reason.DECODE_TIMEOUT,
    b"loop, alarm blocked": Reason.DECODE_TIMEOUT,
    b"memory": Reason.DECODER_CRASHED,
    b"refuse": Reason.IMAGE_TRUNCATED,
}
CRASH_DETAILS = {b"segfault": "SIGSEGV", b"sigkill": "SIGKILL", b"exit": "status 3", b"memory": "MemoryError"}


def hostile_pool(num_workers: int = 2, **options: object) -> DecodePool:
    settings = {"timeout_s": 1.0, "decoder": HOSTILE_DECODER, "num_workers": num_workers} | options
    return DecodePool(DecodePoolConfig(**settings))


def reason_of(future: "Future[DecodedFrames]") -> Reason:
    with pytest.raises(RefusedError) as refused:
        future.result(PATIENCE_S)
    return refused.value.reason


def children() -> set[int]:
    """Processes whose parent this is, zombies included."""
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for path in lists for pid in path.read_text().split()}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_misdeed_costs_its_own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_process, "GRACE_S", 0.5)
    with hostile_pool(timeout_s=0.5) as pool:
        futures: list[tuple[bytes, Future[DecodedFrames]]] = []
        for misdeed in MISDEEDS:
            tasks = [misdeed, b"refuse", b"1", b"2", b"3", b"4"]
            futures += [(task, pool.submit(DecodeTask(task))) for task in tasks]
        for task, future in futures:
            if task.isdigit():
                assert (future.result(PATIENCE_S).pixels == int(task)).all()
            else:
                assert reason_of(future) == EXPECTED_REASONS[task]
                assert CRASH_DETAILS.get(task, "") in str(future.exception())
        # Each is tried twice; MemoryError is caught in the worker.
        assert pool.num_replaced == 2 * (len(MISDEEDS) - 1)


def test_misdeeds_in_a_row_in_one_worker() -> None:
    tasks = [b"segfault", b"segfault", b"7", b"exit"]
    with hostile_pool(num_workers=1) as pool:
        futures = [pool.submit(DecodeTask(task)) for task in tasks]
        assert (futures.pop(2).result(PATIENCE_S).pixels == 7).all()
        assert {reason_of(future) for future in futures} == {Reason.DECODER_CRASHED}
        assert pool.num_replaced == 6


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_no_frames_is_refused_and_costs_no_worker(num_workers: int) -> None:
    """Fewer bytes would leave those of another picture in the rest of the place."""
    with hostile_pool(num_workers, frames_per_task=2) as pool:
        futures = [pool.submit(DecodeTask(data)) for data in NO_FRAMES]
        assert {reason_of(future) for future in futures} == {Reason.DECODER_CRASHED}
        assert "(1, 10, 10, 3)" in str(futures[1].exception())
        assert pool.num_replaced == 0


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_in_the_place_of_a_reply_costs_its_own_task(nonsense: bytes) -> None:
    """However many replies wait with it, and were they sent or not."""
    with hostile_pool(num_workers=1, timeout_s=30.0) as pool:
        tasks = [b"1", b"2", nonsense, b"3", b"sleep 0.1", b"4", b"5"]
        futures = [pool.submit(DecodeTask(task)) for task in tasks]
        assert reason_of(futures.pop(2)) == Reason.DECODER_CRASHED
        assert all(future.exception(PATIENCE_S) is None for future in futures)


@pytest.mark.parametrize("misdeed", [b"sigkill", b"segfault", b"loop", b"loop, alarm blocked"])
def test_what_happens_once_is_not_blamed_on_the_task(
    misdeed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The out-of-memory killer, a machine that stood still: the picture is sound and must not be lost."""
    monkeypatch.setattr(decode_process, "GRACE_S", 0.5)
    with hostile_pool(num_workers=1) as pool:
        task = b"once " + os.fsencode(tmp_path / "done") + b" " + misdeed
        futures = [pool.submit(DecodeTask(data)) for data in (b"1", task, b"1", task, b"1")]
        assert all((future.result(PATIENCE_S).pixels == 1).all() for future in futures)
        assert pool.num_replaced == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_process_group_reach_the_owner_only(number: signal.Signals) -> None:
    """Ctrl-C, preemption and a closed terminal: workers must not die of them under a running task."""
    known = children()
    with hostile_pool(num_workers=1, timeout_s=30.0) as pool:
        pool.submit(DecodeTask(b"1")).result(PATIENCE_S)
        slow = pool.submit(DecodeTask(b"sleep 0.5"))
        for pid in children() - known:
            os.kill(pid, number)
        assert slow.result(PATIENCE_S).pixels.shape == (1, 224, 224, 3)
        assert pool.num_replaced == 0


def test_the_time_limit_is_that_of_one_task_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes beyond the slot wait in the socket while the tasks before them are decoded."""
    monkeypatch.setattr(decode_process, "GRACE_S", 0.5)
    large = b"sleep 0.4".ljust(2_000_000)
    with hostile_pool(num_workers=1, timeout_s=1.0) as pool:
        futures = [pool.submit(DecodeTask(large)) for _ in range(9)]
        futures.insert(5, pool.submit(DecodeTask(b"loop".ljust(2_000_000))))
        refused = [future for future in futures if future.exception(PATIENCE_S) is not None]
        assert len(refused) == 1
        assert refused[0] is futures[5]


def test_killing_idle_workers_costs_nothing() -> None:
    known = children()
    with hostile_pool() as pool:
        pool.submit(DecodeTask(b"1")).result(PATIENCE_S)
        for pid in children() - known:
            os.kill(pid, signal.SIGKILL)
        futures = [pool.submit(DecodeTask(b"%d" % level)) for level in range(20)]
        for level, future in enumerate(futures):
            assert (future.result(PATIENCE_S).pixels == level).all()


def test_results_belong_to_the_caller() -> None:
    """Slots are reused at once; arrays handed out earlier must not change."""
    with hostile_pool(num_workers=1) as pool:
        futures = [pool.submit(DecodeTask(b"%d" % level)) for level in range(50)]
        frames = [future.result(PATIENCE_S) for future in futures]
    for level, result in enumerate(frames):
        assert (result.pixels == level).all()
        assert result.pixels.flags.writeable


def test_several_frames_with_times() -> None:
    with hostile_pool(frames_per_task=4) as pool:
        frames = pool.submit(DecodeTask(b"7", num_frames=4)).result(PATIENCE_S)
        assert frames.pixels.shape == (4, 224, 224, 3)
        np.testing.assert_array_equal(frames.pixels[:, 0, 0, 0], [7, 8, 9, 10])
        assert frames.times_s == (7.0, 8.0, 9.0, 10.0)
        with pytest.raises(ValueError, match="frames_per_task is 4"):
            pool.submit(DecodeTask(b"7", num_frames=5))


def test_many_threads_share_a_pool() -> None:
    def submit_some(thread: int) -> list[bool]:
        levels = [(thread * 31 + step) % 256 for step in range(30)]
        futures = [pool.submit(DecodeTask(b"%d" % level)) for level in levels]
        return [
            bool((f.result(PATIENCE_S).pixels == level).all())
            for f, level in zip(futures, levels, strict=True)
        ]

    with hostile_pool(max_in_flight=8) as pool, ThreadPoolExecutor(4) as threads:
        assert all(all(results) for results in threads.map(submit_some, range(4)))


def test_submit_waits_when_enough_is_in_flight() -> None:
    with hostile_pool(num_workers=1, max_in_flight=2, timeout_s=30.0) as pool:
        pool.submit(DecodeTask(b"1")).result(PATIENCE_S)  # the worker is up
        slow = [pool.submit(DecodeTask(b"sleep 0.5")) for _ in range(2)]
        started = time.monotonic()
        third = pool.submit(DecodeTask(b"3"))
        assert slow[0].done()
        assert time.monotonic() - started > 0.2
        assert (third.result(PATIENCE_S).pixels == 3).all()


def test_close_finishes_what_is_being_decoded_and_cancels_the_rest() -> None:
    known = children()
    pool = hostile_pool(num_workers=1, timeout_s=30.0)
    pool.submit(DecodeTask(b"1")).result(PATIENCE_S)
    slow = pool.submit(DecodeTask(b"sleep 0.5"))
    rest = [pool.submit(DecodeTask(b"%d" % level)) for level in range(10)]
    wait_until(slow.running)
    pool.close()
    pool.close()
    assert slow.result(0).pixels.shape == (1, 224, 224, 3)
    outcomes = [future.cancelled() or future.done() for future in rest]
    assert all(outcomes)
    assert rest[-1].cancelled()
    with pytest.raises(CancelledError):
        rest[-1].result()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(DecodeTask(b"1"))
    assert children() == known


def test_close_survives_the_death_of_a_worker() -> None:
    pool = hostile_pool(num_workers=1, timeout_s=30.0)
    slow, crashing = pool.submit(DecodeTask(b"sleep 1")), pool.submit(DecodeTask(b"segfault"))
    wait_until(crashing.running)  # both are in hand: submitted before the worker was up
    closing = threading.Thread(target=pool.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert slow.result(0).pixels.shape == (1, 224, 224, 3)
    assert reason_of(crashing) == Reason.DECODER_CRASHED


def test_close_wakes_a_waiting_submitter() -> None:
    pool = hostile_pool(num_workers=1, max_in_flight=1, timeout_s=30.0)
    pool.submit(DecodeTask(b"1")).result(PATIENCE_S)
    pool.submit(DecodeTask(b"sleep 0.5"))
    errors: list[BaseException] = []

    def submit_late() -> None:
        try:
            pool.submit(DecodeTask(b"2"))
        except RuntimeError as error:
            errors.append(error)

    late = threading.Thread(target=submit_late)
    late.start()
    time.sleep(0.1)
    pool.close()
    late.join(PATIENCE_S)
    assert not late.is_alive()
    assert len(errors) == 1


def test_a_cancelled_future_frees_its_place() -> None:
    with hostile_pool(num_workers=1, max_in_flight=4, timeout_s=30.0) as pool:
        pool.submit(DecodeTask(b"1")).result(PATIENCE_S)
        pool.submit(DecodeTask(b"sleep 0.3"))
        rest = [pool.submit(DecodeTask(b"2")) for _ in range(3)]
        assert rest[-1].cancel()
        for _ in range(8):
            assert (pool.submit(DecodeTask(b"3")).result(PATIENCE_S).pixels == 3).all()


def test_workers_that_cannot_start_fail_the_tasks() -> None:
    config = DecodePoolConfig(num_workers=2, decoder="tests.pipeline.decoder_that_never_starts:decode")
    with DecodePool(config) as pool:
        future = pool.submit(DecodeTask(b"1"))
        with pytest.raises(RuntimeError, match="do not start"):
            future.result(PATIENCE_S)


def test_what_no_one_foresaw_leaves_nobody_waiting() -> None:
    """A promise that somebody else kept breaks the thread that would keep it; no other task hangs."""
    with hostile_pool(num_workers=1, timeout_s=30.0) as pool:
        assert pool.submit(DecodeTask(b"sleep 0.01")).exception(PATIENCE_S) is None
        futures = [pool.submit(DecodeTask(b"sleep 0.2")) for _ in range(3)]
        kept: Future[DecodedFrames] = Future()
        kept.set_exception(ValueError("kept already"))
        pool.submit(DecodeTask(b"1"), kept)
        futures += [pool.submit(DecodeTask(b"1")) for _ in range(3)]
        errors = [future.exception(PATIENCE_S) for future in futures]
        assert {type(error) for error in errors} <= {NoDecodersError, type(None)}
        with pytest.raises(NoDecodersError, match="a thread of the decode pool failed"):
            pool.submit(DecodeTask(b"1")).result(PATIENCE_S)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory has a file")
def test_a_worker_cannot_take_the_memory_from_under_its_owner() -> None:
    fd = decode_process.anonymous_memory(8192)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_a_worker_that_cannot_start_costs_nothing_while_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread keeps nothing, neither what its dead worker had in hand nor what waits."""
    start, is_short_of_memory = decode_process.start_process, threading.Event()

    def start_or_fail(settings: WorkerSettings) -> "subprocess.Popen[bytes]":
        if is_short_of_memory.is_set() and threading.current_thread().name == "decode-worker-0":
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return start(settings)

    monkeypatch.setattr(decode_process, "start_process", start_or_fail)
    monkeypatch.setattr(decode_pool, "FIRST_PAUSE_S", 0.01)
    known = children()
    with hostile_pool(timeout_s=30.0) as pool:
        wait_until(lambda: len(children() - known) == 2)
        [pool.submit(DecodeTask(b"sleep 0.1")).result(PATIENCE_S) for _ in range(2)]
        futures = [pool.submit(DecodeTask(b"sleep 0.05")) for _ in range(40)]
        is_short_of_memory.set()
        for pid in children() - known:
            os.kill(pid, signal.SIGKILL)
        assert all(future.exception(PATIENCE_S) is None for future in futures)
        assert pool.submit(DecodeTask(b"1")).exception(PATIENCE_S) is None
        is_short_of_memory.clear()
        wait_until(lambda: len(children() - known) == 2)  # it is never too late to start


@pytest.mark.parametrize(
    "name", ["no.such.module:decode", "pipeline.decode:no_such_function", "pipeline.decode"]
)
def test_unknown_decoder_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="decoder"):
        DecodePool(DecodePoolConfig(decoder=name))


@pytest.mark.parametrize("wrong", [{"num_workers": -1}, {"max_in_flight": 0}, {"timeout_s": 0.0}], ids=str)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecodePoolConfig(**wrong)


@pytest.mark.parametrize("color", ["reference", "clean"])
def test_real_pictures_equal_decoding_here(color: str) -> None:
    """Good and bad files, in processes and in this thread: the same pixels, the same refusals."""
    preprocess = PreprocessConfig(color=color)
    paths = sorted((DATA / "pixels").glob("0*")) + sorted((DATA / "hostile_images").glob("*.*g"))
    tasks = [DecodeTask(path.read_bytes()) for path in paths]
    with (
        DecodePool(DecodePoolConfig(preprocess=preprocess)) as pool,
        DecodePool(DecodePoolConfig(num_workers=0, preprocess=preprocess)) as here,
    ):
        for path, far, near in zip(paths, map(pool.submit, tasks), map(here.submit, tasks), strict=True):
            if near.exception() is None:
                np.testing.assert_array_equal(far.result(PATIENCE_S).pixels, near.result().pixels)
                np.testing.assert_array_equal(near.result().pixels[0], load_image(path, preprocess))
            else:
                assert str(far.exception(PATIENCE_S)) == str(near.exception())
        assert pool.num_replaced == 0


OWNER_PROGRAM = """
import json, os, sys, time
from pathlib import Path
from pipeline.decode import DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.decode_worker import WorkerSettings
pool = DecodePool(DecodePoolConfig(num_workers=3, timeout_s=3.0, decoder={decoder!r}))
[future.result() for future in [pool.submit(DecodeTask(b"1")) for _ in range(20)]]
pool.submit(DecodeTask(b"loop in C"))
pool.submit(DecodeTask(b"sleep 2"))
time.sleep(0.3)
lists = Path("/proc/self/task").glob("*/children")
print(json.dumps([int(pid) for path in lists for pid in path.read_text().split()]), flush=True)
time.sleep(600)
"""


def test_workers_end_when_their_owner_is_killed() -> None:
    """SIGKILL gives the owner no chance. One worker idles, one decodes, one hangs in C: all end alone."""
    program = OWNER_PROGRAM.format(decoder=HOSTILE_DECODER)
    names_before = set(Path("/dev/shm").iterdir())
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT)
    assert owner.stdout is not None
    workers = json.loads(owner.stdout.readline())
    assert len(workers) == 3
    assert all(is_alive(pid) for pid in workers)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not any(is_alive(pid) for pid in workers), timeout_s=20.0)
    ours = {path for path in set(Path("/dev/shm").iterdir()) - names_before if "decode" in path.name}
    assert not ours


def test_a_pool_without_close_does_not_keep_the_process_alive() -> None:
    program = """
from pipeline.decode import DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.decode_worker import WorkerSettings
pool = DecodePool(DecodePoolConfig(num_workers=1))
print(pool.submit(DecodeTask(b"")).exception())
"""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        timeout=PATIENCE_S,
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == "image_empty: zero bytes"


def test_a_future_can_be_waited_for_with_a_time_limit() -> None:
    with hostile_pool(num_workers=1, timeout_s=30.0) as pool:
        future = pool.submit(DecodeTask(b"sleep 1"))
        with pytest.raises(FutureTimeoutError):
            future.result(0.01)
        assert future.result(PATIENCE_S).pixels.shape == (1, 224, 224, 3)
