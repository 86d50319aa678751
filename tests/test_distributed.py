"""Two ranks under torch.distributed, as torchrun would start them: they see different windows and stay one model."""

import contextlib
import multiprocessing
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from p2es.batching import NeighbourGraph
from p2es.conditioning import Units
from p2es.diffusion import DiffusionConfig
from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es.training import TrainConfig, Trainer

NETWORK = NetworkConfig(channels=(8, 8), pulse_channels=8, condition=16, prototypes=3)


def flat_gradients(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def gathered(tensor, world):
    parts = [torch.zeros_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


def rank_main(rank, world, port, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    people, first = np.unique(store.person, return_index=True)
    graph = NeighbourGraph.exact([str(p) for p in people], store.rest.people[first], 4, 3)
    units = Units.fit(store)
    config = TrainConfig(windows=2 * len(store), batch=16, regression_share=0.0, budget_s=600.0)
    model = P2Es.start(NETWORK, DiffusionConfig(), units)
    trainer = Trainer(
        model.objective(config), units, store, graph, config, rank=rank, world=world, wrap=DistributedDataParallel
    )
    rows = next(trainer.plan.batches(0, rank, world))
    batch, t = trainer._batch(rows), torch.full((len(rows),), 0.4)

    def gradients(context):
        trainer.optimizer.zero_grad(set_to_none=True)
        with context:
            trainer.wrapped(batch, t, torch.Generator().manual_seed(rank))["total"].backward()
        return gathered(flat_gradients(trainer.objective), world)

    before, after = gradients(trainer.wrapped.no_sync()), gradients(contextlib.nullcontext())
    trainer.optimizer.zero_grad(set_to_none=True)
    seen = [step.rows.tolist() for step in trainer.steps()]
    weights = torch.cat([p.detach().flatten() for p in trainer.objective.parameters()])
    everyone = gathered(weights, world)
    if rank == 0:
        results.put(("gradients", before.numpy(), after.numpy(), everyone.numpy()))
    results.put(("rows", rank, seen))
    results.close()
    results.join_thread()
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(simulated_store):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    ranks = [spawn.Process(target=rank_main, args=(r, 2, port, simulated_store, results)) for r in range(2)]
    for process in ranks:
        process.start()
    found = [results.get(timeout=180) for _ in range(3)]
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    rows = {item[1]: item[2] for item in found if item[0] == "rows"}
    return next(item[1:] for item in found if item[0] == "gradients"), rows


def test_the_ranks_differ_before_the_all_reduce_and_agree_after_it(two_ranks):
    (before, after, _), _ = two_ranks
    assert np.abs(before[0] - before[1]).max() > 1e-3
    np.testing.assert_allclose(after[0], after[1], atol=1e-7)
    np.testing.assert_allclose(after[0], before.mean(axis=0), atol=1e-5)


def test_the_ranks_hold_the_same_weights_at_the_end(two_ranks):
    (_, _, weights), _ = two_ranks
    assert np.array_equal(weights[0], weights[1])


def test_together_the_ranks_see_each_window_once_an_epoch(two_ranks, simulated_store):
    _, rows = two_ranks
    steps = len(rows[0])
    assert steps == len(rows[1])
    epoch = [window for step in range(steps // 2) for rank in (0, 1) for window in rows[rank][step]]
    assert sorted(epoch) == list(range(len(simulated_store)))
    for step in range(steps):
        assert not set(rows[0][step]) & set(rows[1][step])
