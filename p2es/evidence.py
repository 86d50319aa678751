"""What is wrong with samples as they were recorded: missing, flat, at a rail, wrapped around.

It is told before any filter, since filters destroy the evidence: a flat top becomes a round one, a jump through the
whole range becomes a beat.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FLAT_S = 0.5
"""Equal samples for so long are a dead sensor; a heart at rest under coarse steps holds still for less."""
_RAIL_RUN = 3
# A natural top that is equal for three samples or more is left by at most 4 / 3 of a converter step (a parabola).
_RAIL_STEPS = 3.0
_RAIL_CONTEXT_S = 5
_CONVERTER_BITS = (8, 10, 12, 14, 16)
# A wrapped signal reaches both ends of its converter, and jumps by the range less what it really moved.
_FULL_SHARE = 0.98
_JUMP_SHARE = 0.5
_WRAP_AROUND_S = 0.25
_WRAP_EXCURSION_S = 2.0

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]


class Fault(StrEnum):
    """What can be wrong with a sample."""

    MISSING = "missing"
    FLAT = "flat"
    CLIPPED = "clipped"
    WRAPPED = "wrapped"


@dataclass(frozen=True)
class Evidence:
    """The faults of a stretch of one signal, ready to be counted window by window.

    Attributes
    ----------
    fs_hz, start_s : float
        Rate, and time of the first sample on the recording's clock.
    faults : mapping
        For each fault that occurs, how many samples before each have it: (time + 1,). `missing` is always there and
        counts what was recorded.
    wrapped : array (time,) or None
        Where the signal is not to be believed.
    """

    fs_hz: float
    start_s: float
    faults: dict[Fault, NDArray[np.int64]] = field(repr=False)
    wrapped: Mask | None = field(repr=False, default=None)

    def share(self, fault: Fault, starts_s: Floats, length_s: float) -> NDArray[np.float32]:
        """Give the share (0 to 1) of each window [start, start + length) that has the fault.

        What lies outside the signal is missing.
        """
        counts = self.faults.get(fault)
        if counts is None:
            return np.zeros(len(starts_s), np.float32)
        edges = np.stack([starts_s, starts_s + length_s])
        at = np.ceil((edges - self.start_s) * self.fs_hz - 1e-6).astype(np.int64)
        first, last = np.clip(at, 0, counts.size - 1)
        share = (counts[last] - counts[first]) / np.maximum(at[1] - at[0], 1)
        return np.asarray(1.0 - share if fault is Fault.MISSING else share, np.float32).clip(0.0, 1.0)


def examine(samples: Floats, fs_hz: float, start_s: float = 0.0, gain: float | None = None) -> Evidence:
    """Look for faults in samples as recorded.

    Parameters
    ----------
    samples : array (time,)
        NaN where nothing was recorded.
    fs_hz, start_s : float
    gain : float, optional
        Converter steps a unit; without it the smallest difference between neighbours is a step.

    Returns
    -------
    Evidence
        `flat`: 0.5 s or more of one value. `clipped`: three or more equal samples (for less than that) at the
        largest or smallest value of the ten seconds around, entered or left by three converter steps or more.
        `wrapped`: the samples span a converter's range (8 to 16 bits) and jump up and down through half of it and
        more, without staying at its ends; a quarter of a second around each jump, and what lies between two jumps less
        than two seconds apart.
    """
    samples = np.asarray(samples)
    missing = ~np.isfinite(samples)
    if missing.any():
        samples = np.where(missing, np.nan, samples)
    found: dict[Fault, Mask | None] = {Fault.MISSING: ~missing}
    found[Fault.FLAT], clipped = _runs(samples, fs_hz, gain)
    wrapped = _wrapped(samples, fs_hz, gain)
    found[Fault.WRAPPED] = wrapped
    found[Fault.CLIPPED] = clipped if clipped is None or wrapped is None else clipped & ~wrapped
    counts = {
        fault: np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
        for fault, mask in found.items()
        if mask is not None
    }
    return Evidence(fs_hz, start_s, counts, wrapped)


def _painted(starts: NDArray[np.intp], stops: NDArray[np.intp], size: int) -> Mask | None:
    """Give a mask (size,) of the stretches [start, stop); None when there is none."""
    if not starts.size:
        return None
    edges = np.zeros(size + 1, np.int32)
    np.add.at(edges, np.clip(starts, 0, size), 1)
    np.add.at(edges, np.clip(stops, 0, size), -1)
    return np.cumsum(edges[:-1]) > 0


def _runs(samples: Floats, fs_hz: float, gain: float | None) -> tuple[Mask | None, Mask | None]:
    """Give where the samples are flat and where they are clipped."""
    same = samples[1:] == samples[:-1]
    longer = same[1:] & same[:-1]
    if not longer.any():
        return None, None
    edges = np.flatnonzero(np.diff(same.view(np.int8), prepend=0, append=0))
    starts, stops = edges[::2], edges[1::2] + 1
    kept = stops - starts >= _RAIL_RUN
    starts, stops = starts[kept], stops[kept]
    flat = stops - starts >= max(FLAT_S * fs_hz, _RAIL_RUN + 1)
    at_rail = ~flat & (starts > 0) & (stops < samples.size)
    starts_in, stops_in = starts[at_rail], stops[at_rail]
    railed = _at_rail(samples, starts_in, stops_in, fs_hz, gain)
    return (
        _painted(starts[flat], stops[flat], samples.size),
        _painted(starts_in[railed], stops_in[railed], samples.size),
    )


def _at_rail(
    samples: Floats, starts: NDArray[np.intp], stops: NDArray[np.intp], fs_hz: float, gain: float | None
) -> Mask:
    """Tell which runs [start, stop) of equal samples are tops or bottoms cut off at a rail."""
    if not starts.size:
        return np.zeros(0, bool)
    value, before, after = samples[starts], samples[starts - 1], samples[stops]
    steps = np.fmax(np.abs(value - before), np.abs(value - after)) / _step(samples, gain)
    top, bottom = (before < value) & (after < value), (before > value) & (after > value)
    block = (starts / fs_hz).astype(np.intp)
    firsts = (np.arange(int(np.ceil(samples.size / fs_hz))) * fs_hz).astype(np.intp)
    width = 2 * _RAIL_CONTEXT_S + 1
    highest = ndimage.maximum_filter1d(
        np.maximum.reduceat(np.where(np.isnan(samples), -np.inf, samples), firsts), width
    )
    lowest = ndimage.minimum_filter1d(np.minimum.reduceat(np.where(np.isnan(samples), np.inf, samples), firsts), width)
    extreme = (top & (value >= highest[block])) | (bottom & (value <= lowest[block]))
    return extreme & (steps >= _RAIL_STEPS - 0.5)


def _step(samples: Floats, gain: float | None) -> float:
    """Give the size of a converter step in the unit of the samples."""
    if gain is not None and np.isfinite(gain) and gain != 0:
        return 1.0 / abs(gain)
    moves = np.abs(np.diff(samples))
    moves = moves[moves > 1e-6 * np.nanmax(np.abs(samples))]
    return float(moves.min()) if moves.size else 1.0


def _wrapped(samples: Floats, fs_hz: float, gain: float | None) -> Mask | None:
    """Give where a converter's overflow has made the signal come in at the other end."""
    finite = samples[np.isfinite(samples)]
    if finite.size < 2:
        return None
    span = float(finite.max() - finite.min())
    with np.errstate(invalid="ignore"):
        moves = np.diff(samples)
        if not (np.nanmax(moves, initial=0.0) > 0.9 * _JUMP_SHARE * span < -np.nanmin(moves, initial=0.0)):
            return None
        steps = span / _step(samples, gain) + 1.0
        full = next((2.0**b for b in _CONVERTER_BITS if _FULL_SHARE * 2**b <= steps <= 1.002 * 2**b), None)
        if full is None:
            return None
        jumps = np.flatnonzero(np.abs(moves) > _JUMP_SHARE * full / steps * span)
    if not ((moves[jumps] > 0).any() and (moves[jumps] < 0).any()):
        return None
    # What stays at the ends of the range is clipped; what wraps runs through them.
    if np.count_nonzero((finite == finite.max()) | (finite == finite.min())) > jumps.size:
        return None
    around = max(int(_WRAP_AROUND_S * fs_hz), 1)
    near = np.flatnonzero(np.diff(jumps) < _WRAP_EXCURSION_S * fs_hz)
    starts = np.concatenate([jumps + 1 - around, jumps[near]])
    return _painted(starts, np.concatenate([jumps + 1 + around, jumps[near + 1] + 1]), samples.size)
