from itertools import permutations

import numpy as np
import pytest

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
