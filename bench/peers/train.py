"""Measures training steps of PyTorch in a process of its own.

`train.py ENGINE ARCH BATCH THREADS SECONDS f32|bf16` times single steps (forward, backward, SGD) on one random batch
and prints one line of JSON. Engines: torch (eager), torch-cl (channels last), torch-compile-cl (compiled, channels
last).
"""

import sys

import torch
from torch.nn.functional import cross_entropy

from measure import answer, median_and_min, milliseconds, peak_rss_mb
from models import network


def measure(engine: str, arch: str, batch: int, threads: int, seconds: float, precision: str) -> dict:
    """Builds the network and times its steps."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    model, size, classes = network(arch)
    model.train()
    x, labels = torch.randn(batch, 3, size, size), torch.randint(0, classes, (batch,))
    if engine.endswith("-cl"):
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(model) if "compile" in engine else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()

    times = milliseconds(step, seconds)
    return {
        "engine": engine,
        "version": torch.__version__,
        "arch": arch,
        "batch": batch,
        "threads": threads,
        "precision": precision,
        "ms_per_step": median_and_min(times),
        "peak_rss_mb": peak_rss_mb(),
    }


if __name__ == "__main__":
    name, architecture, *numbers, number_format = sys.argv[1:]
    batch_size, thread_count = int(numbers[0]), int(numbers[1])
    answer(lambda: measure(name, architecture, batch_size, thread_count, float(numbers[2]), number_format))
