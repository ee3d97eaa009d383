"""A decoder that can be imported anywhere but in a decode process, as with a broken environment."""

import sys

from pipeline.decode import DecodedFrames, DecodeTask
from tokenizer.preprocess import PreprocessConfig

if "pipeline.decode_worker" in sys.orig_argv:
    raise ImportError("this process has no such library")


def decode(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    raise AssertionError("never called")
