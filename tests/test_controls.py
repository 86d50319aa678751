import numpy as np
import pytest
from simulated import monitored

from p2es.baselines.pulse_shape import PULSE_S, mean_pulse
from p2es.beats import pulse_onsets
from p2es.errors import DatasetError, InputError
from p2es.evaluation.controls import other_person, shuffled_demographics, warped_to_beats
from p2es.segmenting import segment
from p2es.windows import FS_HZ, PPG_SAMPLES, collate

# Rises this near to the ends of a window may be seen in one PPG and not in the other.
EDGE_S = 0.4
WHOLE = np.ones(PPG_SAMPLES, bool)


def pulses_at(rises_s, width_s, channels=1):
    """Make a PPG of Gaussian pulses whose steepest rises are at given times."""
    t = np.arange(PPG_SAMPLES) / FS_HZ
    wave = sum(np.exp(-0.5 * ((t - at - width_s) / width_s) ** 2) for at in rises_s)
    return np.stack([(1 + k) * wave for k in range(channels)])


def unmatched_s(rises_s, others_s):
    """Give how far each rise in the middle of the window is from the nearest of the others."""
    inner = rises_s[(rises_s > EDGE_S) & (rises_s < PPG_SAMPLES / FS_HZ - EDGE_S)]
    return np.abs(inner[:, None] - others_s).min(axis=1)


@pytest.fixture(scope="module")
def simulated():
    def first(index, **options):
        recording = monitored(21, index, 12.5, **options)
        return segment(recording, step_s=10.0, ids=lambda *parts: "-".join(parts)).windows[0]

    sinus = [first(index) for index in range(10)]
    return collate([*sinus, first(10, rhythm="atrial_fibrillation"), first(11, rhythm="premature_ventricular")])


def test_a_warped_pulse_beats_when_the_window_does_and_has_the_shape_of_the_donor(simulated):
    ppg, mask, n = simulated.ppg, simulated.ppg_mask, len(simulated)
    nearer = []
    for own in range(n):
        donor = (own + 3) % 10
        warped, warped_mask = warped_to_beats(ppg[donor], mask[donor], ppg[own], mask[own], FS_HZ)
        assert warped.dtype == np.float32
        assert warped.shape == ppg[own].shape
        np.testing.assert_array_equal(warped_mask, mask[own])
        found, truth = (pulse_onsets(one[0], FS_HZ, mask[own]) for one in (warped, ppg[own]))
        assert unmatched_s(truth, found).max() < 0.010
        assert unmatched_s(found, truth).max() < 0.010
        shapes = [
            mean_pulse(one[0], m, pulse_onsets(one[0], FS_HZ, m))
            for one, m in ((warped, mask[own]), (ppg[donor], mask[donor]), (ppg[own], mask[own]))
        ]
        systole = np.abs(PULSE_S - 0.1) < 0.19
        to_donor, to_own = (np.abs(shapes[0] - other)[systole].mean() for other in shapes[1:])
        nearer.append(to_donor < to_own)
    # Some people have alike pulses.
    assert np.mean(nearer) > 0.8


def test_nothing_of_the_window_is_left_but_its_beats():
    rng = np.random.default_rng(0)
    rises = 0.3 + np.cumsum(rng.uniform(0.6, 1.1, 13))
    donor = pulses_at(np.arange(0.5, 12, 0.8), 0.09)
    slim, broad = (warped_to_beats(donor, WHOLE, pulses_at(rises, w), WHOLE, FS_HZ)[0] for w in (0.07, 0.10))
    own_slim, own_broad = (pulses_at(rises, w) for w in (0.07, 0.10))
    before = np.corrcoef(own_slim[0], own_broad[0])[0, 1]
    assert before < 0.95
    assert np.corrcoef(slim[0], broad[0])[0, 1] > 0.99
    assert np.corrcoef(warped_to_beats(donor * 7 + 3, WHOLE, own_slim, WHOLE, FS_HZ)[0][0], slim[0])[0, 1] > 0.9999


def test_the_pulses_of_the_donor_come_in_their_order_and_again():
    rises = np.arange(0.5, 12, 0.5)
    # Three whole pulses, which differ in size.
    t = np.arange(PPG_SAMPLES) / FS_HZ
    donor = pulses_at(np.arange(0.5, 12, 0.8), 0.09)
    mask = t < 0.5 + 3 * 0.8 + 0.1
    sizes = 1 + 0.3 * np.floor((t - 0.5) / 0.8)
    warped, _ = warped_to_beats(donor * sizes, mask, pulses_at(rises, 0.07), WHOLE, FS_HZ)
    tops = np.array([warped[0][(t >= a) & (t < a + 0.5)].max() for a in rises[1:-2]])
    np.testing.assert_allclose(tops[3:], tops[:-3], rtol=0.05)
    assert np.ptp(tops[:3]) > 0.2


def test_every_channel_is_warped_alike():
    rises = np.arange(0.5, 12, 0.9)
    donor, own = pulses_at(np.arange(0.2, 12, 0.7), 0.09, channels=2), pulses_at(rises, 0.08, channels=2)
    warped, _ = warped_to_beats(donor, WHOLE, own, WHOLE, FS_HZ)
    np.testing.assert_allclose(warped[0], warped[1], atol=1e-5)
    with pytest.raises(InputError, match="channels"):
        warped_to_beats(donor[:1], WHOLE, own, WHOLE, FS_HZ)


def test_beats_hidden_by_a_gap_are_put_back():
    rises = np.arange(0.4, 12, 0.8)
    donor, own = pulses_at(np.arange(0.2, 12, 0.95), 0.08), pulses_at(rises, 0.08)
    t = np.arange(PPG_SAMPLES) / FS_HZ
    mask = (t < 4.0) | (t > 6.3)
    own[:, ~mask] = np.nan
    warped, warped_mask = warped_to_beats(donor, WHOLE, own, mask, FS_HZ)
    np.testing.assert_array_equal(warped_mask, mask)
    assert not warped[:, ~mask].any()
    complete = warped_to_beats(donor, WHOLE, pulses_at(rises, 0.08), WHOLE, FS_HZ)[0]
    # A stretched pulse over the whole gap would be out of step on both sides of it.
    near = mask & (t > 2.5) & (t < 8.0)
    assert np.corrcoef(warped[0][near], complete[0][near])[0, 1] > 0.99


def test_a_dropped_beat_without_a_gap_stays_a_pause():
    rises = np.delete(np.arange(0.4, 12, 0.8), 6)
    warped, _ = warped_to_beats(pulses_at(np.arange(0.2, 12, 0.9), 0.08), WHOLE, pulses_at(rises, 0.08), WHOLE, FS_HZ)
    found = pulse_onsets(warped[0], FS_HZ)
    assert np.diff(found).max() == pytest.approx(1.6, abs=0.015)


@pytest.mark.parametrize("which", ["donor", "own"])
def test_without_pulses_there_is_no_control(which):
    good, flat = pulses_at(np.arange(0.5, 12, 0.8), 0.08), np.zeros((1, PPG_SAMPLES))
    assert warped_to_beats(good, WHOLE, good, WHOLE, FS_HZ) is not None
    pair = (flat, WHOLE, good, WHOLE) if which == "donor" else (good, WHOLE, flat, WHOLE)
    assert warped_to_beats(*pair, FS_HZ) is None
    nothing = np.zeros(PPG_SAMPLES, bool)
    pair = (good, nothing, good, WHOLE) if which == "donor" else (good, WHOLE, good, nothing)
    assert warped_to_beats(*pair, FS_HZ) is None


def test_everybody_gets_the_whole_row_of_somebody_else():
    rng = np.random.default_rng(2)
    for seed in range(50):
        person = np.array([f"p{k}" for k in rng.integers(0, 7, 30)])
        names = np.unique(person)
        rows = dict(zip(names, rng.normal(size=(len(names), 4)), strict=True))
        rows[names[0]][2] = np.nan
        people = np.array([rows[name] for name in person])
        given = shuffled_demographics(people, person, seed)
        whose = [next(k for k, row in rows.items() if np.array_equal(row, one, equal_nan=True)) for one in given]
        assert all(a != b for a, b in zip(whose, person, strict=True))
        pairs = set(zip(person, whose, strict=True))
        assert len(pairs) == len(names) == len({b for _, b in pairs}), "each one's are used once, in all windows alike"


def test_seeds_shuffle_differently_and_the_input_stays():
    people, person = np.arange(80.0).reshape(20, 4), np.array([f"p{k:02d}" for k in range(20)])
    kept = people.copy()
    first, again, second = (shuffled_demographics(people, person, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(people, kept)


def test_one_person_with_most_windows_can_still_be_given_anothers_demographics():
    person = np.array(["a"] * 9 + ["b"])
    people = np.array([[1.0] * 4] * 9 + [[2.0] * 4])
    np.testing.assert_array_equal(shuffled_demographics(people, person, 0), people[::-1][[0] * 9 + [9]])
    with pytest.raises(DatasetError, match="more than half"):
        other_person(person, 0)
    with pytest.raises(DatasetError, match="two people"):
        shuffled_demographics(people[:9], person[:9], 0)
