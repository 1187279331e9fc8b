"""Write docs/evidence.md, the pages beside it, docs/benchmarks.md and docs/performance.md from stored results: `python tools/make_docs.py`."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from legato.bench import ROOMS, Bar, bars
from legato.lab.claims import WORDS, Judged
from legato.lab.pack import open_results
from legato.studies import study
from legato.studies.study import STUDIES

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# Evidence

Every claim stands in `studies/claims.toml`, with its metric and the smallest difference worth the name, and was written there before the confirming
run. A confirming run tunes nothing: it takes learning rates that were chosen on other seeds by validation data and committed, trains on
fresh seeds, and reads the test set for the first time. A verdict is *shows* when the interval, corrected by Holm over all tested claims
of the study, lies above that difference; *does not show* when it lies under it; else *undecided*. A point is a hundredth: of an accuracy, of a
calibration error, of a rank correlation, of a nat, or of a natural logarithm. Where claims are measured in another unit, it stands there.

The tables are drawn from the packed results in `docs/evidence` by `python tools/make_docs.py`, and a test sees that they are current.
"""


def evidence() -> str:
    """The page of verdicts."""
    judged = {path: study.judge(path) for path in sorted((DOCS / "evidence").glob("*.jsonl.xz"))}
    return "\n".join([HEAD, _overview(judged), *(_section(path, claims) for path, claims in judged.items())])


def _overview(judged: Mapping[Path, Sequence[Judged]]) -> str:
    """How many claims of each study got which verdict."""
    counted = {_name(path): Counter(claim.verdict for claim in claims) for path, claims in judged.items()}
    rows = [
        (
            f"[{STUDIES[name].title}](#{_anchor(STUDIES[name].title)})",
            STUDIES[name].paper,
            *(str(counts[word]) for word in WORDS),
        )
        for name, counts in counted.items()
    ]
    sums = ("all together", "", *(str(sum(counts[word] for counts in counted.values())) for word in WORDS))
    head = ("study", "arXiv", *WORDS)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows, sums)) + "\n"


def _anchor(title: str) -> str:
    """What Markdown calls a heading in links."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-")


def _name(path: Path) -> str:
    return path.name.partition(".")[0]


def _section(path: Path, judged: Sequence[Judged]) -> str:
    name = _name(path)
    spec, about = STUDIES[name], open_results(path).read_environment()
    rows = "\n".join(_row(claim) for claim in judged)
    return f"""
## {spec.title}

arXiv {spec.paper}. `legato study {name} --confirm`, on {about["cpu"]} with torch {about["torch"]}; [the page]({"evidence/" + name}.html).
Cut to: {spec.cut}.

| claim | verdict | points [95%] | needed |
|---|---|---|---|
{rows}
"""


def _row(judged: Judged) -> str:
    claim = judged.claim
    words = claim.words if judged.difference else f"{claim.words} ({claim.reason})"
    return f"| {words} | {judged.verdict} | {judged.told} | {judged.needed} |"


BENCH = """# Benchmarks

What a part costs against what you would use instead, measured in one process, in interleaved blocks, by process time on one thread. A ratio below 1
means that ours is faster; the interval is a 95% bootstrap of the median over blocks, and A/A is the peer against itself. Memory is the peak
beyond what the step began with. A bar is what we asked of ourselves beforehand; it is met when the interval begins at or below it.
Peers that we rewrote say so.

The tables are drawn from `docs/benchmarks` by `python tools/make_docs.py`; `legato bench ROOM --out FILE` measures anew. Rows against other packages are
there if they are installed.
"""


def benchmarks() -> str:
    """The page of costs."""
    return "\n".join(
        [BENCH, *(_bench_section(path) for path in sorted((DOCS / "benchmarks").glob("*.json"), reverse=True))]
    )


def _bench_section(path: Path) -> str:
    report = json.loads(path.read_text())
    facts = report["machine"]
    timed = "\n".join(_bench_row(row) for row in report["rows"] if "timing" in row)
    counted = "\n".join(_counted_row(row) for row in report["rows"] if "products" in row)
    return f"""
## {path.stem.capitalize()}

`legato bench {path.stem}`, on {facts["cpu"]} with torch {facts["torch"]}, {facts["threads"]} thread.

| part | against | shape | time | A/A | memory | bar |
|---|---|---|---|---|---|---|
{timed}
{COUNTED + counted if counted else ""}"""


COUNTED = """
Hessian products until the largest eigenvalue is within the error, the median over three start vectors, each solver at its best setting.

| part | against | weights | ours | the peer's | bar | note |
|---|---|---|---|---|---|---|
"""


def _counted_row(row: dict) -> str:
    theirs = (
        "not installed"
        if not row["installed"]
        else "never"
        if row["peer_products"] is None
        else f"{row['peer_products']:g}"
    )
    bar = "" if row["met"] is None else f"{row['bar']:g}: {'met' if row['met'] else 'missed'}"
    note = row["note"] if row["installed"] else ""
    return f"| {row['part']} | {row['peer']} | {row['shape'][0]:,} | {row['products']:g} | {theirs} | {bar} | {note} |"


def _bench_row(row: dict) -> str:
    ratio, same = row["timing"]["ratio"], row["timing"]["same"]
    asked = (("bar", "time"), ("memory_bar", "memory"), ("rate_bar", "a second"))
    bars = [f"{row[key]:g} {what}" for key, what in asked if row.get(key) is not None]
    bar = f"{', '.join(bars)}: {'met' if row['met'] else 'missed'}" if bars else ""
    if row.get("rate_bar"):
        bar += f", with {1000 * row['work'] / row['timing']['milliseconds']:,.0f} a second"
    return (
        f"| {row['part']} | {row['peer']} | {' x '.join(map(str, row['shape']))} | {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] "
        f"| {same['median']:.2f} | {row['peak_mib']:.0f} of {row['peer_peak_mib']:.0f} MiB | {bar} |"
    )


PERFORMANCE = """# Performance

Every bar that we set ourselves, and whether it is met. A ratio is ours divided by what you would use instead, with its 95% interval where it was
timed; a bar on time is met when that interval begins at or below it. The [benchmarks](benchmarks.md) have the rows without a bar too, and say how all
was measured. `legato bench all --out FILE` measures every bar anew, in one table.

The table is drawn from `docs/benchmarks` by `python tools/make_docs.py`.
"""


def performance() -> str:
    """The page of bars."""
    reports = {path.stem: json.loads(path.read_text()) for path in sorted((DOCS / "benchmarks").glob("*.json"))}
    found = [bar for room, report in reports.items() for bar in bars(room, report["rows"])]
    count = {word: sum(bar.met == word for bar in found) for word in ("met", "missed", "not installed")}
    told = ", ".join(f"{number} {word}" for word, number in count.items() if number)
    machines: dict[str, list[str]] = {}
    for room, report in reports.items():
        facts = report["machine"]
        machines.setdefault(f"{facts['cpu']}, torch {facts['torch']}, {facts['threads']} thread", []).append(room)
    missing = sorted(set(ROOMS) - set(reports))
    return "\n".join(
        [
            PERFORMANCE,
            f"Of {len(found)} bars: {told}.\n",
            "| room | part | against | shape | what | ours | theirs | ratio | bar | |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(_performance_row(bar) for bar in found),
            "",
            *(f"- {', '.join(rooms)}: {machine}" for machine, rooms in machines.items()),
            *([f"- {', '.join(missing)}: nothing is stored yet"] if missing else []),
            "",
        ]
    )


def _performance_row(bar: Bar) -> str:
    met = f"**{bar.met}**" if bar.met == "missed" else bar.met
    return f"| {bar.room} | {bar.part} | {bar.against} | {bar.shape} | {bar.what} | {bar.ours} | {bar.peer} | {bar.ratio} | {bar.bar} | {met} |"


def main() -> None:
    """Write everything."""
    for path in (DOCS / "evidence").glob("*.jsonl.xz"):
        page = study.redraw(path)
        page.replace(path.with_name(f"{path.name.partition('.')[0]}.html"))
        shutil.rmtree(page.parent)
    (DOCS / "evidence.md").write_text(evidence())
    (DOCS / "benchmarks.md").write_text(benchmarks())
    (DOCS / "performance.md").write_text(performance())


if __name__ == "__main__":
    main()
