"""Hands the curves of a finished comparison to a tracker: one run a trial, named by its objective, rate, noise and seed."""

from legato.studies.classify import TrialConfig
from legato.studies.result import Result
from legato.studies.tasks import Setting


def replay(result: Result, name: str) -> None:
    """Send every training curve, epoch by epoch, from this process; warm workers must not hold a tracker's global state.

    Args:
        name: "tensorboard", "trackio" or "wandb"; files go to the folder `tracking` of the run, where the tracker lets us choose.
    Raises: MissingExtraError when its package is not installed.
    """
    from legato.training import tracker

    for config, record in result.records.items():
        if not isinstance(config, Setting):
            continue
        noise = f" noise={config.label_noise:g}" if isinstance(config, TrialConfig) else ""
        told = f"{config.objective}{noise} rate={config.learning_rate:g} seed={config.seed}"
        run = f"{told}{' test' if config.reads_test else ''}"
        about = {"objective": config.objective, "learning_rate": config.learning_rate, "seed": config.seed}
        with tracker(name, result.folder / "tracking", run=run, config=about) as log:
            curves = record.metrics["curves"]
            for epoch, values in enumerate(zip(*curves.values(), strict=True)):
                log({"step": epoch, **dict(zip(curves, values, strict=True))})
