"""What a worker opens is closed again, and leaves the process as it was."""

import gc
from pathlib import Path

from pipeline.encode_shard import ShardSettings
from pipeline.sources.pairs import PairsConfig, read_pairs
from pipeline.sources.tar_source import TarSource
from pipeline.worker_tools import (
    NULL_TOKENIZER,
    EncoderConfig,
    WorkerSetup,
    open_tools,
    tokenizer_fingerprint,
)


def test_while_a_worker_works_garbage_is_searched_rarely_and_not_among_the_modules(tmp_path: Path) -> None:
    encoder = EncoderConfig(tokenizer=NULL_TOKENIZER)
    setup = WorkerSetup(
        read=TarSource(documents=read_pairs, config=PairsConfig()),
        settings=ShardSettings(kind="pairs", fingerprint=tokenizer_fingerprint(encoder)),
        encoder=encoder,
        output=str(tmp_path),
        num_decode_workers=0,
    )
    thresholds = gc.get_threshold()
    gc.unfreeze()
    with open_tools(setup):
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] > thresholds[0]
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == thresholds
