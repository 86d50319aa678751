"""A row of figures for each window: what was drawn against what was recorded.

Units are millivolt as recorded, without any normalisation of a window or a lead. Means over leads are over
the recorded leads only. One sample is held against one recording, and the mean of the samples is named so: an
honest sample has sqrt(2) times the error of the best mean, and the two must not be mixed.

What the delineator does not find in a drawn ECG stays NaN among the features, is counted in `drawn_failures_sample`,
and costs `feature_scores.FAILURE_SDS` standard deviations in the errors: a system must not gain by drawing what cannot
be measured. What was not found in the recording has no error, for there is nothing to hold the drawn against.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.beats import r_peaks, regularity
from p2es.evaluation.beat_kinds import KINDS, beat_kinds, kind_counts
from p2es.evaluation.beats import (
    EDGE_S,
    constant_lag,
    f1_score,
    found_and_real,
    heart_rate_bpm,
    interval_error_s,
    offsets_s,
    relative_error_percent,
    rmssd_ms,
    sdnn_ms,
)
from p2es.evaluation.feature_scores import (
    feature_crps,
    feature_energy,
    feature_error,
    feature_errors,
    feature_intervals,
)
from p2es.evaluation.features import (
    FEATURES,
    LEAD_FEATURES,
    PICTURE_HZ,
    Reading,
    aligned_beat,
    encoding,
    middle_of,
    read_draws,
    read_ecg,
    wave,
)
from p2es.evaluation.metrics import METRICS
from p2es.evaluation.probabilistic import central_interval, fair_crps
from p2es.evaluation.waveform import (
    correlations,
    dipolarity_percent,
    dtw,
    frechet_curve,
    log_spectral_distance_db,
    mae,
    mean_of_measured,
    prd_percent,
    rmse,
    ssim,
)
from p2es.leads import INDEPENDENT_INDEX, LEADS, N_LEADS, law_residuals
from p2es.translator import MIN_BAND_SAMPLES, Translation
from p2es.windows import FS_HZ, WINDOW_S, WindowBatch

# R peaks are exact to about a millisecond, and so are these.
_LEAST_HRV_MS = 5.0
# A change of ST counts from here on (clinical.md, 3.3).
_ST_CHANGE_MV = 0.1
_POLARITY_LEADS = np.array([LEADS.index(name) for name in ("I", "II", "V4", "V5", "V6")])
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
        # `beat_kinds.COUNTS` of each kind of beat.
        *(pa.field(f"{kind}_counts{lag}", _NUMBERS) for kind in KINDS for lag in ("", "_lag")),
        *(pa.field(f"{of}_{f.name}", pa.float64()) for f in FEATURES for of in ("real", "drawn", "median")),
        *(pa.field(f"draws_{f.name}", _NUMBERS) for f in FEATURES),
        *(pa.field(f"{of}_{name}", _NUMBERS) for name in LEAD_FEATURES for of in ("real", "drawn", "median")),
        *(pa.field(f"{of}_{what}", _SIGNAL) for what in ("encoding", "wave") for of in ("real", "drawn")),
    ]
)
"""A row a window and system; see `measure`."""

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Row = dict[str, object]


def measure(truth: WindowBatch, translations: Sequence[Translation], *, system: str) -> pa.Table:
    """Hold translations against the windows they should be.

    R peaks are found by one detector on the recorded leads of both. Sample 0 is "one sample". The lag of a
    window is that of `beats.constant_lag` between the recording and what is measured: sample 0 for timing and
    for what is named `sample`, the median for the band.

    Of each clinical feature there is what was recorded (`real_`), what sample 0 shows (`drawn_`), what every sample
    shows (`draws_`) and the median of those (`median_`); see `features`. DTW and the Fréchet distance are of lead II,
    or of the first lead that was recorded, at 64 Hz. The counts of premature beats and pauses are those of
    `beat_kinds.kind_counts`, of sample 0.

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
        `ROW_SCHEMA`; a row a window, NaN where a figure is not defined: means, band, CRPS and all that is of the
        samples' median with fewer than `MIN_BAND_SAMPLES` samples; all but `finite_share` and what is of the recording
        alone where something drawn is not finite. Beats are counted there too: none of the recorded ones was drawn.
    """
    assert len(truth) == len(translations)
    rows = []
    for k, translation in enumerate(translations):
        truth_mv, mask = truth.ecg_mv[k], truth.lead_mask[k]
        real = read_ecg(truth_mv, mask)
        row = _who(truth, k, system) | _recorded(truth_mv, mask, real)
        rows.append(row | _window_figures(truth_mv, mask, real, translation))
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def describe(truth: WindowBatch, *, system: str) -> pa.Table:
    """Read the recorded ECGs alone: `ROW_SCHEMA` with ids, demographics, rhythm and what begins with `real_`.

    Parameters
    ----------
    truth : WindowBatch
        With the recorded ECG.
    system : str
        What the rows are called; `train` for those of the training windows.

    Returns
    -------
    pyarrow.Table
        A row a window; null in every other column.
    """
    rows = []
    for k in range(len(truth)):
        truth_mv, mask = truth.ecg_mv[k], truth.lead_mask[k]
        rows.append(_who(truth, k, system) | _recorded(truth_mv, mask, read_ecg(truth_mv, mask)))
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def _who(truth: WindowBatch, k: int, system: str) -> Row:
    row: Row = {"window_id": str(truth.window_id[k]), "person": str(truth.person[k]), "system": system}
    return row | dict(zip(_PEOPLE, truth.people[k].tolist(), strict=True))


def _recorded(truth_mv: Array, mask: Mask, real: Reading) -> Row:
    row: Row = {"rhythm": regularity(real.r_peaks_s)} | _columns("real", real.scalars, real.leads)
    row["real_encoding"] = encoding(truth_mv, mask, real.r_peaks_s)
    row["real_wave"] = wave(truth_mv, mask)
    row["dipolarity_real_percent"] = _dipolarity(truth_mv, mask)
    return row


def _columns(of: str, scalars: Floats, leads: Floats) -> Row:
    row: Row = {f"{of}_{f.name}": float(x) for f, x in zip(FEATURES, scalars, strict=True)}
    return row | {f"{of}_{name}": x.tolist() for name, x in zip(LEAD_FEATURES, leads, strict=True)}


def _dipolarity(ecg_mv: Array, mask: Mask) -> float:
    """Give it of all 8 independent leads or not at all: fewer leads are more alike."""
    return dipolarity_percent(ecg_mv[INDEPENDENT_INDEX]) if mask[INDEPENDENT_INDEX].all() else _NAN


def _unmeasured() -> Row:
    row: Row = {metric.name: _NAN for metric in METRICS if metric.name != "dipolarity_real_percent"}
    row |= {"lag_s": _NAN, "offsets_ms": [], "correlation_lead": [], "rank_counts": [], "drawn_rhythm": "unknown"}
    nothing = np.full(len(FEATURES), _NAN), np.full((len(LEAD_FEATURES), N_LEADS), _NAN)
    return row | _columns("drawn", *nothing) | _columns("median", *nothing)


def _window_figures(truth_mv: Array, mask: Mask, real: Reading, drawn: Translation) -> Row:
    figures = _unmeasured()
    parts = [drawn.ecg_mv, drawn.median_mv] + ([] if drawn.band_mv is None else [drawn.band_mv])
    figures["finite_share"] = float(all(np.isfinite(part).all() for part in parts))
    truth_s, truth_kinds = real.r_peaks_s, _kinds(truth_mv, mask, real.r_peaks_s)
    if not figures["finite_share"]:
        return figures | _kind_figures(truth_s, truth_kinds, np.empty(0), truth_kinds[:, :0], 0.0)
    figures |= _law_figures(drawn)
    readings = read_draws(drawn.ecg_mv, mask)
    drawn_s = readings[0].r_peaks_s
    lag_s = constant_lag(_inner(truth_s), _inner(drawn_s))
    figures |= _beat_figures(truth_s, drawn_s, lag_s) | {"drawn_rhythm": regularity(drawn_s)}
    figures |= _kind_figures(truth_s, truth_kinds, drawn_s, _kinds(drawn.ecg_mv[0], mask, drawn_s), lag_s)
    figures |= _sample_figures(truth_mv, drawn.ecg_mv[0], mask, lag_s)
    figures["beat_rmse_mv_sample"] = float(
        rmse(aligned_beat(truth_mv[mask], truth_s), aligned_beat(drawn.ecg_mv[0][mask], drawn_s)).mean()
    )
    figures |= _pictures(drawn.ecg_mv[0], mask, drawn_s) | _feature_figures(real, readings)
    if len(drawn.ecg_mv) >= MIN_BAND_SAMPLES:
        figures |= _ensemble_figures(truth_mv[mask], drawn.ecg_mv[:, mask])
    if drawn.band_mv is not None:
        lag_s = constant_lag(_inner(truth_s), _inner(r_peaks(drawn.median_mv, FS_HZ, mask)))
        figures |= _band_figures(truth_mv[mask], drawn.band_mv[:, mask], lag_s)
    return figures


def _law_figures(drawn: Translation) -> Row:
    samples, median = (law_residuals(part.astype(np.float64)) for part in (drawn.ecg_mv, drawn.median_mv))
    return {
        "lead_law_uv": 1e3 * max(float(np.abs(samples).max()), float(np.abs(median).max())),
        "einthoven_rms_uv": 1e3 * float(np.sqrt(np.square(samples).mean())),
    }


def _inner(beats_s: Floats) -> Floats:
    return beats_s[(beats_s >= EDGE_S) & (beats_s <= WINDOW_S - EDGE_S)]


def _beat_figures(truth_s: Floats, drawn_s: Floats, lag_s: float) -> Row:
    figures: Row = {"lag_s": lag_s, "lag_abs_ms": 1e3 * abs(lag_s)}
    for tolerance_ms in (50, 150):
        for name, lag in (("", 0.0), ("_lag", lag_s)):
            figures[f"r_f1_{tolerance_ms}ms{name}"] = f1_score(
                truth_s, drawn_s, tolerance_s=tolerance_ms / 1e3, lag_s=lag, duration_s=WINDOW_S
            )
    found, real = found_and_real(truth_s, drawn_s, tolerance_s=0.05, lag_s=lag_s, duration_s=WINDOW_S)
    figures |= {"r_sensitivity_50ms_lag": found, "r_predictivity_50ms_lag": real}
    offsets_ms = 1e3 * offsets_s(_inner(truth_s), _inner(drawn_s), tolerance_s=0.15, lag_s=lag_s)
    figures["offsets_ms"] = offsets_ms.tolist()
    figures["r_timing_ms_lag"] = float(np.median(np.abs(offsets_ms))) if offsets_ms.size else _NAN
    figures["rr_error_ms"] = 1e3 * interval_error_s(truth_s, drawn_s, tolerance_s=0.15, lag_s=lag_s)
    return figures | _rate_figures(truth_s, drawn_s)


def _kinds(ecg_mv: Array, mask: Mask, beats_s: Floats) -> Mask:
    return beat_kinds(np.where(mask[:, None], ecg_mv, np.nan), FS_HZ, beats_s)


def _kind_figures(truth_s: Floats, truth_kinds: Mask, drawn_s: Floats, drawn_kinds: Mask, lag_s: float) -> Row:
    figures: Row = {}
    for name, lag in (("", 0.0), ("_lag", lag_s)):
        counts = kind_counts(truth_s, truth_kinds, drawn_s, drawn_kinds, lag_s=lag, duration_s=WINDOW_S)
        figures |= {f"{kind}_counts{name}": row.tolist() for kind, row in zip(KINDS, counts, strict=True)}
    return figures


def _rate_figures(truth_s: Floats, drawn_s: Floats) -> Row:
    """Give errors in which an ECG without two beats is no missing value but the worst answer: it counts as 0."""
    rate, drawn_rate = heart_rate_bpm(truth_s), heart_rate_bpm(drawn_s)
    inner, drawn_inner = _inner(truth_s), _inner(drawn_s)
    return {
        "hr_error_bpm": abs(rate - (0.0 if np.isnan(drawn_rate) else drawn_rate)),
        "hr_error_percent": relative_error_percent(rate, drawn_rate, 1.0),
        "sdnn_error_percent": relative_error_percent(sdnn_ms(inner), sdnn_ms(drawn_inner), _LEAST_HRV_MS),
        "rmssd_error_percent": relative_error_percent(rmssd_ms(inner), rmssd_ms(drawn_inner), _LEAST_HRV_MS),
    }


def _sample_figures(truth_mv: Array, sample_mv: Array, mask: Mask, lag_s: float) -> Row:
    truth, sample = truth_mv[mask], sample_mv[mask]
    ours, theirs = overlap(truth, sample, lag_s)
    r = correlations(truth, sample)
    one, other = wave(truth_mv, mask), wave(sample_mv, mask)
    return {
        "rmse_mv_sample": float(rmse(truth, sample).mean()),
        "rmse_mv_sample_lag": float(rmse(ours, theirs).mean()),
        "mae_mv_sample": float(mae(truth, sample).mean()),
        "prd_percent_sample": mean_of_measured(prd_percent(truth, sample)),
        "correlation_sample": mean_of_measured(r),
        "correlation_sample_lag": mean_of_measured(correlations(ours, theirs)),
        "correlation_lead": _on_leads(r, mask),
        "ssim_sample": float(ssim(truth, sample).mean()),
        "log_spectral_distance_db_sample": float(log_spectral_distance_db(truth, sample).mean()),
        "dtw_mv_sample": dtw(one, other, PICTURE_HZ),
        "frechet_curve_mv_sample": frechet_curve(one, other),
        "dipolarity_percent": _dipolarity(sample_mv, mask),
    }


def _pictures(sample_mv: Array, mask: Mask, drawn_s: Floats) -> Row:
    return {"drawn_encoding": encoding(sample_mv, mask, drawn_s), "drawn_wave": wave(sample_mv, mask)}


def _feature_figures(real: Reading, readings: Sequence[Reading]) -> Row:
    sample = readings[0]
    row = _columns("drawn", sample.scalars, sample.leads)
    draws = np.stack([reading.scalars for reading in readings])
    row |= {f"draws_{f.name}": column.tolist() for f, column in zip(FEATURES, draws.T, strict=True)}
    row |= {f"{name}_sample": x for name, x in feature_errors(real.scalars, sample.scalars).items()}
    there = np.isfinite(real.scalars)
    row["drawn_failures_sample"] = float(np.isnan(sample.scalars[there]).mean()) if there.any() else _NAN
    row["transition_error_leads_sample"] = feature_error(real.scalars, sample.scalars, "transition")
    row |= _lead_figures(dict(zip(LEAD_FEATURES, real.leads, strict=True)), sample)
    if len(readings) >= MIN_BAND_SAMPLES:
        scalars, leads = middle_of(readings)
        row |= _columns("median", scalars, leads) | feature_errors(real.scalars, scalars)
        row["feature_crps"] = feature_crps(real.scalars, draws)
        row["feature_energy"] = feature_energy(real.scalars, draws)
        row |= feature_intervals(real.scalars, draws)
    return row


def _lead_figures(real: dict[str, Floats], sample: Reading) -> Row:
    """ST and T polarity of the leads in which the recording has them; where the drawn has not, it is wrong."""
    drawn = dict(zip(LEAD_FEATURES, sample.leads, strict=True))
    st = np.abs(drawn["st_filtered_mv"] - real["st_filtered_mv"])
    st = np.where(np.isnan(st), _ST_CHANGE_MV, st)[np.isfinite(real["st_filtered_mv"])]
    agree = (drawn["t_polarity"] == real["t_polarity"])[_POLARITY_LEADS]
    agree = agree[np.isfinite(real["t_polarity"][_POLARITY_LEADS])]
    return {
        "st_filtered_error_mv_sample": float(np.median(st)) if st.size else _NAN,
        "t_polarity_agreement_sample": float(agree.mean()) if agree.size else _NAN,
    }


def _ensemble_figures(truth: Array, draws: Array) -> Row:
    mean = draws.mean(axis=0, dtype=np.float64)
    # Ties (a system that always draws the same) share their place between the ranks they span.
    below, equal = (truth > draws).sum(axis=0), (truth == draws).sum(axis=0)
    ranks = np.round(below + equal / 2).astype(np.int64)
    # Sorted once: what follows sorts again, which then costs little.
    draws = np.sort(draws, axis=0)
    figures: Row = {
        "rmse_mv_mean": float(rmse(truth, mean).mean()),
        "correlation_mean": mean_of_measured(correlations(truth, mean)),
        "crps_mv": float(fair_crps(truth, draws).mean()),
        "spread_mv": float(np.sqrt(draws.var(axis=0, ddof=1, dtype=np.float64).mean())),
        "rank_counts": np.bincount(ranks.ravel(), minlength=len(draws) + 1).astype(float).tolist(),
    }
    for share in (0.5, 0.8):
        low, high = central_interval(draws, share)
        figures[f"coverage_{100 * share:.0f}"] = float(((truth >= low) & (truth <= high)).mean())
    return figures


def _band_figures(truth: Array, band: Array, lag_s: float) -> Row:
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


def _on_leads(values: Floats, mask: Mask) -> list[float]:
    """Spread values of the recorded leads over all 12, NaN elsewhere."""
    row = np.full(mask.size, _NAN)
    row[mask] = values
    return row.tolist()
