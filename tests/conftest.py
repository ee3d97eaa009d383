"""Rules for all tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How tests share the machine, and second tries.

    With several processes (``pytest -n 2 --dist loadfile``) each file stays in one of them, since its tests
    share what its fixtures made. Tests with a real Ray cluster take longest and come first. Such a test also
    gets a second try: starting a cluster can fail on a machine that is busy.
    """
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=5))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
