"""The space in which ECGs are near or far: mean beats, standardised, in the principal components of a reference."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.columns import scalars, vectors
from p2es.evaluation.features import FEATURES

Array = NDArray[np.float64]

# 10 uV, about the noise of a good ECG: what varies less than that must not count as much as a wave.
_LEAST_SD = 0.01
_MAX_DIMENSIONS = 64
_ROWS_A_DIMENSION = 10


def dimensions(rows: int) -> int:
    """Give how many principal components so many rows bear: 10 rows each, at most 64, at least 1."""
    return max(1, min(rows // _ROWS_A_DIMENSION, _MAX_DIMENSIONS))


@dataclass(frozen=True)
class Space:
    """Standardised columns projected on principal components.

    Attributes
    ----------
    mean, sd : array (column,)
        Of the reference rows, SD at least 0.01 (10 uV).
    components : array (dimension, column)
    """

    mean: Array
    sd: Array
    components: Array

    @classmethod
    def of(cls, reference: Array, size: int) -> "Space":
        """Fit the space.

        Parameters
        ----------
        reference : array (row, column)
            NaN is left out of mean and SD, then takes the mean.
        size : int
            Principal components, no more than there are columns.
        """
        mean, sd = _moments(reference)
        # The covariance is small and square whatever the number of rows. Each column has its own share of NaN, which
        # takes variance away; the components need not be those of complete rows, only the same for all.
        scaled = np.nan_to_num((reference - mean) / sd)
        _, vectors = np.linalg.eigh(scaled.T @ scaled)
        return cls(mean, sd, vectors[:, ::-1][:, : min(size, reference.shape[1])].T)

    def standardised(self, rows: Array) -> Array:
        """Give (row, column) in SDs of the reference from its mean; what is NaN takes the mean."""
        return np.nan_to_num((rows - self.mean) / self.sd)

    def project(self, rows: Array) -> Array:
        """Give the components (row, dimension) of (row, column); what is NaN takes the mean of the reference."""
        return np.asarray(self.standardised(rows) @ self.components.T)


def _moments(reference: Array) -> tuple[Array, Array]:
    good = np.isfinite(reference)
    count = np.maximum(good.sum(axis=0), 1)
    mean = np.where(good, reference, 0.0).sum(axis=0) / count
    variance = np.where(good, reference - mean, 0.0) ** 2
    return mean, np.maximum(np.sqrt(variance.sum(axis=0) / count), _LEAST_SD)


def encodings(rows: pa.Table, prefix: str, width: int | None = None) -> Array:
    """Give the mean beats (row, column), mV, of `real` or `drawn`; NaN for a lead that is missing."""
    return vectors(rows, f"{prefix}_encoding", width)


def feature_columns(rows: pa.Table, prefix: str) -> Array:
    """Give the scalar features (row, column); angles as sine and cosine; NaN where not found."""
    columns: list[Array] = []
    for feature in FEATURES:
        value = scalars(rows, f"{prefix}_{feature.name}")
        angle = np.radians(value)
        columns += [np.sin(angle), np.cos(angle)] if feature.circular else [value]
    return np.stack(columns, axis=1)


def in_both(one: Array, other: Array) -> tuple[Array, Array]:
    """Leave out (NaN) what only one of two has, so that a missing lead tells nothing."""
    both = np.isfinite(one) & np.isfinite(other)
    return np.where(both, one, np.nan), np.where(both, other, np.nan)
