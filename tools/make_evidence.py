"""Write docs/evidence.md and the pages beside it from the packed results in docs/evidence: `python tools/make_evidence.py`."""

import shutil
from pathlib import Path

from legato.lab.claims import Judged
from legato.lab.pack import open_results
from legato.studies import study
from legato.studies.study import STUDIES

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# Evidence

Every claim stands in `studies/claims.toml`, with its metric and the smallest difference worth the name, and was written there before the confirming
run. A confirming run tunes nothing: it takes learning rates that were chosen on other seeds by validation data and committed, trains on
fresh seeds, and reads the test set for the first time. A verdict is *shows* when the interval, corrected by Holm over all tested claims
of the study, lies above that difference; *does not show* when it lies under it; else *undecided*.

The tables are drawn from the packed results in `docs/evidence` by `python tools/make_evidence.py`, and a test sees that they are current.
"""


def text() -> str:
    """The page."""
    return "\n".join([HEAD, *(_section(path) for path in sorted((DOCS / "evidence").glob("*.jsonl.xz")))])


def _section(path: Path) -> str:
    name = path.name.partition(".")[0]
    _, judged = study.judge(path)
    spec, about = STUDIES[name], open_results(path).read_environment()
    rows = "\n".join(_row(claim) for claim in judged)
    return f"""
## {spec.title}

arXiv {spec.paper}. `legato study {name} --confirm`, on {about["cpu"]} with torch {about["torch"]}; [the page]({"evidence/" + name}.html).
Left out: {spec.cut}.

| claim | verdict | points [95%] | needed |
|---|---|---|---|
{rows}
"""


def _row(judged: Judged) -> str:
    claim = judged.claim
    words = claim.words if judged.difference else f"{claim.words} ({claim.reason})"
    points = judged.difference.text(100, 1) if judged.difference else ""
    needed = f"{100 * claim.minimal_effect:g}" if judged.difference else ""
    return f"| {words} | {judged.verdict} | {points} | {needed} |"


def main() -> None:
    """Write everything."""
    for path in (DOCS / "evidence").glob("*.jsonl.xz"):
        page = study.redraw(path)
        page.replace(path.with_name(f"{path.name.partition('.')[0]}.html"))
        shutil.rmtree(page.parent)
    (DOCS / "evidence.md").write_text(text())


if __name__ == "__main__":
    main()
