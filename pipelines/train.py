"""Train the diffusion model with Ray Train, as one MLflow run."""

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from tqdm import tqdm

from p2es.conditioning import Units
from p2es.errors import DatasetError, ModelError, P2EsError
from p2es.model import P2Es
from p2es.training import Step, Trainer, TrainingState
from p2es_platform.dataset import Dataset
from p2es_platform.registry import folder_sha256
from p2es_platform.settings import Settings
from p2es_platform.tracking import Tracker
from pipelines import group as grouping
from pipelines.recipes import Recipe, fingerprint
from pipelines.threads import all_cores

log = logging.getLogger(__name__)

# Steps between two lines in MLflow and two ticks of the bar: 2 % of a step's time at 0.25 s a step.
_LOG_EVERY = 20
# Part of the fingerprint: a change of the network or the loop must not reuse an old model or checkpoint.
_FORMAT = 1


@dataclass(frozen=True)
class TrainResult:
    """A trained model that is not yet registered.

    Attributes
    ----------
    folder : str
        Weights, configuration and lineage.
    sha256 : str
        Of the folder's contents.
    run_id : str
        Of the MLflow run.
    lineage : dict
        Recipe, dataset, its hash, MLflow run, fingerprint, windows seen.
    windows : int
        Windows seen.
    reused : bool
    """

    folder: str
    sha256: str
    run_id: str
    lineage: dict[str, Any]
    windows: int
    reused: bool


def run(recipe: Recipe, settings: Settings, *, dataset_url: str, groups_url: str) -> TrainResult:
    """Train, or reuse what the same recipe made of the same dataset; Ray must be running.

    The workers hold the training windows in memory as int16 (34 kB a window): archives larger than a node's memory
    need the streaming of a later issue.
    """
    dataset = Dataset.open(dataset_url)
    lineage: dict[str, Any] = {
        "recipe": recipe.name,
        "dataset": dataset_url.rsplit("/", 1)[-1],
        "dataset_hash": dataset.hash,
    }
    calibration = (recipe.evaluate.calibration_windows, recipe.evaluate.samples, recipe.serve.evaluations)
    method = (recipe.network, recipe.diffusion, recipe.train, recipe.group, recipe.resources.train_workers)
    key = fingerprint(_FORMAT, *method, *calibration, dataset.hash)
    folder = settings.folder("models", f"{recipe.name}-{key}")
    tracker = Tracker.start(
        settings.tracking_uri,
        experiment="p2es",
        name=f"{recipe.name}-{key}",
        fingerprint=key,
        params=asdict(recipe),
        tags={"p2es.recipe": recipe.name, "p2es.dataset_hash": dataset.hash},
        dataset_name=lineage["dataset"],
        dataset_digest=dataset.hash[:32],
        artifact_root=settings.path("mlartifacts"),
    )
    lineage |= {"run_id": tracker.run_id, "fingerprint": key}
    if (folder / "config.json").exists():
        return _found(folder, tracker)
    if not dataset.shards("validation"):
        raise DatasetError("the dataset has no validation people, on whom the band is calibrated: ingest more people")
    try:
        units = Units.fit(dataset.store("train", channels=recipe.network.ppg_channels))
        # The version too: an ingest may commit a newer one before the last worker has started.
        places: dict[str, Any] = {
            "dataset_url": dataset_url,
            "dataset_version": dataset.version,
            "groups_url": groups_url,
            "tracking_uri": settings.tracking_uri,
        }
        checkpoint, windows = _fit(recipe, settings, units, {**places, "run_id": tracker.run_id}, key)
        lineage["windows"] = windows
        _finish(recipe, dataset, units, checkpoint, folder, lineage)
        tracker.upload(folder, "model")
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish("FINISHED")
    return TrainResult(str(folder), folder_sha256(folder), tracker.run_id, lineage, windows, reused=False)


def _found(folder: Path, tracker: Tracker) -> TrainResult:
    """Give a model that is there, and end its run where a cut came between the two."""
    lineage = json.loads((folder / "lineage.json").read_text())
    if tracker.run_id == lineage["run_id"] and not tracker.finished:
        tracker.upload(folder, "model")
        tracker.finish("FINISHED")
    return TrainResult(str(folder), folder_sha256(folder), lineage["run_id"], lineage, lineage["windows"], reused=True)


def _fit(recipe: Recipe, settings: Settings, units: Units, places: dict[str, str], key: str) -> tuple[Path, int]:
    """Run the workers to the end and give the folder of the last checkpoint and the windows seen."""
    resources = recipe.resources
    with _progress_bar(recipe.train.windows, recipe.train.budget_s) as progress:
        config = {"recipe": recipe, "units": units.to_dict(), "progress": progress, **places}
        per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
        if resources.gpus_per_worker:
            per_worker["GPU"] = resources.gpus_per_worker
        trainer = ray.train.torch.TorchTrainer(
            worker_loop,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=resources.train_workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=per_worker,
            ),
            run_config=ray.train.RunConfig(
                name=f"{recipe.name}-{key}",
                storage_path=str(settings.folder("runs")),
                failure_config=ray.train.FailureConfig(max_failures=2),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except SystemExit as stop:
            # Ray Train takes Ctrl-C itself, ends its workers, and leaves by sys.exit(1).
            raise KeyboardInterrupt from stop
        except ray.train.TrainingFailedError as error:
            raise ModelError(f"training failed: {_first_cause(error)}") from error
    if result.checkpoint is None:
        raise ModelError("training ended without a checkpoint: raise --train.windows")
    return Path(result.checkpoint.path), int((result.metrics or {}).get("windows", 0))


def _first_cause(error: BaseException) -> str:
    """Give one line of what the workers say went wrong."""
    failures = getattr(error, "worker_failures", None) or {}
    cause: BaseException = next(iter(failures.values()), error)
    while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not None:
        cause = cause.cause
    return str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__


def worker_loop(config: dict[str, Any]) -> None:
    """Train on one worker; Ray Train calls it on each."""
    recipe: Recipe = config["recipe"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(int(recipe.resources.cpus_per_worker), 1))
    store = Dataset.open(config["dataset_url"], config["dataset_version"]).store(
        "train", channels=recipe.network.ppg_channels
    )
    graph = grouping.load(config["groups_url"]).graph()
    units = Units.from_dict(config["units"])
    model = P2Es.start(recipe.network, recipe.diffusion, units, recipe.train.seed)
    device = ray.train.torch.get_device()
    objective = model.objective(recipe.train).to(device)
    checkpoint = ray.train.get_checkpoint()
    resume = None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            resume = TrainingState.load(Path(folder))
    trainer = Trainer(
        objective, units, store, graph, recipe.train,
        rank=rank, world=world, wrap=lambda m: ray.train.torch.prepare_model(m, move_to_device=False), resume=resume,
    )  # fmt: skip
    tracker = Tracker.join(config["tracking_uri"], config["run_id"]) if rank == 0 else None
    _train(trainer, recipe, rank, tracker, config["progress"])
    if tracker is not None:
        tracker.flush()


def _train(trainer: Trainer, recipe: Recipe, rank: int, tracker: Tracker | None, progress: Any) -> None:
    every = recipe.train.checkpoint_windows
    saved = trainer.windows // every
    step: Step | None = None
    for step in trainer.steps():
        if tracker is not None and (step.step % _LOG_EVERY == 0 or step.step == 1):
            metrics = {f"loss_{name}": value for name, value in step.losses.items()}
            metrics |= {
                "learning_rate": step.learning_rate,
                "grad_norm": step.grad_norm,
                "windows": step.windows,
            }
            tracker.log(step.step, metrics)
            if progress is not None:
                progress.update.remote(step.progress, step.windows, step.losses["total"])
        if step.windows // every > saved:
            saved = step.windows // every
            _report(trainer, rank)
    _report(trainer, rank)


def _report(trainer: Trainer, rank: int) -> None:
    """Hand a checkpoint to Ray Train; a barrier, so every rank comes here at the same step."""
    metrics = {"windows": trainer.windows, "step": trainer.step}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        trainer.state().save(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _finish(
    recipe: Recipe, dataset: Dataset, units: Units, checkpoint: Path, folder: Path, lineage: dict[str, Any]
) -> None:
    """Turn the last checkpoint into a model: averaged weights, calibrated band, lineage. Renamed when whole."""
    model = P2Es.start(recipe.network, recipe.diffusion, units, recipe.train.seed)
    state = TrainingState.load(checkpoint)
    average = {k.removeprefix("average."): v for k, v in state.tensors.items() if k.startswith("average.")}
    model.denoiser.load_state_dict(average)
    model.denoiser.eval()
    simulated = all(shard.simulated for shard in dataset.shards("train"))
    model.provenance = {**lineage, "trained_on_simulated_people_only": simulated}
    with all_cores():
        model.calibrate(
            dataset.store("validation", channels=recipe.network.ppg_channels),
            windows=recipe.evaluate.calibration_windows,
            samples=recipe.evaluate.samples,
            evaluations=recipe.serve.evaluations,
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder.parent))
    try:
        model.save(staging)
        (staging / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
        (staging / "lineage.json").write_text(json.dumps(lineage, indent=1))
        staging.rename(folder)
    except OSError as error:
        raise P2EsError(f"the model could not be written ({error.strerror}): free some space and run again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@ray.remote(num_cpus=0)
class _Progress:
    """Where rank 0 leaves word of how far it is, and the driver reads it."""

    def __init__(self) -> None:
        self.latest: tuple[float, int, float] = (0.0, 0, float("nan"))

    def update(self, progress: float, windows: int, loss: float) -> None:
        self.latest = (progress, windows, loss)

    def read(self) -> tuple[float, int, float]:
        return self.latest


@contextmanager
def _progress_bar(windows: int, budget_s: float | None) -> Iterator[Any]:
    """Draw the progress of the workers on the driver's terminal."""
    actor = _Progress.remote()  # type: ignore[attr-defined]
    done = threading.Event()
    bar = tqdm(
        total=100,
        desc="train",
        unit="%",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
    )

    def follow() -> None:
        while not done.wait(1.0):
            try:
                progress, seen, loss = ray.get(actor.read.remote(), timeout=5)
            except (ray.exceptions.RayError, RuntimeError):
                continue
            bar.n = int(100 * progress)
            bar.set_postfix_str(f"{seen} windows, loss {loss:.3f}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    started = time.monotonic()
    try:
        yield actor
        bar.n = 100
    finally:
        done.set()
        thread.join(timeout=10)
        bar.refresh()
        bar.close()
        ray.kill(actor)
        log.debug(
            "training took %.0f s of a budget of %s for %d windows",
            time.monotonic() - started,
            budget_s,
            windows,
        )
