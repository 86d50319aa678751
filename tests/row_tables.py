"""Row tables of an evaluation, made up column by column."""

import numpy as np
import pyarrow as pa

from p2es.evaluation.beat_kinds import KINDS
from p2es.evaluation.features import FEATURES, LEAD_FEATURES

BEAT = 8 * 12
WAVE = 640
TEXT = ("window_id", "person", "system", "rhythm", "drawn_rhythm")
LISTS = (
    *(f"draws_{f.name}" for f in FEATURES),
    *(f"{kind}_counts{lag}" for kind in KINDS for lag in ("", "_lag")),
    *(f"{side}_{name}" for name in LEAD_FEATURES for side in ("real", "drawn", "median")),
    *(f"{side}_{kind}" for kind in ("encoding", "wave") for side in ("real", "drawn")),
)
NUMBERS = (
    *("age_years", "female", "height_cm", "weight_kg", "rmse_mv_sample", "rmse_mv_sample_lag", "coverage_90"),
    *(f"{side}_{f.name}" for f in FEATURES for side in ("real", "drawn", "median")),
    "correlation_sample_lag",
)


def people_names(n, prefix="p", windows=1):
    return [f"{prefix}{k // windows:05d}" for k in range(n * windows)]


def table(person, system="model", **columns):
    """A table of one system; what is not given is null. Lists are arrays (row, k) or lists."""
    n = len(person)
    columns = {
        "window_id": [f"{p}-{k}" for k, p in enumerate(person)],
        "person": list(person),
        "system": [system] * n,
    } | columns
    arrays = {}
    for name in TEXT + NUMBERS + LISTS:
        kind = pa.string() if name in TEXT else pa.float64() if name in NUMBERS else pa.list_(pa.float64())
        if name.endswith(("_encoding", "_wave")):
            kind = pa.list_(pa.float32())
        values = columns.pop(name, [None] * n)
        if isinstance(values, np.ndarray):
            values = list(values) if values.ndim > 1 else values.tolist()
        arrays[name] = pa.array(values, kind)
    assert not columns, columns
    return pa.table(arrays)


def stacked(*tables):
    return pa.concat_tables(tables)
