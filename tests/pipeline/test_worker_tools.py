"""What a worker opens is closed again, and leaves the process as it was."""

import gc
from pathlib import Path

import pytest

from pipeline import decode_pool
from pipeline.encode_shard import ShardSettings
from pipeline.shard_driver import WorkerLost
from pipeline.shard_schedule import LossCause
from pipeline.shard_worker import ShardWorker
from pipeline.sources.pairs import PairsConfig, read_pairs
from pipeline.sources.tar_source import TarSource
from pipeline.worker_tools import (
    NULL_TOKENIZER,
    EncoderConfig,
    WorkerSetup,
    open_tools,
    tokenizer_fingerprint,
)
from tests.pipeline.tiny_shards import task_for, write_shards


def setup_for(output: Path, **settings: object) -> WorkerSetup:
    encoder = EncoderConfig(tokenizer=NULL_TOKENIZER)
    return WorkerSetup(
        read=TarSource(documents=read_pairs, config=PairsConfig()),
        settings=ShardSettings(kind="pairs", fingerprint=tokenizer_fingerprint(encoder)),
        encoder=encoder,
        output=str(output),
        **settings,
    )


def test_a_worker_without_decode_processes_is_lost_and_blames_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may be sound: it must not take shard after shard from them and fail each at once."""
    monkeypatch.setattr(decode_pool, "FIRST_PAUSE_S", 0.01)
    shard = write_shards(tmp_path / "in", 1, 3) / "00000.tar"
    decoder = "tests.pipeline.decoder_that_never_starts:decode"
    with open_tools(setup_for(tmp_path / "out", num_decode_workers=1, decoder=decoder)) as tools:
        event = ShardWorker(tools).encode("a", task_for(shard))
    assert isinstance(event, WorkerLost)
    assert event.loss is LossCause.DECODERS_FAILED
    assert "decode workers do not start" in event.error


def test_while_a_worker_works_garbage_is_searched_rarely_and_not_among_the_modules(tmp_path: Path) -> None:
    setup = setup_for(tmp_path, num_decode_workers=0)
    thresholds = gc.get_threshold()
    gc.unfreeze()
    with open_tools(setup):
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] > thresholds[0]
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == thresholds
