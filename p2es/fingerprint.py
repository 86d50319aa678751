"""Fingerprint: when the beats of a window come and what they look like, in 128 bytes.

The same stretch of the same heart has the same beats, whatever was done to the file since: gain, offset, sign of a
lead, resampling, mild noise and a later start leave the intervals between beats as they are (to 2 ms) and the shape
of the median beat nearly so. Copies under another name are found by that (`p2es_platform.twins`), then compared
sample by sample.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from p2es.windows import FS_HZ, MARGIN_S, Window

BYTES = 128
"""Length of every fingerprint."""
MAX_BEATS = 23
"""Beats kept of each signal; of a heart faster than 138 bpm, the first."""
SHAPE_BINS = 16
TICK_S = 0.25e-3
"""Unit of the stored times, which count from `MARGIN_S` before the window so that the PPG's margin has a place."""

_VERSION = 1
_HEADER_BYTES = 2
_MAX_TICK = 0xFFFF
# Around a landmark: P wave to end of T of a resting heart, and a pulse from its foot past the dicrotic notch.
_ECG_SHAPE_S = (-0.24, 0.40)
_PPG_SHAPE_S = (-0.16, 0.48)
# A landmark is the middle of a QRS, or the steepest rise of a pulse: the peak of a smoothed envelope. Between simulated
# recordings and their copies at 125 Hz and 20 dB it moves by 0.3 ms (12 leads) and 2.1 ms (PPG), standard deviation.
_SMOOTH_S = 0.020
_REFRACTORY_S = 0.25
_HEIGHT = 0.4
# Closer to an end, the smoothing does not see the whole landmark.
_EDGE_S = 0.08

_DTYPE = np.dtype(
    [
        ("version", "u1"),
        ("unused", "u1"),
        ("ecg_beats", "u1"),
        ("ecg_ticks", "<u2", (MAX_BEATS,)),
        ("ecg_shape", "i1", (SHAPE_BINS,)),
        ("ppg_beats", "u1"),
        ("ppg_ticks", "<u2", (MAX_BEATS,)),
        ("ppg_shape", "i1", (SHAPE_BINS,)),
    ]
)

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Beats:
    """What many fingerprints tell of one kind of signal; n windows.

    Attributes
    ----------
    count : array (n,)
        Beats found, 0 to `MAX_BEATS`.
    times_s : array (n, 23)
        float32 seconds from the start of the window, ascending; NaN beyond `count`.
    shape : array (n, 16)
        float32, length 1, or all zero where there is no beat.
    """

    count: NDArray[np.int64]
    times_s: NDArray[np.float32]
    shape: NDArray[np.float32]


def fingerprint(window: Window) -> bytes:
    """Describe the beats of a window.

    Each lead counts alike and by its magnitude alone, so that neither its gain nor its sign matters; of the PPG,
    which must be upright, the first channel is used. The ECG's half and the PPG's stand for themselves: two windows
    are compared by what both have.

    Parameters
    ----------
    window : Window

    Returns
    -------
    bytes
        `BYTES` of them.
    """
    row = np.zeros((), _DTYPE)
    row["version"] = _VERSION
    if window.ecg is not None and window.lead_mask.any():
        _store(row, "ecg", *_ecg_beats(np.asarray(window.ecg[window.lead_mask], np.float64)))
    if window.ppg is not None and window.ppg_mask is not None and len(window.ppg):
        _store(row, "ppg", *_ppg_beats(np.asarray(window.ppg[0], np.float64), window.ppg_mask))
    return row.tobytes()


def unpack(fingerprints: NDArray[np.uint8]) -> tuple[Beats, Beats]:
    """Give the beats of the ECG and of the PPG of fingerprints (n, 128); those of another version hold none."""
    rows = np.ascontiguousarray(fingerprints).view(_DTYPE).reshape(-1)
    return _load(rows, "ecg"), _load(rows, "ppg")


def _store(row: NDArray[np.void], kind: str, times_s: Floats, shape: Floats) -> None:
    ticks = np.round((times_s[:MAX_BEATS] + MARGIN_S) / TICK_S)
    row[f"{kind}_beats"] = ticks.size
    row[f"{kind}_ticks"][: ticks.size] = np.clip(ticks, 0, _MAX_TICK)
    row[f"{kind}_shape"] = np.round(127 * shape)


def _load(rows: NDArray[np.void], kind: str) -> Beats:
    count = np.where(rows["version"] == _VERSION, rows[f"{kind}_beats"], 0).astype(np.int64)
    count = np.minimum(count, MAX_BEATS)
    times_s = (rows[f"{kind}_ticks"] * TICK_S - MARGIN_S).astype(np.float32)
    times_s[np.arange(MAX_BEATS) >= count[:, None]] = np.nan
    shape = rows[f"{kind}_shape"].astype(np.float32)
    shape /= np.maximum(np.linalg.norm(shape, axis=1, keepdims=True), 1e-9)
    return Beats(count, times_s, shape)


def _ecg_beats(ecg: Floats) -> tuple[Floats, Floats]:
    """Give the landmarks (beat,) in seconds and the shape (16,) of leads (lead, time)."""
    slope = np.gradient(ecg, axis=1)
    slope /= np.maximum(np.sqrt(np.mean(slope**2, axis=1, keepdims=True)), 1e-12)
    envelope = ndimage.gaussian_filter1d(np.sqrt(np.mean(slope**2, axis=0)), _SMOOTH_S * FS_HZ)
    at = _peaks(envelope, np.ones(envelope.size, bool))
    if at.size == 0:
        return at, np.zeros(SHAPE_BINS)
    beat = _median_beat(ecg / np.maximum(ecg.std(axis=1, keepdims=True), 1e-12), at, _ECG_SHAPE_S)
    # The root brings P and T, which tell people apart, nearer to the size of the QRS, which is alike.
    return at / FS_HZ, _shape(np.sqrt(np.sqrt(np.mean(beat**2, axis=0))))


def _ppg_beats(ppg: Floats, mask: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Give the same for a PPG (time,), on the clock of the window."""
    envelope = ndimage.gaussian_filter1d(np.maximum(np.gradient(ppg), 0.0), _SMOOTH_S * FS_HZ)
    at = _peaks(envelope, mask)
    if at.size == 0:
        return at, np.zeros(SHAPE_BINS)
    beat = _median_beat(ppg[None], at, _PPG_SHAPE_S)[0]
    return at / FS_HZ - MARGIN_S, _shape(beat - beat.mean())


def _peaks(envelope: Floats, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give the samples, with fractions, where the envelope peaks, away from ends and gaps."""
    edge = round(_EDGE_S * FS_HZ)
    whole = ndimage.binary_erosion(mask, np.ones(2 * edge + 1, bool), border_value=0)
    # The largest of every 2 s, so that one artefact does not hide all beats.
    block = int(2 * FS_HZ)
    largest = envelope[: envelope.size // block * block].reshape(-1, block).max(axis=1)
    height = _HEIGHT * float(np.median(largest))
    if height <= 1e-9:
        return np.empty(0)
    peaks, _ = signal.find_peaks(envelope, height=height, distance=round(_REFRACTORY_S * FS_HZ))
    peaks = peaks[whole[peaks]]
    before, top, after = (envelope[peaks + k] for k in (-1, 0, 1))
    bend = np.minimum(before - 2 * top + after, -1e-12)
    return np.asarray(peaks + np.clip(0.5 * (before - after) / bend, -0.5, 0.5), np.float64)


def _median_beat(x: Floats, at: Floats, around_s: tuple[float, float]) -> Floats:
    """Give the median over the beats (lead, time) of what lies around them; beats cut off by an end do not count."""
    first, last = (round(edge_s * FS_HZ) for edge_s in around_s)
    centres = np.round(at).astype(np.int64)
    inside = centres[(centres + first >= 0) & (centres + last <= x.shape[1])]
    if inside.size == 0:
        inside = np.clip(centres, -first, x.shape[1] - last)
    return np.asarray(np.median(x[:, inside[:, None] + np.arange(first, last)], axis=1))


def _shape(beat: Floats) -> Floats:
    """Average into bins and bring to length 1."""
    binned = np.array([part.mean() for part in np.array_split(beat, SHAPE_BINS)])
    return binned / max(float(np.linalg.norm(binned)), 1e-12)
