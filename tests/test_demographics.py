import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2es.demographics import (
    CAPPED_AGE_YEARS,
    Demographics,
    DemographicScaler,
    Sex,
    parse_number,
    parse_sex,
)
from p2es.errors import InputError


def people(n=200, seed=0):
    rng = np.random.default_rng(seed)
    sex = rng.integers(0, 2, n).astype(float)
    height = 177 - 13 * sex + 7 * rng.standard_normal(n)
    weight = 0.9 * (height - 90) + 10 * rng.standard_normal(n)
    return np.stack([rng.uniform(20, 90, n), sex, height, weight], axis=1)


def with_gaps(rows, seed=1):
    gaps = np.random.default_rng(seed).random(rows.shape) < 0.4
    return np.where(gaps, np.nan, rows)


values = st.one_of(st.none(), st.floats(60, 110))


@given(age=values, height=values, weight=values, sex=st.sampled_from([None, *Sex]))
def test_an_array_gives_the_person_back(age, height, weight, sex):
    person = Demographics(age, sex, height, weight)
    assert Demographics.from_array(person.to_array()) == person


@pytest.mark.parametrize(
    "wrong", [{"age_years": -1}, {"age_years": math.nan}, {"height_cm": 6}, {"weight_kg": 700}, {"height_cm": math.inf}]
)
def test_impossible_people_are_refused_by_field_and_value(wrong):
    with pytest.raises(InputError) as refusal:
        Demographics(**wrong)
    (field, value), *_ = wrong.items()
    assert field in str(refusal.value)
    assert f"{value}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["F", "female", " Female ", "woman"])
def test_female_spellings(text):
    assert parse_sex(text) is Sex.FEMALE


@pytest.mark.parametrize("text", ["", "??", "Unknown", "n/a"])
def test_unknown_sex_is_unknown(text):
    assert parse_sex(text) is None


@pytest.mark.parametrize("text", ["0", "1", "x"])
def test_a_coded_sex_is_not_guessed(text):
    with pytest.raises(InputError):
        parse_sex(text)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        (">89", "age_years", CAPPED_AGE_YEARS), ("300", "age_years", CAPPED_AGE_YEARS), ("63", "age_years", 63.0),
        ("5", "age_years", 5.0), ("??", "age_years", None), ("nan", "age_years", None), ("-3", "age_years", None),
        ("6", "height_cm", None), ("178 cm", "height_cm", 178.0), ("700", "weight_kg", None),
        ("70kg", "weight_kg", 70.0),
    ],
)  # fmt: skip
def test_numbers_as_archives_write_them(text, field, value):
    assert parse_number(text, field) == value


def test_a_known_field_is_kept_and_an_unknown_one_costs_variance():
    rows = people()
    scaler = DemographicScaler.fit(rows)
    gaps = with_gaps(rows)
    mean, variance = scaler.complete(gaps)
    full, none = scaler.complete(rows)
    known = ~np.isnan(gaps)
    np.testing.assert_allclose(mean[known], full[known])
    assert (none == 0).all()
    assert (variance[~known.all(axis=1)] > 0).all()


def test_expected_distances_match_a_simulation_of_the_unknown_fields():
    scaler = DemographicScaler.fit(people())
    rng = np.random.default_rng(3)
    mean, cov = np.array(scaler.mean), np.array(scaler.covariance)
    scale = np.sqrt(np.diag(cov))
    x = np.array([55.0, np.nan, 170.0, np.nan])
    y = np.array([60.0, 1.0, 160.0, 70.0])
    known = ~np.isnan(x)
    gain = cov[np.ix_(~known, known)] @ np.linalg.inv(cov[np.ix_(known, known)])
    centre = mean[~known] + gain @ (x[known] - mean[known])
    spread = cov[np.ix_(~known, ~known)] - gain @ cov[np.ix_(known, ~known)]
    drawn = np.tile(x, (200_000, 1))
    drawn[:, ~known] = rng.multivariate_normal(centre, spread, len(drawn))
    simulated = np.mean(np.sum(((drawn - y) / scale) ** 2, axis=1))
    index, query = scaler.index_coordinates(x[None]), scaler.query_coordinates(y[None])
    assert np.sum((index - query) ** 2) == pytest.approx(simulated, rel=0.02)


def test_more_that_is_known_never_adds_variance():
    scaler = DemographicScaler.fit(people())
    row = np.array([[50.0, 1.0, 165.0, 60.0]])
    variances = []
    for missing in range(5):
        gaps = row.copy()
        gaps[:, 4 - missing :] = np.nan
        variances.append(scaler.complete(gaps)[1][0])
    assert (np.diff(variances) > 0).all()
    assert variances[-1] == pytest.approx(4.0)


def test_few_people_fall_back_to_the_general_population():
    one = DemographicScaler.fit(np.array([[50.0, 1.0, np.nan, np.nan]]))
    assert one.mean[2] == pytest.approx(168.0)
    assert np.isfinite(one.index_coordinates(np.full((1, 4), np.nan))).all()
