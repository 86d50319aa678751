import json

import numpy as np
import pytest
import torch

from p2es.bands import Band, calibrate, median_mv
from p2es.delay import DelayLaw
from p2es.demographics import Demographics
from p2es.errors import InputError, ModelError
from p2es.leads import law_residuals, lift
from p2es.model import P2Es, spread_over_people
from p2es.sampler import draw_generator, noise_grid
from p2es.translator import Translator


def asked(store, rows):
    """Give PPG and people of the windows at `rows` among those that have a PPG."""
    batch = store.batch(np.flatnonzero(store.rest.ppg_mask.any(axis=1))[rows])
    ppg = np.where(batch.ppg_mask[:, None], batch.ppg, np.nan).astype(np.float32)
    return ppg, [Demographics.from_array(row) for row in batch.people]


def test_p2es_is_a_translator(trained):
    assert isinstance(trained[0], Translator)


def test_a_request_gives_the_same_ecg_alone_and_in_a_batch(trained, simulated_store):
    model, _ = trained
    ppg, people = asked(simulated_store, [0, 9, 17, 30, 41])
    together = model.sample(ppg, people, fs_hz=128.0, samples=3, evaluations=4, seeds=[5, 6, 7, 8, 9])
    for row, seed in ((0, 5), (3, 8)):
        alone = model.sample(ppg[[row]], [people[row]], fs_hz=128.0, samples=3, evaluations=4, seeds=[seed])[0]
        np.testing.assert_allclose(alone.ecg_mv, together[row].ecg_mv, atol=1e-4)
    fewer = model.sample(ppg[[0]], [people[0]], fs_hz=128.0, samples=1, evaluations=4, seeds=[5])[0]
    np.testing.assert_allclose(fewer.ecg_mv[0], together[0].ecg_mv[0], atol=1e-4)


def test_another_seed_gives_another_ecg_and_draws_differ(trained, simulated_store):
    model, _ = trained
    ppg, people = asked(simulated_store, [0])
    one, two = (model.sample(ppg, people, fs_hz=128.0, samples=2, evaluations=4, seeds=[s])[0].ecg_mv for s in (1, 2))
    assert np.abs(one - two).max() > 0.01
    assert np.abs(one[0] - one[1]).max() > 0.01


def test_the_lead_laws_hold_to_a_microvolt_on_draws_and_median(trained, simulated_store):
    model, _ = trained
    ppg, people = asked(simulated_store, [0, 20])
    for drawn in model.sample(ppg, people, fs_hz=128.0, samples=20, evaluations=3, seeds=[0, 1]):
        assert np.abs(law_residuals(drawn.ecg_mv)).max() < 1e-3
        assert np.abs(law_residuals(drawn.median_mv)).max() < 1e-3
        assert drawn.band_mv is not None
        inside = (drawn.ecg_mv >= drawn.band_mv[0]) & (drawn.ecg_mv <= drawn.band_mv[1])
        assert inside.mean() > 0.85
        assert (drawn.band_mv[0] <= drawn.band_mv[1]).all()


def test_fewer_than_twenty_samples_give_no_band(trained, simulated_store):
    ppg, people = asked(simulated_store, [0])
    assert trained[0].sample(ppg, people, fs_hz=128.0, samples=2, evaluations=2, seeds=[0])[0].band_mv is None


def test_the_answer_does_not_depend_on_the_gain_and_offset_of_the_ppg(trained, simulated_store):
    model, _ = trained
    ppg, people = asked(simulated_store, [0])
    raw = model.sample(ppg, people, fs_hz=128.0, samples=1, evaluations=3, seeds=[0])[0].ecg_mv
    scaled = model.sample(300 * ppg + 2000, people, fs_hz=128.0, samples=1, evaluations=3, seeds=[0])[0].ecg_mv
    np.testing.assert_allclose(raw, scaled, atol=2e-3)


def test_known_leads_come_back_as_they_were_and_change_the_others(trained, simulated_store):
    model, _ = trained
    ppg, people = asked(simulated_store, [0])
    truth = simulated_store.batch([0]).ecg_mv
    known = np.full_like(truth, np.nan)
    known[:, 1] = truth[:, 1]
    free = model.sample(ppg, people, fs_hz=128.0, samples=1, evaluations=3, seeds=[0])[0].ecg_mv[0]
    told = model.sample(ppg, people, fs_hz=128.0, known=known, samples=1, evaluations=3, seeds=[0])[0].ecg_mv[0]
    assert np.array_equal(told[1], truth[0, 1])
    assert np.abs(told[7] - free[7]).max() > 1e-3
    assert np.abs(law_residuals(told)).max() < 1e-3


def test_saved_and_loaded_it_draws_the_same(trained, simulated_store, tmp_path):
    model, _ = trained
    ppg, people = asked(simulated_store, [0])
    model.band = Band(1.7, (0.01,) * 12, 30)
    model.save(tmp_path)
    again = P2Es.load(tmp_path)
    assert again.units == model.units
    assert again.band == model.band
    options = {"fs_hz": 128.0, "samples": 20, "evaluations": 2, "seeds": [3]}
    one, two = model.sample(ppg, people, **options)[0], again.sample(ppg, people, **options)[0]
    assert np.array_equal(one.ecg_mv, two.ecg_mv)
    assert np.array_equal(one.band_mv, two.band_mv)
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".pt", ".pkl", ".bin")]


@pytest.mark.parametrize("spoil", ["missing", "truncated", "json", "version", "shape"])
def test_a_spoilt_model_is_refused_in_one_line(trained, tmp_path, spoil):
    trained[0].save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    if spoil == "missing":
        weights.unlink()
    elif spoil == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif spoil == "json":
        config.write_text(config.read_text()[:-20])
    else:
        values = json.loads(config.read_text())
        if spoil == "version":
            values["version"] = 99
        else:
            values["network"]["channels"] = [4, 4]
        config.write_text(json.dumps(values))
    with pytest.raises(ModelError) as caught:
        P2Es.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_translated_is_refused_with_what_to_do(trained, simulated_store):
    model, _ = trained
    ppg, people = asked(simulated_store, [0])
    options = {"samples": 1, "evaluations": 1, "seeds": [0]}
    cases = [
        (np.full_like(ppg, np.nan), 128.0),
        (np.ones_like(ppg), 128.0),
        (ppg[..., :300], 128.0),
        (ppg, float("nan")),
        (np.random.default_rng(0).normal(size=ppg.shape).astype(np.float32), 128.0),
    ]
    for signal, fs_hz in cases:
        with pytest.raises(InputError) as caught:
            model.sample(signal, people, fs_hz=fs_hz, **options)
        assert "\n" not in str(caught.value)
        assert ":" in str(caught.value), "it says what to do"
    with pytest.raises(ModelError, match="enrolment"):
        model.sample(ppg, people, fs_hz=128.0, enrolment=np.zeros((1, 12, 1280), np.float32), **options)


def test_generators_depend_on_seed_and_draw_alone():
    first = torch.randn(3, generator=draw_generator(1, 2))
    assert torch.equal(first, torch.randn(3, generator=draw_generator(1, 2)))
    assert not torch.equal(first, torch.randn(3, generator=draw_generator(2, 1)))


def test_the_grid_of_the_sampler_falls_from_start_to_end():
    from p2es.sampler import SamplerConfig

    grid = noise_grid(10, SamplerConfig())
    assert grid[0] == pytest.approx(100)
    assert grid[-1] == pytest.approx(SamplerConfig().end_ratio)
    assert (grid.diff() < 0).all()
    assert noise_grid(1, SamplerConfig())[0] == pytest.approx(100)


def test_calibration_makes_a_band_of_too_narrow_draws_cover():
    rng = np.random.default_rng(0)
    scale = np.full(12, 0.2)

    def window(spread):
        centre = lift(rng.normal(0, 0.2, (8, 300)))
        draws = lift(centre[None, [0, 1, 6, 7, 8, 9, 10, 11]] + rng.normal(0, spread, (20, 8, 300)))
        return (
            draws.astype(np.float32),
            (centre + lift(rng.normal(0, 0.1, (8, 300)))).astype(np.float32),
            np.ones(12, bool),
        )

    narrow = [window(0.03) for _ in range(20)]
    band = calibrate(narrow, scale)
    assert band.inflation > 2
    fresh = [window(0.03) for _ in range(20)]
    inside = [
        ((truth >= low) & (truth <= high)).mean() for draws, truth, _ in fresh for low, high in [band.around(draws)]
    ]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


def test_the_median_of_the_twelve_is_lifted():
    draws = lift(np.random.default_rng(0).normal(size=(9, 8, 50))).astype(np.float32)
    assert np.abs(law_residuals(median_mv(draws))).max() < 1e-5


def test_the_delay_law_finds_the_effect_of_height_and_ignores_unsure_recordings():
    rng = np.random.default_rng(0)
    people = np.column_stack([rng.uniform(20, 80, 400), np.zeros(400), rng.normal(168, 10, 400), np.full(400, 75.0)])
    delay = 0.35 + 0.002 * (people[:, 2] - 168) + rng.normal(0, 0.03, 400)
    delay[:40], confidence = 5.0, np.ones(400)
    confidence[:40] = 0.0
    law = DelayLaw.fit(people, delay, confidence)
    tall, short = law.mean_s(np.array([[50, 0, 188, 75.0], [50, 0, 148, 75.0]]))
    assert tall - short == pytest.approx(0.08, abs=0.01)
    assert law.spread_s == pytest.approx(0.03, abs=0.005)
    assert law.mean_s(np.full((1, 4), np.nan))[0] == pytest.approx(0.35, abs=0.005)


def test_windows_are_spread_over_people():
    person = np.array(["a"] * 5 + ["b"] * 2 + ["c"])
    chosen = spread_over_people(person, 4)
    assert sorted(person[chosen]) == ["a", "a", "b", "c"]
    assert len(spread_over_people(person, 100)) == 8
