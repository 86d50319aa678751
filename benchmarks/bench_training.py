"""Windows a second: two gloo ranks against the same loop in one process. `python benchmarks/bench_training.py`.

One thread a rank; the two ranks use both cores, the single process one, so 2.0 would be perfect.
"""

import multiprocessing
import socket
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from common import table
from torch.nn.parallel import DistributedDataParallel

from p2es.batching import NeighbourGraph
from p2es.conditioning import Units
from p2es.diffusion import DiffusionConfig
from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es.training import TrainConfig, Trainer
from p2es.windows import WindowStore, collate

STEPS = 40


def people(n: int = 40) -> WindowStore:
    """Give a few windows of n simulated people."""
    ids = "-".join
    windows = [
        w for i in range(n) for w in segment(simulate_person(0, i, 42.0), step_s=10.0, ids=lambda *p: ids(p)).windows
    ]
    return WindowStore.from_batches([collate(windows)])


def rank_main(rank: int, world: int, port: int, store: WindowStore, results: Any) -> None:
    """Train for a few steps and tell the rate of the later ones."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    units, config = Units.fit(store), TrainConfig()
    persons, first = np.unique(store.person, return_index=True)
    graph = NeighbourGraph.exact([str(p) for p in persons], store.rest.people[first], 10, 8)
    model = P2Es.start(NetworkConfig(), DiffusionConfig(), units)
    wrap = DistributedDataParallel if world > 1 else (lambda module: module)
    trainer = Trainer(model.objective(config), units, store, graph, config, rank=rank, world=world, wrap=wrap)
    started, seen = 0.0, 0
    for step in trainer.steps():
        if step.step == 5:
            started, seen = time.perf_counter(), step.windows
        if step.step == STEPS:
            break
    if rank == 0:
        results.put((trainer.windows - seen) / (time.perf_counter() - started))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def rate(world: int, store: WindowStore) -> float:
    """Train with `world` processes and give windows a second, all together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    ranks = [spawn.Process(target=rank_main, args=(r, world, port, store, results)) for r in range(world)]
    for process in ranks:
        process.start()
    found = float(results.get(timeout=300))
    for process in ranks:
        process.join()
    return found


def main() -> None:
    """Print the table."""
    store = people()
    best = {"one process (bare)": 0.0, "two ranks": 0.0}
    for _ in range(2):
        best["one process (bare)"] = max(best["one process (bare)"], rate(1, store))
        best["two ranks"] = max(best["two ranks"], rate(2, store))
    table("training, batch 32, the demo's network", "windows/s", best, "one process (bare)")


if __name__ == "__main__":
    main()
