"""What tests of jobs share."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _keep_signals() -> Iterator[None]:
    """A job handles SIGTERM and SIGINT of its process, which is the test's here."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
