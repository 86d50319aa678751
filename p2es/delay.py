"""The delay from R peak to pulse, as a distribution given the person.

The absolute time of an R peak is known from a pulse only up to the device's delay (0.3 to 0.6 s in real data). The
delay of an unseen recording is therefore drawn, never measured on its own ECG: mean by a linear regression on age and
height (a longer path, a stiffer wall), spread by what the regression leaves between recordings.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_CONFIDENCE = 0.3
"""Recordings whose delay is less sure than this do not enter the law, and are aligned by it."""
_LIMITS_S = (0.05, 0.9)
_COLUMNS = (0, 2)  # age and height of Demographics.to_array
_CENTRE = np.array([50.0, 168.0])
_SPREAD = np.array([17.0, 10.0])


@dataclass(frozen=True)
class DelayLaw:
    """Delay ~ N(intercept + slopes . [age, height], spread), seconds; fields unknown count as average."""

    intercept_s: float = 0.4
    slopes_s: tuple[float, float] = (0.0, 0.0)
    spread_s: float = 0.1

    @staticmethod
    def _features(people: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.nan_to_num((people[:, _COLUMNS] - _CENTRE) / _SPREAD)

    @classmethod
    def fit(
        cls, people: NDArray[np.float64], delay_s: NDArray[np.floating], confidence: NDArray[np.floating]
    ) -> "DelayLaw":
        """Fit to recordings.

        Parameters
        ----------
        people : array (n, 4)
            `Demographics.to_array`.
        delay_s, confidence : array (n,)
            Measured delays; those below `MIN_CONFIDENCE` are left out. With fewer than 10 the default stays.
        """
        sure = np.isfinite(delay_s) & (confidence >= MIN_CONFIDENCE)
        if sure.sum() < 10:
            return cls()
        design = np.column_stack([np.ones(sure.sum()), cls._features(people[sure])])
        target = delay_s[sure].astype(np.float64)
        # A little ridge on the slopes: a set of one age must not invent an effect of age.
        ridge = np.diag([0.0, 1.0, 1.0])
        solution = np.linalg.solve(design.T @ design + ridge, design.T @ target)
        spread = float(np.std(target - design @ solution, ddof=3))
        return cls(float(solution[0]), (float(solution[1]), float(solution[2])), max(spread, 0.005))

    def mean_s(self, people: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the expected delay of each person, (n,), seconds."""
        return np.clip(self.intercept_s + self._features(people) @ np.array(self.slopes_s), *_LIMITS_S)

    def draw_s(self, people: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn standard normal draws (n,) into delays, seconds."""
        return np.clip(self.mean_s(people) + self.spread_s * normal, *_LIMITS_S)

    def best_s(
        self, people: NDArray[np.float64], delay_s: NDArray[np.floating], confidence: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Give the measured delay where it is sure, the expected one elsewhere: for training only."""
        sure = np.isfinite(delay_s) & (confidence >= MIN_CONFIDENCE)
        return np.where(sure, np.nan_to_num(delay_s), self.mean_s(people))
