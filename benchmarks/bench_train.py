"""Ray Train against torchrun: the same loop, seeds, data and cores. `python benchmarks/bench_train.py`.

Rounds are interleaved. Steps and CPU seconds are counted after the warm-up, in the ranks themselves; the time to the
first step counts from the driver's call. "no all-reduce" are two ranks that do not speak to each other: what is missing
to them is what the all-reduce takes.
"""

import argparse
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import ray
import ray.train
import ray.train.torch
import train_ranks

from p2es.conditioning import Units
from p2es_platform.cluster import connect
from p2es_platform.dataset import Dataset
from p2es_platform.settings import Settings
from p2es_platform.tracking import Tracker
from pipelines import demo
from pipelines.recipes import Recipe, SimulateConfig, named
from pipelines.train_worker import Job


@dataclass
class Way:
    """What the rounds of one way of training gave."""

    steps_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)

    def add(self, place: Path, started: float) -> None:
        """Read what the ranks left."""
        ranks = [json.loads(path.read_text()) for path in sorted(place.glob("rank-*.json"))]
        wall_s = max(rank["wall_s"] for rank in ranks)
        self.steps_s.append(ranks[0]["steps"] / wall_s)
        self.cpu_s.append(sum(rank["cpu_s"] for rank in ranks) / ranks[0]["steps"])
        self.first_s.append(ranks[0]["first_step_unix_s"] - started)
        self.waited.append(max(rank["waited_s"] for rank in ranks) / wall_s)
        self.weights.add(ranks[0]["weights"])
        found = (
            f"{self.steps_s[-1]:.2f} steps/s, {self.cpu_s[-1]:.3f} CPU s a step, first step {self.first_s[-1]:.1f} s"
        )
        print(f"{place.name}: {found}", file=sys.stderr, flush=True)


def over_torchrun(job: Job, world: int, how: str, folder: Path) -> Callable[[Path], None]:
    """Make a way that starts `world` processes by torchrun."""
    pickled = folder / "job.pickle"
    pickled.write_bytes(pickle.dumps(job))

    def run(place: Path) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        command += [train_ranks.__file__, str(pickled), str(place), how]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    return run


def over_ray(job: Job, world: int, tracked: bool, storage: Path) -> Callable[[Path], None]:
    """Make a way that trains by Ray Train."""

    def run(place: Path) -> None:
        ray.train.torch.TorchTrainer(
            train_ranks.ray_loop,
            train_loop_config={"job": pickle.dumps(job), "place": str(place), "tracked": tracked},
            scaling_config=ray.train.ScalingConfig(num_workers=world, resources_per_worker={"CPU": 1.0}),
            run_config=ray.train.RunConfig(name=place.name, storage_path=str(storage)),
        ).fit()

    return run


def recipe_of(people: int, steps: int, batch: int) -> Recipe:
    """Give the demo's recipe for so many steps, without a time budget, and with a checkpoint at the end only."""
    recipe = named("demo")
    train = dataclasses.replace(
        recipe.train, windows=batch * steps, batch=batch, budget_s=None, checkpoint_windows=10**9
    )
    return dataclasses.replace(recipe, simulate=SimulateConfig(people=people, duration_s=62.0), train=train)


def prepared(recipe: Recipe, settings: Settings) -> Job:
    """Make the dataset and groups, and what the ranks are told."""
    ready = demo.prepare(recipe, settings, demo.Teller(print))
    dataset = Dataset.open(ready.dataset_url)
    tracker = Tracker.start(
        settings.tracking_uri, experiment="bench", name="bench", fingerprint="bench",
        params=dataclasses.asdict(recipe), tags={}, dataset_name="bench", dataset_digest=dataset.hash[:32],
        artifact_root=settings.path("mlartifacts"),
    )  # fmt: skip
    units = Units.fit(dataset.store("train")).to_dict()
    run_folder = settings.folder("runs")
    run_folder.mkdir(parents=True, exist_ok=True)
    return Job(
        recipe, units, ready.dataset_url, dataset.version, ready.groups_url, settings.tracking_uri, tracker.run_id,
        "bench", str(run_folder),
    )  # fmt: skip


def show(ways: dict[str, Way], bare: str) -> None:
    """Print the table; ratios are medians of the ratios within a round."""
    heads = ("steps/s", "ratio", "CPU s/step", "ratio", "1st step s", "data wait")
    print("\n" + " " * 34 + "".join(f"{head:>12s}" for head in heads))
    for name, way in ways.items():
        wall = median(mine / theirs for mine, theirs in zip(way.steps_s, ways[bare].steps_s, strict=True))
        cpu = median(mine / theirs for mine, theirs in zip(way.cpu_s, ways[bare].cpu_s, strict=True))
        print(
            f"{name:34s}{max(way.steps_s):12.2f}{wall:12.2f}{min(way.cpu_s):12.3f}{cpu:12.2f}"
            f"{median(way.first_s):12.1f}{100 * median(way.waited):11.1f}%"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    recipe = recipe_of(args.people, args.steps, args.batch)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(storage=str(folder / "storage"), secret="benchmark")  # type: ignore[call-arg]
        with connect(settings, local_cpus=4, object_store_mb=200):
            job = prepared(recipe, settings)
            runs: dict[str, Callable[[Path], None]] = {
                "torchrun, 2 ranks (bare)": over_torchrun(job, 2, "ddp", folder),
                "Ray Train, 2 workers": over_ray(job, 2, False, folder / "ray"),
                "Ray Train, 2 workers, tracked": over_ray(job, 2, True, folder / "ray"),
                "2 ranks, no all-reduce": over_torchrun(job, 2, "alone", folder),
                "one process, one thread": over_torchrun(job, 1, "ddp", folder),
            }
            ways = {name: Way() for name in runs}
            for turn in range(args.rounds):
                for number, (name, run) in enumerate(runs.items()):
                    place = folder / f"round-{turn}-{number}"
                    place.mkdir()
                    started = time.time()
                    run(place)
                    ways[name].add(place, started)
    show(ways, "torchrun, 2 ranks (bare)")
    torchrun, trained = (ways[name].weights for name in list(runs)[:2])
    same = "the same to the bit" if torchrun == trained and len(torchrun) == 1 else "NOT the same"
    print(f"final weights of torchrun and Ray Train: {same}")


if __name__ == "__main__":
    main()
