"""Whether training ECGs come back out: nearest neighbours, near duplicates, membership inference.

Distances are in `encoding.Space`, standardised mean beats in principal components of the bank. Time grows with
windows times bank windows.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import fft

from p2es.errors import InputError
from p2es.evaluation.bootstrap import Figure, People, mean_figure, packed
from p2es.evaluation.columns import MODEL, of_system, scalars, strings, vectors
from p2es.evaluation.encoding import Space, dimensions, encodings, in_both
from p2es.evaluation.ranking import auc, sensitivity_at

Array = NDArray[np.float64]

DUPLICATE_R = 0.995
FALSE_ALARMS = 0.01
WAVE_HZ = 64
"""Rate of `real_wave` and `drawn_wave`."""
_CANDIDATES = 10
_MAX_LAG_S = 2.0
# Pairs at a time: their spectra and lags are held.
_CHUNK = 2048


def memorisation(
    rows: pa.Table, bank: pa.Table, members: pa.Table | None, *, system: str = MODEL, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Look for training people's ECGs in what a system draws for others.

    Parameters
    ----------
    rows : pyarrow.Table
        The row table of test people.
    bank : pyarrow.Table
        `describe` of windows the model was trained on.
    members : pyarrow.Table or None
        The system's rows on windows it was trained on, of the same kind as the test windows; None: not measured.
    system : str
    bootstrap, seed : int

    Returns
    -------
    dict
        - `nn_ratio` : Figure, median distance of a drawn ECG to the nearest of the bank, over that of a recorded test
          ECG. 1 where training people are no nearer than to anybody; 0: copies. Above 1 says unlike any person
        - `below_first_percentile` : Figure, share of the drawn nearer to the bank than 99 % of the recorded test ECGs
          are; 0.01 is expected
        - `duplicates` : drawn ECGs of 10 s that are a bank window again (see `aligned_correlation`, r > 0.995), looked
          for among the ten nearest; `duplicates_real` : the same of the recorded, which should be 0;
          `duplicates_members` : of what was drawn from training people's own PPG, None without members
        - `membership_auc` : Figure, how well the error on a window (`rmse_mv_sample_lag`) tells that it was trained
          on; 0.5: not at all. `membership_tpr_at_1_percent` : Figure, share of training windows found with at most 1 %
          false alarms; 0.01 is expected. None without members
        - `n` : people; `windows`; `bank` : windows; `dimensions`

    Raises
    ------
    InputError
        Where rows and bank share people, so that nearness to the bank would be no sign of memory; where the bank or the
        system is empty.
    """
    mine = of_system(rows, system)
    if not mine.num_rows or not bank.num_rows:
        raise InputError(f"no rows of {system}, or an empty bank: nothing to look for copies in")
    if shared := set(mine["person"].to_pylist()) & set(bank["person"].to_pylist()):
        raise InputError(
            f"{len(shared)} people are in the test rows and in the bank of training windows: split by person"
        )
    people = People.of(strings(mine, "person"), bootstrap=bootstrap, seed=seed)
    known = encodings(bank, "real")
    space = Space.of(known, dimensions(len(known)))
    result = _neighbours(mine, bank, space, people)
    result |= _membership(mine, members, bootstrap, seed)
    copies = None if members is None else _drawn_duplicates(members, bank, space)
    return result | {"duplicates_members": copies, "bank": bank.num_rows, "dimensions": len(space.components)}


def _neighbours(rows: pa.Table, bank: pa.Table, space: Space, people: People) -> dict[str, Any]:
    real, drawn = in_both(encodings(rows, "real"), encodings(rows, "drawn"))
    kept = np.asarray(np.isfinite(drawn).any(axis=1))
    people = people.rows(kept)
    known = space.project(encodings(bank, "real"))
    real_far, real_near = _nearest(known, space.project(real[kept]))
    drawn_far, drawn_near = _nearest(known, space.project(drawn[kept]))
    waves = vectors(bank, "real_wave")
    n = len(np.unique(people.code))
    return {
        "nn_ratio": _median_ratio(drawn_far[:, 0], real_far[:, 0], people, n),
        "below_first_percentile": _below(drawn_far[:, 0], real_far[:, 0], people),
        "duplicates": _duplicates(vectors(rows, "drawn_wave")[kept], waves, drawn_near),
        "duplicates_real": _duplicates(vectors(rows, "real_wave")[kept], waves, real_near),
        "n": n,
        "windows": int(kept.sum()),
    }


def _nearest(known: Array, rows: Array) -> tuple[Array, NDArray[np.intp]]:
    """Give distance and place of the ten nearest of the bank, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    if not len(rows):
        return np.zeros((0, 1)), np.zeros((0, 1), np.intp)
    finder = NearestNeighbors(n_neighbors=min(_CANDIDATES, len(known)), algorithm="brute").fit(known)
    distance, place = finder.kneighbors(rows)
    return distance, place


def _median_ratio(drawn: Array, real: Array, people: People, n: int) -> Figure:
    above, above_draws = people.quantile(drawn, 0.5)
    below, below_draws = people.quantile(real, 0.5)
    with np.errstate(invalid="ignore", divide="ignore"):
        return packed(float(np.divide(above, below)), above_draws / below_draws, "", n)


def _below(drawn: Array, real: Array, people: People) -> Figure:
    """Give the share below the recorded ECGs' first percentile; their percentile is taken as it is."""
    limit, _ = people.quantile(real, 0.01)
    return mean_figure((drawn < limit).astype(np.float64), people, "")


def _drawn_duplicates(rows: pa.Table, bank: pa.Table, space: Space) -> int:
    drawn = in_both(encodings(rows, "real"), encodings(rows, "drawn"))[1]
    kept = np.asarray(np.isfinite(drawn).any(axis=1))
    near = _nearest(space.project(encodings(bank, "real")), space.project(drawn[kept]))[1]
    return _duplicates(vectors(rows, "drawn_wave")[kept], vectors(bank, "real_wave"), near)


def _duplicates(waves: Array, known: Array, near: NDArray[np.intp]) -> int:
    """Count the waves (row, time) that one of their candidates (row, candidate) in the bank repeats."""
    if not len(waves) or waves.shape[1] != known.shape[1]:
        return 0
    row, candidate = np.repeat(np.arange(len(near)), near.shape[1]), near.ravel()
    found = np.zeros(len(waves), np.bool_)
    for start in range(0, len(row), _CHUNK):
        part = slice(start, start + _CHUNK)
        r = aligned_correlation(waves[row[part]], known[candidate[part]], fs_hz=WAVE_HZ)
        found[row[part][r > DUPLICATE_R]] = True
    return int(found.sum())


def aligned_correlation(one: Array, other: Array, *, fs_hz: float) -> Array:
    """Give the largest Pearson correlation of pairs of waves over lags of up to 2 s either way.

    Mean and size at each lag are those of the stretch that both then cover, so at least 8 s of 10.

    Parameters
    ----------
    one, other : array (pair, time)
        A pair with a NaN gives NaN.
    fs_hz : float

    Returns
    -------
    array (pair,)
        -1 where one of the two is flat.
    """
    bad = ~(np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1))
    x, y = (np.nan_to_num(part) for part in (one, other))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    time = x.shape[1]
    reach = min(round(_MAX_LAG_S * fs_hz), time // 2)
    lags = np.arange(-reach, reach + 1)
    size = fft.next_fast_len(2 * time, real=True)
    # At lag l: x[t + l] against y[t].
    products = fft.irfft(fft.rfft(x, size) * np.conj(fft.rfft(y, size)), size)[:, lags]
    count = time - np.abs(lags)
    sum_x, sum_y = _overlap_sums(x, lags), _overlap_sums(y, -lags)
    var_x = _overlap_sums(x * x, lags) - sum_x**2 / count
    var_y = _overlap_sums(y * y, -lags) - sum_y**2 / count
    flat = (var_x <= 1e-9 * count) | (var_y <= 1e-9 * count)
    r = (products - sum_x * sum_y / count) / np.sqrt(np.where(flat, 1.0, var_x * var_y))
    best = np.where(flat, -1.0, r).max(axis=1)
    return np.where(bad, np.nan, best)


def _overlap_sums(wave: Array, lags: NDArray[np.intp]) -> Array:
    """Sum (pair, time) over the stretch [l, time) of a lag l, or [0, time + l) of a negative, (pair, lag)."""
    time = wave.shape[1]
    total = np.concatenate([np.zeros((len(wave), 1)), np.cumsum(wave, axis=1)], axis=1)
    return total[:, np.minimum(time, time + lags)] - total[:, np.maximum(0, lags)]


def _membership(rows: pa.Table, members: pa.Table | None, bootstrap: int, seed: int) -> dict[str, Figure | None]:
    names = ("membership_auc", "membership_tpr_at_1_percent")
    if members is None or not members.num_rows:
        return dict.fromkeys(names)
    error = np.concatenate([scalars(part, "rmse_mv_sample_lag") for part in (members, rows)])
    inside = np.repeat([True, False], [members.num_rows, rows.num_rows])
    person = np.concatenate([strings(part, "person") for part in (members, rows)])
    good = np.isfinite(error)
    if not (good & inside).any() or not (good & ~inside).any():
        return dict.fromkeys(names)
    people = People.of(person[good], bootstrap=bootstrap, seed=seed)
    n = people.number
    area = auc(-error[good], inside[good], people)
    found = sensitivity_at(-error[good], inside[good], people, alarms=FALSE_ALARMS)
    return {names[0]: packed(*area, "", n), names[1]: packed(*found, "", n)}
