"""What the scripts of this folder share: running commands, and what a record says of the machine. Standard library only."""

import datetime
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent

PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "ncnn", "pnnx", "MNN", "safetensors", "numpy")


class Stop(Exception):
    """The run cannot go on; the message is one line for the user."""


class Failed(Exception):
    """One engine failed in one case; the run goes on without it."""


def progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def shown(path: Path) -> Path:
    """The path from the repository's root where it is below it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def finish(command: list) -> str:
    """Runs a command and returns its stdout."""
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise Failed(f"{shown(Path(command[0]))} cannot be run: {error.strerror}") from error
    if done.returncode < 0:
        raise Failed(f"ended by the signal {signal.Signals(-done.returncode).name}")
    if done.returncode > 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failed(lines[-1].strip() if lines else f"ended with status {done.returncode}")
    return done.stdout


def call(command: list) -> dict:
    """Runs a command whose last line of stdout, or whose whole stdout, is an object in JSON."""
    text = finish(command).strip()
    for candidate in (text.rpartition("\n")[2], text):
        try:
            answer = json.loads(candidate)
        except json.JSONDecodeError:
            continue
        if isinstance(answer, dict):
            if "error" in answer:
                raise Failed(answer["error"])
            return answer
    raise Failed("it printed no JSON")


def end_children_when_terminated() -> None:
    """Has a SIGTERM raise SystemExit, so that what a script has started ends with it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def run_aloud(command: list) -> None:
    """Runs a part of making the peers, whose output the user sees."""
    if subprocess.run(list(map(str, command)), stdout=sys.stderr).returncode != 0:
        raise Stop("the peers could not be installed, see above; call this again when that is mended, or delete their folder first")


def missing_packages(python: Path) -> list[str]:
    """Peers that a virtual environment does not have, be it that its installation was cut off."""
    known = "import importlib.metadata as m, sys; print(*{(one.name or '').lower() for one in m.distributions()})"
    try:
        found = finish([python, "-c", known]).split()
    except Failed as failure:
        raise Stop(f"the peers' environment does not work: {failure}; delete its folder to install them anew") from failure
    return [name for name in PACKAGES if name.lower() not in found]


def make_peers(folder: Path) -> None:
    """Makes the virtual environment with the peers, or installs those that it does not have."""
    python = folder / "bin" / "python"
    if not python.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Stop(f"{shown(folder)} holds something else than a virtual environment; name another folder with --peers")
        run_aloud([sys.executable, "-m", "venv", folder])
    if missing := missing_packages(python):
        progress(f"installing {', '.join(missing)} into {shown(folder)}")
        run_aloud([python, "-m", "pip", "install", *missing])


def require_stridenet(path: Path) -> None:
    """Ends the run when the command has not been built."""
    if not path.is_file():
        raise Stop(f"{shown(path)} is missing; build it with cargo build --release")


def describe_machine() -> str:
    """CPU, with what sets it apart where its name is that of many, cores and kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    cpu = known.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= known.keys():
        cpu += f" (family {known['cpu family']} model {known['model']})"
    return f"{cpu}, {os.cpu_count()} cores; {platform.system()} {platform.release()}"


def describe_stridenet(path: Path) -> str:
    """The version of the command, the commit of the sources around this script, and what the environment asks of it."""
    git = ["git", "-C", str(ROOT)]
    try:
        version = finish([path, "--version"]).strip().removeprefix("stridenet ")
    except Failed as failure:
        raise Stop(str(failure)) from failure
    try:
        commit = finish([*git, "rev-parse", "--short", "HEAD"]).strip()
        changed = finish([*git, "status", "--porcelain", "--untracked-files=no"]).strip()
        version = f"{version} ({commit}{' with changes' if changed else ''})"
    except Failed:
        pass
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("STRIDENET_")]
    return " with ".join([version, " ".join(settings)]) if settings else version


def record_path(name: str) -> Path:
    """Where a run is recorded; a record is never overwritten."""
    path = BENCH / "runs" / f"{datetime.date.today().isoformat()}-{name}.md"
    if path.exists():
        raise Stop(f"{shown(path)} exists; choose another name")
    return path
