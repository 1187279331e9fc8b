"""Who finds flipped labels best, at equal CPU seconds? Our recorded dynamics beside what else a user would take.

    python -m venv peers && peers/bin/pip install cleanlab==2.9.0 aum==1.0.2 PATH-OF-LEGATO   # cleanlab is AGPL: never a dependency
    OMP_NUM_THREADS=1 peers/bin/python tools/label_peers.py [SEEDS]

4,000 real pictures (fashion-mini's training split), 20% of the labels flipped in three ways, an MLP, SGD with a constant rate of 0.01. Every way
has about the same CPU seconds: 3 trainings of 10 epochs with a look at each step, 1 training of 40, or 5 folds of 10 epochs on four fifths of
the rows (out-of-sample probabilities, as cleanlab recommends them). Prints average precision and AUC with 95% intervals over seeds (each with
its own rows, flips, weights and batches), the CPU seconds, and paired differences to cleanlab's scores.
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
TRAININGS, EPOCHS, LONG, FOLD_EPOCHS = 3, 10, 40, 10
CLEANLAB = ("cleanlab self_confidence", "cleanlab normalized_margin")
Look = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]
Ways = dict[str, tuple[np.ndarray[Any, Any], float]]
"""Way -> (suspicion [N], CPU seconds)."""


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


@torch.no_grad()
def losses(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray[Any, Any]:
    return F.cross_entropy(model(x), y, reduction="none").numpy()


def recorded(x: torch.Tensor, y: torch.Tensor, seed: int) -> Ways:
    """Our own: what three networks said on their way."""
    start, mine = process_time(), [Dynamics(len(y), CLASSES) for _ in range(TRAININGS)]
    for number, dynamics in enumerate(mine):
        train(x, y, EPOCHS, 100 * seed + number, dynamics.record)
    seconds = process_time() - start
    return {f"recorded {m}": (np.mean([d.suspicion(m).numpy() for d in mine], 0), seconds) for m in MEASURES}


def package_of_aum(x: torch.Tensor, y: torch.Tensor, seed: int) -> Ways:
    """The same three networks, watched by the package of the paper's authors."""
    start, means = process_time(), []
    for number in range(TRAININGS if aum is not None else 0):
        one = aum.AUMCalculator(TemporaryDirectory().name)
        train(x, y, EPOCHS, 100 * seed + number, lambda z, t, i, one=one: one.update(z.detach(), t, i.tolist()))
        means.append([-one.sums[i] / one.counts[i] for i in range(len(y))])
    return {"aum package": (np.mean(means, 0), process_time() - start)} if means else {}


def last_loss(x: torch.Tensor, y: torch.Tensor, seed: int) -> Ways:
    """The same three networks without a look on the way: the loss when they are done."""
    start = process_time()
    loss = np.mean([losses(train(x, y, EPOCHS, 100 * seed + k), x, y) for k in range(TRAININGS)], 0)
    return {"last loss, 3 trainings": (loss, process_time() - start)}


def long_training(x: torch.Tensor, y: torch.Tensor, seed: int) -> Ways:
    """What most people do: the loss of one network that was trained for long."""
    start = process_time()
    loss = losses(train(x, y, LONG, 100 * seed), x, y)
    return {"last loss, 1 long training": (loss, process_time() - start)}


def folds(x: torch.Tensor, y: torch.Tensor, seed: int) -> Ways:
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
            found: Ways = {}
            for way_of in (recorded, package_of_aum, last_loss, long_training, folds):
                found |= way_of(x, y, seed)
            if "aum package" in found:  # one formula, two programs
                pair = (found["aum package"][0], found["recorded margin"][0])
                np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-4)
            for way, (suspicion, seconds) in found.items():
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
