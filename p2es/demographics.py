"""What is known of a person: age, sex, height, weight, any of which may be missing."""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from p2es.errors import InputError

FIELDS = ("age_years", "sex", "height_cm", "weight_kg")

# Adults outside these are typing errors (height 6, weight 700) more often than people.
_PLAUSIBLE = {"age_years": (0.0, 120.0), "height_cm": (50.0, 250.0), "weight_kg": (20.0, 350.0)}

# Privacy rules fold every age above 89 into one group (HIPAA Safe Harbor); such ages are stored as this.
CAPPED_AGE_YEARS = 90.0


class Sex(StrEnum):
    """Sex as archives record it."""

    FEMALE = "F"
    MALE = "M"


@dataclass(frozen=True)
class Demographics:
    """Age in years, sex, height in cm and weight in kg; None where unknown."""

    age_years: float | None = None
    sex: Sex | None = None
    height_cm: float | None = None
    weight_kg: float | None = None

    def __post_init__(self) -> None:
        for field, (low, high) in _PLAUSIBLE.items():
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise InputError(f"{field} is {value}, outside {low:g} to {high:g}: correct it or leave it out")

    @property
    def body_mass_index(self) -> float | None:
        """Weight over height squared, kg/m^2; None when either is unknown."""
        if self.height_cm is None or self.weight_kg is None:
            return None
        return self.weight_kg / (self.height_cm / 100) ** 2

    def to_array(self) -> NDArray[np.float64]:
        """Give the fields in the order of `FIELDS`; female is 1, male 0, unknown is NaN."""
        sex = None if self.sex is None else float(self.sex is Sex.FEMALE)
        values = (self.age_years, sex, self.height_cm, self.weight_kg)
        return np.array([math.nan if value is None else value for value in values])

    @classmethod
    def from_array(cls, values: NDArray[np.floating]) -> "Demographics":
        """Undo `to_array`."""
        age, sex, height, weight = (None if math.isnan(value) else float(value) for value in values)
        return cls(age, None if sex is None else (Sex.FEMALE if sex >= 0.5 else Sex.MALE), height, weight)


def parse_sex(text: str) -> Sex | None:
    """Read a sex as archives spell it; None for a spelling that means unknown.

    Digits are refused on purpose: 0 is male in PTB-XL and female elsewhere, so a reader must map them itself.
    """
    key = text.strip().lower()
    if key in {"f", "female", "woman", "w"}:
        return Sex.FEMALE
    if key in {"m", "male", "man"}:
        return Sex.MALE
    if key in {"", "?", "??", "unknown", "u", "n/a", "nan", "none", "o", "other"}:
        return None
    raise InputError(f"sex {text!r} is not understood: write F, M or leave it out")


def parse_number(text: str, field: str) -> float | None:
    """Read an age, height or weight as archives write it; None when unknown or impossible.

    An age above 89, written `>89` or as a code such as 300 (MIMIC), becomes `CAPPED_AGE_YEARS`. An impossible
    value (height 6) counts as unknown: it says nothing, and the recording is still good.
    """
    key = text.strip().lower().removesuffix("years").removesuffix("cm").removesuffix("kg").strip()
    if field == "age_years" and key.startswith(">"):
        return CAPPED_AGE_YEARS
    try:
        value = float(key)
    except ValueError:
        return None
    if field == "age_years" and 89 < value <= 320:
        return CAPPED_AGE_YEARS
    low, high = _PLAUSIBLE[field]
    return value if math.isfinite(value) and low <= value <= high else None


@dataclass(frozen=True)
class DemographicScaler:
    """Distances between people of whom some fields are unknown: expected squared distances.

    An unknown field is filled by its mean given the known ones, under a Gaussian fitted to the complete people,
    and its conditional variance is added to the squared distance:
    ``E|x - y|^2 = |m_x - m_y|^2 + v_x + v_y`` in units of each field's standard deviation.
    For one query x, v_x is the same for every neighbour, so ``[m, sqrt(v)]`` against a query ``[m, 0]`` gives the
    same order (and, with v_x added, the same value) with one more coordinate: exact in any k-nearest-neighbour index.

    Attributes
    ----------
    mean, covariance : tuple
        (4,) and (4, 4), in the units of `Demographics.to_array`.
    """

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @classmethod
    def fit(cls, people: NDArray[np.float64]) -> "DemographicScaler":
        """Fit mean and covariance to the complete rows of `people` (n, 4); variances have a floor."""
        complete = people[~np.isnan(people).any(axis=1)]
        if len(complete) >= 8:
            mean, covariance = complete.mean(axis=0), np.cov(complete, rowvar=False)
        else:
            # Too few complete people for correlations: adults of the general population, fields independent.
            mean = np.array([50.0, 0.5, 168.0, 75.0])
            covariance = np.diag(np.square([17.0, 0.5, 10.0, 15.0]))
        floor = np.square([1.0, 0.1, 1.0, 1.0])
        covariance = covariance + np.diag(np.maximum(floor - np.diag(covariance), 0.0) + 1e-6 * floor)
        return cls(tuple(map(float, mean)), tuple(tuple(map(float, row)) for row in covariance))

    def complete(self, people: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fill what is unknown.

        Parameters
        ----------
        people : array (n, 4)
            Rows of `Demographics.to_array`; NaN is unknown.

        Returns
        -------
        mean : array (n, 4)
            Standardised fields, unknown ones at their conditional mean.
        variance : array (n,)
            Sum of the conditional variances of the unknown fields, standardised.
        """
        mu, cov = np.array(self.mean), np.array(self.covariance)
        scale = np.sqrt(np.diag(cov))
        filled = np.array(people, dtype=np.float64)
        variance = np.zeros(len(people))
        for pattern in np.unique(np.isnan(people), axis=0):
            rows = (np.isnan(people) == pattern).all(axis=1)
            missing, known = np.flatnonzero(pattern), np.flatnonzero(~pattern)
            if missing.size == 0:
                continue
            gain = np.linalg.solve(cov[np.ix_(known, known)], cov[np.ix_(known, missing)]).T
            filled[np.ix_(rows, missing)] = mu[missing] + (people[np.ix_(rows, known)] - mu[known]) @ gain.T
            conditional = cov[np.ix_(missing, missing)] - gain @ cov[np.ix_(known, missing)]
            variance[rows] = np.sum(np.diag(conditional) / scale[missing] ** 2)
        return (filled - mu) / scale, variance

    def index_coordinates(self, people: NDArray[np.float64]) -> NDArray[np.float32]:
        """Give the coordinates to index, (n, 5): the completed fields and the root of the variance."""
        mean, variance = self.complete(people)
        return np.concatenate([mean, np.sqrt(variance)[:, None]], axis=1).astype(np.float32)

    def query_coordinates(self, people: NDArray[np.float64]) -> NDArray[np.float32]:
        """Give the coordinates to query with, (n, 5): the completed fields and 0."""
        mean, _ = self.complete(people)
        return np.concatenate([mean, np.zeros((len(mean), 1))], axis=1).astype(np.float32)
