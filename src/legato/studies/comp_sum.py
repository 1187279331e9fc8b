"""The family of comp-sum losses over tau, with clean and with corrupted labels (arXiv 2304.07288)."""

from collections.abc import Mapping
from dataclasses import replace

from legato.lab.page import Cell, Panel, Table
from legato.lab.statistics import t_interval
from legato.studies import objectives
from legato.studies.config import CompareConfig
from legato.studies.result import Result
from legato.studies.spec import Part, Spec
from legato.studies.summary import condition

FAMILY = ("ce", "comp-sum:1.7", "label-smoothing:0.1", "comp-sum:0", "comp-sum:0.5", "comp-sum:1.5", "comp-sum:2")
GRID = CompareConfig(
    objectives=FAMILY, label_noise=(0.0, 0.4), learning_rates=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
)


def recalibration(results: Mapping[str, Result]) -> list[Panel]:
    """Calibration error raw, after the temperature that theory gives, after a fitted one, and after isotonic regression."""
    columns = ("objective", "raw", "1/(2 - tau)", "fitted temperature", "isotonic")
    keys = ("noisy_test_ece", "noisy_test_ece_recalibrated", "noisy_test_ece_scaled", "noisy_test_ece_isotonic")
    tables = []
    for part, result in results.items():
        for noise in result.plan.label_noise:
            rows = []
            for arm in result.plan.arms:
                spec = objectives.parse(arm)
                found = [t_interval(result.column(noise, arm, key)) for key in keys]
                cells = [Cell(e.text(1, 3), e.mean) for e in found]
                if spec.calibrating_temperature == 1:
                    cells[1] = Cell("none", None)
                rows.append((Cell(spec.label), *cells))
            tables.append(Table(columns, tuple(rows), f"{part}, {condition(noise)}"))
    text = (
        "Expected calibration error against labels with the noise of training, mean and 95% interval over seeds. A comp-sum loss "
        "is minimised by probabilities to the power 1/(2 - tau); dividing the logits by the temperature 1/(2 - tau) undoes that "
        "without fitting anything. The remedy is ours, and so is the claim."
    )
    return [Panel("Can probabilities be recovered?", text, tables=tuple(tables))]


SPEC = Spec(
    paper="2304.07288",
    title="Comp-sum losses over tau, with clean and with corrupted labels",
    parts={
        "fashion-mini mlp": Part(replace(GRID, data="fashion-mini", model="mlp")),
        "digits mlp": Part(replace(GRID, data="digits", model="mlp", epochs=40)),
        "fashion-mini convnet": Part(replace(GRID, data="fashion-mini", model="convnet")),
    },
    cut="one network of each kind, images of 28 x 28 pixels and 4,000 training rows; the paper trains ResNets on CIFAR",
    panels=recalibration,
    smoke=("digits mlp",),
)
