"""What the scripts of this folder share: running commands, and what a record says of the machine. Standard library only."""

import datetime
import json
import os
import platform
import re
import shutil
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


def make_peers(folder: Path) -> None:
    """Makes the virtual environment with the peers unless it is there."""
    if (folder / "bin" / "python").exists():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Stop(f"{shown(folder)} holds something else than a virtual environment; name another folder with --peers")
    progress(f"installing the peers into {shown(folder)}")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], stdout=sys.stderr, check=True)
        subprocess.run([*pip, *PACKAGES], stdout=sys.stderr, check=True)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, subprocess.CalledProcessError):
            raise Stop("the peers could not be installed, see above; call this again when that is mended") from error
        raise


def require_stridenet(path: Path) -> None:
    """Ends the run when the command has not been built."""
    if not path.is_file():
        raise Stop(f"{shown(path)} is missing; build it with cargo build --release")


def describe_machine() -> str:
    """CPU, cores and kernel."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    cpu = names[0] if names else platform.processor() or platform.machine()
    return f"{cpu}, {os.cpu_count()} cores; {platform.system()} {platform.release()}"


def describe_stridenet(path: Path) -> str:
    """The version of the command and the commit of the sources around this script."""
    git = ["git", "-C", str(ROOT)]
    try:
        version = finish([path, "--version"]).strip().removeprefix("stridenet ")
    except Failed as failure:
        raise Stop(str(failure)) from failure
    try:
        commit = finish([*git, "rev-parse", "--short", "HEAD"]).strip()
        changed = finish([*git, "status", "--porcelain", "--untracked-files=no"]).strip()
    except Failed:
        return version
    return f"{version} ({commit}{' with changes' if changed else ''})"


def record_path(name: str) -> Path:
    """Where a run is recorded; a record is never overwritten."""
    path = BENCH / "runs" / f"{datetime.date.today().isoformat()}-{name}.md"
    if path.exists():
        raise Stop(f"{shown(path)} exists; choose another name")
    return path
