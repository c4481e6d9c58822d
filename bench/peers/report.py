"""Sums up the rounds and writes them as Markdown. Standard library only."""

from dataclasses import asdict, dataclass
from statistics import median

TITLES = {"infer": "Inference in f32 against other engines", "train": "Training steps against PyTorch"}
RUN_TIMES = {"infer": "Python and NumPy", "train": "Python and, where it compiles, the compiler"}
UNITS = {"infer": "ms/image", "train": "ms/step"}


@dataclass(frozen=True)
class Summary:
    """One engine's figures in one case."""

    ms: float
    """The median over the rounds of each round's median."""
    fastest_ms: float
    """The fastest single call of all rounds."""
    rounds_ms: list[float]
    peak_rss_mb: float
    load_ms: float | None


@dataclass(frozen=True)
class CaseResult:
    """What was measured in one case."""

    case: str
    engines: dict[str, Summary]


@dataclass(frozen=True)
class Report:
    """Everything that a run says."""

    mode: str
    date: str
    machine: str
    versions: dict[str, str]
    command: str
    settings: str
    engines: list[str]
    rivals: list[str]
    """The peers of which the better one counts."""
    cases: list[CaseResult]
    left_out: list[tuple[str, str, str]]
    """Case, engine and reason."""


def summarise(samples: list[dict], key: str) -> Summary:
    """Sums up one engine's answers of all rounds."""
    loads = [sample["load_ms"] for sample in samples if "load_ms" in sample]
    medians = [sample[key]["median"] for sample in samples]
    return Summary(
        ms=median(medians),
        fastest_ms=min(sample[key]["min"] for sample in samples),
        rounds_ms=medians,
        peak_rss_mb=max(sample["peak_rss_mb"] for sample in samples),
        load_ms=median(loads) if loads else None,
    )


def ratio(result: CaseResult, peers: list[str]) -> float | None:
    """The fastest peer's time by stridenet's; more than 1 where stridenet is faster."""
    ours = result.engines.get("stridenet")
    theirs = [result.engines[peer].ms for peer in peers if peer in result.engines]
    return min(theirs) / ours.ms if ours and theirs else None


def figure(value: float | None) -> str:
    """Three significant digits without an exponent."""
    if value is None:
        return "–"
    digits = next((digits for digits, least in ((0, 100), (1, 10), (2, 1)) if value >= least), 3)
    return f"{value:.{digits}f}"


def measured_engines(report: Report) -> list[str]:
    """The engines with a figure in at least one case; the others have no column."""
    return [engine for engine in report.engines if any(engine in result.engines for result in report.cases)]


def measured_rivals(report: Report) -> list[str]:
    """Those of the engines whose best counts; where there are none, there is no best."""
    return [engine for engine in report.rivals if engine in measured_engines(report)]


def columns(report: Report) -> list[str]:
    """The table's header."""
    engines = measured_engines(report)
    peers = [engine for engine in engines if engine != "stridenet"]
    rivals = measured_rivals(report)
    names = ["case", *(f"{engine} {UNITS[report.mode]}" for engine in engines)]
    if "stridenet" in engines:
        names += [f"**best of {', '.join(rivals)} / stridenet**"] if rivals else []
        names += [f"{peer} / stridenet" for peer in peers]
    names.append(f"peak MB: {', '.join(engines)}")
    return [*names, f"load ms: {', '.join(engines)}"] if report.mode == "infer" else names


def cells(report: Report, result: CaseResult) -> list[str]:
    """One case's row."""
    engines = measured_engines(report)
    found = [result.engines.get(engine) for engine in engines]
    row = [result.case, *(f"{figure(one.ms)} ({figure(one.fastest_ms)})" if one else "–" for one in found)]
    if "stridenet" in engines:
        row += [f"**{figure(ratio(result, report.rivals))}**"] if measured_rivals(report) else []
        row += [figure(ratio(result, [peer])) for peer in engines if peer != "stridenet"]
    row.append(", ".join(f"{one.peak_rss_mb:.0f}" if one else "–" for one in found))
    if report.mode == "infer":
        row.append(", ".join(figure(one.load_ms if one else None) for one in found))
    return row


def markdown(report: Report) -> str:
    """The report as it is printed and recorded."""
    versions = ", ".join(f"{engine} {version}" for engine, version in report.versions.items())
    lines = [f"# {TITLES[report.mode]}", "", f"- {report.date}; {report.machine}."]
    if versions:
        lines.append(f"- {versions}.")
    lines += [
        f"- `{report.command}`: {report.settings}.",
        "- A case is architecture:batch:threads. Times are the median over the rounds of each round's median, in",
        "  brackets the fastest call. Ratios are a peer's time by stridenet's: more than 1 means that stridenet is faster.",
        f"- Peak memory of a peer includes {RUN_TIMES[report.mode]}.",
        "",
    ]
    if measured_engines(report):
        header = columns(report)
        rows = [header, ["---"] * len(header), *(cells(report, one) for one in report.cases if one.engines)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    if report.left_out:
        lines += [*([""] if measured_engines(report) else []), "Left out:", ""]
        lines += [f"- {engine} in {case}: {reason}" for case, engine, reason in report.left_out]
    return "\n".join(lines) + "\n"


def document(report: Report) -> dict:
    """The report as JSON, with the ratios and each round's figures."""
    out = asdict(report)
    for case, result in zip(out["cases"], report.cases):
        peers = [engine for engine in result.engines if engine != "stridenet"]
        case["ratios"] = {peer: ratio(result, [peer]) for peer in peers}
        case["ratio_to_best"] = ratio(result, report.rivals)
    return out
