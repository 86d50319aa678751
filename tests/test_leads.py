from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es.lead_laws import broken, misfit, what_would_mend
from p2es.leads import (
    INDEPENDENT,
    INDEPENDENT_INDEX,
    LEADS,
    LIFT,
    LIMB,
    canonical_lead,
    complete_limb_leads,
    law_residuals,
    lift,
)


def independent(seed=0, time=50):
    return np.random.default_rng(seed).standard_normal((3, 8, time))


def test_lifted_leads_keep_the_laws_and_the_eight():
    eight = independent()
    twelve = lift(eight)
    assert np.abs(law_residuals(twelve)).max() < 1e-12
    np.testing.assert_array_equal(twelve[:, INDEPENDENT_INDEX], eight)
    # Kirchhoff: the three augmented leads cancel, and so do I - II + III.
    np.testing.assert_allclose(twelve[:, 3:6].sum(axis=1), 0, atol=1e-12)


def test_lift_has_full_rank_and_cannot_be_changed():
    assert np.linalg.matrix_rank(LIFT) == len(INDEPENDENT)
    with pytest.raises(ValueError, match="read-only"):
        LIFT[0, 0] = 2


def test_a_broken_lead_shows_in_its_own_law_only():
    twelve = lift(independent())
    for lead, law in (("III", 0), ("aVR", 1), ("aVL", 2), ("aVF", 3)):
        broken = twelve.copy()
        broken[:, LEADS.index(lead)] += 1.0
        off = np.abs(law_residuals(broken)).max(axis=(0, 2))
        assert np.argmax(off) == law
        assert np.count_nonzero(off > 1e-9) == 1


@pytest.mark.parametrize(("first", "second"), list(permutations(LIMB, 2)))
def test_any_two_limb_leads_give_all_six(first, second):
    twelve = lift(independent()[0])
    known = {name: twelve[LEADS.index(name)] for name in (first, second)}
    completed = complete_limb_leads(known)
    for name in LIMB:
        np.testing.assert_allclose(completed[name], twelve[LEADS.index(name)], atol=1e-10)


def test_one_limb_lead_gives_nothing_more_and_chest_leads_pass_through():
    known = {"III": np.ones(4), "V2": np.arange(4.0)}
    assert complete_limb_leads(known) == known


def test_recorded_leads_are_not_replaced():
    known = {"I": np.ones(4), "II": np.ones(4), "III": np.full(4, 7.0)}
    completed = complete_limb_leads(known)
    np.testing.assert_array_equal(completed["III"], 7.0)
    np.testing.assert_array_equal(completed["aVF"], 0.5)


@pytest.mark.parametrize(
    ("spelling", "lead"),
    [
        ("ii", "II"), ("AVR", "aVR"), (" avl ", "aVL"), ("MLII", "II"), ("ECG lead II", "II"), ("ECG_II", "II"),
        ("lead v6", "V6"), ("V", None), ("MCL1", None), ("ECG 1", None), ("vx", None), ("ECG", None), ("", None),
    ],
)  # fmt: skip
def test_leads_are_matched_by_name_and_an_unknown_chest_lead_stays_unknown(spelling, lead):
    assert canonical_lead(spelling) == lead


def test_every_standard_name_is_itself():
    assert [canonical_lead(name) for name in LEADS] == list(LEADS)


SUBSETS = [subset for size in range(2, 7) for subset in combinations(LIMB, size)]


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_every_subset_of_two_or_more_limb_leads_gives_the_six_and_keeps_what_was_observed(subset):
    twelve = lift(independent()[0])
    known = {name: twelve[LEADS.index(name)].astype(np.float32) for name in subset}
    completed = complete_limb_leads(known)
    for name in LIMB:
        np.testing.assert_allclose(completed[name], twelve[LEADS.index(name)], atol=2e-6)
    assert all(completed[name] is known[name] for name in subset)


def limb_leads(seed=0, blocks=3):
    rng = np.random.default_rng(seed)
    return lift(rng.standard_normal((8, blocks * 50)))[:6].reshape(6, blocks, 50)


THREE_OR_MORE = [subset for subset in SUBSETS if len(subset) >= 3]


@given(names=st.sampled_from(THREE_OR_MORE), seed=st.integers(0, 50), data=st.data())
@settings(max_examples=60, deadline=None)
def test_leads_that_belong_together_obey_and_one_scaled_on_its_own_does_not(names, seed, data):
    ecg = limb_leads(seed)[[LIMB.index(name) for name in names]]
    assert not broken(names, ecg).any()
    which = data.draw(st.integers(0, len(names) - 1))
    factor = data.draw(st.sampled_from([-1.0, 0.5, 1.5, 2.0, 10.0]))
    wrong = ecg.copy()
    wrong[which] *= factor
    gap, _ = misfit(names, wrong)
    assert broken(names, wrong).all()
    # A third of what is wrong with a lead shows.
    own = np.sqrt(np.mean(np.square(wrong[which] - ecg[which]), axis=-1))
    assert (gap >= 0.33 * own).all()


@given(gain=st.floats(0.05, 50), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_a_gain_common_to_all_leads_does_not_break_the_laws(gain, seed):
    assert not broken(LIMB, gain * limb_leads(seed)).any()


def test_coarse_steps_do_not_break_the_laws():
    small = 0.05 * limb_leads()
    assert not broken(LIMB, np.round(small * 128) / 128).any()


def test_two_limb_leads_cannot_contradict_each_other():
    ecg = limb_leads()[:2]
    ecg[0] *= 3
    assert not broken(LIMB[:2], ecg).any()


@pytest.mark.parametrize(("a", "b"), list(combinations(range(6), 2)))
def test_exchanged_leads_are_named_where_no_other_change_mends_them(a, b):
    ecg = limb_leads()
    ecg[[a, b]] = ecg[[b, a]]
    assert broken(LIMB, ecg).all()
    assert what_would_mend(LIMB, ecg) == f"{LIMB[a]} and {LIMB[b]} seem to be exchanged"


@pytest.mark.parametrize("a", range(6))
def test_an_inverted_lead_is_named(a):
    ecg = limb_leads()
    ecg[a] *= -1
    assert what_would_mend(LIMB, ecg) == f"{LIMB[a]} seems to be inverted"


def test_nothing_is_guessed_where_nothing_mends():
    ecg = limb_leads()
    ecg[1] *= 1.7
    assert what_would_mend(LIMB, ecg) is None
