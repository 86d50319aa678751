"""A row of figures for each window: what was drawn against what was recorded.

Units are millivolt as recorded, without any normalisation of a window or a lead. Means over leads are over
the recorded leads only. One sample is held against one recording, and the mean of the samples is named so: an
honest sample has sqrt(2) times the error of the best mean, and the two must not be mixed.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.beats import EDGE_S, constant_lag, f1_score, heart_rate_bpm, interval_error_s, offsets_s
from p2es.evaluation.features import FEATURES, LEAD_FEATURES
from p2es.evaluation.metrics import METRICS
from p2es.leads import law_residuals
from p2es.signals import r_peaks
from p2es.translator import MIN_BAND_SAMPLES, Translation
from p2es.windows import FS_HZ, WINDOW_S, WindowBatch

_FLAT_MV = 0.005
_NAN = float("nan")

_PEOPLE = ("age_years", "female", "height_cm", "weight_kg")
_NUMBERS, _SIGNAL = pa.list_(pa.float64()), pa.list_(pa.float32())

ROW_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("window_id", "person", "system")),
        *(pa.field(name, pa.float64()) for name in _PEOPLE),
        *(pa.field(metric.name, pa.float64()) for metric in METRICS),
        # Signed, so that a device's delay can be told from scatter.
        pa.field("lag_s", pa.float64()),
        *(pa.field(name, _NUMBERS) for name in ("offsets_ms", "correlation_lead", "rank_counts")),
        *(pa.field(name, pa.string()) for name in ("rhythm", "drawn_rhythm")),
        *(pa.field(f"{of}_{f.name}", pa.float64()) for f in FEATURES for of in ("real", "drawn", "median")),
        *(pa.field(f"draws_{f.name}", _NUMBERS) for f in FEATURES),
        *(pa.field(f"{of}_{name}", _NUMBERS) for name in LEAD_FEATURES for of in ("real", "drawn", "median")),
        *(pa.field(f"{of}_{what}", _SIGNAL) for what in ("encoding", "wave") for of in ("real", "drawn")),
    ]
)
"""A row a window and system; see `measure`."""

Array = NDArray[np.floating]


def measure(truth: WindowBatch, translations: Sequence[Translation], *, system: str) -> pa.Table:
    """Hold translations against the windows they should be.

    R peaks are found by one detector on the recorded leads of both. Sample 0 is "one sample". The lag of a
    window is that of `beats.constant_lag` between the recording and what is measured: sample 0 for timing and
    for what is named `sample`, the median for the band.

    Parameters
    ----------
    truth : WindowBatch
        With the recorded ECG.
    translations : sequence of Translation
        One a window, in the same order.
    system : str
        Name of what drew them.

    Returns
    -------
    pyarrow.Table
        `ROW_SCHEMA`; a row a window, NaN where a figure is not defined: means, band and CRPS with fewer than
        `MIN_BAND_SAMPLES` samples, all but `finite_share` where something drawn is not finite.
    """
    assert len(truth) == len(translations)
    rows = []
    for k, translation in enumerate(translations):
        row = {"window_id": str(truth.window_id[k]), "person": str(truth.person[k]), "system": system}
        rows.append(row | _window_figures(truth.ecg_mv[k], truth.lead_mask[k], translation))
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def _window_figures(truth_mv: Array, mask: NDArray[np.bool_], drawn: Translation) -> dict[str, object]:
    figures: dict[str, object] = {metric.name: _NAN for metric in METRICS}
    figures |= {"lag_s": _NAN, "offsets_ms": [], "correlation_lead": [], "rank_counts": []}
    parts = [drawn.ecg_mv, drawn.median_mv] + ([] if drawn.band_mv is None else [drawn.band_mv])
    figures["finite_share"] = float(all(np.isfinite(part).all() for part in parts))
    if not figures["finite_share"]:
        return figures
    laws = (law_residuals(part.astype(np.float64)) for part in (drawn.ecg_mv, drawn.median_mv))
    figures["lead_law_uv"] = 1e3 * max(float(np.abs(law).max()) for law in laws)
    truth_s = r_peaks(truth_mv, FS_HZ, mask)
    drawn_s = r_peaks(drawn.ecg_mv[0], FS_HZ, mask)
    lag_s = constant_lag(_inner(truth_s), _inner(drawn_s))
    figures |= _beat_figures(truth_s, drawn_s, lag_s)
    figures |= _sample_figures(truth_mv[mask], drawn.ecg_mv[0][mask], lag_s)
    figures["correlation_lead"] = _on_leads(correlations(truth_mv[mask], drawn.ecg_mv[0][mask]), mask)
    if len(drawn.ecg_mv) >= MIN_BAND_SAMPLES:
        figures |= _ensemble_figures(truth_mv[mask], drawn.ecg_mv[:, mask])
    if drawn.band_mv is not None:
        lag_s = constant_lag(_inner(truth_s), _inner(r_peaks(drawn.median_mv, FS_HZ, mask)))
        figures |= _band_figures(truth_mv[mask], drawn.band_mv[:, mask], lag_s)
    return figures


def _inner(beats_s: NDArray[np.float64]) -> NDArray[np.float64]:
    return beats_s[(beats_s >= EDGE_S) & (beats_s <= WINDOW_S - EDGE_S)]


def _beat_figures(truth_s: NDArray[np.float64], drawn_s: NDArray[np.float64], lag_s: float) -> dict[str, object]:
    figures: dict[str, object] = {"lag_s": lag_s, "lag_abs_ms": 1e3 * abs(lag_s)}
    for tolerance_ms in (50, 150):
        for name, lag in (("", 0.0), ("_lag", lag_s)):
            figures[f"r_f1_{tolerance_ms}ms{name}"] = f1_score(
                truth_s, drawn_s, tolerance_s=tolerance_ms / 1e3, lag_s=lag, duration_s=WINDOW_S
            )
    offsets_ms = 1e3 * offsets_s(_inner(truth_s), _inner(drawn_s), tolerance_s=0.15, lag_s=lag_s)
    figures["offsets_ms"] = offsets_ms.tolist()
    figures["r_timing_ms_lag"] = float(np.median(np.abs(offsets_ms))) if offsets_ms.size else _NAN
    figures["rr_error_ms"] = 1e3 * interval_error_s(truth_s, drawn_s, tolerance_s=0.15, lag_s=lag_s)
    rate, drawn_rate = heart_rate_bpm(truth_s), heart_rate_bpm(drawn_s)
    # An ECG without two beats is no missing value but the worst answer: it counts as 0 bpm.
    figures["hr_error_bpm"] = abs(rate - (0.0 if np.isnan(drawn_rate) else drawn_rate))
    return figures


def _sample_figures(truth: Array, sample: Array, lag_s: float) -> dict[str, object]:
    ours, theirs = overlap(truth, sample, lag_s)
    return {
        "rmse_mv_sample": rmse_mv(truth, sample),
        "rmse_mv_sample_lag": rmse_mv(ours, theirs),
        "correlation_sample": _mean(correlations(truth, sample)),
        "correlation_sample_lag": _mean(correlations(ours, theirs)),
    }


def _ensemble_figures(truth: Array, draws: Array) -> dict[str, object]:
    mean = draws.mean(axis=0, dtype=np.float64)
    # Ties (a system that always draws the same) share their place between the ranks they span.
    below, equal = (truth > draws).sum(axis=0), (truth == draws).sum(axis=0)
    ranks = np.round(below + equal / 2).astype(np.int64)
    return {
        "rmse_mv_mean": rmse_mv(truth, mean),
        "correlation_mean": _mean(correlations(truth, mean)),
        "crps_mv": crps_mv(truth, draws),
        "spread_mv": float(np.sqrt(draws.var(axis=0, ddof=1, dtype=np.float64).mean())),
        "rank_counts": np.bincount(ranks.ravel(), minlength=len(draws) + 1).astype(float).tolist(),
    }


def _band_figures(truth: Array, band: Array, lag_s: float) -> dict[str, object]:
    low, high = band
    ours, low_there = overlap(truth, low, lag_s)
    high_there = overlap(truth, high, lag_s)[1]
    return {
        "coverage_90": float(((truth >= low) & (truth <= high)).mean()),
        "coverage_90_lag": float(((ours >= low_there) & (ours <= high_there)).mean()),
        "band_width_mv": float((high - low).mean()),
    }


def overlap(truth: Array, drawn: Array, lag_s: float) -> tuple[Array, Array]:
    """Shift what is drawn (lead, time) earlier by a lag, to the nearest sample; cut both to the overlap."""
    shift, time = round(lag_s * FS_HZ), truth.shape[-1]
    start, stop = max(0, -shift), time - max(0, shift)
    return truth[..., start:stop], drawn[..., start + shift : stop + shift]


def rmse_mv(truth: Array, drawn: Array) -> float:
    """Give the root mean square error of each lead, averaged over the leads of (lead, time)."""
    return float(np.sqrt(np.square(drawn - truth, dtype=np.float64).mean(axis=-1)).mean())


def correlations(truth: Array, drawn: Array) -> NDArray[np.float64]:
    """Give Pearson's r of each lead of (lead, time): NaN where the recorded is flat, 0 where the drawn is.

    Flat is a standard deviation below 5 µV. A drawn flat line tells nothing and scores so; leaving it out
    would favour a system that goes flat where it is unsure.
    """
    x = truth - truth.mean(axis=-1, keepdims=True, dtype=np.float64)
    y = drawn - drawn.mean(axis=-1, keepdims=True, dtype=np.float64)
    sx, sy = np.sqrt(np.square(x).mean(axis=-1)), np.sqrt(np.square(y).mean(axis=-1))
    flat = sy < _FLAT_MV
    r = np.where(flat, 0.0, (x * y).mean(axis=-1) / np.maximum(sx * np.where(flat, 1.0, sy), 1e-30))
    return np.where(sx < _FLAT_MV, _NAN, r)


def crps_mv(truth: Array, draws: Array) -> float:
    """Give the continuous ranked probability score, averaged over all points; the fair form for K draws.

    ``mean_k |x_k - y| - 1/(2 K (K - 1)) sum_jk |x_j - x_k|`` (Ferro 2014): unlike the plain form it does not
    reward draws that spread too little. The double sum is taken over sorted draws.

    Parameters
    ----------
    truth : array (lead, time)
    draws : array (sample, lead, time)
        At least two samples.
    """
    k = len(draws)
    error = np.abs(draws - truth).mean(axis=0, dtype=np.float64)
    weight = (2 * np.arange(1, k + 1) - k - 1) / (k * (k - 1))
    apart = np.tensordot(weight, np.sort(draws, axis=0), axes=1)
    return float((error - apart).mean())


def _mean(values: NDArray[np.float64]) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if kept.size else _NAN


def _on_leads(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> list[float]:
    """Spread values of the recorded leads over all 12, NaN elsewhere."""
    row = np.full(mask.size, _NAN)
    row[mask] = values
    return row.tolist()
