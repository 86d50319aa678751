import itertools
from dataclasses import replace

import numpy as np
import pytest

from p2es.demographics import Demographics, Sex
from p2es.errors import InputError
from p2es.leads import LEADS, LIFT, law_residuals, lift
from p2es.simulator import simulate
from p2es.simulator.catalogue import MORPHOLOGIES, RHYTHMS, check, compatible
from p2es.simulator.ecg import f_waves, heart_ecg
from p2es.simulator.heart import build_heart
from p2es.simulator.morphology import altered
from p2es.simulator.people import draw_person
from p2es.simulator.population import POPULATIONS
from p2es.simulator.pulse import PulseTrain
from p2es.simulator.rhythm import BeatKind, Breathing, Rhythm, draw_rhythm
from p2es.simulator.truth import beats_of
from p2es.simulator.vector import ATRIAL, DOWER, frontal_axis_deg, rotation, rotations, turned_to_axis
from p2es.simulator.waves import NORMAL, Group, Waves

HEALTHY = POPULATIONS["healthy"]
FS_HZ = 1000.0


def person_of(seed=0, **traits):
    demographics = Demographics(50.0, Sex.MALE, 174.0, 78.7)
    return replace(draw_person(np.random.default_rng(seed), HEALTHY, demographics), **traits)


def heart_of(person, *morphologies, seed=1, day=2):
    own, today = np.random.default_rng(seed), np.random.default_rng(day)
    return build_heart(own, today, person, check(morphologies, "sinus"))


class Held(Breathing):
    """Breath held half way: `Breathing` itself drifts even at a rate of 0."""

    def at(self, time_s):
        return np.zeros_like(time_s)


def steady(rr_s, beats=10, kind=BeatKind.NORMAL, pr_s=0.168):
    """Even beats of one kind, with breath held at rest."""
    n = beats + 4
    r_s = rr_s * (np.arange(n) - 1.5)
    held = Held(0.0, 0.0)
    return Rhythm("sinus", r_s, np.full(n, kind), r_s, np.full(n, pr_s), np.arange(n), np.zeros(n, bool), held)


def rendered(heart, rhythm, duration_s, fs_hz=FS_HZ):
    return heart_ecg(np.random.default_rng(0), heart, rhythm, duration_s, fs_hz)


def silent(waves, *groups):
    kept = ~np.isin(waves.group, groups)
    return replace(waves, vector_mv=waves.vector_mv * kept, residual_mv=waves.residual_mv * kept)


def alone(heart, group):
    """Give the heart with one wave left."""
    others = [other for other in Group if other != group]
    fields = ("normal", "ventricular", "escape", "p", "p_premature")
    return replace(heart, **{name: silent(getattr(heart, name), *others) for name in fields})


def span_of(size, fs_hz, start_s):
    """First time, time of the peak, last time at which a magnitude exceeds 5 % of its peak."""
    above = np.flatnonzero(size > 0.05 * size.max())
    return start_s + np.array([above[0], size.argmax(), above[-1]]) / fs_hz


def told_of(heart, rhythm):
    gone = np.full(rhythm.r_s.size, np.nan)
    return beats_of(heart, rhythm, PulseTrain(gone, gone, gone, gone, gone), 0.0)


def worst_errors_s(heart, rhythm, names, group, reach_s):
    """Give, for each bound, the largest difference between what is told and what is rendered alone."""
    ecg = rendered(alone(heart, group), rhythm, rhythm.r_s[-1] - 1.5)
    size, told, errors = np.linalg.norm(ecg, axis=0), told_of(heart, rhythm), []
    for k, r_s in enumerate(rhythm.r_s):
        first, last = round((r_s + reach_s[0]) * FS_HZ), round((r_s + reach_s[1]) * FS_HZ)
        if first > 0 and last < size.size:
            found = dict(zip(("on", "peak", "off"), span_of(size[first:last], FS_HZ, first / FS_HZ), strict=True))
            if group is Group.QRS:
                # R: each lead counts by the root of its height.
                part = ecg[:, first:last]
                weighted = np.linalg.norm(part / np.sqrt(np.abs(part).max(axis=1, keepdims=True)), axis=0)
                found["peak"] = (first + int(weighted.argmax())) / FS_HZ
            errors.append([getattr(told, name)[k] - found[which] for name, which in names.items()])
    assert len(errors) >= 5
    return np.abs(errors).max(axis=0)


QRS = {"qrs_on_s": "on", "r_s": "peak", "qrs_off_s": "off"}
T = {"t_on_s": "on", "t_peak_s": "peak", "t_off_s": "off"}
P = {"p_on_s": "on", "p_off_s": "off"}
KINDS = [(name, BeatKind.NORMAL) for name in ("", *MORPHOLOGIES)] + [
    ("", BeatKind.VENTRICULAR),
    ("", BeatKind.ESCAPE),
    ("", BeatKind.JUNCTIONAL),
    ("lbbb", BeatKind.ATRIAL),
]


@pytest.mark.parametrize(("morphology", "kind"), KINDS)
def test_the_waves_begin_and_end_where_the_truth_says(morphology, kind):
    for seed in range(3):
        heart = heart_of(person_of(seed), *filter(None, [morphology]), seed=seed, day=seed)
        for rr_s in (1.25, 0.8):
            rhythm = steady(rr_s, kind=kind)
            assert (worst_errors_s(heart, rhythm, QRS, Group.QRS, (-0.25, 0.30)) < 0.003).all()
            assert (worst_errors_s(heart, rhythm, T, Group.T, (-0.2, 0.9 if rr_s > 1 else 0.75)) < 0.005).all()
            assert (worst_errors_s(heart, rhythm, P, Group.P, (-0.42, 0.12)) < 0.003).all()


def test_the_waves_begin_and_end_where_the_truth_says_while_rate_and_breath_change():
    for seed in range(4):
        person = person_of(seed, rsa_s=0.08)
        heart, rhythm = heart_of(person, seed=seed), draw_rhythm(np.random.default_rng(seed), person, 15.0)
        # Breathing turns the heart by a few degrees, which moves a bound by a few milliseconds.
        assert (worst_errors_s(heart, rhythm, QRS, Group.QRS, (-0.2, 0.2)) < 0.006).all()
        assert (worst_errors_s(heart, rhythm, P, Group.P, (-0.4, 0.1)) < 0.006).all()


def beat(*morphologies):
    """Render the reference beat without residual or person: 12 leads at 1 kHz, R at 0.5 s."""
    time_s = np.arange(-0.5, 0.8, 1 / FS_HZ)
    waves = altered(NORMAL, morphologies)
    return {group: lift(waves.part(group).signal(time_s)) for group in Group}


def lasts_ms(beat, group):
    on, _, off = span_of(np.linalg.norm(beat[group][[0, 1, *range(6, 12)]], axis=0), FS_HZ, 0)
    return 1000 * (off - on)


def axis_deg(wave):
    area = wave.sum(axis=1)
    return np.rad2deg(np.arctan2(2 / np.sqrt(3) * area[LEADS.index("aVF")], area[0]))


def largest(wave, lead, sign=1):
    return sign * (sign * wave[LEADS.index(lead)]).max()


def test_the_reference_beat_is_the_published_one():
    reference = beat()
    on = {g: span_of(np.linalg.norm(w[[0, 1, *range(6, 12)]], axis=0), FS_HZ, 0) for g, w in reference.items()}
    assert 1000 * (on[Group.QRS][0] - on[Group.P][0]) == pytest.approx(168, abs=2.5)
    assert 1000 * (on[Group.T][2] - on[Group.QRS][0]) == pytest.approx(396, abs=3)
    assert lasts_ms(reference, Group.QRS) == pytest.approx(88, abs=2)
    assert lasts_ms(reference, Group.P) == pytest.approx(112, abs=3)
    assert [axis_deg(reference[g]) for g in (Group.P, Group.QRS, Group.T)] == pytest.approx([78, 53, 50], abs=1.5)
    whole = sum(reference.values())
    for lead, r_mv in zip(("I", "II", "III", *(f"V{k}" for k in range(1, 7))), R_MV, strict=True):
        assert largest(whole, lead) == pytest.approx(r_mv, abs=0.012 if r_mv > 0.4 else 0.05), lead
    for lead, s_mv in zip(("V1", "V2", "V3", "V4"), (-0.95, -1.11, -1.03, -0.54), strict=True):
        assert largest(whole, lead, -1) == pytest.approx(s_mv, abs=0.012), lead
    for lead, t_mv in zip(("II", "V2", "V3", "V5"), (0.25, 0.39, 0.60, 0.39), strict=True):
        assert largest(reference[Group.T], lead) == pytest.approx(t_mv, abs=0.012), lead


R_MV = (0.66, 0.92, 0.33, 0.29, 0.43, 0.86, 1.41, 1.45, 1.16)


@pytest.mark.parametrize(("name", "qrs_ms"), [("rbbb", 136), ("lbbb", 142), ("wpw", 132), ("lvh", 95), ("rvh", 90)])
def test_qrs_lasts_as_long_as_the_morphology_says(name, qrs_ms):
    assert lasts_ms(beat(name), Group.QRS) == pytest.approx(qrs_ms, abs=6)


def test_each_morphology_has_its_marks():
    rbbb, lbbb, lvh, rvh = (beat(name) for name in ("rbbb", "lbbb", "lvh", "rvh"))
    late = round(0.54 * FS_HZ)
    v1 = rbbb[Group.QRS][LEADS.index("V1")]
    assert v1[late:].max() == pytest.approx(1.01, abs=0.12)
    assert v1[:late].min() < -0.1
    assert largest(rbbb[Group.QRS], "V6", -1) == pytest.approx(-0.61, abs=0.12)
    assert largest(rbbb[Group.T], "V1", -1) < -0.1
    assert largest(lbbb[Group.QRS], "V1", -1) == pytest.approx(-1.36, abs=0.12)
    assert largest(lbbb[Group.QRS], "V1") < 0.05
    assert largest(lbbb[Group.QRS], "V6") == pytest.approx(1.10, abs=0.12)
    assert largest(lbbb[Group.QRS], "V6", -1) > -0.05
    assert largest(lbbb[Group.T], "V6", -1) == pytest.approx(-0.42, abs=0.05)
    sokolow = largest(lvh[Group.QRS], "V5") - largest(lvh[Group.QRS], "V1", -1)
    assert sokolow == pytest.approx(4.46, abs=0.15)
    assert largest(lvh[Group.T], "V6", -1) < -0.1
    assert axis_deg(rvh[Group.QRS]) == pytest.approx(98, abs=4)
    assert largest(rvh[Group.QRS], "V1") == pytest.approx(0.74, abs=0.08)


def at_j60(beat):
    qrs = np.linalg.norm(beat[Group.QRS][[0, 1, *range(6, 12)]], axis=0)
    j = np.flatnonzero(qrs > 0.05 * qrs.max())[-1] + round(0.06 * FS_HZ)
    return dict(zip(LEADS, sum(beat.values())[:, j], strict=True))


def test_st_is_raised_or_lowered_where_it_should_be():
    usual, front, low, down = (
        at_j60(beat(*names))
        for names in ((), ("st_elevation_anterior",), ("st_elevation_inferior",), ("st_depression",))
    )
    assert front["V2"] == pytest.approx(0.325, abs=0.03)
    assert front["V3"] == pytest.approx(0.395, abs=0.03)
    assert low["II"] == pytest.approx(0.25, abs=0.03)
    assert low["III"] == pytest.approx(0.325, abs=0.03)
    assert low["aVF"] == pytest.approx(0.285, abs=0.03)
    assert low["aVL"] == pytest.approx(-0.195, abs=0.03)
    for lead in ("V4", "V5", "V6", "I", "II"):
        assert down[lead] - usual[lead] < -0.05, lead
    assert down["aVR"] > usual["aVR"] + 0.05


def test_a_depressed_st_is_below_the_line():
    down = at_j60(beat("st_depression"))
    assert min(down["V4"], down["V5"], down["V6"]) < -0.1


def test_long_qt_is_long_and_low_voltage_low():
    long = beat("long_qt")
    on, off = (span_of(np.linalg.norm(long[g][[0, 1, *range(6, 12)]], axis=0), FS_HZ, 0) for g in (Group.QRS, Group.T))
    assert 1000 * (off[2] - on[0]) == pytest.approx(510, abs=8)
    low, usual = beat("low_voltage"), beat()
    for group in Group:
        np.testing.assert_allclose(low[group], 0.4 * usual[group], atol=1e-12)


def test_pr_is_short_in_wpw_by_delta_wave_and_early_conduction():
    shorter = []
    for index in range(12):
        usual, wpw = (simulate(2, index, 5.0, rhythm="sinus", morphologies=m).truth.pr_ms for m in ((), ("wpw",)))
        shorter.append(usual - wpw)
    # The delta wave takes 44 ms of PR, and the P wave comes 20 ms later.
    assert np.mean(shorter) == pytest.approx(62, abs=8)


def test_morphologies_that_cannot_be_together_are_refused():
    for names in (("rbbb", "lbbb"), ("lvh", "rvh"), ("wpw", "lbbb"), ("st_depression", "st_elevation_anterior")):
        with pytest.raises(InputError, match="one heart"):
            check(names, "sinus")
    with pytest.raises(InputError, match="one heart"):
        check(("wpw",), "av_block_1")
    with pytest.raises(InputError, match="no morphology"):
        check(("brugada",), "sinus")
    assert check(("long_qt", "rvh", "rbbb", "rvh"), "sinus") == ("rvh", "rbbb", "long_qt")


def test_every_pair_that_is_allowed_makes_a_heart():
    for pair in itertools.combinations(MORPHOLOGIES, 2):
        if compatible(pair, "sinus"):
            heart = heart_of(person_of(3), *pair)
            ecg = rendered(heart, steady(0.9), 4.0)
            assert 0.1 < np.abs(ecg).max() < 12
            qrs, t = heart.qrs[BeatKind.NORMAL], heart.t[BeatKind.NORMAL]
            assert qrs.onset_s < qrs.peak_s < qrs.offset_s
            assert t.onset_s < t.peak_s < t.offset_s
            assert t.offset_s > qrs.offset_s


def test_rotations_are_rotations_about_each_axis_in_turn():
    rng = np.random.default_rng(0)
    x, y, z = rng.uniform(-180, 180, (3, 50))
    turns = rotations(x, y, z)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-12)
    np.testing.assert_allclose(rotation(z_deg=90.0) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation(x_deg=90.0) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation(y_deg=90.0) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    apart = rotation(z_deg=z[0]) @ rotation(y_deg=y[0]) @ rotation(x_deg=x[0])
    np.testing.assert_allclose(turns[0], apart, atol=1e-12)


def test_the_matrices_are_those_of_the_literature():
    # Edenbrandt and Pahlm's inverse Dower, of which this is the pseudo-inverse.
    inverse = np.array(
        [
            [0.156, -0.010, -0.172, -0.074, 0.122, 0.231, 0.239, 0.194],
            [-0.227, 0.887, 0.057, -0.019, -0.106, -0.022, 0.041, 0.048],
            [0.022, 0.102, -0.229, -0.310, -0.246, -0.063, 0.055, 0.108],
        ]
    )
    np.testing.assert_allclose(np.linalg.pinv(DOWER), inverse, atol=6e-4)
    # Guillem's columns are V1..V6, I, II.
    guillem = np.array(
        [
            [-0.266, 0.027, 0.065, 0.131, 0.203, 0.220, 0.370, -0.154],
            [0.088, -0.088, 0.003, 0.042, 0.047, 0.067, -0.131, 0.717],
            [-0.319, -0.198, -0.167, -0.099, 0.009, 0.060, 0.184, 0.114],
        ]
    )[:, [6, 7, 0, 1, 2, 3, 4, 5]]
    np.testing.assert_allclose(np.linalg.pinv(ATRIAL), guillem, atol=2e-3)


def test_a_turn_to_an_axis_gives_that_axis_by_the_smaller_angle():
    rng = np.random.default_rng(1)
    for area in rng.normal(0, 1, (200, 3)) * [1, 1, 0.3]:
        wanted = rng.uniform(-180, 180)
        if np.hypot(*area[:2]) < 0.5:
            continue
        turn = turned_to_axis(area, wanted)
        missed = (frontal_axis_deg(turn @ area) - wanted + 180) % 360 - 180
        assert abs(missed) < 1e-6
        assert turn[2, 2] == pytest.approx(1)
        sideways = lift((DOWER @ (turn @ area))[:, None])[:, 0]
        shown = np.rad2deg(np.arctan2(2 / np.sqrt(3) * sideways[LEADS.index("aVF")], sideways[0]))
        assert (shown - wanted + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)


def measured(heart, rr_s=1.0):
    """Give the waves of one rendered beat alone, 12 leads."""
    rhythm = steady(rr_s, 3)
    start = round((rhythm.r_s[2] - 0.45) * FS_HZ)
    return {
        group: lift(rendered(alone(heart, group), rhythm, 3.0))[:, max(start, 0) : max(start, 0) + 1100]
        for group in Group
    }


def test_the_axes_of_the_signal_are_those_of_the_person():
    for seed in range(40):
        person = person_of(seed)
        waves = measured(heart_of(person, seed=seed, day=seed))
        if person.subtype == "early_repolarisation":
            continue  # Its raised J point is added to T afterwards, and turns T by 3 degrees.
        for group, wanted in (
            (Group.P, person.p_axis_deg),
            (Group.QRS, person.axis_deg),
            (Group.T, person.t_axis_deg),
        ):
            missed = (axis_deg(waves[group]) - wanted + 180) % 360 - 180
            assert missed == pytest.approx(0, abs=1.0), group


def test_the_intervals_of_the_signal_are_those_of_the_person():
    errors = []
    for seed in range(25):
        person = person_of(seed)
        heart = heart_of(person, seed=seed, day=seed)
        rhythm = steady(1.0, 3, pr_s=person.pr_ms / 1000)
        at = round((rhythm.r_s[2] - 0.45) * FS_HZ)
        spans = {
            g: span_of(np.linalg.norm(rendered(alone(heart, g), rhythm, 3.0)[:, at : at + 1100], axis=0), FS_HZ, 0)
            for g in Group
        }
        pr_s, qrs_s = spans[Group.QRS][0] - spans[Group.P][0], spans[Group.QRS][2] - spans[Group.QRS][0]
        # Residual and placement move the bounds of a single heart by some milliseconds.
        assert 1000 * pr_s == pytest.approx(person.pr_ms, abs=6)
        assert 1000 * qrs_s == pytest.approx(person.qrs_ms, abs=7)
        errors.append((1000 * pr_s - person.pr_ms, 1000 * qrs_s - person.qrs_ms))
        if person.subtype == "usual":
            assert 1000 * (spans[Group.T][2] - spans[Group.QRS][0]) == pytest.approx(person.qtcf_ms, abs=8)
            assert 1000 * (spans[Group.P][2] - spans[Group.P][0]) == pytest.approx(person.p_ms, abs=9)
    np.testing.assert_allclose(np.mean(errors, axis=0), 0, atol=1.5)


def test_qt_follows_the_cube_root_of_the_interval():
    heart = heart_of(person_of(5))
    qt_s = []
    for rr_s in (0.6, 0.8, 1.0, 1.4):
        rhythm = steady(rr_s)
        ecg = rendered(alone(heart, Group.T), rhythm, 5.0)
        on_s = rhythm.r_s[4] + heart.qrs[BeatKind.NORMAL].onset_s
        first = round(on_s * FS_HZ)
        last = first + round(min(rr_s, 0.75) * FS_HZ)
        qt_s.append(span_of(np.linalg.norm(ecg[:, first:last], axis=0), FS_HZ, first / FS_HZ)[2] - on_s)
    np.testing.assert_allclose(np.array(qt_s) / qt_s[2], np.cbrt([0.6, 0.8, 1.0, 1.4]), rtol=0.012)


def test_qt_follows_a_change_of_rate_over_several_beats():
    r_s = np.concatenate([np.arange(-4.0, 20.0), 20 + 0.6 * np.arange(1, 60)])
    n = r_s.size
    rhythm = replace(steady(1.0), r_s=r_s, kind=np.zeros(n, np.int64), p_s=r_s, pr_s=np.full(n, 0.16))
    rhythm = replace(rhythm, p_beat=np.arange(n), p_premature=np.zeros(n, bool))
    told = told_of(heart_of(person_of(5)), rhythm)
    qt_s = told.t_off_s - told.qrs_on_s
    first, later, last = qt_s[25] / qt_s[20], qt_s[30] / qt_s[20], qt_s[-1] / qt_s[20]
    assert first > 0.95
    assert last == pytest.approx(np.cbrt(0.6), abs=0.003)
    assert last < later < first


def transition_of(qrs):
    """Give the precordial lead, 1 to 6, where R grows as large as S."""
    ratio = np.log(qrs[6:].max(axis=1) / np.maximum(-qrs[6:].min(axis=1), 1e-3))
    k = int((ratio >= 0).argmax())
    return 1.0 if k == 0 else k + ratio[k - 1] / (ratio[k - 1] - ratio[k])


def test_a_positive_turn_moves_the_precordial_transition_leftwards():
    for axis in (0.0, 50.0):
        right, usual, left = (
            np.mean(
                [
                    transition_of(measured(heart_of(person_of(k, transition_deg=d, axis_deg=axis), seed=k))[Group.QRS])
                    for k in range(8)
                ]
            )
            for d in (-20.0, 0.0, 20.0)
        )
        assert right + 0.25 < usual < left - 0.25


def test_lead_laws_hold_to_rounding():
    worst = 0.0
    for index in range(30):
        rhythm = RHYTHMS[index % len(RHYTHMS)]
        clean_mv = simulate(3, index, 5.0, "stress", rhythm=rhythm, noise=False).clean_mv
        twelve = lift(clean_mv)
        worst = max(worst, np.abs(law_residuals(twelve)).max())
    assert worst < 1e-12
    assert np.linalg.matrix_rank(LIFT) == 8


def shares_of_three(indices, population="healthy"):
    shares = []
    for index in indices:
        clean_mv = simulate(0, index, 10.0, population, noise=False).clean_mv
        energy = np.linalg.svd(clean_mv, compute_uv=False) ** 2
        shares.append(energy[:3].sum() / energy.sum())
    return np.array(shares)


def test_no_heart_is_a_dipole():
    assert shares_of_three(range(40)).max() < 0.9999


def test_three_principal_components_hold_what_they_hold_in_people():
    shares = shares_of_three(range(40))
    assert 0.97 < np.median(shares) < 0.99
    assert shares.min() > 0.96
    assert np.quantile(shares, 0.9) < 0.995


def test_the_residual_is_a_person_s_own_no_dipole_s_and_not_in_the_limb_leads():
    hearts = [heart_of(person_of(9), seed=seed, day=0) for seed in range(60)]
    residuals = np.stack([heart.normal.residual_mv for heart in hearts])
    assert not residuals[:, :2].any()
    waves = residuals[:, 2:, np.abs(residuals).max(axis=(0, 1)) > 0]
    assert waves.size
    # Nothing of it is what a dipole makes in these leads.
    basis = np.linalg.qr(DOWER[2:])[0]
    dipolar = np.einsum("ld,nlw->ndw", basis, waves)
    assert np.square(dipolar).sum() < 1e-3 * np.square(waves).sum()
    assert np.abs(waves.mean(axis=0)).max() < 0.6 * waves.std(axis=0).max()


def test_low_voltage_leaves_the_share_of_the_residual():
    shares = []
    for names in ((), ("low_voltage",)):
        ecgs = [rendered(heart_of(person_of(k), *names, seed=k), steady(0.9), 4.0) for k in range(12)]
        energies = [np.linalg.svd(ecg, compute_uv=False) ** 2 for ecg in ecgs]
        shares.append(np.mean([energy[3:].sum() / energy.sum() for energy in energies]))
    assert shares[1] == pytest.approx(shares[0], rel=0.3)


def test_voltages_are_in_proportion_to_the_gain():
    small, large = (rendered(heart_of(person_of(4, gain=gain)), steady(0.9), 3.0) for gain in (0.5, 1.0))
    np.testing.assert_allclose(large, 2 * small, atol=1e-9)


def test_breathing_turns_and_scales_the_beats_at_its_own_rate():
    heart = heart_of(person_of(4))
    rhythm = replace(steady(0.4, 130), breathing=Breathing(0.25, 0.0))
    ecg = rendered(alone(heart, Group.QRS), rhythm, 50.0)
    at = np.rint(rhythm.r_s[4:-12] * FS_HZ).astype(int)
    tops = np.stack([ecg[:, k - 30 : k + 60].max(axis=1) for k in at])
    breath = rhythm.breathing.at(rhythm.r_s[4:-12])
    # Up to 4 degrees and 3 %.
    assert 0.005 < tops[:, 6].std() / tops[:, 6].mean() < 0.15
    assert np.abs(np.corrcoef(tops[:, 6], breath)[0, 1]) > 0.9
    still = rendered(alone(heart, Group.QRS), steady(0.4, 130), 50.0)
    assert np.stack([still[:, k - 30 : k + 60].max(axis=1) for k in at]).std(axis=0).max() < 1e-9


def test_f_waves_are_as_large_and_as_fast_as_published():
    sizes = []
    for seed in range(12):
        heart = heart_of(person_of(seed, gain=1.0), seed=seed, day=seed)
        f_mv = f_waves(np.random.default_rng(seed), heart, 30_000, 500.0)
        power = np.abs(np.fft.rfft(f_mv[2] - f_mv[2].mean())) ** 2
        f_hz = np.fft.rfftfreq(30_000, 1 / 500.0)
        assert f_hz[power.argmax()] == pytest.approx(heart.f_hz, abs=0.9)
        assert 4 < heart.f_hz < 9
        band = (f_hz > 3) & (f_hz < 30)
        assert power[band].sum() / power.sum() > 0.97
        sizes.append(f_mv[2].std())
    assert 0.02 < np.mean(sizes) < 0.11


def test_in_fibrillation_there_are_f_waves_and_no_p():
    af = simulate(1, 4, 20.0, rhythm="atrial_fibrillation", morphologies=())
    assert np.isnan(af.truth.beats.p_on_s).all()
    assert np.isnan(af.truth.pr_ms)
    assert np.isnan(af.truth.p_axis_deg)
    heart, sinus, none = heart_of(person_of(4, gain=1.0)), steady(1.1, 50), np.empty(0)
    rhythm = replace(
        sinus, fibrillates=True, p_s=none, pr_s=none, p_beat=none.astype(int), p_premature=none.astype(bool)
    )
    at = np.rint(FS_HZ * sinus.r_s[4:-6]).astype(int)
    p_mv, f_mv = (
        np.stack([ecg[1, k - 220 : k - 60] for k in at])
        for ecg in (rendered(heart, one, sinus.r_s[-5]) for one in (sinus, rhythm))
    )
    assert np.ptp(p_mv.mean(axis=0)) > 0.05
    assert p_mv.std(axis=0).max() < 1e-3
    assert np.ptp(f_mv.mean(axis=0)) < 0.5 * np.ptp(p_mv.mean(axis=0))
    assert f_mv.std(axis=0).mean() > 0.008


def test_a_wave_s_span_is_where_its_magnitude_passes_a_twentieth():
    # One Gaussian: 5 % is reached sqrt(2 ln 20) deviations from its centre.
    one = Waves.of(Group.QRS, (0.010, 0.012, 0.7, -0.3, 0.4))
    far_s = 0.012 * np.sqrt(2 * np.log(20))
    assert one.span(Group.QRS) == pytest.approx((0.010 - far_s, 0.010, 0.010 + far_s), abs=6e-4)


def test_ectopic_beats_are_wide_of_another_shape_and_repolarise_against_their_qrs():
    widths, likeness, against = [], [], []
    for seed in range(25):
        heart = heart_of(person_of(seed), seed=seed)
        wide, usual = (measured(h) for h in (replace(heart, normal=heart.ventricular), heart))
        widths.append(lasts_ms(wide, Group.QRS))
        likeness.append(np.corrcoef(wide[Group.QRS].ravel(), usual[Group.QRS].ravel())[0, 1])
        areas = [wide[group].sum(axis=1) for group in (Group.QRS, Group.T)]
        against.append(np.corrcoef(*areas)[0, 1])
    assert np.mean(widths) > 120
    assert np.median(likeness) < 0.8
    assert np.max(against) < 0


def test_ectopic_beats_are_as_wide_as_published_and_never_narrow():
    hearts = [heart_of(person_of(seed), seed=seed) for seed in range(60)]
    for kind in (BeatKind.VENTRICULAR, BeatKind.ESCAPE):
        widths = [1000 * (heart.qrs[kind].offset_s - heart.qrs[kind].onset_s) for heart in hearts]
        assert np.mean(widths) == pytest.approx(146, abs=8)
        assert min(widths) > 110


def test_a_longer_qrs_or_pr_moves_its_bound_by_as_much():
    for name, group, pairs in (("qrs_ms", Group.QRS, (75.0, 110.0)), ("p_ms", Group.P, (90.0, 130.0))):
        widths = [lasts_ms(measured(heart_of(person_of(7, **{name: value}))), group) for value in pairs]
        assert widths[1] - widths[0] == pytest.approx(pairs[1] - pairs[0], abs=3)
