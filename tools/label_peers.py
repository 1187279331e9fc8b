"""Who finds flipped labels best, at equal CPU seconds? Our recorded dynamics beside what else a user would take.

    python -m venv peers && peers/bin/pip install cleanlab==2.9.0 aum==1.0.2 PATH-OF-LEGATO   # cleanlab is AGPL: never a dependency
    OMP_NUM_THREADS=1 peers/bin/python tools/label_peers.py [SEEDS]

4,000 real pictures (fashion-mini's training split), 20% of the labels flipped in three ways, an MLP, SGD with a constant rate of 0.01. Every way
has about the same passes over the data: 3 trainings of 10 epochs, 1 training of 30, or 5 folds of 7 epochs on four fifths of the rows
(out-of-sample probabilities, as cleanlab recommends them). Prints average precision and AUC with 95% intervals over seeds (each with its own
rows, flips, weights and batches), the CPU seconds, and paired differences to the best of cleanlab's scores.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch.nn import functional as F

from legato import data, nets
from legato.flatness.dynamics import MEASURES, Dynamics
from legato.lab.statistics import t_interval
from legato.studies.labels import LEARNING_RATE, corrupted

KINDS = ("symmetric", "pair", "instance")
RATE, BATCH, CLASSES = 0.2, 64, 10
TRAININGS, EPOCHS, LONG, FOLD_EPOCHS = 3, 10, 30, 7
OURS = "recorded margin"
CLEANLAB = ("cleanlab self_confidence", "cleanlab normalized_margin")
Look = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def train(x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int, *looks: Look) -> torch.nn.Module:
    """The plain loop that every way uses; `looks` see (logits, labels, index) of each step."""
    torch.manual_seed(seed)
    model = nets.mlp(tuple(x.shape[1:]), CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = data.Batches(x, y, torch.arange(len(y)), BATCH, seed=seed)
    for epoch in range(epochs):
        for inputs, targets, index in batches.epoch(epoch):
            output = model(inputs)
            for look in looks:
                look(output, targets, index)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(output, targets).backward()
            optimizer.step()
    return model.eval()


class Timed:
    """A look with its CPU seconds."""

    def __init__(self, look: Look) -> None:
        self.look, self.seconds = look, 0.0

    def __call__(self, *batch: torch.Tensor) -> None:
        start = process_time()
        self.look(*batch)
        self.seconds += process_time() - start


@torch.no_grad()
def losses(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray[Any, Any]:
    return F.cross_entropy(model(x), y, reduction="none").numpy()


def recorded(x: torch.Tensor, y: torch.Tensor, seed: int) -> dict[str, tuple[np.ndarray[Any, Any], float]]:
    """Way -> (suspicion [N], CPU seconds), for all that looks on while three networks train."""
    mine = [Dynamics(len(y), CLASSES) for _ in range(TRAININGS)]
    aums, aum_seconds, own_seconds, last, started = [], 0.0, 0.0, [], process_time()
    for number, dynamics in enumerate(mine):
        own = Timed(dynamics.record)
        looks = [own]
        if aum is not None:
            aums.append(aum.AUMCalculator(TemporaryDirectory().name))
            calculate = aums[-1].update
            looks.append(Timed(lambda z, t, i, calculate=calculate: calculate(z.detach(), t, i.tolist())))
        model = train(x, y, EPOCHS, 100 * seed + number, *looks)
        own_seconds += own.seconds
        aum_seconds += sum(look.seconds for look in looks[1:])
        last.append(losses(model, x, y))
    base = process_time() - started - own_seconds - aum_seconds
    found = {
        f"recorded {m}": (np.mean([d.suspicion(m).numpy() for d in mine], 0), base + own_seconds) for m in MEASURES
    }
    found["last loss, 3 trainings"] = (np.mean(last, 0), base)
    if aums:
        means = [[-one.sums[i] / one.counts[i] for i in range(len(y))] for one in aums]
        found["aum package"] = (np.mean(means, 0), base + aum_seconds)
        np.testing.assert_allclose(found["aum package"][0], found[OURS][0], rtol=1e-4, atol=1e-4)
    return found


def long_training(x: torch.Tensor, y: torch.Tensor, seed: int) -> dict[str, tuple[np.ndarray[Any, Any], float]]:
    start = process_time()
    loss = losses(train(x, y, LONG, 100 * seed), x, y)
    return {"last loss, 1 long training": (loss, process_time() - start)}


def folds(x: torch.Tensor, y: torch.Tensor, seed: int) -> dict[str, tuple[np.ndarray[Any, Any], float]]:
    """Out-of-sample probabilities from 5 folds, ranked by cleanlab and by their plain loss."""
    start, out = process_time(), np.zeros((len(y), CLASSES))
    for number, (kept, held) in enumerate(StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y)):
        model = train(x[kept], y[kept], FOLD_EPOCHS, 100 * seed + number)
        with torch.no_grad():
            out[held] = model(x[held]).double().softmax(1).numpy()
    base = process_time() - start
    found = {"5 folds, loss": (-np.log(out[np.arange(len(y)), y.numpy()]), base)}
    for way in CLEANLAB if cleanlab_rank is not None else ():
        start = process_time()
        quality = cleanlab_rank.get_label_quality_scores(y.numpy(), out, method=way.split()[1])
        found[way] = (-quality, base + process_time() - start)
    return found


def main(seeds: int) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    console = Console(width=110)
    for kind in KINDS:
        kept = defaultdict(list)
        for seed in range(seeds):
            train_split = data.standardize(data.load("fashion-mini", seed=seed)).train
            x, true = train_split.inputs, train_split.targets
            y = corrupted(x, true, CLASSES, RATE, kind, seed)
            flipped = (y != true).numpy()
            for way, (suspicion, seconds) in (
                recorded(x, y, seed) | long_training(x, y, seed) | folds(x, y, seed)
            ).items():
                kept[way].append(
                    (average_precision_score(flipped, suspicion), roc_auc_score(flipped, suspicion), seconds)
                )
        table = Table("way", "average precision", "AUC", "CPU s", title=f"{kind} flips, {RATE:.0%}, {seeds} seeds")
        columns = {way: np.array(rows).T for way, rows in kept.items()}
        for way, (precision, auc, seconds) in columns.items():
            table.add_row(way, t_interval(precision).text(), t_interval(auc).text(), f"{seconds.mean():.1f}")
        console.print(table)
        for way in CLEANLAB if cleanlab_rank is not None else ():
            for mine in ("recorded margin", "recorded loss"):
                differences = [t_interval(columns[mine][i] - columns[way][i]).text() for i in (0, 1)]
                console.print(f"{mine} minus {way}: AP {differences[0]}, AUC {differences[1]}", highlight=False)


try:
    import aum
except ImportError:
    aum = None
    print("aum is not installed: its area under the margin is left out (ours is the same formula)", file=sys.stderr)
try:
    from cleanlab import rank as cleanlab_rank
except ImportError:
    cleanlab_rank = None
    print("cleanlab is not installed: its scores are left out", file=sys.stderr)

if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
