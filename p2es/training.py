"""The training loop as a generator of steps, free of Ray: the same under Ray Train, torchrun and in a notebook."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from p2es.batching import EpochPlan, NeighbourGraph
from p2es.conditioning import Units
from p2es.errors import ConfigError, ModelError
from p2es.objective import Objective, ObjectiveConfig
from p2es.windows import WindowStore


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained. Progress is counted in windows seen, so that the batch may change."""

    windows: int = 60_000
    """Windows to see, all ranks together."""
    batch: int = 32
    """Windows of a step, all ranks together."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_share: float = 0.02
    """Share of the training over which the learning rate rises."""
    regression_share: float = 0.15
    """Share of the training, at its start, in which z_t is all but noise: the network first learns to read the PPG."""
    ema: float = 0.995
    """Decay of the averaged weights, which are the ones kept."""
    clip_norm: float = 1.0
    pack: int = 4
    """Neighbours drawn together into a batch."""
    seed: int = 0
    budget_s: float | None = None
    """Time the training may take: when windows come slower than planned, the schedule ends earlier, not later."""
    checkpoint_windows: int = 10_000
    """Windows between checkpoints."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        for name in ("windows", "batch", "pack", "checkpoint_windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: give at least 1")


@dataclass
class TrainingState:
    """Everything a training needs to go on as if it had never stopped."""

    step: int = 0
    windows: int = 0
    elapsed_s: float = 0.0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `state.safetensors` and, last, `state.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}, folder / "state.safetensors")
        scalars = {"step": self.step, "windows": self.windows, "elapsed_s": self.elapsed_s}
        (folder / "state.json").write_text(json.dumps(scalars))

    @classmethod
    def load(cls, folder: Path) -> "TrainingState":
        """Undo `save`."""
        try:
            scalars = json.loads((folder / "state.json").read_text())
            return cls(**scalars, tensors=load_file(folder / "state.safetensors"))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"the checkpoint {folder.name} is not whole ({type(error).__name__}): use an older one"
            ) from error


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes
    ----------
    step, windows : int
        Steps and windows so far, all ranks together.
    progress : float
        0 to 1.
    losses : dict
        This rank's terms.
    learning_rate, grad_norm : float
    rows : array
        The windows this rank saw.
    """

    step: int
    windows: int
    progress: float
    losses: dict[str, float]
    learning_rate: float
    grad_norm: float
    rows: np.ndarray


class Trainer:
    """One rank's training: iterate `steps()`, and ask for `state()` when a checkpoint is due.

    Parameters
    ----------
    objective : Objective
        On the device to train on.
    units : Units
    store : WindowStore
        All training windows.
    graph : NeighbourGraph
    config : TrainConfig
    rank, world : int
        Which of how many ranks this is; more than one needs an initialised torch.distributed.
    wrap : callable
        Makes the objective distributed (`ray.train.torch.prepare_model`, `DistributedDataParallel`).
    resume : TrainingState, optional
        Where to go on.
    """

    def __init__(
        self,
        objective: Objective,
        units: Units,
        store: WindowStore,
        graph: NeighbourGraph,
        config: TrainConfig,
        *,
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        resume: TrainingState | None = None,
    ) -> None:
        self.objective, self.units, self.store, self.config = objective, units, store, config
        self.rank, self.world = rank, world
        self.device = next(objective.parameters()).device
        self.graph = graph
        self.rows = graph.rows_of(store.person)
        self.plan = EpochPlan(self.rows, graph, config.batch, config.pack, config.seed)
        self.average = {k: v.detach().clone() for k, v in objective.denoiser.state_dict().items()}
        self.wrapped = wrap(objective)
        self.optimizer = torch.optim.AdamW(
            objective.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
        )
        self.step = self.windows = 0
        self.elapsed_s = 0.0
        if resume is not None:
            self._restore(resume)

    def steps(self) -> Iterator[Step]:
        """Train to the end of the schedule, yielding after each step."""
        started = time.monotonic() - self.elapsed_s
        while True:
            per_epoch = self.plan.count(self.world)
            epoch, skip = divmod(self.step, per_epoch)
            for index, (rows, whole) in enumerate(self.plan.batches(epoch, self.rank, self.world)):
                if index < skip:
                    continue
                self.elapsed_s = self._agree(time.monotonic() - started)
                progress = self.progress()
                if progress >= 1.0:
                    return
                yield self._one(rows, whole, progress)

    def progress(self) -> float:
        """Give how much of the schedule is done, by windows or, where it is further, by time."""
        done = self.windows / self.config.windows
        if self.config.budget_s is not None:
            done = max(done, self.elapsed_s / self.config.budget_s)
        return min(done, 1.0)

    def state(self) -> TrainingState:
        """Give everything needed to go on from here."""
        tensors = {f"model.{k}": v for k, v in self.objective.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        names = [name for name, _ in self.objective.named_parameters()]
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{names[index]}.{key}": value for key, value in values.items()}
        return TrainingState(self.step, self.windows, self.elapsed_s, {k: v.clone() for k, v in tensors.items()})

    def _one(self, rows: np.ndarray, whole: int, progress: float) -> Step:
        batch = self._batch(rows)
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) * 4099 + self.rank)
        t = self._times(len(rows), progress, generator).to(self.device)
        rate = self._learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        terms = self.wrapped(batch, t, generator)
        # Ranks may hold parts of different size: this makes the average over ranks the mean over windows.
        (terms["total"] * (len(rows) * self.world / whole)).backward()
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise ModelError(f"training diverged at step {self.step}: lower --train.learning-rate")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.windows += whole
        self._update_average()
        losses = {name: float(value.detach()) for name, value in terms.items()}
        return Step(self.step, self.windows, progress, losses, rate, float(norm), rows)

    def _batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        people = self.rows[rows]
        positive, same = self.graph.relations(people)
        cluster = np.where(people >= 0, self.graph.cluster[people], -1)
        tensors = self.units.training_tensors(self.store.batch(rows))
        tensors |= {"positive": torch.from_numpy(positive), "same": torch.from_numpy(same)}
        tensors["cluster"] = torch.from_numpy(cluster)
        return {name: value.to(self.device) for name, value in tensors.items()}

    def _times(self, n: int, progress: float, generator: torch.Generator) -> Tensor:
        """Draw t evenly over [0, 1] (stratified); all but noise during the regression at the start."""
        if progress < self.config.regression_share:
            return torch.full((n,), 0.999)
        return (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n

    def _learning_rate(self, progress: float) -> float:
        warm = min(progress / max(self.config.warmup_share, 1e-9), 1.0) if self.config.warmup_share else 1.0
        return self.config.learning_rate * max(warm, 0.01) * (0.5 + 0.5 * math.cos(math.pi * progress))

    @torch.no_grad()
    def _update_average(self) -> None:
        # Young averages forget faster, or the random start would stay in a short training.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.objective.denoiser.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)

    def _agree(self, elapsed_s: float) -> float:
        """Let every rank use rank 0's clock, or they would stop at different steps and hang."""
        if self.world == 1 or self.config.budget_s is None:
            return elapsed_s
        value = torch.tensor([elapsed_s], dtype=torch.float64, device=self.device)
        dist.broadcast(value, src=0)
        return float(value)

    def _restore(self, state: TrainingState) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}

        self.objective.denoiser.load_state_dict(part("model."))
        for name, value in part("average.").items():
            self.average[name].copy_(value)
        moments = part("optimizer.")
        names = [name for name, _ in self.objective.named_parameters()]
        saved = self.optimizer.state_dict()
        saved["state"] = {
            index: {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for index, name in enumerate(names)
            if f"{name}.exp_avg" in moments
        }
        self.optimizer.load_state_dict(saved)
        self.step, self.windows, self.elapsed_s = state.step, state.windows, state.elapsed_s
