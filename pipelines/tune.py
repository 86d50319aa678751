"""Search the numbers of a recipe with Ray Tune: many short trainings, the worse ones stopped early (ASHA)."""

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from p2es.conditioning import Units
from p2es.errors import DatasetError, DivergedError, ModelError
from p2es.training import TrainConfig
from p2es.validation import validation_loss
from p2es_platform.dataset import Dataset
from p2es_platform.node_cache import node_store
from p2es_platform.settings import Settings
from p2es_platform.tracking import Tracker
from pipelines.recipes import Recipe, TuneConfig, fingerprint
from pipelines.search_space import Axis, axes, with_values
from pipelines.train_worker import Job, open_trainer

log = logging.getLogger(__name__)

METRIC = "validation_loss"
# Of a trial that diverged: ASHA takes quantiles, in which an infinity gives NaN.
_DIVERGED = 1e9
# Looks at a trial: as many chances to stop it.
_LOOKS = 18


@dataclass(frozen=True)
class Trial:
    """What came of one training.

    Attributes
    ----------
    values : dict
        What was searched.
    loss : float
        On unseen people, at its end; inf where it diverged.
    windows : int
        Seen until it was stopped.
    run_id : str
        Of its MLflow run.
    """

    values: dict[str, Any]
    loss: float
    windows: int
    run_id: str


@dataclass(frozen=True)
class TuneResult:
    """The trials, best first.

    Attributes
    ----------
    trials : tuple of Trial
    run_id : str
        MLflow run that the trials' runs are children of.
    folder : str
        Ray Tune's.
    """

    trials: tuple[Trial, ...]
    run_id: str
    folder: str


@dataclass(frozen=True)
class _Search:
    job: Job
    config: TuneConfig
    paths: tuple[str, ...]


def run(recipe: Recipe, config: TuneConfig, settings: Settings, *, dataset_url: str, groups_url: str) -> TuneResult:
    """Search, or go on with a search that was cut; Ray must be running.

    A trial is one worker, whatever the recipe trains with.

    Raises
    ------
    ConfigError
        When what is to be searched cannot be.
    ModelError
        When no trial came to a figure.
    """
    space = axes(config.search, recipe)
    train = replace(recipe.train, windows=config.windows, budget_s=None)
    recipe = replace(recipe, train=train)
    dataset = Dataset.open(dataset_url)
    if not dataset.shards("validation"):
        raise DatasetError("the dataset has no validation people, by whom trainings are compared: ingest more people")
    key = fingerprint(recipe, config, dataset.hash)
    name = f"tune-{recipe.name}-{key}"
    parent = Tracker.start(
        settings.tracking_uri, experiment="p2es", name=name, fingerprint=key,
        params={"tune": asdict(config), "recipe": asdict(recipe)}, tags={"p2es.recipe": recipe.name},
        dataset_name=dataset_url.rsplit("/", 1)[-1], dataset_digest=dataset.hash[:32],
        artifact_root=settings.path("mlartifacts"),
    )  # fmt: skip
    with node_store(dataset, "train", channels=recipe.network.ppg_channels) as store:
        units = Units.fit(store).to_dict()
    folder = settings.folder("runs", name)
    job = Job(
        recipe, units, dataset_url, dataset.version, groups_url, settings.tracking_uri, parent.run_id, name,
        str(folder),
    )  # fmt: skip
    try:
        trials = _results(_Search(job, config, tuple(axis.path for axis in space)), space, folder)
        for trial in trials:
            # Ray Tune ends a trial without a word: its run is ended here.
            Tracker.join(settings.tracking_uri, trial.run_id).finish(
                "FINISHED" if math.isfinite(trial.loss) else "FAILED"
            )
        best = trials[0]
        parent.log(1, {METRIC: best.loss, "trials": len(trials)})
        folder.joinpath("trials.json").write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
        parent.upload(folder / "trials.json", "search")
    except BaseException as error:
        parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    parent.finish("FINISHED")
    return TuneResult(trials, parent.run_id, str(folder))


def _results(search: _Search, space: Sequence[Axis], folder: Path) -> tuple[Trial, ...]:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    # MLflow has the figures; Tune's own files of them stay open when a trial is stopped.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    config = search.config
    trainable = tune.with_resources(
        tune.with_parameters(_train, search=search), {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    )
    scheduler = ASHAScheduler(
        time_attr="windows", max_t=config.windows, reduction_factor=config.reduction,
        grace_period=max(config.windows // config.reduction**2, 1),
    )  # fmt: skip
    with tqdm(total=config.trials, desc="tune", unit="trial") as bar:
        if tune.Tuner.can_restore(str(folder)):
            tuner = tune.Tuner.restore(str(folder), trainable, resume_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                param_space={axis.path: axis.domain() for axis in space},
                tune_config=tune.TuneConfig(
                    metric=METRIC, mode="min", num_samples=config.trials, scheduler=scheduler,
                    search_alg=BasicVariantGenerator(random_state=config.seed),
                ),
                run_config=tune.RunConfig(
                    name=folder.name, storage_path=str(folder.parent), verbose=0, callbacks=[_Bar(bar)],
                    failure_config=tune.FailureConfig(max_failures=2),
                ),
            )  # fmt: skip
        found = tuner.fit()
    trials = []
    for result in found:
        figures = result.metrics or {}
        if METRIC in figures:
            values = {path: (result.config or {})[path] for path in search.paths}
            loss = float(figures[METRIC])
            loss = loss if loss < _DIVERGED else math.inf
            trials.append(Trial(values, loss, int(figures["windows"]), str(figures["run_id"])))
        else:
            log.warning("a trial came to no figure: %s", result.error)
    # A trial that was stopped early is behind one that saw more, whatever its loss was by then.
    trials.sort(key=lambda trial: (not math.isfinite(trial.loss), -trial.windows, trial.loss, trial.run_id))
    if not trials or not math.isfinite(trials[0].loss):
        raise ModelError("no trial came to a figure: narrow what is searched")
    return tuple(trials)


def _Bar(bar: Any) -> Any:  # noqa: N802 - makes a class, which needs Ray Tune's
    """Make the callback that moves the bar when a trial ends."""
    from ray import tune

    class Ended(tune.Callback):
        bar: Any = None

        def __getstate__(self) -> dict[str, Any]:
            # Tune stores its callbacks with the search; a terminal cannot be stored.
            return {"bar": None}

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.bar.update()
            losses = [t.last_result[METRIC] for t in trials if METRIC in (t.last_result or {})]
            if losses:
                self.bar.set_postfix_str(f"lowest loss {min(losses):.4f}")

    ended = Ended()
    ended.bar = bar
    return ended


def _train(values: dict[str, Any], search: _Search) -> None:
    """Be one trial; Ray Tune calls it, and stops it where it is behind."""
    from ray import tune

    job = search.job
    recipe = with_values(job.recipe, values)
    job = replace(job, recipe=recipe)
    context = tune.get_context()
    tracker = Tracker.start(
        job.tracking_uri, experiment="p2es", name=str(context.get_trial_name()),
        fingerprint=f"{job.run_id}-{context.get_trial_id()}", params={"train": asdict(recipe.train), **values},
        tags={"mlflow.parentRunId": job.run_id, "p2es.recipe": recipe.name},
        dataset_name=job.dataset_url.rsplit("/", 1)[-1], dataset_digest=job.run_id,
    )  # fmt: skip
    try:
        _steps(job, search.config, recipe.train, tracker)
    except DivergedError as error:
        log.warning("%s", error)
        tracker.flush()
        tune.report({METRIC: _DIVERGED, "windows": recipe.train.windows, "run_id": tracker.run_id})


def _steps(job: Job, config: TuneConfig, train: TrainConfig, tracker: Tracker) -> None:
    from ray import tune

    dataset = Dataset.open(job.dataset_url, job.dataset_version)
    device = torch.device("cuda" if config.gpus_per_trial and torch.cuda.is_available() else "cpu")
    every = max(train.windows // _LOOKS, 1)
    with (
        open_trainer(job, 0, 1, lambda module: module, device) as trainer,
        node_store(dataset, "validation", channels=job.recipe.network.ppg_channels) as unseen,
    ):
        looked = 0
        for step in trainer.steps():
            if step.windows // every > looked or step.windows >= train.windows:
                looked = step.windows // every
                loss = validation_loss(
                    trainer.objective, trainer.average, trainer.units, unseen, windows=config.validation_windows
                )
                means = trainer.mean_losses(step)
                tracker.log(step.step, {METRIC: loss, "windows": step.windows, "loss_total": means["total"]})
                # From the report a trial that is behind does not come back.
                tracker.flush()
                tune.report({METRIC: loss, "windows": step.windows, "run_id": tracker.run_id})
