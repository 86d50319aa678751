"""The named configurations: what is run, as frozen dataclasses. Where it runs is in the environment."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from p2es.diffusion import DiffusionConfig
from p2es.errors import ConfigError
from p2es.formats.simulated import SimulateConfig
from p2es.network import NetworkConfig
from p2es.objective import ObjectiveConfig
from p2es.training import TrainConfig


@dataclass(frozen=True)
class IngestConfig:
    """How an archive becomes windows."""

    archive: str | None = None
    """A folder, file, glob, list, bucket or simulated:POPULATION; None takes the simulated archive of this recipe."""
    name: str | None = None
    """Name of the dataset; made of the archive's name and of what decides its windows without one."""
    source: str = "simulated"
    """Institution family: archives that share people must share a family."""
    step_s: float = 10.0
    """From the start of a window to the start of the next, seconds."""
    salt: str = "p2es-split-1"
    """Public salt of the split: SHA-256 of salt, source and the archive's person id."""
    validation_share: float = 0.1
    """Share of people in the validation split."""
    test_share: float = 0.15
    """Share of people in the test split."""
    mapping: tuple[str, ...] = ()
    """TOML files that say which columns of CSV, Parquet or MATLAB files are which signals (docs/data.md)."""
    people: tuple[str, ...] = ()
    """Tables of people to join (ptbxl_database.csv), known by their columns; a TOML declares one of your own."""
    twins: Literal["leave_out", "fail"] = "leave_out"
    """What to do with windows that are already there under another person or record: quarantine them, or stop."""
    task_records: int = 256
    """Most records a Ray task reads and writes as one part."""
    task_mb: int = 16
    """Most megabytes of records a task takes; a larger record is a task of its own."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.step_s <= 3600.0:
            raise ConfigError(f"ingest.step-s is {self.step_s:g}: give 1 to 3600 seconds")
        shares = (self.validation_share, self.test_share)
        if not all(0.0 <= share < 1.0 for share in shares) or sum(shares) >= 1.0:
            raise ConfigError(f"ingest.validation-share and test-share are {shares}: give shares that leave a rest")
        if self.task_records < 1 or self.task_mb < 1:
            raise ConfigError("ingest.task-records and task-mb are at least 1")
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ConfigError(f"ingest.name is {self.name!r}: use letters, digits, dots, hyphens and underscores")


@dataclass(frozen=True)
class GroupConfig:
    """Demographic neighbours and clusters."""

    neighbours: int = 10
    """Nearest people of each person: the positives of the contrast."""
    clusters: int = 8
    """K-means clusters; one prototype of the network learns each."""
    query_shards: int = 2
    """Ray tasks that search the index."""
    seed: int = 0
    """Seed of k-means."""


YARDSTICKS = ("template", "regression", "mean_waveform", "retrieval", "oracle", "other_segment")
"""Yardsticks by name (p2es.baselines)."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How a model is measured on unseen people."""

    max_windows: int = 500
    """Test windows, taken evenly over people."""
    samples: int = 20
    """Draws a window of the model and of the yardsticks: at least 20, for bands and posterior medians."""
    yardsticks: tuple[str, ...] = YARDSTICKS
    """What is measured beside the system; the oracle only on simulated people. Goals need template and regression."""
    control_samples: int = 4
    """Draws a window of the controls: the model with another pulse, other demographics, one demographic changed."""
    counterfactual_windows: int = 60
    """Windows whose demographics are changed one at a time, five ways."""
    member_windows: int = 200
    """Training windows the model draws once, to see whether its error tells them from unseen ones."""
    bank_windows: int = 1500
    """Training windows that regressions of intervals are fitted on and copies of training ECGs are looked for in."""
    gpus_per_task: float = 0.0
    """Of each Ray task that draws."""
    bootstrap: int = 1000
    """Bootstrap draws over people for the intervals."""
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.yardsticks if name not in YARDSTICKS]
        if unknown:
            raise ConfigError(f"evaluate.yardsticks has {unknown[0]!r}: choose among {', '.join(YARDSTICKS)}")
        numbers = ("max_windows", "samples", "control_samples", "member_windows", "bank_windows", "bootstrap")
        if any(getattr(self, name) < 1 for name in numbers) or self.counterfactual_windows < 0:
            raise ConfigError(f"evaluate.{', '.join(numbers)} are at least 1")

    calibration_windows: int = 40
    """Validation windows that calibrate the band (split conformal)."""


@dataclass(frozen=True)
class GateConfig:
    """What a version must show before it may become champion."""

    mandatory: tuple[str, ...] = ("finite", "lead_laws", "lineage", "follows_pulse")
    """Names of goals (p2es.evaluation.goals); the other goals are printed, met or missed."""


@dataclass(frozen=True)
class ServeConfig:
    """How the endpoint runs."""

    evaluations: int = 10
    """Network evaluations a draw at which the band is calibrated and the model measured; requests ask the same."""
    min_replicas: int = 1
    max_replicas: int = 2
    gpus_per_replica: float = 0.0


@dataclass(frozen=True)
class TuneConfig:
    """How a recipe is searched."""

    search: tuple[str, ...] = (
        "train.learning-rate:log:5e-4:8e-3",
        "train.objective.contrast-weight:log:0.01:0.3",
        "diffusion.blur-samples:uniform:5:30",
    )
    """What is searched: path:log:low:high, path:uniform:low:high, path:int:low:high or path:choice:a,b,c."""
    trials: int = 12
    """Trainings that are begun."""
    windows: int = 20_000
    """Windows a training sees when it is not stopped."""
    reduction: int = 3
    """Of so many trainings one goes on to so many times the windows."""
    validation_windows: int = 256
    """Windows of unseen people by which trainings are compared."""
    cpus_per_trial: float = 2.0
    gpus_per_trial: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1 or self.reduction < 2 or self.validation_windows < 1:
            raise ConfigError("tune.trials and validation-windows are at least 1, reduction at least 2")


@dataclass(frozen=True)
class Resources:
    """What each stage asks of Ray."""

    local_cpus: int = 4
    """Logical CPUs of the local Ray. More than cores on purpose: two workers of 1 starved Ray Data on 2."""
    object_store_mb: int = 512
    """Object store of the local Ray, which would otherwise take a third of the memory."""
    train_workers: int = 2
    """Most training workers."""
    min_workers: int = 0
    """Fewest it goes on with when nodes leave (elastic); 0 waits for all of them."""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    restarts: int = 3
    """Failures of workers after which training goes on from the last checkpoint; -1 is any number."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_workers <= self.train_workers:
            raise ConfigError(
                f"resources.min-workers is {self.min_workers}: give 0 to {self.train_workers} (train-workers)"
            )


@dataclass(frozen=True)
class Recipe:
    """One whole configuration."""

    name: Annotated[str, tyro.conf.Suppress]
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    group: GroupConfig = field(default_factory=GroupConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    resources: Resources = field(default_factory=Resources)
    needs_parent: Annotated[bool, tyro.conf.Suppress] = False

    def __post_init__(self) -> None:
        if self.group.clusters != self.network.prototypes:
            raise ConfigError(
                f"group.clusters is {self.group.clusters} and network.prototypes {self.network.prototypes}: "
                "a prototype learns one cluster, so give both the same number"
            )
        if self.train.batch < self.resources.train_workers:
            raise ConfigError(
                f"train.batch is {self.train.batch}: {self.resources.train_workers} workers need one each"
            )


def fingerprint(*parts: object) -> str:
    """Hash configurations and hashes into 16 hex digits: what a stage's result is filed under, and reused by."""

    def plain(value: object) -> object:
        return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value

    text = json.dumps([plain(part) for part in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def demo() -> Recipe:
    """Simulate, train, evaluate and serve on two cores in about ten minutes: the embedded default."""
    few = EvaluateConfig(
        max_windows=50, counterfactual_windows=10, member_windows=50, bank_windows=400,
        yardsticks=("template", "regression", "mean_waveform"),
    )  # fmt: skip
    return Recipe(name="demo", train=TrainConfig(windows=60_000, budget_s=200.0), evaluate=few)


def small() -> Recipe:
    """One GPU, minutes: the demo's network, trained longer on more simulated people. Also what tests submit."""
    return Recipe(
        name="small",
        simulate=SimulateConfig(people=2000),
        train=TrainConfig(windows=400_000, batch=64),
    )


def base() -> Recipe:
    """One node with several GPUs, hours. Sized by the prototype's curves; not yet trained here."""
    return Recipe(
        name="base",
        simulate=SimulateConfig(people=20_000),
        group=GroupConfig(neighbours=20, clusters=16, query_shards=4),
        network=NetworkConfig(channels=(32, 64, 96), pulse_channels=96, condition=128, prototypes=16),
        train=TrainConfig(windows=5_000_000, batch=256, learning_rate=1e-3, ema=0.999, checkpoint_windows=200_000),
        evaluate=EvaluateConfig(max_windows=1000, calibration_windows=500),
        gate=GateConfig(mandatory=("finite", "lead_laws", "lineage", "follows_pulse", "G1", "G2", "G3", "G15", "G23")),
        serve=ServeConfig(max_replicas=4, gpus_per_replica=1.0),
        resources=Resources(train_workers=4, cpus_per_worker=4.0, gpus_per_worker=1.0),
    )


def large() -> Recipe:
    """Many nodes, a day. Sized by the prototype's curves; not yet trained here."""
    start = base()
    return dataclasses.replace(
        start,
        name="large",
        simulate=SimulateConfig(people=100_000),
        group=dataclasses.replace(start.group, clusters=32, query_shards=16),
        network=NetworkConfig(channels=(64, 96, 128, 192), pulse_channels=192, condition=256, prototypes=32),
        train=dataclasses.replace(start.train, windows=50_000_000, batch=1024, learning_rate=5e-4, ema=0.9995),
        resources=Resources(train_workers=16, cpus_per_worker=8.0, gpus_per_worker=1.0),
    )


def site() -> Recipe:
    """Go on from a version with about twenty paired recordings of one's own: delay, band, and a light fine-tuning.

    The groups stay as they were learned: twenty people say nothing of them.
    """
    objective = ObjectiveConfig(contrast_weight=0.0, prototype_weight=0.0)
    train = TrainConfig(
        windows=6_000, batch=16, learning_rate=2e-4, regression_share=0.0, ema=0.99, checkpoint_windows=2_000,
        objective=objective,
    )  # fmt: skip
    return Recipe(
        name="site",
        needs_parent=True,
        ingest=IngestConfig(validation_share=0.3, test_share=0.2),
        group=GroupConfig(neighbours=3),
        train=train,
    )


RECIPES = {make.__name__: make for make in (demo, small, base, large, site)}


def named(name: str) -> Recipe:
    """Give a recipe by name; ConfigError when there is none."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
