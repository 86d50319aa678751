"""The training loop as a generator of steps, free of Ray: the same under Ray Train, torchrun and in a notebook."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from p2es.batching import EpochPlan, NeighbourGraph
from p2es.checkpoint import TrainingState
from p2es.conditioning import Units
from p2es.errors import ConfigError, DivergedError
from p2es.objective import Objective, ObjectiveConfig
from p2es.windows import WindowStore

# Batches made ready while a step runs.
_AHEAD = 2
# Steps of a GPU between two looks at rank 0's clock and at whether the gradients are finite: each look waits for it.
_LOOK_EVERY = 10
# Losses remembered, and needed, to know what is usual.
_REMEMBERED, _NEEDED = 20, 5


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
    loss_limit: float = 20.0
    """A mean loss this many times the usual of late stops the training: it has exploded."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's convolutions and matrices; norms, times, deblurring and losses stay float32."""
    compile: bool = False
    """Compile the objective: a minute at the start, for what a GPU gains in long trainings."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        for name in ("windows", "batch", "pack", "checkpoint_windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: give at least 1")


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes
    ----------
    step, windows : int
        Steps and windows so far, all ranks together.
    progress : float
        0 to 1.
    learning_rate : float
    rows : array
        The windows this rank saw.
    terms : dict of Tensor ()
        This rank's terms of the loss; on a GPU, reading one waits for it.
    norm : Tensor ()
        Norm of the gradients of all ranks, before it is clipped.
    waited_s : float
        How long the step waited for its windows.
    """

    step: int
    windows: int
    progress: float
    learning_rate: float
    rows: np.ndarray
    terms: dict[str, Tensor]
    norm: Tensor
    waited_s: float

    @property
    def losses(self) -> dict[str, float]:
        """Give this rank's terms of the loss as numbers."""
        return {name: float(value) for name, value in self.terms.items()}

    @property
    def grad_norm(self) -> float:
        """Give the norm as a number."""
        return float(self.norm)


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
        self._pins = self.device.type == "cuda"
        self._look_every = 1 if self.device.type == "cpu" else _LOOK_EVERY
        self.graph = graph
        self.rows = graph.rows_of(store.person)
        self.plan = EpochPlan(self.rows, graph, config.batch, config.pack, config.seed)
        self.average = {k: v.detach().clone() for k, v in objective.denoiser.state_dict().items()}
        if config.compile:
            objective.compile()
        self.wrapped = wrap(objective)
        self.optimizer = torch.optim.AdamW(
            objective.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
            # One pass over all parameters: a fifth of the time of a loop over them, also on a CPU.
            fused=True,
        )
        self.step = self.windows = 0
        self.elapsed_s = 0.0
        self.recent_losses: deque[float] = deque(maxlen=_REMEMBERED)
        self._norm = torch.zeros(())
        if resume is not None:
            self._restore(resume)

    def steps(self) -> Iterator[Step]:
        """Train to the end of the schedule, yielding after each step.

        Raises
        ------
        DivergedError
            When gradients are not finite: on every rank at the same step.
        """
        started = time.monotonic() - self.elapsed_s
        with ThreadPoolExecutor(1, thread_name_prefix="windows") as pool:
            places = self.plan.batches(self.windows, self.rank, self.world)

            def prepared() -> tuple[np.ndarray, dict[str, Tensor]]:
                rows = next(places)
                return rows, self._batch(rows)

            waiting = deque(pool.submit(prepared) for _ in range(_AHEAD))
            while True:
                elapsed_s = time.monotonic() - started
                if self.config.budget_s is None or self.step % self._look_every == 0:
                    self.elapsed_s = self._agree(elapsed_s)
                if self.progress() >= 1.0:
                    return
                asked = time.monotonic()
                rows, batch = waiting.popleft().result()
                waited_s = time.monotonic() - asked
                waiting.append(pool.submit(prepared))
                yield self._one(rows, batch, self.progress(), waited_s)

    def mean_losses(self, step: Step) -> dict[str, float]:
        """Give the terms of a step as means over the windows of all ranks; every rank must ask at the same steps.

        Raises
        ------
        DivergedError
            When the loss is not finite, or has exploded: more than `TrainConfig.loss_limit` times what was usual at the
            last looks. Every rank raises it at the same step.
        """
        values = torch.stack([value.to(torch.float32) for value in step.terms.values()]) * len(step.rows)
        if self.world > 1:
            dist.all_reduce(values)
        means = dict(zip(step.terms, (values / self.config.batch).tolist(), strict=True))
        usual = median(self.recent_losses) if len(self.recent_losses) >= _NEEDED else math.inf
        if not means["total"] <= self.config.loss_limit * max(usual, 1e-6):
            raise DivergedError(
                f"training diverged at step {step.step} (loss {means['total']:.3g}, usual was {usual:.3g}): "
                "lower --train.learning-rate"
            )
        self.recent_losses.append(means["total"])
        return means

    def progress(self) -> float:
        """Give how much of the schedule is done, by windows or, where it is further, by time."""
        done = self.windows / self.config.windows
        if self.config.budget_s is not None:
            done = max(done, self.elapsed_s / self.config.budget_s)
        return min(done, 1.0)

    def state(self) -> TrainingState:
        """Give everything needed to go on from here; DivergedError rather than a state that is not finite."""
        self._require_finite()
        tensors = {f"model.{k}": v for k, v in self.objective.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        names = [name for name, _ in self.objective.named_parameters()]
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{names[index]}.{key}": value for key, value in values.items()}
        return TrainingState(
            self.step, self.windows, self.elapsed_s, list(self.recent_losses),
            {k: v.clone() for k, v in tensors.items()}, {"seed": self.config.seed, "world": self.world},
        )  # fmt: skip

    def _one(self, rows: np.ndarray, batch: dict[str, Tensor], progress: float, waited_s: float) -> Step:
        seed = self.config.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed * 4099 + self.rank)
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        t = self._times(progress, seed).to(self.device)
        rate = self._learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            terms = self.wrapped(batch, t, generator)
        # Ranks may hold parts of different size: this makes the average over ranks the mean over windows.
        (terms["total"] * (len(rows) * self.world / self.config.batch)).backward()
        self._norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.clip_norm)
        if self.step % self._look_every == 0:
            self._require_finite()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.windows += self.config.batch
        self._update_average()
        terms = {name: value.detach() for name, value in terms.items()}
        return Step(self.step, self.windows, progress, rate, rows, terms, self._norm, waited_s)

    def _require_finite(self) -> None:
        # The norm is that of the averaged gradients, so it is the same on every rank.
        if not torch.isfinite(self._norm):
            raise DivergedError(f"training diverged at step {self.step}: lower --train.learning-rate")

    def _batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        people = self.rows[rows]
        positive, same = self.graph.relations(people)
        cluster = np.where(people >= 0, self.graph.cluster[people], -1)
        tensors = self.units.training_tensors(self.store.batch(rows))
        tensors |= {"positive": torch.from_numpy(positive), "same": torch.from_numpy(same)}
        tensors["cluster"] = torch.from_numpy(cluster)
        return {name: value.pin_memory() for name, value in tensors.items()} if self._pins else tensors

    def _times(self, progress: float, seed: int) -> Tensor:
        """Draw this rank's t: those of a global batch lie evenly over [0, 1] (stratified), whoever holds them.

        All but noise during the regression at the start.
        """
        n = self.config.batch
        if progress < self.config.regression_share:
            t = torch.full((n,), 0.999)
        else:
            generator = torch.Generator().manual_seed(seed * 4099 + 4098)
            t = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        return torch.tensor_split(t, self.world)[self.rank]

    def _learning_rate(self, progress: float) -> float:
        warm = min(progress / max(self.config.warmup_share, 1e-9), 1.0) if self.config.warmup_share else 1.0
        return self.config.learning_rate * max(warm, 0.01) * (0.5 + 0.5 * math.cos(math.pi * progress))

    @torch.no_grad()
    def _update_average(self) -> None:
        # Young averages forget faster, or the random start would stay in a short training.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        state = self.objective.denoiser.state_dict()
        move = get_ema_multi_avg_fn(decay)
        move(list(self.average.values()), [state[name] for name in self.average], 0)

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
        self.recent_losses.extend(state.recent_losses)
