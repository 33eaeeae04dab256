"""What every test process does."""

import gc


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector need not look at it again and again.
    A tenth of all tests' time went there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
