"""From a recording to windows: filtered, resampled to 128 Hz, cut, judged. What is left out is counted by reason."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.leads import LEADS, LIMB, N_LEADS, complete_limb_leads
from p2es.recording import Recording, Signal, SignalKind
from p2es.signals import (
    bandpass_ecg,
    bandpass_ppg,
    lead_quality,
    ppg_quality,
    pulse_delay,
    pulse_onsets,
    r_peaks,
    resample,
    zscore_ppg,
)
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, MARGIN_SAMPLES, PPG_SAMPLES, WINDOW_S, Window

MIN_PPG_SHARE = 0.9
"""Least share of a window's PPG that must have been recorded."""
MIN_QUALITY = 0.2
"""Least quality of a PPG or lead that is kept."""
MIN_LEAD_SD_MV = 0.005
"""A lead that moves less is flat."""
MAX_LEAD_MV = 10.0
"""A lead that exceeds this in a thousandth of its samples has the wrong unit."""
MAX_LAW_SHARE = 0.3
"""Recordings whose limb leads break the lead laws by more than this share of their size are refused."""
# Long recordings: the delay is stable inside one (IQR 10-20 ms), so three stretches of two minutes tell it.
_DELAY_STRETCH_S = 120.0
_DELAY_STRETCHES = 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Segmented:
    """The windows of a recording, and how many were left out for which reason."""

    windows: tuple[Window, ...]
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class _Timeline:
    """All signals at 128 Hz from the recording's start; NaN where nothing was recorded."""

    ecg: Array
    """(12, time), millivolt, in the band; recorded leads only."""
    ppg: Array
    """(channel, time)."""
    channels: tuple[str, ...]


def segment(recording: Recording, *, step_s: float, ids: Callable[..., str], split: str = "test") -> Segmented:
    """Cut a recording into windows.

    Parameters
    ----------
    recording : Recording
    step_s : float
        From the start of a window to the start of the next.
    ids : callable
        Turns archive ids into the stored ones (`Settings.hashed_id`).
    split : str
        The person's split.

    Returns
    -------
    Segmented

    Raises
    ------
    RecordError
        When the recording as a whole cannot be used: nothing recorded, or limb leads that break the lead laws.
    """
    line = _timeline(recording)
    _check_laws(line.ecg)
    delay_s, confidence = _delay(line)
    person = ids(recording.source, "person", recording.person)
    record = ids(recording.source, "record", recording.record)
    windows: list[Window] = []
    rejected: Counter[str] = Counter()
    enrolment: str | None = None
    for start in _starts(line, step_s):
        ecg, mask, quality = _window_leads(line.ecg[:, start : start + ECG_SAMPLES])
        ppg, ppg_mask, ppg_score, reason = _window_ppg(line.ppg, start)
        if ppg is None and reason:
            rejected[reason] += 1
        if not mask.any() and ppg is None:
            rejected["no_usable_signal"] += 1
            continue
        start_s = start / FS_HZ
        window = Window(
            window_id=f"{record}-{round(start_s * 1000):09d}",
            person=person,
            recording=record,
            source=recording.source,
            split=split,
            start_s=start_s,
            ecg=ecg if mask.any() else None,
            lead_mask=mask,
            ppg=ppg,
            ppg_mask=ppg_mask,
            ppg_channels=line.channels if ppg is not None else (),
            demographics=recording.demographics,
            delay_s=delay_s if np.isfinite(delay_s) else None,
            delay_confidence=confidence if np.isfinite(delay_s) else None,
            ppg_quality=ppg_score if ppg is not None else None,
            lead_quality=quality,
            r_peaks_s=_annotated(recording, start_s),
            enrolment=enrolment,
            simulated=recording.simulated,
        )
        windows.append(window)
        if enrolment is None and mask.all():
            enrolment = window.window_id
    if not windows and not rejected:
        rejected["shorter_than_a_window"] += 1
    return Segmented(tuple(windows), dict(rejected))


def _timeline(recording: Recording) -> _Timeline:
    leads = {name: s for name, s in recording.leads.items() if s.unit == "mV"}
    pulses = [s for s in recording.of_kind(SignalKind.PPG) if np.isfinite(s.samples).any()]
    if not leads and not pulses:
        raise RecordError(f"{recording.record} has neither a standard ECG lead in millivolt nor a PPG", "no_signal")
    time = int(max(s.end_s for s in [*leads.values(), *pulses]) * FS_HZ)
    ecg = np.full((N_LEADS, time), np.nan)
    for name, signal in leads.items():
        row = _placed(signal, bandpass_ecg(signal.samples.astype(np.float64), signal.fs_hz), time)
        if np.nanpercentile(np.abs(row), 99.9, method="lower") <= MAX_LEAD_MV if np.isfinite(row).any() else False:
            ecg[LEADS.index(name)] = row
    ppg = np.stack(
        [_placed(s, bandpass_ppg(s.samples.astype(np.float64), s.fs_hz), time) for s in pulses]
        or [np.full(time, np.nan)]
    )
    return _Timeline(ecg, ppg if pulses else ppg[:0], tuple(s.name for s in pulses))


def _placed(signal: Signal, filtered: Array, time: int) -> Array:
    """Put a signal on the common timeline."""
    row = np.full(time, np.nan)
    samples = resample(filtered, signal.fs_hz, FS_HZ)
    first = round(signal.start_s * FS_HZ)
    row[first : first + samples.size] = samples[: time - first]
    return row


def _check_laws(ecg: Array) -> None:
    """Refuse limb leads that do not belong together: swapped, or each scaled on its own (LUDB's headers)."""
    recorded = {name: ecg[k] for k, name in enumerate(LIMB) if np.isfinite(ecg[k]).any()}
    if len(recorded) < 3:
        return
    first_two = dict(list(recorded.items())[:2])
    expected = complete_limb_leads(first_two)
    size = np.sqrt(np.nanmean([np.nanmean(np.square(row)) for row in recorded.values()]))
    for name, row in recorded.items():
        gap = np.sqrt(np.nanmean(np.square(row - expected[name])))
        if gap > MAX_LAW_SHARE * size:
            raise RecordError(
                f"the limb leads break Einthoven's law ({name} is off by {100 * gap / size:.0f} %): check gains and leads",
                "lead_laws",
            )


def _delay(line: _Timeline) -> tuple[float, float]:
    """Estimate the delay from R peak to steepest pulse of the recording."""
    if not len(line.ppg) or not np.isfinite(line.ecg).any():
        return float("nan"), 0.0
    peaks, pulses = [], []
    time = line.ecg.shape[1]
    stretch = min(int(_DELAY_STRETCH_S * FS_HZ), time)
    for first in np.unique(np.linspace(0, time - stretch, _DELAY_STRETCHES).astype(int)):
        part = slice(first, first + stretch)
        ecg, ppg = line.ecg[:, part], line.ppg[0, part]
        mask = np.isfinite(ecg).mean(axis=1) > 0.9
        if not mask.any() or np.isfinite(ppg).mean() < 0.5:
            continue
        peaks.append(r_peaks(np.nan_to_num(ecg), FS_HZ, mask) + first / FS_HZ)
        pulses.append(pulse_onsets(np.nan_to_num(ppg), FS_HZ, np.isfinite(ppg)) + first / FS_HZ)
    if not peaks:
        return float("nan"), 0.0
    # Stretches of a short recording overlap: each beat counts once.
    delay_s, confidence = pulse_delay(np.unique(np.concatenate(peaks)), np.unique(np.concatenate(pulses)))
    return float(delay_s), float(confidence)


def _starts(line: _Timeline, step_s: float) -> Iterator[int]:
    # Without a PPG there is no margin to keep, and a 10 s ECG is a window.
    first, step = round(MARGIN_S * FS_HZ) if len(line.ppg) else 0, max(round(step_s * FS_HZ), 1)
    yield from range(first, line.ecg.shape[1] - ECG_SAMPLES + 1, step)


def _window_leads(ecg: Array) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Judge the leads of a window (12, 1280) and complete the limb leads."""
    whole = np.isfinite(ecg).all(axis=1)
    kept = whole & (np.where(whole[:, None], ecg, 0.0).std(axis=1) >= MIN_LEAD_SD_MV)
    quality = np.full(N_LEADS, np.nan, np.float32)
    if kept.any():
        quality[kept] = lead_quality(ecg[kept], FS_HZ)
        kept &= np.nan_to_num(quality) >= MIN_QUALITY
    result = np.zeros(ecg.shape, np.float32)
    mask = np.zeros(N_LEADS, bool)
    known = {LEADS[k]: ecg[k].astype(np.float32) for k in np.flatnonzero(kept)}
    for name, samples in complete_limb_leads(known).items():
        result[LEADS.index(name)], mask[LEADS.index(name)] = samples, True
    return result, mask, quality


def _window_ppg(
    ppg: Array, start: int
) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None, float, str | None]:
    """Cut the PPG of a window with its margins; None with the reason when it is not good enough."""
    if not len(ppg):
        return None, None, 0.0, None
    cut = np.full((len(ppg), PPG_SAMPLES), np.nan)
    part = ppg[:, start - MARGIN_SAMPLES : start + ECG_SAMPLES + MARGIN_SAMPLES]
    cut[:, : part.shape[1]] = part
    mask = np.isfinite(cut).all(axis=0)
    if mask.mean() < MIN_PPG_SHARE:
        return None, None, 0.0, "ppg_missing"
    if np.nanstd(cut[0]) < 1e-9:
        return None, None, 0.0, "ppg_flat"
    scored = zscore_ppg(cut, mask)
    quality = float(ppg_quality(scored, mask, FS_HZ))
    if quality < MIN_QUALITY:
        return None, None, quality, "ppg_poor"
    return scored, mask, quality, None


def _annotated(recording: Recording, start_s: float) -> NDArray[np.float32] | None:
    if recording.r_peaks_s is None:
        return None
    times = recording.r_peaks_s - start_s
    return times[(times >= 0) & (times < WINDOW_S)].astype(np.float32)
