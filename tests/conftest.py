"""Rules for all tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test with a real Ray cluster gets a second try: starting one can fail on a machine that is busy."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=5))
