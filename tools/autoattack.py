"""Is our own worst case a fair measure? Compares it with torchattacks' AutoAttack on models of the adversarial study.

    pip install --no-deps torchattacks==3.5.1
    python tools/autoattack.py [ROWS]

Trains five objectives of `legato study adversarial` on fashion-mini at their committed learning rates with seed 100, and prints the
accuracy of each on the first ROWS test pictures: clean, under our attacks, and under AutoAttack. One seed: no verdict.
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from legato.integrations.attacks import run_torchattacks
from legato.losses import worst_case
from legato.losses.robustness import survives
from legato.studies import classify, compare, study
from legato.studies.prepared import prepare

PART = "fashion-mini convnet"
ARMS = ("pgd-at", "trades:beta=3", "trades:beta=9", "smooth-adversarial:tau=0.5,nu=0.4", "smooth-adversarial:nu=0.4")


def main(rows: int) -> None:
    """Print the table."""
    job = compare.make_job(study.STUDIES["adversarial"].parts[PART].config)
    rates = {arm: rate for _, arm, rate in study.tuned("adversarial", PART, study.STUDIES["adversarial"].parts[PART])}
    table = Table("objective", "rate", "accuracy %", "our worst case %", "AutoAttack %")
    for start in ARMS:
        arm = next(name for name in rates if name.startswith(start))
        config = replace(job.plan.trial(0.0, arm, rates[arm], 100), reads_test=False)
        task = prepare(config, job.source)
        with TemporaryDirectory() as folder:
            model = classify.train(config, task, Path(folder)).model.eval()
        x, y, radius = task.test.inputs[:rows], task.test.true[:rows], config.attack_radius
        ours = worst_case(model, x, y, radius=radius, bounds=(0.0, 1.0), steps=20, restarts=1)
        attacked = run_torchattacks(
            "AutoAttack", model, x, y, radius=radius, bounds=(0.0, 1.0), n_classes=task.num_classes
        )
        found = (ours.clean_accuracy, ours.accuracy, float(survives(model, attacked, y).double().mean()))
        table.add_row(arm, f"{rates[arm]:g}", *(f"{100 * share:.1f}" for share in found))
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
