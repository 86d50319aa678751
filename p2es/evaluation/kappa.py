"""Agreement of classes beyond chance, and shares, with intervals over people."""

import numpy as np
from numpy.typing import NDArray

from p2es.evaluation.bootstrap import Figure, People, packed

Array = NDArray[np.float64]
Codes = NDArray[np.intp]


def cohen(tables: Array) -> Array:
    """Give Cohen's kappa of tables of counts or weights (..., class, class).

    ``(p_o - p_e) / (1 - p_e)``, p_o the share on the diagonal, p_e that of two readers who know only how often
    each gives each class (Cohen 1960).

    Returns
    -------
    array (...)
        NaN where p_e is 1 (both always give one and the same class) and where the table is empty.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share = tables / tables.sum(axis=(-2, -1), keepdims=True)
        observed = np.trace(share, axis1=-2, axis2=-1)
        expected = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
        return np.where(1 - expected > 1e-12, (observed - expected) / (1 - expected), np.nan)


def tables(real: Codes, drawn: Codes, classes: int, people: People) -> Array:
    """Count real against drawn for each person, whose table sums to 1.

    Parameters
    ----------
    real, drawn : array (row,) or (row, lead)
        0 to classes - 1; a pair with a negative is left out.
    classes : int
    people : People

    Returns
    -------
    array (person, class, class)
        Rows: real, columns: drawn; NaN for a person without a pair.
    """
    used = (real >= 0) & (drawn >= 0)
    code = np.broadcast_to(people.code.reshape(-1, *[1] * (real.ndim - 1)), real.shape)[used]
    cell = (code * classes + real[used]) * classes + drawn[used]
    counts = np.bincount(cell, minlength=people.number * classes**2).astype(np.float64)
    table = counts.reshape(people.number, classes, classes)
    total = table.sum(axis=(1, 2), keepdims=True)
    return np.where(total > 0, table / np.maximum(total, 1.0), np.nan)


def kappa_figure(table: Array, people: People) -> Figure:
    """Give Cohen's kappa of the mean table of (person, class, class)."""
    value, draws = people.average(table)
    return packed(float(cohen(value)), cohen(draws), "", people_with(table))


def share_figure(part: Array, whole: Array, people: People) -> Figure:
    """Give the ratio of the sums over people of part and whole (person,), NaN where the whole is nothing."""
    value, draws = people.average(np.stack([part, whole], axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return packed(float(value[0] / value[1]), draws[:, 0] / draws[:, 1], "", int((whole > 0).sum()))


def people_with(table: Array) -> int:
    """Give how many people have a table."""
    return int(np.isfinite(table[:, 0, 0]).sum())
