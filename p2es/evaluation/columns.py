"""Columns of the row table as arrays."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from p2es.errors import InputError

Array = NDArray[np.float64]

MODEL = "model"
_INTERNAL = ("train", "members")
_INTERNAL_PREFIX = "counterfactual:"


def comparable(rows: pa.Table) -> list[str]:
    """Give the systems that stand beside each other in a table, in the order of the rows.

    The bank, the training people's translations and the counterfactual runs are means to an end and are left out.
    """
    names = dict.fromkeys(rows["system"].to_pylist())
    return [name for name in names if name not in _INTERNAL and not name.startswith(_INTERNAL_PREFIX)]


def of_system(rows: pa.Table, system: str) -> pa.Table:
    """Give the rows of one system."""
    return rows.filter(pc.equal(rows["system"], system))


def _column(rows: pa.Table, name: str) -> Any:
    if name not in rows.column_names:
        raise InputError(f"the rows have no column {name}: measure them again with this version")
    return rows[name].combine_chunks()


def strings(rows: pa.Table, name: str) -> NDArray[np.str_]:
    """Give a column of text (row,); null is the empty text."""
    return np.array([text or "" for text in _column(rows, name).to_pylist()], dtype=np.str_)


def scalars(rows: pa.Table, name: str) -> Array:
    """Give a column of numbers (row,); null and infinity are NaN."""
    values = _column(rows, name).cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def vectors(rows: pa.Table, name: str, width: int | None = None) -> Array:
    """Give a column of lists (row, width), short ones filled with NaN, null and infinity NaN.

    Parameters
    ----------
    rows : pyarrow.Table
    name : str
    width : int, optional
        Without it that of the longest list.
    """
    column = _column(rows, name)
    length = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    longest = int(length.max(initial=0))
    width = longest if width is None else width
    if longest > width:
        raise InputError(f"column {name} has a list of {longest} where {width} belong: measure the rows again")
    flat = pc.list_flatten(column).cast(pa.float64()).to_numpy(zero_copy_only=False)
    result = np.full((len(column), width), np.nan)
    result[np.arange(width) < length[:, None]] = flat
    return np.where(np.isfinite(result), result, np.nan)


def wrap_deg(angle: Array) -> Array:
    """Wrap degrees to (-180, 180]."""
    return 180.0 - np.mod(180.0 - angle, 360.0)
