"""The figures of a training."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from p2es import plot
from p2es.conditioning import Units
from p2es.diffusion import DiffusionConfig
from p2es.leads import LEADS
from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es.training_plots import Curve, drawn_samples, fixed_windows, learning_curves, sample_figure
from p2es.windows import MARGIN_SAMPLES, WindowStore
from pipelines.recipes import demo


def curve(value, step=None):
    value = np.asarray(value, np.float64)
    step = np.arange(1.0, len(value) + 1) if step is None else np.asarray(step, np.float64)
    return Curve(step, step * 0.5, value)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_curves_show_each_term_and_the_rate_made_of_windows_seen():
    curves = {"loss_total": curve([3, 2, 1]), "loss_wave": curve([2, 1, 0.5]), "windows": curve([16, 32, 48])}
    drawn = panels(learning_curves(curves | {"learning_rate": curve([1e-3, 2e-3, 1e-3])}, "demo"))
    labels = [line.get_label() for line in drawn["loss"].lines]
    assert labels == ["total", "wave"]
    np.testing.assert_allclose(drawn["loss"].lines[0].get_ydata(), [3, 2, 1])
    assert drawn["loss"].get_yscale() == "log"
    # 16 windows in half a second.
    np.testing.assert_allclose(drawn["windows a second"].lines[0].get_ydata(), [32, 32])
    np.testing.assert_allclose(drawn["learning rate"].lines[0].get_ydata(), [1e-3, 2e-3, 1e-3])
    assert not drawn["norm of the gradient"].lines


def test_a_loss_that_is_not_finite_is_counted_not_dropped():
    drawn = panels(learning_curves({"loss_total": curve([1.0, np.nan, 0.5])}))
    assert "loss (1 values not finite)" in drawn


def test_a_long_training_keeps_its_mean_and_its_extremes():
    rng = np.random.default_rng(1)
    value = rng.uniform(1, 2, 50_000)
    value[31_234] = 9.0
    (loss, *_) = learning_curves({"loss_total": curve(value)}).axes
    (line,) = loss.lines
    assert len(line.get_ydata()) == 400
    assert np.mean(line.get_ydata()) == pytest.approx(value.mean())
    top = max(path.vertices[:, 1].max() for path in loss.collections[0].get_paths())
    assert top == 9.0


def test_steps_that_come_out_of_order_are_drawn_in_order():
    (loss, *_) = learning_curves({"loss_total": curve([3.0, 1.0, 2.0], [10, 30, 20])}).axes
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), [10, 20, 30])
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [3, 2, 1])


def test_the_windows_are_of_different_people_and_always_the_same(simulated_store):
    batch = fixed_windows(simulated_store)
    assert len(batch) == len(set(batch.person)) == 3
    np.testing.assert_array_equal(batch.window_id, fixed_windows(simulated_store).window_id)


def test_windows_without_the_leads_or_the_pulse_are_not_chosen(simulated_store):
    whole = simulated_store.batch(np.arange(6))
    lead_mask = whole.lead_mask.copy()
    lead_mask[0, LEADS.index("V2")] = False
    ppg = whole.ppg.copy()
    ppg[1] = np.random.default_rng(2).normal(size=ppg[1].shape)
    store = WindowStore.from_batches([replace(whole, lead_mask=lead_mask, ppg=ppg)])
    chosen = set(fixed_windows(store, 6).window_id)
    assert chosen
    assert not chosen & set(whole.window_id[:2])
    nobody = replace(whole, lead_mask=np.zeros_like(lead_mask))
    assert len(fixed_windows(WindowStore.from_batches([nobody]))) == 0


def test_recorded_and_drawn_stand_in_their_panels(simulated_store):
    batch = fixed_windows(simulated_store, 2)
    drawn = batch.ecg_mv + 0.25
    figure = sample_figure(drawn, batch, step=1200)
    assert "step 1200" in figure.get_suptitle()
    assert plot.FOOTER in [text.get_text() for text in figure.texts]
    of_v2 = figure.axes[1]  # II, V2, V5, PPG of the first window
    recorded, generated = of_v2.lines
    assert to_rgb(recorded.get_color()) == to_rgb(plot.RECORDED_COLOUR)
    np.testing.assert_array_equal(recorded.get_ydata(), batch.ecg_mv[0, LEADS.index("V2")])
    np.testing.assert_array_equal(generated.get_ydata(), drawn[0, LEADS.index("V2")])
    np.testing.assert_array_equal(
        figure.axes[3].lines[0].get_ydata(), batch.ppg[0, 0, MARGIN_SAMPLES : MARGIN_SAMPLES + 1280]
    )


def test_drawing_changes_nothing_in_the_training(simulated_store):
    network = NetworkConfig(channels=(8, 8), pulse_channels=8, condition=16, prototypes=3)
    model = P2Es.start(network, DiffusionConfig(), Units.fit(simulated_store))
    batch = fixed_windows(simulated_store, 2)
    model.denoiser.train()
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    state = torch.get_rng_state()
    first = plot.png(drawn_samples(model, batch, step=1))
    assert model.denoiser.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())
    model.denoiser.eval()
    assert plot.png(drawn_samples(model, batch, step=1)) == first


def test_samples_are_cheap_at_the_size_of_the_demo(simulated_store):
    recipe = demo()
    model = P2Es.start(recipe.network, recipe.diffusion, Units.fit(simulated_store))
    batch = fixed_windows(simulated_store)
    plot.png(drawn_samples(model, batch, step=0))
    started = time.thread_time()
    plot.png(drawn_samples(model, batch, step=1))
    # The thread's own time: other processes of a busy machine do not count.
    assert time.thread_time() - started < 2.0
