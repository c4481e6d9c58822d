"""Makes a model once with PyTorch and writes it in the form of every engine.

`models.py ARCH FOLDER base` makes FOLDER with model.safetensors, config.json, model.onnx, x.npy and y.npy;
`models.py ARCH FOLDER ncnn` and `models.py ARCH FOLDER mnn` add a conversion to it.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from measure import answer

CHECKED_IMAGES = 4
CIFAR = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


class CifarResNet(nn.Module):
    """The networks of He et al. 2015, section 4.2, with projections as shortcuts and torchvision's names."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = cifar_stage(16, 16, 1, blocks)
        self.layer2 = cifar_stage(16, 32, 2, blocks)
        self.layer3 = cifar_stage(32, 64, 2, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def cifar_stage(inputs: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    """Blocks of one width, of which the first has the stride and, where the shape changes, a projection."""
    projection = None
    if stride != 1 or inputs != width:
        projection = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    rest = (BasicBlock(width, width) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, width, stride, projection), *rest)


def network(arch: str) -> tuple[nn.Module, int, int]:
    """The network with weights from a fixed seed, the side of its images and its number of classes."""
    torch.manual_seed(0)
    if arch in CIFAR:
        return CifarResNet(int(arch.removeprefix("resnet"))), 32, 10
    return getattr(torchvision.models, arch)(weights=None), 224, 1000


def images(count: int, size: int) -> torch.Tensor:
    """Normal noise, fine and coarse, so that one image's logits differ from another's."""
    coarse = nn.functional.interpolate(torch.randn(count, 3, 4, 4), size=(size, size), mode="bilinear")
    return torch.randn(count, 3, size, size) + coarse


def settle_norms(model: nn.Module, size: int) -> None:
    """Gives the batch norms random scales and shifts and then the statistics of random images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.momentum = None  # The statistics become the mean over all passes.
    # As in trained networks, branches are weaker than the trunk; otherwise 100 layers magnify roundings a hundredfold.
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.uniform_(last.weight, 0.1, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(images(8, size))
    model.eval()


def describe(arch: str, size: int, classes: int) -> dict:
    """config.json in timm's form."""
    return {
        "architecture": arch,
        "num_classes": classes,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": classes,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def export_onnx(model: nn.Module, x: torch.Tensor, path: Path) -> None:
    """Writes ONNX whose batch may have any size."""
    torch.onnx.export(
        model,
        (x,),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )


def make_base(arch: str, folder: Path) -> None:
    """Writes the weights, the description, the ONNX model, and images with their logits, computed in f64."""
    model, size, classes = network(arch)
    settle_norms(model, size)
    x = images(CHECKED_IMAGES, size)
    partial = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial / "model.safetensors")
    (partial / "config.json").write_text(json.dumps(describe(arch, size, classes), indent=2) + "\n")
    export_onnx(model, x, partial / "model.onnx")
    with torch.no_grad():
        y = model.double()(x.double())
    np.save(partial / "x.npy", x.numpy())
    np.save(partial / "y.npy", y.float().numpy())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def convert_to_ncnn(arch: str, folder: Path) -> None:
    """Writes model.ncnn.param and model.ncnn.bin, in f32 and for one image."""
    import pnnx

    model, size, _ = network(arch)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    with tempfile.TemporaryDirectory() as scratch:
        torch.jit.trace(model, torch.randn(1, 3, size, size)).save(f"{scratch}/model.pt")
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape=[1,3,{size},{size}]f32", "fp16=0"]
        subprocess.run(command, cwd=scratch, check=True, capture_output=True)
        for name in ("model.ncnn.bin", "model.ncnn.param"):
            shutil.move(f"{scratch}/{name}", folder / name)


def convert_to_mnn(folder: Path) -> None:
    """Writes model.mnn.

    This calls the converter itself: the command `mnnconvert` around it installs a package with pip and reports each
    use to a server.
    """
    import _tools

    source, partial = folder / "model.onnx", folder / "model.mnn.tmp"
    _tools.mnnconvert(
        ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(partial), "--bizCode", "stridenet"]
    )
    partial.rename(folder / "model.mnn")


def make(arch: str, folder: Path, form: str) -> dict:
    """Makes the model or one of its conversions."""
    if form == "base":
        make_base(arch, folder)
    elif form == "ncnn":
        convert_to_ncnn(arch, folder)
    else:
        convert_to_mnn(folder)
    return {"folder": str(folder)}


if __name__ == "__main__":
    answer(lambda: make(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
