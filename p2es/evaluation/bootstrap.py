"""Averages over people and their bootstrap, for any number of figures at once.

Each person has the same weight, however many windows are theirs, and people are what is resampled: windows of one
person are alike, so an interval over windows would be too narrow. A draw is kept as how often each person is in it, so
that everything that is made of means (SD, slopes, kappa) is one matrix product, (draw, person) by (person, figure).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.columns import comparable, of_system, strings

Array = NDArray[np.float64]
Figure = dict[str, Any]
"""`value`, `low`, `high` (95 % interval; None where not defined), `unit`, `n` (people)."""

INTERVAL = (0.025, 0.975)
# A cumulated weight within this share of a quantile's is at it: sums of thirds are not exact.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class People:
    """Whose each row is, and the bootstrap draws.

    Attributes
    ----------
    code : array (row,)
        The row's person.
    counts : array (draw, person)
        How often a person is in a draw.
    """

    code: NDArray[np.intp]
    counts: Array

    @classmethod
    def of(cls, person: NDArray[np.str_], *, bootstrap: int, seed: int) -> "People":
        """Draw people with replacement, as many as there are.

        Parameters
        ----------
        person : array (row,)
        bootstrap : int
            Draws.
        seed : int
        """
        names, code = np.unique(person, return_inverse=True)
        n = len(names)
        drawn = np.random.default_rng(seed).integers(0, max(n, 1), (bootstrap, n))
        flat = (drawn + n * np.arange(bootstrap)[:, None]).ravel()
        return cls(code, np.bincount(flat, minlength=bootstrap * n).reshape(bootstrap, n).astype(np.float64))

    @property
    def number(self) -> int:
        """People."""
        return int(self.counts.shape[1])

    def rows(self, chosen: NDArray[Any]) -> "People":
        """Give the same people and draws for some of the rows."""
        return People(self.code[chosen], self.counts)

    def means(self, values: Array) -> Array:
        """Average the finite values (row, ...) of each person, (person, ...); NaN where there is none."""
        good = np.isfinite(values)
        total, count = np.zeros((self.number, *values.shape[1:])), np.zeros((self.number, *values.shape[1:]))
        np.add.at(total, self.code, np.where(good, values, 0.0))
        np.add.at(count, self.code, good)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def average(self, means: Array) -> tuple[Array, Array]:
        """Average over people.

        Parameters
        ----------
        means : array (person, ...)
            NaN for who has none.

        Returns
        -------
        value : array (...)
            The mean; NaN where nobody has one.
        draws : array (draw, ...)
            The mean of each bootstrap draw.
        """
        good = np.isfinite(means)
        flat = (self.number, prod(means.shape[1:]))
        filled = np.where(good, means, 0.0).reshape(flat)
        weight = good.reshape(flat).astype(np.float64)
        everyone = np.concatenate([np.ones((1, self.number)), self.counts])
        with np.errstate(invalid="ignore", divide="ignore"):
            result = ((everyone @ filled) / (everyone @ weight)).reshape(-1, *means.shape[1:])
        return result[0], result[1:]

    def weights(self, used: NDArray[np.bool_]) -> Array:
        """Give each used row one over the number of its person's used rows, the others 0."""
        count = np.bincount(self.code[used], minlength=self.number)
        return np.where(used, 1.0 / np.maximum(count[self.code], 1), 0.0)

    def quantile(self, values: Array, share: float) -> tuple[float, Array]:
        """Give a quantile of the finite values (row,), each person with the same weight.

        The mean of the smallest value up to which lies at least `share` of the weight and the smallest up to which
        lies more: the usual median where everybody has one row.

        Returns
        -------
        value : float
        draws : array (draw,)
        """
        kept = np.flatnonzero(np.isfinite(values))
        order = kept[np.argsort(values[kept], kind="stable")]
        if not order.size:
            return np.nan, np.full(len(self.counts), np.nan)
        used = np.zeros(len(values), np.bool_)
        used[kept] = True
        sizes, whose, ordered = self.weights(used)[order], self.code[order], values[order]
        everyone = np.concatenate([np.ones((1, self.number)), self.counts])
        found = np.array([_weighted_quantile(ordered, sizes * draw[whose], share) for draw in everyone])
        return float(found[0]), found[1:]

    def median(self, means: Array) -> tuple[float, Array]:
        """Give the median over people of (person,), and that of each draw."""
        everybody = People(np.arange(self.number), self.counts)
        return everybody.quantile(means, 0.5)


def each_system(rows: pa.Table, *, bootstrap: int, seed: int) -> Iterator[tuple[str, pa.Table, People]]:
    """Give each system that stands beside others, its rows and whose they are; the draws are the same for all."""
    people = People.of(strings(rows, "person"), bootstrap=bootstrap, seed=seed)
    system = strings(rows, "system")
    for name in comparable(rows):
        yield name, of_system(rows, name), people.rows(system == name)


def _weighted_quantile(ordered: Array, weights: Array, share: float) -> float:
    below = np.cumsum(weights)
    if below[-1] <= 0:
        return float("nan")
    aim = share * below[-1]
    slack = _ROUNDING * below[-1]
    places = np.searchsorted(below, [aim - slack, aim + slack], side="left")
    return float(ordered[np.minimum(places, len(ordered) - 1)].mean())


def packed(value: float, draws: Array, unit: str, n: int) -> Figure:
    """Make a `Figure` of a value and its bootstrap draws, of which those that are not finite are left out."""
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, INTERVAL) if draws.size else (np.nan, np.nan)
    plain = [float(x) if np.isfinite(x) else None for x in (value, low, high)]
    return {"value": plain[0], "low": plain[1], "high": plain[2], "unit": unit, "n": n}


def mean_figure(values: Array, people: People, unit: str) -> Figure:
    """Average the finite values (row,) within people, then over people."""
    means = people.means(values)
    value, draws = people.average(means)
    return packed(float(value), draws, unit, int(np.isfinite(means).sum()))
