"""Train the diffusion model with Ray Train, as one MLflow run."""

import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch

from p2es.checkpoint import TrainingState
from p2es.conditioning import Units
from p2es.delay import DelayLaw
from p2es.errors import DatasetError, ModelError, P2EsError
from p2es.model import P2Es
from p2es.windows import WindowStore
from p2es_platform.dataset import Dataset
from p2es_platform.node_cache import node_store
from p2es_platform.registry import folder_sha256
from p2es_platform.run_description import DatasetDetails
from p2es_platform.run_pictures import attach_curves
from p2es_platform.settings import Settings
from p2es_platform.tracking import Tracker
from pipelines.recipes import Recipe, fingerprint
from pipelines.threads import all_cores
from pipelines.train_progress import progress_bar
from pipelines.train_worker import Job, start_model, worker_loop

log = logging.getLogger(__name__)

# Part of the fingerprint: a change of the network or the loop must not reuse an old model or checkpoint.
_FORMAT = 2
# Recordings with a sure delay from which the delays of a site are believed over those of the parent.
_SITE_RECORDINGS = 10


@dataclass(frozen=True)
class Parent:
    """The registered version that a training starts from.

    Attributes
    ----------
    folder, version, sha256 : str
    """

    folder: str
    version: str
    sha256: str


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


def run(
    recipe: Recipe, settings: Settings, *, dataset_url: str, groups_url: str, parent: Parent | None = None
) -> TrainResult:
    """Train, or reuse what the same recipe made of the same dataset; Ray must be running.

    With a parent, its network, weights and scales are those of the new model; only the delay from R to pulse, which is
    the device's, is measured on the new data where there is enough of it.

    The workers of a machine share the training windows as mapped files (34 kB a window).

    Raises
    ------
    DatasetError
        Without training or validation windows.
    ModelError
        When training failed or diverged; the last good checkpoint is kept, and the MLflow run says FAILED.
    """
    dataset = Dataset.open(dataset_url)
    recipe = of_parent(recipe, parent)
    lineage: dict[str, Any] = {
        "recipe": recipe.name,
        "dataset": dataset_url.rsplit("/", 1)[-1],
        "dataset_hash": dataset.hash,
    }
    if parent is not None:
        lineage |= {"parent": parent.version, "parent_sha256": parent.sha256}
    calibration = (recipe.evaluate.calibration_windows, recipe.evaluate.samples, recipe.serve.evaluations)
    method = (recipe.network, recipe.diffusion, recipe.train, recipe.group, recipe.resources.train_workers)
    key = fingerprint(_FORMAT, *method, *calibration, dataset.hash, *((parent.sha256,) if parent else ()))
    folder = settings.folder("models", f"{recipe.name}-{key}")
    tracker = Tracker.start(
        settings.tracking_uri,
        experiment="p2es",
        name=f"{recipe.name}-{key}",
        fingerprint=key,
        params=asdict(recipe),
        tags={f"p2es.{name}": str(value) for name, value in lineage.items()}
        | {"p2es.dataset_version": str(dataset.version), "p2es.groups": groups_url.rsplit("/", 1)[-1]},
        dataset_name=lineage["dataset"],
        dataset_digest=dataset.hash[:32],
        dataset_details=DatasetDetails.of(dataset),
        artifact_root=settings.path("mlartifacts"),
        spool=settings.folder("runs", f"{recipe.name}-{key}", "spool"),
    )
    lineage |= {"run_id": tracker.run_id, "fingerprint": key}
    if (folder / "config.json").exists():
        return _found(folder, tracker)
    if not dataset.shards("validation"):
        raise DatasetError("the dataset has no validation people, on whom the band is calibrated: ingest more people")
    try:
        with node_store(dataset, "train", channels=recipe.network.ppg_channels) as store:
            units = Units.fit(store) if parent is None else _site_units(P2Es.load(Path(parent.folder)).units, store)
        job = Job(
            recipe, units.to_dict(), dataset_url, dataset.version, groups_url, settings.tracking_uri, tracker.run_id,
            f"{recipe.name}-{key}", str(settings.folder("runs", f"{recipe.name}-{key}")),
            None if parent is None else parent.folder,
        )  # fmt: skip
        checkpoint, windows = _fit(job, settings)
        lineage["windows"] = windows
        _finish(job, dataset, checkpoint, folder, lineage)
        attach_curves(tracker, job.name)
        tracker.upload(folder, "model")
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish("FINISHED")
    return TrainResult(str(folder), folder_sha256(folder), tracker.run_id, lineage, windows, reused=False)


def of_parent(recipe: Recipe, parent: Parent | None) -> Recipe:
    """Give the recipe with the parent's network and diffusion."""
    if parent is None:
        return recipe
    model = P2Es.load(Path(parent.folder))
    network = model.denoiser.config
    group = replace(recipe.group, clusters=network.prototypes)
    return replace(recipe, group=group, network=network, diffusion=model.denoiser.diffusion.config)


def _site_units(units: Units, store: WindowStore) -> Units:
    """Give the parent's units, with the delays of this data where enough recordings tell them."""
    _, first = np.unique(store.rest.recording, return_index=True)
    delay_s, sure = store.rest.delay_s[first], store.rest.delay_confidence[first]
    if np.count_nonzero(np.isfinite(delay_s) & (sure > 0)) < _SITE_RECORDINGS:
        return units
    return replace(units, delay=DelayLaw.fit(store.rest.people[first], delay_s, sure))


def _found(folder: Path, tracker: Tracker) -> TrainResult:
    """Give a model that is there, and end its run where a cut came between the two."""
    lineage = json.loads((folder / "lineage.json").read_text())
    if tracker.run_id == lineage["run_id"] and not tracker.finished:
        attach_curves(tracker, folder.name)
        tracker.upload(folder, "model")
        tracker.finish("FINISHED")
    return TrainResult(str(folder), folder_sha256(folder), lineage["run_id"], lineage, lineage["windows"], reused=True)


def _fit(job: Job, settings: Settings) -> tuple[Path, int]:
    """Run the workers to the end and give the folder of the last checkpoint and the windows seen."""
    with progress_bar() as board:
        told = replace(job, board=board)
        left = job.recipe.resources.restarts
        while True:
            try:
                result = _trainer(told, settings).fit()
                break
            except SystemExit as stop:
                # Ray Train takes Ctrl-C itself, ends its workers, and leaves by sys.exit(1).
                raise KeyboardInterrupt from stop
            except ray.train.TrainingFailedError as error:
                raise ModelError(f"training failed: {_first_cause(error)}") from error
            except ray.exceptions.RayActorError as error:
                # Ray Train 2.60 starts dead workers again, but not its own controller.
                if left == 0:
                    raise ModelError("training failed: Ray Train's controller died; run again to go on") from error
                left -= 1
                log.warning("Ray Train's controller died: training goes on from the last checkpoint")
        _, failure = ray.get(board.read.remote())
    if failure is not None:
        raise ModelError(failure)
    if result.checkpoint is None:
        raise ModelError("training ended without a checkpoint: raise --train.windows")
    return Path(result.checkpoint.path), int((result.metrics or {}).get("windows", 0))


def _trainer(job: Job, settings: Settings) -> ray.train.torch.TorchTrainer:
    """Make Ray's trainer; one of the same name goes on from the last checkpoint of the one before."""
    resources = job.recipe.resources
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    most, least = resources.train_workers, resources.min_workers or resources.train_workers
    return ray.train.torch.TorchTrainer(
        worker_loop,
        train_loop_config={"job": ray.cloudpickle.dumps(job)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=job.name,
            storage_path=str(settings.folder("runs")),
            failure_config=ray.train.FailureConfig(max_failures=resources.restarts),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )


def _first_cause(error: BaseException) -> str:
    """Give one line of what the workers say went wrong."""
    failures = getattr(error, "worker_failures", None) or {}
    cause: BaseException = next(iter(failures.values()), error)
    while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not None:
        cause = cause.cause
    return str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__


def _finish(job: Job, dataset: Dataset, checkpoint: Path, folder: Path, lineage: dict[str, Any]) -> None:
    """Turn the last checkpoint into a model: averaged weights, calibrated band, lineage. Renamed when whole."""
    recipe = job.recipe
    model = start_model(recipe, Units.from_dict(job.units), job.parent)
    state = TrainingState.load(checkpoint)
    average = {k.removeprefix("average."): v for k, v in state.tensors.items() if k.startswith("average.")}
    model.denoiser.load_state_dict(average)
    model.denoiser.eval()
    simulated = all(shard.simulated for shard in dataset.shards("train"))
    if job.parent is not None:
        simulated = simulated and bool(P2Es.load(Path(job.parent)).provenance.get("trained_on_simulated_people_only"))
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
