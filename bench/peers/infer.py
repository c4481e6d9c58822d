"""Measures one inference engine in a process of its own, without PyTorch, in f32.

`infer.py ENGINE MODEL-FOLDER BATCH THREADS SECONDS` checks the engine's logits at the measured batch, times single
calls and prints one line of JSON.
"""

import importlib
import importlib.metadata
import json
import sys
import time
from pathlib import Path

import numpy as np

from measure import answer, check_logits, median_and_min, milliseconds, peak_rss_mb


class OnnxRuntime:
    package = "onnxruntime"

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_free_dimension_override_by_name("batch", shape[0])
        path = str(folder / "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]


class OpenVino:
    package = "openvino"

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(folder / "model.onnx")
        model.reshape(list(shape))
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.request.infer([x], share_inputs=True, share_outputs=True)[0]


class Ncnn:
    package = "ncnn"

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int) -> None:
        import ncnn

        if shape[0] != 1:
            raise ValueError(f"a batch of {shape[0]}; ncnn takes one image at a time")
        self.ncnn = ncnn
        self.net = ncnn.Net()
        option = self.net.opt
        option.num_threads = threads
        option.use_vulkan_compute = False
        option.use_fp16_packed = option.use_fp16_storage = option.use_fp16_arithmetic = False
        option.use_bf16_storage = False
        for load, name in ((self.net.load_param, "model.ncnn.param"), (self.net.load_model, "model.ncnn.bin")):
            if load(str(folder / name)) != 0:
                raise ValueError(f"{name} cannot be loaded")

    def run(self, x: np.ndarray) -> np.ndarray:
        extractor = self.net.create_extractor()
        extractor.input("in0", self.ncnn.Mat(x[0]))
        status, logits = extractor.extract("out0")
        if status != 0:
            raise ValueError(f"the extractor answered {status}")
        return np.array(logits)[None]


class Mnn:
    package = "MNN"

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int) -> None:
        import MNN

        self.expr = MNN.expr
        settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
        runtime = MNN.nn.create_runtime_manager((settings,))
        path = str(folder / "model.mnn")
        self.module = MNN.nn.load_module_from_file(path, ["x"], ["y"], runtime_manager=runtime)

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.module.forward(self.expr.const(x, list(x.shape), self.expr.NCHW)).read()


ENGINES = {"ort": OnnxRuntime, "ov": OpenVino, "ncnn": Ncnn, "mnn": Mnn}


def measure(name: str, folder: Path, batch: int, threads: int, seconds: float) -> dict:
    """Loads, checks and times one engine."""
    kind = ENGINES[name]
    images, logits = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    chosen = np.arange(batch) % len(images)
    x, expected = images[chosen], logits[chosen]
    importlib.import_module(kind.package)
    before = time.perf_counter()
    engine = kind(folder, x.shape, threads)
    load_ms = (time.perf_counter() - before) * 1e3
    check_logits(engine.run(x), expected)
    times = milliseconds(lambda: engine.run(x), seconds)
    return {
        "engine": name,
        "version": importlib.metadata.version(kind.package),
        "arch": json.loads((folder / "config.json").read_text())["architecture"],
        "batch": batch,
        "threads": threads,
        "ms_per_image": median_and_min(times, batch),
        "load_ms": load_ms,
        "peak_rss_mb": peak_rss_mb(),
    }


if __name__ == "__main__":
    engine_name, model_folder, *numbers = sys.argv[1:]
    batch_size, thread_count = int(numbers[0]), int(numbers[1])
    answer(lambda: measure(engine_name, Path(model_folder), batch_size, thread_count, float(numbers[2])))
