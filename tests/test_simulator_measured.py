"""What is simulated, measured by the delineator on rendered signals: nothing is read back from the parameters."""

import numpy as np
import pytest

from p2es.delineation import measure_ecg
from p2es.demographics import Sex
from p2es.leads import LEADS, lift
from p2es.simulator import MORPHOLOGIES, simulate
from p2es.simulator.ecg import heart_ecg
from p2es.simulator.heart import reference_heart
from p2es.simulator.rhythm import BeatKind, Breathing, Rhythm

FS_HZ = 500.0


def steady(heart, kind=BeatKind.NORMAL, longer_pr_s=0.0, rr_s=1.0):
    """One beat like the next; each P where the heart's own waves put it."""
    at = rr_s * np.arange(-2, 14)
    pr_s = heart.onset_s - heart.p_span[False].onset_s + longer_pr_s
    led = np.arange(at.size) if kind is BeatKind.NORMAL else np.full(at.size, -1)
    p_s = at if kind is BeatKind.NORMAL else np.empty(0)
    count = p_s.size
    return Rhythm(
        "sinus",
        at,
        np.full(at.size, kind),
        p_s,
        np.full(count, pr_s),
        led[:count],
        np.zeros(count, bool),
        Breathing(0.25, 0.0),
    )


def measured(morphologies=(), **options):
    heart = reference_heart(tuple(morphologies))
    rng = np.random.default_rng(0)
    clean = heart_ecg(rng, heart, steady(heart, **options), 11.0, FS_HZ)
    return measure_ecg(lift(clean + 0.002 * rng.standard_normal(clean.shape)), FS_HZ)


def lead(values, name):
    return values[LEADS.index(name)]


def test_the_reference_beat_is_the_table():
    found = measured()
    assert found.pr_ms == pytest.approx(168, abs=3)
    assert found.qrs_ms == pytest.approx(88, abs=3)
    assert found.qt_ms == pytest.approx(396, abs=4)
    assert found.p_ms == pytest.approx(114, abs=6)
    assert found.qrs_axis_deg == pytest.approx(53, abs=2)
    assert found.t_axis_deg == pytest.approx(50, abs=3)
    assert found.p_axis_deg == pytest.approx(78, abs=6)
    r = {"I": 0.66, "II": 0.92, "III": 0.33, "V1": 0.29, "V2": 0.43, "V3": 0.86, "V4": 1.41, "V5": 1.45, "V6": 1.16}
    for name, value in r.items():
        assert lead(found.r_mv, name) == pytest.approx(value, abs=0.03), name
    for name, value in {"V1": -0.95, "V2": -1.11, "V3": -1.03, "V4": -0.54}.items():
        assert lead(found.s_mv, name) == pytest.approx(value, abs=0.03), name
    for name, value in {"II": 0.25, "V2": 0.39, "V3": 0.60, "V5": 0.39}.items():
        assert lead(found.t_mv, name) == pytest.approx(value, abs=0.03), name


@pytest.mark.parametrize(
    ("morphology", "qrs_ms", "within"), [("rbbb", 136, 5), ("lbbb", 142, 8), ("wpw", 132, 6), ("rvh", 88, 4)]
)
def test_qrs_is_as_wide_as_the_disease_makes_it(morphology, qrs_ms, within):
    assert measured([morphology]).qrs_ms == pytest.approx(qrs_ms, abs=within)


def test_a_ventricular_beat_is_wide_and_its_t_against_it():
    found = measured(kind=BeatKind.VENTRICULAR)
    assert found.qrs_ms == pytest.approx(146, abs=8)
    assert np.isnan(found.pr_ms)
    area = found.qrs_axis_deg - found.t_axis_deg
    assert abs(abs((area + 180) % 360 - 180) - 180) < 40


def test_right_bundle_branch_block_shows_where_it_should():
    found = measured(["rbbb"])
    assert lead(found.r_mv, "V1") == pytest.approx(1.01, abs=0.08)
    assert lead(found.s_mv, "V6") == pytest.approx(-0.61, abs=0.08)
    assert lead(found.t_polarity, "V1") < 0


def test_left_bundle_branch_block_shows_where_it_should():
    found = measured(["lbbb"])
    assert lead(found.s_mv, "V1") == pytest.approx(-1.36, abs=0.08) or lead(found.q_mv, "V1") == pytest.approx(
        -1.36, abs=0.08
    )
    assert lead(found.r_mv, "V6") == pytest.approx(1.10, abs=0.08)
    assert lead(found.t_polarity, "V6") < 0


def test_hypertrophy_shows_in_voltages_and_axis():
    left, right = measured(["lvh"]), measured(["rvh"])
    assert lead(left.r_mv, "V5") - lead(left.s_mv, "V1") == pytest.approx(4.46, abs=0.2)
    assert lead(left.t_polarity, "V6") < 0
    assert right.qrs_axis_deg == pytest.approx(98, abs=4)
    assert lead(right.r_mv, "V1") == pytest.approx(0.74, abs=0.08)


def test_st_is_raised_and_lowered_where_it_should():
    anterior, inferior, depressed = (
        measured([name]).st_mv for name in ("st_elevation_anterior", "st_elevation_inferior", "st_depression")
    )
    for name, value in {"V2": 0.325, "V3": 0.395}.items():
        assert lead(anterior, name) == pytest.approx(value, abs=0.04), name
    for name, value in {"II": 0.25, "III": 0.325, "aVF": 0.285, "aVL": -0.195}.items():
        assert lead(inferior, name) == pytest.approx(value, abs=0.04), name
    plain = measured().st_mv
    for name in ("I", "II", "V4", "V5", "V6"):
        assert lead(depressed, name) - lead(plain, name) < -0.04, name
    assert lead(depressed, "aVR") > lead(plain, "aVR") + 0.04


def test_long_qt_wpw_block_and_low_voltage():
    assert measured(["long_qt"]).qt_ms == pytest.approx(510, abs=6)
    assert measured(["wpw"]).pr_ms < 120
    assert measured(longer_pr_s=0.070).pr_ms == pytest.approx(238, abs=4)
    low, plain = measured(["low_voltage"]), measured()
    np.testing.assert_allclose(low.r_mv[:2], 0.4 * plain.r_mv[:2], atol=0.02)


def test_qt_follows_the_cube_root_of_the_interval_from_the_start_of_qrs():
    from p2es.simulator.people import draw_demographics, draw_person
    from p2es.simulator.population import POPULATIONS

    rng = np.random.default_rng(3)
    person = draw_person(rng, POPULATIONS["healthy"], draw_demographics(rng, POPULATIONS["healthy"]))
    assert person.qtcf_ms > 0
    slow, fast = measured(), measured(rr_s=0.6)
    assert fast.qt_ms == pytest.approx(396 * 0.6 ** (1 / 3), abs=3)
    assert slow.qtcf_ms == pytest.approx(fast.qtcf_ms, abs=4)


@pytest.mark.parametrize("morphology", [(), *((name,) for name in MORPHOLOGIES)])
def test_the_truth_is_what_is_measured(morphology):
    errors = []
    for index in range(6):
        one = simulate(31, index, 10.0, rhythm="sinus", morphologies=morphology, ecg_fs_hz=FS_HZ)
        found, truth = measure_ecg(np.stack([s.read() for s in one.recording.signals[:12]]), FS_HZ), one.truth
        turned = (found.qrs_axis_deg - truth.axis_deg + 180) % 360 - 180
        longer = (getattr(found, name) - getattr(truth, name) for name in ("pr_ms", "qrs_ms", "qt_ms"))
        errors.append([*longer, turned])
    # A plateau of ST begins within QRS, and the net area of QRS with it.
    middle = np.abs(np.nanmedian(errors, axis=0))
    assert (middle <= [4, 8, 6, 10 if "st_elevation_inferior" in morphology else 3]).all(), middle


BASE = {"age_years": 50.0, "sex": Sex.MALE, "height_cm": 174.0, "weight_kg": 26 * 1.74**2}
TWINS = {
    # Effects of sex are between people of equal height for their sex.
    "woman": {"sex": Sex.FEMALE, "height_cm": 161.0, "weight_kg": 26 * 1.61**2},
    "10 cm taller": {"height_cm": 184.0, "weight_kg": 26 * 1.84**2},
    "5 kg/m2 heavier": {"weight_kg": 31 * 1.74**2},
    "20 years older": {"age_years": 70.0},
}
FIELDS = ("pr_ms", "qrs_ms", "qtcf_ms", "qrs_axis_deg")
PUBLISHED = {
    "woman": {"pr_ms": -6, "qrs_ms": -6, "qtcf_ms": 11, "qrs_axis_deg": 4},
    "10 cm taller": {"pr_ms": 4.17, "qrs_ms": 2.06},
    "5 kg/m2 heavier": {"pr_ms": 2.4, "qrs_axis_deg": -9},
    "20 years older": {"qrs_axis_deg": -12, "pr_ms": 5, "qtcf_ms": 3},
}


def measures(index, demographics):
    one = simulate(4, index, 10.0, demographics=demographics, noise=False, ecg_fs_hz=FS_HZ)
    found = measure_ecg(np.stack([s.read() for s in one.recording.signals[:12]]), FS_HZ)
    return [getattr(found, name) for name in FIELDS]


@pytest.fixture(scope="module")
def base_measures():
    return np.array([measures(index, BASE) for index in range(30)])


@pytest.mark.parametrize("change", list(TWINS))
def test_a_changed_field_has_its_published_effect_and_no_other(base_measures, change):
    twins = np.array([measures(index, BASE | TWINS[change]) for index in range(30)])
    differences = twins - base_measures
    differences[:, 3] = (differences[:, 3] + 180) % 360 - 180
    for name, effect in zip(FIELDS, np.nanmean(differences, axis=0), strict=True):
        published = PUBLISHED[change].get(name, 0.0)
        if published:
            assert 0.8 <= effect / published <= 1.2, (name, effect)
        else:
            assert abs(effect) < 0.6, (name, effect)


MASON = {
    "rate": (48, 67, 98),
    "pr_ms": (113, 160, 212),
    "qrs_ms": (69, 89, 109),
    "qtcf_ms": (359, 401, 445),
    "qrs_axis_deg": (-40, 29, 91),
}
"""2nd and 98th percentiles of Mason 2007; the medians are those of the equations (clinical notes, 9)."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_people_are_as_masons():
    table = []
    for index in range(2000):
        one = simulate(9, index, 10.0, ecg_fs_hz=FS_HZ)
        found = measure_ecg(np.stack([s.read() for s in one.recording.signals[:12]]), FS_HZ)
        table.append([60 / found.rr_s, *(getattr(found, name) for name in list(MASON)[1:])])
    for (name, published), column in zip(MASON.items(), np.array(table).T, strict=True):
        assert np.isnan(column).mean() < 0.01, name
        np.testing.assert_allclose(np.nanpercentile(column, (2, 50, 98)), published, atol=6, err_msg=name)
