"""What the command lines of the scripts share: readers of values, cases, and where things lie. Standard library only."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from runs import BENCH, ROOT

ARCHS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"),
    *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
)
CASE = "ARCH:BATCH:THREADS"
PLACES = ("--peers", "--stridenet", "--photographs", "--keep")


@dataclass(frozen=True)
class Case:
    """What is measured."""

    arch: str
    batch: int
    threads: int

    def __str__(self) -> str:
        return f"{self.arch}:{self.batch}:{self.threads}"


def read_case(text: str) -> Case:
    """ARCH:BATCH:THREADS"""
    match = re.fullmatch(r"([a-z0-9_]+):([1-9]\d*):([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not {CASE}, such as resnet18:8:2")
    if match[1] not in ARCHS:
        raise argparse.ArgumentTypeError(f"{match[1]} is not one of {', '.join(ARCHS)}")
    return Case(match[1], int(match[2]), int(match[3]))


def read_count(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_reader(unit: str):
    """A reader of a positive number of such units."""

    def read_positive(text: str) -> float:
        if not re.fullmatch(r"\d+(\.\d+)?|\.\d+", text) or float(text) == 0:
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of {unit}")
        return float(text)

    return read_positive


def read_name(text: str) -> str:
    """A part of a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of letters, digits, dots and dashes")
    return text


def list_reader(known: tuple[str, ...]):
    """A reader of a list of some of these names."""

    def read_list(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return names

    return read_list


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where the peers and the command lie, and where a run is recorded."""
    parser.add_argument(
        "--peers",
        type=Path,
        default=BENCH / ".peers",
        metavar="DIR",
        help="virtual environment of the peers, made when it is missing [default: bench/.peers]",
    )
    parser.add_argument(
        "--stridenet",
        type=Path,
        default=ROOT / "target" / "release" / "stridenet",
        metavar="PATH",
        help="the command that is measured [default: target/release/stridenet]",
    )
    help_record = "also write the table to bench/runs/YYYY-MM-DD-NAME.md"
    parser.add_argument("--record", type=read_name, metavar="NAME", help=help_record)


def without_places(arguments: list[str]) -> list[str]:
    """The arguments without those that only say where something lies on this machine."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument in PLACES:
            next(rest, None)
        elif not argument.startswith(tuple(f"{place}=" for place in PLACES)):
            kept.append(argument)
    return kept
