"""What the ranks of `bench_train.py` run: the same loop under torchrun and under Ray Train, with a clock."""

import hashlib
import json
import os
import pickle
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from p2es.training import Trainer
from pipelines.train_worker import Job, node_leaves, open_trainer, report, train_to_end

if TYPE_CHECKING:
    from pipelines.train_reporter import Reporter

WARM_UP = 5


def clocked(trainer: Trainer, job: Job, reporter: "Reporter | None", place: Path, under_ray: bool) -> None:
    """Train to the end and leave this rank's figures in `place`: steps, wall and CPU seconds after the warm-up."""
    stamps: list[tuple[float, float, float]] = []
    waited: list[float] = []
    inner = trainer._one

    def one(*args: Any) -> Any:
        step = inner(*args)
        stamps.append((time.time(), time.perf_counter(), time.process_time()))
        waited.append(step.waited_s)
        return step

    trainer._one = one  # type: ignore[method-assign]
    hand_over, leaving = (partial(report, job.run_id), node_leaves) if under_ray else (saved, lambda: False)
    train_to_end(trainer, job.recipe, reporter, hand_over=hand_over, leaving=leaving)
    first, (_, wall, cpu), (_, wall_end, cpu_end) = stamps[0], stamps[WARM_UP], stamps[-1]
    digest = hashlib.sha256()
    for value in trainer.average.values():
        digest.update(value.numpy().tobytes())
    figures = {
        "steps": len(stamps) - 1 - WARM_UP,
        "wall_s": wall_end - wall,
        "cpu_s": cpu_end - cpu,
        "first_step_unix_s": first[0],
        "waited_s": sum(waited[WARM_UP + 1 :]),
        "weights": digest.hexdigest(),
    }
    (place / f"rank-{trainer.rank}.json").write_text(json.dumps(figures))


def ray_loop(config: dict[str, Any]) -> None:
    """Be one worker of Ray Train."""
    import ray.train
    import ray.train.torch

    job: Job = pickle.loads(config["job"])  # noqa: S301 - written by our own driver
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        alone = config.get("how") == "alone"
        return module if alone else ray.train.torch.prepare_model(module, move_to_device=False)

    with open_trainer(job, rank, world, wrap, torch.device("cpu")) as trainer:
        reporter = None
        if rank == 0 and config["tracked"]:
            from pipelines.train_reporter import Reporter

            reporter = Reporter(job, world)
        clocked(trainer, job, reporter, Path(config["place"]), under_ray=True)
        if reporter is not None:
            reporter.close()


def saved(trainer: Trainer) -> None:
    """Outside Ray there is nobody to hand checkpoints to: they are written all the same."""
    state = trainer.state()
    if trainer.rank == 0:
        with tempfile.TemporaryDirectory() as folder:
            state.save(Path(folder))


def main() -> None:
    """Be one rank of torchrun: `train_ranks.py JOB PLACE HOW`, HOW one of ddp, alone (no all-reduce)."""
    job: Job = pickle.loads(Path(sys.argv[1]).read_bytes())  # noqa: S301 - written by bench_train.py
    place, how = Path(sys.argv[2]), sys.argv[3]
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        return DistributedDataParallel(module) if world > 1 and how == "ddp" else module

    with open_trainer(job, rank, world, wrap, torch.device("cpu")) as trainer:
        clocked(trainer, job, None, place, under_ray=False)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
