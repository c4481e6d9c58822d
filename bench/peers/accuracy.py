"""Trains a resnet20 on Fashion-MNIST with PyTorch, by the recipe of bench/accuracy, in a process of its own.

`accuracy.py probe ENGINE RECIPE` times training steps; `accuracy.py train ENGINE RECIPE SEED` trains until the target is
reached or the epochs are over. RECIPE is JSON. Each epoch is a line of JSON on stdout, the answer the last one. Engines:
torch (eager), torch-cl (channels last), torch-compile-cl (compiled, channels last).

The data set lies in memory as u8, and a whole batch is cropped, mirrored and normalised at once. The clock runs from the
first step on: importing, loading, and compiling, for training and for evaluation, come before it.
"""

import copy
import gzip
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from measure import answer, median_and_min
from models import CifarResNet

PROBED_STEPS = 25


def idx(path: Path) -> torch.Tensor:
    """The array of a gzipped IDX file of bytes."""
    data = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(data, ">u4", data[3], offset=4)
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(*map(int, sizes)).copy())


class Data:
    """The images of both splits, those for training with black borders."""

    def __init__(self, recipe: dict) -> None:
        folder, self.padding = Path(recipe["data"]), recipe["crop_padding"]
        images, self.labels = idx(folder / "train-images-idx3-ubyte.gz"), idx(folder / "train-labels-idx1-ubyte.gz").long()
        if "images" in recipe:
            images, self.labels = images[: recipe["images"]], self.labels[: recipe["images"]]
        self.mean, self.std = images.float().mean() / 255, images.float().std() / 255
        self.side = images.shape[-1]
        self.padded = nn.functional.pad(images, (self.padding,) * 4)
        self.test = self.normal(idx(folder / "t10k-images-idx3-ubyte.gz")).unsqueeze(1)
        self.test_labels = idx(folder / "t10k-labels-idx1-ubyte.gz").long()

    def normal(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - self.mean) / self.std

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows of the images, every second one mirrored, `[N, 1, H, W]`, and the labels."""
        count, place = len(indices), torch.arange(self.side)
        shift = torch.randint(2 * self.padding + 1, (2, count, 1))
        mirrored = torch.rand(count, 1) < 0.5
        rows = (shift[0] + place)[:, :, None]
        columns = (shift[1] + torch.where(mirrored, self.side - 1 - place, place))[:, None, :]
        return self.normal(self.padded[indices[:, None, None], rows, columns]).unsqueeze(1), self.labels[indices]


def network(engine: str) -> nn.Module:
    model = CifarResNet(20)
    model.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model.to(memory_format=torch.channels_last) if engine.endswith("-cl") else model


class Training:
    """A network, its optimizer and, where the recipe has one, the average of its weights, as timm's ModelEmaV3."""

    def __init__(self, engine: str, recipe: dict, data: Data) -> None:
        self.engine, self.recipe, self.data = engine, recipe, data
        self.model = network(engine)
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": recipe["weight_decay"]},
            {"params": [p for p in self.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=recipe["momentum"], nesterov=True)
        self.average = copy.deepcopy(self.model) if recipe["ema_decay"] else self.model
        self.forward, self.judge = self.model, self.average
        if "compile" in engine:
            self.forward, self.judge = torch.compile(self.model), torch.compile(self.average)
        self.steps = 0

    def start_again(self) -> None:
        """As at first, but for what was compiled."""
        fresh = network(self.engine).state_dict()
        self.model.load_state_dict(fresh)
        self.average.load_state_dict(fresh)
        self.optimizer.state.clear()
        self.steps = 0

    def laid_out(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(memory_format=torch.channels_last) if self.engine.endswith("-cl") else images

    def step(self, indices: torch.Tensor, lr: float) -> None:
        images, labels = self.data.batch(indices)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        cross_entropy(self.forward(self.laid_out(images)), labels, label_smoothing=self.recipe["smoothing"]).backward()
        self.optimizer.step()
        if self.average is not self.model:
            decay = min(self.recipe["ema_decay"], 1 - (1 + self.steps) ** (-2 / 3))
            self.move_average(1 - decay)
        self.steps += 1

    @torch.no_grad()
    def move_average(self, weight: float) -> None:
        pairs = list(zip(self.average.state_dict().values(), self.model.state_dict().values()))
        pairs = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([to for to, _ in pairs], [value for _, value in pairs], weight)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Top-1 on the test images, in percent."""
        self.average.eval()
        size, right = self.recipe["batch_size"], 0
        whole = len(self.data.test) // size * size
        for start in range(0, len(self.data.test), size):
            images = self.data.test[start : start + size]
            # A smaller last batch is filled up: a compiled network knows one size.
            filled = images if start < whole else torch.cat([images, self.data.test[: size - len(images)]])
            logits = self.judge(self.laid_out(filled))[: len(images)]
            right += (logits.argmax(1) == self.data.test_labels[start : start + size]).sum().item()
        return 100 * right / len(self.data.test)


def rate(recipe: dict, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, of an epoch of `steps`."""
    warmup, total = round(recipe["warmup_epochs"] * steps), recipe["epochs"] * steps
    if step < warmup:
        return recipe["lr"] * (step + 1) / warmup
    return recipe["lr"] * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def begin(engine: str, recipe: dict) -> Training:
    torch.set_num_threads(recipe["threads"])
    torch.set_num_interop_threads(1)
    return Training(engine, recipe, Data(recipe))


def probe(engine: str, recipe: dict) -> dict:
    """The time of a step, augmentation included."""
    training, times = begin(engine, recipe), []
    for step in range(PROBED_STEPS):
        before = time.perf_counter()
        training.step(torch.randint(len(training.data.labels), (recipe["batch_size"],)), 0.01)
        if step >= PROBED_STEPS // 5:
            times.append((time.perf_counter() - before) * 1e3)
    return {"engine": engine, "version": torch.__version__, "ms_per_step": median_and_min(times)}


def train(engine: str, recipe: dict, seed: int) -> dict:
    training = begin(engine, recipe)
    training.step(torch.arange(recipe["batch_size"]), 0.0)
    training.accuracy()
    torch.manual_seed(seed)
    training.start_again()
    size, start, epochs = recipe["batch_size"], time.perf_counter(), []
    for epoch in range(recipe["epochs"]):
        order = torch.randperm(len(training.data.labels))
        steps = len(order) // size
        for step in range(steps):
            indices = order[step * size : (step + 1) * size]
            training.step(indices, rate(recipe, epoch * steps + step, steps))
        epochs.append({"top1": training.accuracy(), "seconds": time.perf_counter() - start})
        print(json.dumps(epochs[-1]), flush=True)
        if epochs[-1]["top1"] >= recipe["target"]:
            break
    return {"engine": engine, "version": torch.__version__, "seed": seed, "epochs": epochs}


if __name__ == "__main__":
    task, name, text = sys.argv[1:4]
    settings = json.loads(text)
    answer(lambda: probe(name, settings) if task == "probe" else train(name, settings, int(sys.argv[4])))
