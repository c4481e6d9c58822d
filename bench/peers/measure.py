"""What every measured process shares: timing, memory, the check of the logits, and the form of its answer.

As a command, `measure.py FOUND.npy EXPECTED.npy` checks the logits in one file against those in the other.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np

WARM_UP_CALLS = 3
FEWEST_CALLS = 5
LARGEST_ERROR = 1e-3


def milliseconds(call: Callable[[], object], seconds: float) -> list[float]:
    """Times single calls for `seconds`, and at least `FEWEST_CALLS` of them, after a warm-up."""
    for _ in range(WARM_UP_CALLS):
        call()
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times) < FEWEST_CALLS:
        before = time.perf_counter()
        call()
        times.append((time.perf_counter() - before) * 1e3)
    return times


def median_and_min(times: list[float], divisor: int = 1) -> dict[str, float]:
    """The two figures that are reported of a list of times."""
    return {"median": median(times) / divisor, "min": min(times) / divisor}


def peak_rss_mb() -> float:
    """The most memory that this process held so far."""
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def check_logits(found: np.ndarray, expected: np.ndarray) -> float:
    """The relative L2 distance of two arrays of logits; fails when it is `LARGEST_ERROR` or more."""
    if found.shape != expected.shape:
        raise ValueError(f"the logits have the shape {found.shape}, expected {expected.shape}")
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error < LARGEST_ERROR:
        distance = f"{error:.1e} (relative L2), expected less than {LARGEST_ERROR:g}"
        raise ValueError(f"the logits differ from PyTorch's by {distance}")
    return error


def answer(work: Callable[[], dict]) -> None:
    """Prints what `work` returns as the last line of stdout, or its failure as {"error": ...}."""
    try:
        result = work()
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        result = {"error": f"{type(error).__name__}: {first_line}"}
    print("\n" + json.dumps(result), flush=True)


if __name__ == "__main__":
    answer(lambda: {"error_l2": check_logits(np.load(sys.argv[1]), np.load(sys.argv[2]))})
