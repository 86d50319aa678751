"""What one training worker does: the loop of `p2es.training` under Ray Train, and its checkpoints.

Every rank imports this before its first step, two at a time on two cores, so MLflow is not among it: rank 0 alone
reports (`train_reporter`).
"""

from __future__ import annotations

import json
import logging
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from p2es.checkpoint import TrainingState
from p2es.conditioning import Units
from p2es.errors import DivergedError, ModelError
from p2es.model import P2Es
from p2es.training import Trainer
from p2es_platform.dataset import Dataset
from p2es_platform.node_cache import node_store
from pipelines import group as grouping
from pipelines.recipes import Recipe

if TYPE_CHECKING:
    from pipelines.train_reporter import Reporter

log = logging.getLogger(__name__)

LOG_EVERY = 20
"""Steps between two looks at the losses of all ranks, two lines in MLflow and two words to the driver."""


@dataclass(frozen=True)
class Job:
    """What every worker is told; pickled.

    Attributes
    ----------
    recipe : Recipe
    units : dict
        `Units.to_dict`.
    dataset_url, groups_url, tracking_uri, run_id, name : str
    dataset_version : int
        An ingest may commit a newer one before the last worker has started.
    folder : str
        Of the run: Ray's checkpoints, and `starts.jsonl`, a line each time that the workers began or began again.
    parent : str or None
        Folder of the model to start from.
    board : actor
        `train_progress.Board`, or None.
    """

    recipe: Recipe
    units: dict[str, Any]
    dataset_url: str
    dataset_version: int
    groups_url: str
    tracking_uri: str
    run_id: str
    name: str
    folder: str
    parent: str | None = None
    board: Any = None


def start_model(recipe: Recipe, units: Units, parent: str | None) -> P2Es:
    """Give the model that training begins with: a fresh one, or the parent with these units."""
    if parent is None:
        return P2Es.start(recipe.network, recipe.diffusion, units, recipe.train.seed)
    model = P2Es.load(Path(parent))
    model.denoiser.train()
    return replace(model, units=units)


def worker_loop(config: dict[str, Any]) -> None:
    """Train on one worker; Ray Train calls it on each.

    `config["job"]` is a pickled Job: Ray Train's controller reads the configuration, too, and would import for a Job
    all that a rank needs before any rank is started.
    """
    job: Job = pickle.loads(config["job"])  # noqa: S301 - from our own driver
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()

    def wrap(module: nn.Module) -> nn.Module:
        return ray.train.torch.prepare_model(module, move_to_device=False)

    with open_trainer(job, rank, world, wrap, ray.train.torch.get_device(), newest_whole()) as trainer:
        reporter = None
        if rank == 0:
            from pipelines.train_reporter import Reporter

            _note_start(job, trainer)
            reporter = Reporter(job, world)
        try:
            train_to_end(trainer, job.recipe, reporter, hand_over=partial(report, job.run_id), leaving=node_leaves)
        except DivergedError as error:
            # Every rank comes here at the same step, and the last checkpoint stands.
            if reporter is not None and job.board is not None:
                ray.get(job.board.fail.remote(str(error)))
            elif rank == 0:
                raise
        finally:
            if reporter is not None:
                reporter.close()


@contextmanager
def open_trainer(
    job: Job,
    rank: int,
    world: int,
    wrap: Callable[[nn.Module], nn.Module],
    device: torch.device,
    resume: TrainingState | None = None,
) -> Iterator[Trainer]:
    """Give one rank's trainer, its windows mapped as long as it is in use; the same under Ray and torchrun."""
    recipe = job.recipe
    torch.set_num_threads(max(int(recipe.resources.cpus_per_worker), 1))
    dataset = Dataset.open(job.dataset_url, job.dataset_version)
    graph = grouping.load(job.groups_url).graph()
    units = Units.from_dict(job.units)
    objective = start_model(recipe, units, job.parent).objective(recipe.train).to(device)
    with node_store(dataset, "train", channels=recipe.network.ppg_channels) as store:
        yield Trainer(
            objective, units, store, graph, recipe.train, rank=rank, world=world, wrap=wrap, resume=resume
        )  # fmt: skip


def _note_start(job: Job, trainer: Trainer) -> None:
    line = {"step": trainer.step, "windows": trainer.windows, "workers": trainer.world, "unix_s": time.time()}
    with (Path(job.folder) / "starts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def newest_whole() -> TrainingState | None:
    """Give the newest checkpoint whose files are what was committed; None where there is none.

    All ranks read the same files, so all go back to the same one.
    """
    if ray.train.get_checkpoint() is None:
        return None
    reported = [found.checkpoint for found in ray.train.get_all_reported_checkpoints()]
    for checkpoint in reversed(reported):
        try:
            with checkpoint.as_directory() as folder:
                return TrainingState.load(Path(folder))
        except ModelError as error:
            log.warning("%s", error)
    raise ModelError("no checkpoint of this training is whole: remove its folder below runs/ and train again")


def train_to_end(
    trainer: Trainer,
    recipe: Recipe,
    reporter: Reporter | None,
    *,
    hand_over: Callable[[Trainer], None],
    leaving: Callable[[], bool],
) -> None:
    """Train to the end of the schedule, with a checkpoint where one is due.

    Parameters
    ----------
    trainer : Trainer
    recipe : Recipe
    reporter : Reporter or None
        Of rank 0.
    hand_over : callable
        Takes the checkpoint of a trainer; called on every rank at the same steps.
    leaving : callable
        Whether a node is about to be taken away; asked on every rank at the same steps.
    """
    every = recipe.train.checkpoint_windows
    saved = trainer.windows // every
    warned = False
    reported = trainer.windows if trainer.step else -1
    for step in trainer.steps():
        due = step.windows // every > saved
        if step.step % LOG_EVERY == 0 or step.step == 1:
            losses = trainer.mean_losses(step)
            if reporter is not None:
                reporter.tell(step, losses)
            # A node that is taken away: what is there is saved now, once, and Ray Train goes on without the node.
            if not warned and trainer.world > 1 and leaving():
                warned = due = True
        if due:
            saved, reported = step.windows // every, step.windows
            hand_over(trainer)
            if reporter is not None:
                reporter.show(trainer)
    if trainer.windows != reported:
        hand_over(trainer)
    if reporter is not None:
        reporter.show(trainer, at_the_end=True)


def node_leaves() -> bool:
    """Tell whether Ray has been told that a node of the training will be taken away."""
    return ray.train.get_preemption_info() is not None


def report(run_id: str, trainer: Trainer) -> None:
    """Hand a checkpoint of an MLflow run to Ray Train; a barrier, so every rank comes here at the same step."""
    metrics = {"windows": trainer.windows, "step": trainer.step}
    state = trainer.state()
    state.about = {**state.about, "run_id": run_id}
    if trainer.rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
