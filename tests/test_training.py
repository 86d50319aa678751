"""The method as a whole: each part matters, each term trains, a training goes on where it stopped."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es.batching import EpochPlan, NeighbourGraph
from p2es.checkpoint import COMMIT, TrainingState
from p2es.conditioning import Units
from p2es.errors import DivergedError, ModelError
from p2es.model import FitRecipe, P2Es
from p2es.network import NetworkConfig
from p2es.training import TrainConfig, Trainer

NETWORK = NetworkConfig(channels=(8, 8), pulse_channels=8, condition=16, prototypes=3)


def graph_of(store, k=4, clusters=3):
    people, first = np.unique(store.person, return_index=True)
    return NeighbourGraph.exact([str(p) for p in people], store.rest.people[first], k, clusters)


def trainer_of(store, config, **options):
    units = Units.fit(store)
    model = P2Es.start(NETWORK, FitRecipe().diffusion, units, seed=config.seed)
    return Trainer(model.objective(config), units, store, graph_of(store), config, **options)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.objective.parameters()])


def first_batches(plan, windows, rank=0, world=1, seen=0):
    """This rank's parts of the global batches that begin in the next `windows`."""
    return list(itertools.islice(plan.batches(seen, rank, world), math.ceil(windows / plan.batch)))


@pytest.mark.parametrize("batch", [7, 16, 200])
def test_each_window_is_seen_once_an_epoch_whatever_the_number_of_ranks(simulated_store, batch):
    graph = graph_of(simulated_store)
    plan = EpochPlan(graph.rows_of(simulated_store.person), graph, batch=batch)
    n = len(simulated_store)
    seen = {}
    for world in (1, 2, 3):
        ranks = [first_batches(plan, 2 * n, rank, world) for rank in range(world)]
        assert len({len(parts) for parts in ranks}) == 1
        for parts in zip(*ranks, strict=True):
            assert sum(map(len, parts)) == batch, "every rank takes part in every step, and each step is as large"
            assert all(len(part) for part in parts)
        seen[world] = np.concatenate([rows for parts in zip(*ranks, strict=True) for rows in parts])
    for epoch in (0, 1):
        assert sorted(seen[1][epoch * n : (epoch + 1) * n]) == list(range(n))
    assert not np.array_equal(seen[1][:n], seen[1][n : 2 * n])
    assert np.array_equal(seen[1], seen[2])
    assert np.array_equal(seen[1], seen[3])


@given(start=st.integers(0, 300), batch=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_the_windows_seen_tell_the_place_in_the_order(simulated_store, start, batch):
    graph = graph_of(simulated_store)
    plan = EpochPlan(graph.rows_of(simulated_store.person), graph, batch=batch)
    whole = np.concatenate(first_batches(plan, start * batch + 3 * batch))
    later = np.concatenate(list(itertools.islice(plan.batches(start * batch), 3)))
    assert np.array_equal(whole[start * batch : start * batch + 3 * batch], later)


def test_batches_hold_neighbours_more_often_than_chance(simulated_store):
    graph = graph_of(simulated_store)
    rows = graph.rows_of(simulated_store.person)
    plan = EpochPlan(rows, graph, batch=8)

    def share(order):
        pairs = [graph.relations(rows[part])[0].any(axis=1).mean() for part in np.array_split(order, len(order) // 8)]
        return np.mean(pairs)

    drawn = np.concatenate(first_batches(plan, len(rows)))
    shuffled = np.random.default_rng(0).permutation(len(rows))
    assert share(drawn) > share(shuffled)


def test_nobody_is_their_own_neighbour(simulated_store):
    graph = graph_of(simulated_store)
    positive, same = graph.relations(graph.rows_of(simulated_store.person))
    assert not (positive & same).any()
    assert same.sum() > len(simulated_store), "people have several windows"


@pytest.mark.parametrize("term", ["wave", "slope", "contrast", "prototype"])
def test_every_term_of_the_loss_has_a_gradient(simulated_store, term):
    trainer = trainer_of(simulated_store, TrainConfig(batch=16, regression_share=0.0))
    rows = next(trainer.plan.batches())
    terms = trainer.objective(trainer._batch(rows), torch.full((len(rows),), 0.4), torch.Generator().manual_seed(0))
    terms[term].backward()
    denoiser = trainer.objective.denoiser
    into = {
        "wave": denoiser.unet,
        "slope": denoiser.unet,
        "contrast": denoiser.groups,
        "prototype": denoiser.groups,
    }
    norms = [p.grad.norm() for p in into[term].parameters() if p.grad is not None]
    assert torch.stack(norms).sum() > 1e-6
    if term == "prototype":
        assert denoiser.groups.prototypes.grad.norm() > 0


def test_every_parameter_gets_a_gradient(simulated_store):
    trainer = trainer_of(simulated_store, TrainConfig(batch=16, regression_share=0.0))
    rows = next(trainer.plan.batches())
    generator = torch.Generator().manual_seed(0)
    trainer.objective(trainer._batch(rows), torch.full((len(rows),), 0.4), generator)["total"].backward()
    idle = [name for name, p in trainer.objective.named_parameters() if p.grad is None]
    assert not idle, "distributed data parallel would wait for these for ever"


def test_masked_leads_do_not_enter_the_loss_and_one_limb_lead_alone_does(simulated_store):
    trainer = trainer_of(simulated_store, TrainConfig())
    batch = trainer._batch(np.arange(4))
    estimate = batch["x"] + 0.1
    t = torch.full((4,), 0.4)
    only_three = torch.zeros_like(batch["lead_mask"])
    only_three[:, 2] = True
    batch |= {"lead_mask": only_three}
    error, _ = trainer.objective.errors(estimate, batch, t)
    spoiled = batch["ecg"].clone()
    spoiled[:, 3:] += 100
    same, _ = trainer.objective.errors(estimate, batch | {"ecg": spoiled}, t)
    torch.testing.assert_close(error, same)
    moved = estimate.clone()
    moved[:, 0] += 0.5
    other, _ = trainer.objective.errors(moved, batch, t)
    assert other != error, "III = II - I: an error in I is seen through III"


def test_training_stops_and_goes_on_as_if_it_had_not(simulated_store, tmp_path):
    config = TrainConfig(windows=16 * 12, batch=16, regression_share=0.2)
    whole = trainer_of(simulated_store, config)
    for _ in whole.steps():
        pass
    halted = trainer_of(simulated_store, config)
    for step in halted.steps():
        if step.step == 5:
            break
    halted.state().save(tmp_path)
    resumed = trainer_of(simulated_store, config, resume=TrainingState.load(tmp_path))
    for _ in resumed.steps():
        pass
    assert resumed.step == whole.step
    assert torch.equal(weights(resumed), weights(whole))
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name])


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "no commit", "empty"])
def test_a_checkpoint_that_is_not_what_was_committed_is_refused(simulated_store, tmp_path, harm):
    trainer_of(simulated_store, TrainConfig(batch=16)).state().save(tmp_path)
    assert TrainingState.load(tmp_path).about["seed"] == 0
    tensors = tmp_path / "state.safetensors"
    data = tensors.read_bytes()
    if harm == "cut":
        tensors.write_bytes(data[:-7])
    elif harm == "flip":
        tensors.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif harm == "missing":
        (tmp_path / "state.json").unlink()
    elif harm == "no commit":
        (tmp_path / COMMIT).unlink()
    else:
        (tmp_path / COMMIT).write_text("")
    with pytest.raises(ModelError, match="not whole"):
        TrainingState.load(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_training_and_gives_no_state(simulated_store):
    trainer = trainer_of(simulated_store, TrainConfig(batch=16, learning_rate=1e30, warmup_share=0.0, loss_limit=1e30))
    with pytest.raises(DivergedError, match="learning-rate"):
        for _ in trainer.steps():
            pass
    with pytest.raises(DivergedError):
        trainer.state()


def test_a_loss_that_explodes_stops_the_training_also_after_a_restart(simulated_store, tmp_path):
    config = TrainConfig(batch=16, windows=16 * 100)
    trainer = trainer_of(simulated_store, config)
    for step in trainer.steps():
        trainer.mean_losses(step)
        if step.step == 8:
            break
    trainer.state().save(tmp_path)
    resumed = trainer_of(simulated_store, config, resume=TrainingState.load(tmp_path))
    step = next(resumed.steps())
    assert resumed.mean_losses(step)["total"] == pytest.approx(step.losses["total"], rel=1e-6)
    worse = replace(step, terms={name: 30 * value for name, value in step.terms.items()})
    with pytest.raises(DivergedError, match="usual"):
        resumed.mean_losses(worse)
    assert json.loads((tmp_path / "state.json").read_text())["windows"] == 16 * 8


def test_half_precision_learns_nearly_the_same(simulated_store):
    config = TrainConfig(windows=16 * 10, batch=16, regression_share=0.0)
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = trainer_of(simulated_store, replace(config, precision=precision))
        losses[precision] = [step.losses["total"] for step in trainer.steps()]
        assert all(p.dtype == torch.float32 for p in trainer.objective.parameters())
    assert losses["float32"] != losses["bfloat16"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


def test_training_lowers_the_loss(trained):
    _, losses = trained
    # The first 15 % only learn to read the PPG, at one noise level; from there on the levels are alike.
    start = int(0.15 * len(losses)) + 1
    assert np.mean(losses[-40:]) < 0.95 * np.mean(losses[start : start + 20])


def test_a_time_budget_ends_the_schedule_early(simulated_store):
    trainer = trainer_of(simulated_store, TrainConfig(windows=10**9, batch=16, budget_s=1.5))
    steps = list(trainer.steps())
    assert trainer.windows < 10**9
    assert steps[-1].progress > 0.5
    assert steps[-1].learning_rate < steps[len(steps) // 2].learning_rate


def with_ppg(store, n):
    return store.batch(np.flatnonzero(store.rest.ppg_mask.any(axis=1))[:: len(store) // (2 * n)][:n])


def draws(model, batch, **changes):
    ppg = np.where(batch.ppg_mask[:, None], batch.ppg, np.nan).astype(np.float32)
    people = changes.pop("people", None)
    from p2es.demographics import Demographics

    people = people or [Demographics.from_array(row) for row in batch.people]
    options = {"fs_hz": 128.0, "samples": 2, "evaluations": 3, "seeds": range(len(ppg))} | changes
    return np.stack([t.ecg_mv for t in model.sample(changes.pop("ppg", ppg), people, **options)])


PARTS = {
    "affinity": lambda d: [p.data.zero_() for p in d.affinity.parameters()],
    "groups": lambda d: d.group.weight.data.zero_(),
    "demographics": lambda d: d.people[-1].weight.data.zero_(),
    "pulse": lambda d: [b.pulse.weight.data.zero_() for b in (*d.unet.down, d.unet.middle, *d.unet.up)],
    "scales": lambda d: [b.conv_out.weight.data.zero_() for b in (d.unet.down[-1], d.unet.middle)],
    "mean over time": lambda d: [b.whole.weight.data.zero_() for b in (*d.unet.down, d.unet.middle, *d.unet.up)],
    "deblurring": lambda d: d.deblur.log_share.data.fill_(-30.0),
    "roles": lambda d: d.unet.role.weight.data.zero_(),
    "time": lambda d: d.time[-1].weight.data.zero_(),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_taking_a_part_out_of_the_trained_model_changes_the_samples(trained, simulated_store, tmp_path, part):
    model, _ = trained
    batch = with_ppg(simulated_store, 2)
    model.save(tmp_path)
    without = P2Es.load(tmp_path)
    PARTS[part](without.denoiser)
    before, after = draws(model, batch), draws(without, batch)
    assert np.isfinite(before).all()
    # The arithmetic of two equal calls differs by less than 1e-6 mV; a part that matters moves more than 1 uV.
    assert np.abs(after - before).max() > 1e-3


def test_the_blur_matters(trained, simulated_store, tmp_path):
    model, _ = trained
    batch = with_ppg(simulated_store, 1)
    model.save(tmp_path)
    sharp = P2Es.load(tmp_path)
    sharp.denoiser.diffusion = replace(
        sharp.denoiser.diffusion, config=replace(sharp.denoiser.diffusion.config, blur_samples=0.0)
    )
    assert np.abs(draws(sharp, batch) - draws(model, batch)).max() > 1e-3


def test_demographics_change_the_group_and_the_ecg(trained, simulated_store):
    from p2es.demographics import Demographics, Sex

    model, _ = trained
    batch = with_ppg(simulated_store, 1)
    young = draws(model, batch, people=[Demographics(25, Sex.MALE, 190, 90)])
    old = draws(model, batch, people=[Demographics(80, Sex.FEMALE, 155, 60)])
    assert np.abs(young - old).max() > 1e-3
