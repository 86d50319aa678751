"""Which leads and which PPG of a window are of use, with the reasons and the figures for all the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2es.amplitude import peak_to_peak, possible, unusual_leads
from p2es.evidence import Evidence, Fault
from p2es.lead_laws import FLOOR_MV, broken_or_noisy
from p2es.leads import LEADS, LIMB, N_LEADS, complete_limb_leads
from p2es.quality import MIN_QUALITY, lead_noise, lead_quality, pulse_noise
from p2es.signals import zscore_ppg
from p2es.timeline import Timeline
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, MARGIN_SAMPLES, PPG_SAMPLES, WINDOW_S

MAX_BAD_SHARE = 0.2
"""Most of a window's PPG that may be missing or flat (ten of its twelve seconds are enough), or of a lead flat."""
MAX_CLIPPED = {"ecg": 0.01, "ppg": 0.05}
"""Most of a window that may sit at a rail: a QRS is a tenth of a lead, and its top a tenth of that."""

Array = NDArray[np.float64]
Floats = NDArray[np.floating]
Figures = NDArray[np.float32]
_FAULTS = (Fault.FLAT, Fault.CLIPPED, Fault.WRAPPED, Fault.MISSING)
# In the order of what is looked at: a window is told the reason of the lead, or channel, that came furthest.
_REASONS = ("missing", "wrapped", "flat", "clipped", "amplitude", "poor")
_USABLE = len(_REASONS)


def _reason(kind: str, furthest: int) -> str:
    name = _REASONS[furthest]
    return name if name == "amplitude" else f"{kind}_{name}"


@dataclass(frozen=True)
class Leads:
    """The ECG of a window.

    Attributes
    ----------
    ecg : array (12, 1280)
        float32, completed by the lead laws; zero where `mask` (12,) is False.
    mask : array (12,)
    figures : mapping
        `lead_quality`, `lead_flat`, ...: (12,) float32, NaN for leads that were not recorded.
    flags : tuple of str
    reason : str or None
        Why `mask` is empty; None also when the recording has no standard lead.
    """

    ecg: NDArray[np.float32]
    mask: NDArray[np.bool_]
    figures: dict[str, Figures]
    flags: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True)
class Pulse:
    """The PPG of a window: (channel, 1536) z-scored, mask (1536,), which channels, figures; or why there is none."""

    ppg: NDArray[np.float32] | None
    mask: NDArray[np.bool_] | None
    channels: tuple[int, ...]
    figures: dict[str, float]
    reason: str | None


def judge_leads(
    line: Timeline, rows: Sequence[int | None], starts: Sequence[int], law_floor_mv: float = FLOOR_MV
) -> list[Leads]:
    """Judge the leads of windows, and complete the limb leads.

    Parameters
    ----------
    line : Timeline
    rows : sequence of int or None
        For each of the 12 leads its row of `line.ecg`, in millivolt.
    starts : sequence of int
        First samples of the windows, on the recording's clock.
    law_floor_mv : float
        Misfit that coarse quantisation may give the lead laws.
    """
    places = np.array([k for k, row in enumerate(rows) if row is not None], np.intp)
    mine = [row for row in rows if row is not None]
    at = np.asarray(starts) - line.first
    ecg = _windows(line.ecg[mine], at, ECG_SAMPLES)
    figures, size_mv, furthest = _lead_figures(line, mine, ecg, at)
    usable = furthest == _USABLE
    masks = np.zeros((len(at), N_LEADS), bool)
    masks[:, places] = usable.T
    result, completed, laws, noisy = _completed(ecg, masks, places, law_floor_mv)
    found = []
    for n in range(len(at)):
        sizes = np.zeros(N_LEADS)
        sizes[places] = size_mv[:, n]
        own = {name: _spread(values[:, n], places) for name, values in figures.items()}
        mask = completed[n]
        reason = None
        if not mask.any() and places.size:
            reason = "lead_laws" if laws[n] else _reason("ecg", int(furthest[:, n].max()))
        flags = tuple(f"amplitude:{name}" for name in unusual_leads(sizes, masks[n] & mask))
        flags += ("lead_laws_noise",) * bool(noisy[n])
        found.append(Leads(result[n], mask, own, flags, reason))
    return found


def _windows(rows: Array, at: NDArray[np.intp], length: int) -> Array:
    """Cut (row, window, length)."""
    if not len(rows):
        return np.zeros((0, len(at), length))
    return np.lib.stride_tricks.sliding_window_view(rows, length, axis=1)[:, at]


def _spread(values: NDArray[np.float32], places: NDArray[np.intp]) -> Figures:
    result = np.full(N_LEADS, np.nan, np.float32)
    result[places] = values
    return result


def _shares(evidence: Sequence[Evidence], starts_s: Array, length_s: float) -> dict[Fault, Figures]:
    """Give each fault's share, (signal, window)."""
    empty = np.zeros((0, len(starts_s)), np.float32)
    return {
        fault: np.stack([found.share(fault, starts_s, length_s) for found in evidence]) if evidence else empty
        for fault in _FAULTS
    }


def _lead_figures(
    line: Timeline, mine: Sequence[int], ecg: Array, at: NDArray[np.intp]
) -> tuple[dict[str, Figures], Floats, NDArray[np.intp]]:
    """Give the figures, the sizes (mV), and how far each lead came in `_REASONS`; each (lead, window)."""
    shares = _shares([line.ecg_evidence[row] for row in mine], (at + line.first) / FS_HZ, WINDOW_S)
    whole = np.asarray(np.isfinite(ecg).all(axis=-1))
    noise = np.where(whole, lead_noise(_windows(line.qrs[list(mine)], at, ECG_SAMPLES)), np.float32(1.0))
    quality = lead_quality(shares[Fault.MISSING], shares[Fault.FLAT], shares[Fault.CLIPPED], noise)
    size_mv = peak_to_peak(np.where(whole[..., None], ecg, 0.0))
    passed = [
        whole | (shares[Fault.WRAPPED] > 0),
        shares[Fault.WRAPPED] == 0,
        shares[Fault.FLAT] <= MAX_BAD_SHARE,
        shares[Fault.CLIPPED] <= MAX_CLIPPED["ecg"],
        possible(size_mv),
        quality >= MIN_QUALITY,
    ]
    furthest = np.cumprod(np.stack(passed), axis=0).sum(axis=0)
    figures = {f"lead_{fault.value}": share for fault, share in shares.items()}
    return figures | {"lead_noise": noise, "lead_quality": quality}, size_mv, furthest


def _completed(
    ecg: Array, masks: NDArray[np.bool_], places: NDArray[np.intp], law_floor_mv: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Complete limb leads: (window, 12, 1280), mask (window, 12); where the laws are broken, where off by noise."""
    result = np.zeros((len(masks), N_LEADS, ECG_SAMPLES), np.float32)
    completed = np.zeros_like(masks)
    laws, noisy = np.zeros((2, len(masks)), bool)
    row_of = {int(place): row for row, place in enumerate(places)}
    patterns, which = np.unique(masks, axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        windows = np.flatnonzero(which.reshape(-1) == k)
        known = {LEADS[p]: ecg[row_of[int(p)]][windows] for p in np.flatnonzero(pattern)}
        limb = [name for name in LIMB if name in known]
        if len(limb) >= 3:
            stacked = np.stack([known[name] for name in limb])
            laws[windows], noisy[windows] = broken_or_noisy(limb, stacked, floor=law_floor_mv)
        for name, samples in complete_limb_leads(known).items():
            result[windows, LEADS.index(name)] = samples
            completed[windows, LEADS.index(name)] = True
    result[laws], completed[laws] = 0.0, False
    return result, completed, laws, noisy


def judge_pulses(line: Timeline, starts: Sequence[int]) -> list[Pulse]:
    """Cut the PPG of windows with its margins, and judge it; a channel that is of no use is left out."""
    at = np.asarray(starts) - line.first - MARGIN_SAMPLES
    # At the ends of a recording there is less than a margin.
    before = max(-int(at.min(initial=0)), 0)
    after = max(int(at.max(initial=0)) + PPG_SAMPLES - line.ppg.shape[1], 0)
    cuts = _windows(np.pad(line.ppg, [(0, 0), (before, after)], constant_values=np.nan), at + before, PPG_SAMPLES)
    begin_s = (np.asarray(starts) - MARGIN_SAMPLES) / FS_HZ
    shares = _shares(line.ppg_evidence, begin_s, WINDOW_S + 2 * MARGIN_S)
    absent = 1.0 - np.isfinite(cuts).mean(axis=-1)
    passed = [
        (absent <= MAX_BAD_SHARE) | (shares[Fault.WRAPPED] > shares[Fault.MISSING]),
        absent <= MAX_BAD_SHARE,
        shares[Fault.FLAT] <= MAX_BAD_SHARE,
        shares[Fault.CLIPPED] <= MAX_CLIPPED["ppg"],
    ]
    furthest = np.cumprod(np.stack(passed), axis=0).sum(axis=0)
    return [
        _judged(line, cuts[:, n], furthest[:, n], {f.value: share[:, n] for f, share in shares.items()}, begin)
        for n, begin in enumerate(begin_s)
    ]


def _judged(
    line: Timeline, cut: Array, furthest: NDArray[np.intp], shares: dict[str, Figures], begin_s: float
) -> Pulse:
    """Judge the channels (channel, 1536) of one window that starts, with its margin, at `begin_s`."""
    usable = np.flatnonzero(furthest == 4)
    if not usable.size:
        return _no_pulse(_reason("ppg", int(furthest.max())) if furthest.size else None)
    recorded = np.isfinite(cut)
    if recorded[usable].all(axis=0).mean() < 1.0 - MAX_BAD_SHARE:
        # Channels with gaps at different times: one of them whole is worth more than what they share.
        usable = usable[[int(np.argmax(recorded[usable].sum(axis=1)))]]
    mask = np.asarray(recorded[usable].all(axis=0))
    ppg = zscore_ppg(cut[usable], mask)
    if not ppg.any():
        return _no_pulse("ppg_flat")
    noises = [_noise(line, int(channel), begin_s) for channel in usable]
    best = int(np.argmin(noises))
    quality = float(mask.mean() * (1.0 - noises[best]))
    if quality < MIN_QUALITY:
        return _no_pulse("ppg_poor")
    figures = {f"ppg_{name}": float(share[usable[best]]) for name, share in shares.items()}
    figures |= {"ppg_noise": noises[best], "ppg_quality": quality}
    return Pulse(ppg, mask, tuple(int(channel) for channel in usable), figures, None)


def _no_pulse(reason: str | None) -> Pulse:
    return Pulse(None, None, (), {}, reason)


def _noise(line: Timeline, channel: int, begin_s: float) -> float:
    """Give the noise of a channel between the ends of a window, as far as the timeline goes."""
    onsets_s = line.onsets_s[channel]
    first = max(round(begin_s * FS_HZ) - line.first, 0)
    last = round(begin_s * FS_HZ) - line.first + PPG_SAMPLES
    times_s = onsets_s - line.start_s - first / FS_HZ
    inside = (times_s >= 0) & (times_s < (last - first) / FS_HZ)
    return pulse_noise(line.pulses[channel, first:last], times_s[inside], FS_HZ)
