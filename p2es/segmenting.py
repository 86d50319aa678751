"""From a recording to windows: filtered, resampled to 128 Hz, cut, judged. What is left out is counted by reason."""

from collections import Counter
from collections.abc import Callable, Mapping
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
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_SAMPLES, PPG_SAMPLES, WINDOW_S, Window

MIN_PPG_SHARE = 0.8
"""Least share of a window's PPG that must have been recorded: ten of its twelve seconds are enough."""
MIN_QUALITY = 0.2
"""Least quality of a PPG or lead that is kept."""
MIN_LEAD_SD_MV = 0.005
"""A lead that moves less is flat."""
MAX_LEAD_MV = 10.0
"""A lead that exceeds this in a thousandth of its samples has the wrong unit."""
MAX_LAW_SHARE = 0.1
"""Limb leads off the lead laws by more than this share of their size (RMS) are refused.

21 records of three CinC 2021 sources are off by at most 0.7 %; of 80 LUDB records, whose gains normalise each lead on
its own, all are off by more than 15 %."""
LAW_FLOOR_MV = 0.01
"""What coarse quantisation can do to the sum of three leads is no break of the laws."""
# Long recordings: the delay is stable inside one (IQR 10-20 ms), so three stretches of two minutes tell it.
_DELAY_STRETCH_S = 120.0
_DELAY_STRETCHES = 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Segmented:
    """The windows of a recording, and what was left out.

    Attributes
    ----------
    windows : tuple of Window
    rejected : mapping
        Reason to count: windows left out, and windows kept for their ECG whose PPG was left out.
    """

    windows: tuple[Window, ...]
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class _Timeline:
    """All signals at 128 Hz from the recording's start; NaN where nothing was recorded."""

    ecg: Array
    """(12, time), millivolt, in the band; recorded leads only."""
    beats: Array
    """(signal, time): every ECG, also of an unknown lead or unit. They tell the time of the beats."""
    ppg: Array
    """(channel, time)."""
    channels: tuple[str, ...]


@dataclass(frozen=True)
class _Leads:
    """The ECG of a window: (12, 1280) completed by the lead laws, mask (12,), quality (12,), why it is empty."""

    ecg: NDArray[np.float32]
    mask: NDArray[np.bool_]
    quality: NDArray[np.float32]
    reason: str | None


@dataclass(frozen=True)
class _Pulse:
    """The PPG of a window: (channel, 1536), mask (1536,), quality; or why there is none."""

    ppg: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    quality: float | None = None
    reason: str | None = None


def segment(recording: Recording, *, step_s: float, ids: Callable[..., str], split: str = "test") -> Segmented:
    """Cut a recording into windows.

    The first window leaves room for the PPG's margin; a recording too short for that, or without PPG, is cut from
    its start. A window needs a usable lead or a usable PPG; `enrolment` names the recording's first earlier window
    with all 12 leads.

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
        leads, pulse = _window_leads(line.ecg, start), _window_ppg(line.ppg, start)
        if pulse.reason or not leads.mask.any():
            rejected.update(reason for reason in [_left_out(leads, pulse)] if reason)
        if not leads.mask.any() and pulse.ppg is None:
            continue
        start_s = start / FS_HZ
        window = Window(
            window_id=f"{record}-{round(start_s * 1000):09d}",
            person=person,
            recording=record,
            source=recording.source,
            split=split,
            start_s=start_s,
            ecg=leads.ecg if leads.mask.any() else None,
            lead_mask=leads.mask,
            ppg=pulse.ppg,
            ppg_mask=pulse.mask,
            ppg_channels=line.channels if pulse.ppg is not None else (),
            demographics=recording.demographics,
            delay_s=delay_s,
            delay_confidence=confidence,
            ppg_quality=pulse.quality,
            lead_quality=leads.quality,
            r_peaks_s=_annotated(recording, start_s),
            enrolment=enrolment,
            simulated=recording.simulated,
        )
        windows.append(window)
        if enrolment is None and leads.mask.all():
            enrolment = window.window_id
    if not windows and not rejected:
        rejected["shorter_than_a_window"] += 1
    return Segmented(tuple(windows), dict(rejected))


def _left_out(leads: _Leads, pulse: _Pulse) -> str | None:
    """Give the one reason that a window, or its PPG, is left out for."""
    if pulse.reason:
        return pulse.reason
    return leads.reason if pulse.ppg is None else None


def _timeline(recording: Recording) -> _Timeline:
    leads = {name: s for name, s in recording.leads.items() if s.unit == "mV"}
    pulses = [s for s in recording.of_kind(SignalKind.PPG) if np.isfinite(s.samples).any()]
    if not leads and not pulses:
        raise RecordError(f"{recording.record} has neither a standard ECG lead in millivolt nor a PPG", "no_signal")
    ecgs = [s for s in recording.of_kind(SignalKind.ECG) if np.isfinite(s.samples).any()]
    time = int(max(s.end_s for s in [*leads.values(), *pulses]) * FS_HZ)
    beats = np.full((len(ecgs), time), np.nan)
    ecg = np.full((N_LEADS, time), np.nan)
    for place, signal in enumerate(ecgs):
        row = _placed(signal, bandpass_ecg, time)
        beats[place] = row
        if signal.lead is not None and leads.get(signal.lead) is signal and _in_range(row):
            ecg[LEADS.index(signal.lead)] = row
    ppg = np.full((len(pulses), time), np.nan)
    for place, signal in enumerate(pulses):
        ppg[place] = _placed(signal, bandpass_ppg, time)
    return _Timeline(ecg, beats, ppg, tuple(s.name for s in pulses))


def _in_range(row: Array) -> bool:
    """Tell whether a lead (time,) is of a size that millivolts of a heart can have."""
    return bool(np.isfinite(row).any() and np.nanquantile(np.abs(row), 0.999, method="lower") <= MAX_LEAD_MV)


def _placed(signal: Signal, bandpass: Callable[..., NDArray[np.floating]], time: int) -> Array:
    """Filter a signal and put it on the common timeline."""
    row = np.full(time, np.nan)
    samples = resample(bandpass(signal.samples.astype(np.float64), signal.fs_hz), signal.fs_hz, FS_HZ)
    first = round(signal.start_s * FS_HZ)
    row[first : first + samples.size] = samples[: max(time - first, 0)]
    return row


def _check_laws(ecg: Array) -> None:
    """Refuse limb leads that do not belong together: swapped, or each scaled on its own (LUDB's headers)."""
    recorded = {name: ecg[k] for k, name in enumerate(LIMB) if np.isfinite(ecg[k]).any()}
    if len(recorded) < 3:
        return
    expected = complete_limb_leads(dict(list(recorded.items())[:2]))
    size = np.sqrt(np.mean([np.nanmean(np.square(row)) for row in recorded.values()]))
    for name, row in recorded.items():
        both = np.isfinite(row) & np.isfinite(expected[name])
        gap = np.sqrt(np.mean(np.square(row[both] - expected[name][both]))) if both.any() else 0.0
        if gap > max(MAX_LAW_SHARE * size, LAW_FLOOR_MV):
            raise RecordError(
                f"the limb leads break Einthoven's law ({name} is off by {gap / size:.0%}): check gains and leads",
                "lead_laws",
            )


def _delay(line: _Timeline) -> tuple[float | None, float | None]:
    """Estimate the delay from R peak to steepest pulse of the recording and the confidence in it."""
    peaks, pulses = [], []
    time = line.beats.shape[1]
    stretch = min(int(_DELAY_STRETCH_S * FS_HZ), time)
    # Stretches of a short recording would overlap, and each beat counts once.
    count = min(_DELAY_STRETCHES, max(time // max(stretch, 1), 1))
    for first in np.linspace(0, time - stretch, count).astype(int):
        part = slice(first, first + stretch)
        beats, ppg = line.beats[:, part], line.ppg[:1, part]
        mask = np.isfinite(beats).mean(axis=1) > 0.9
        if not mask.any() or not len(ppg) or np.isfinite(ppg).mean() < 0.5:
            continue
        peaks.append(r_peaks(beats, FS_HZ, mask) + first / FS_HZ)
        pulses.append(pulse_onsets(ppg[0], FS_HZ) + first / FS_HZ)
    if not peaks:
        return None, None
    delay_s, confidence = pulse_delay(np.concatenate(peaks), np.concatenate(pulses))
    return (float(delay_s), float(confidence)) if np.isfinite(delay_s) else (None, None)


def _starts(line: _Timeline, step_s: float) -> range:
    """Give the first samples of the windows."""
    time = line.ecg.shape[1]
    roomy = len(line.ppg) > 0 and time >= ECG_SAMPLES + MARGIN_SAMPLES
    return range(MARGIN_SAMPLES if roomy else 0, time - ECG_SAMPLES + 1, max(round(step_s * FS_HZ), 1))


def _window_leads(line: Array, start: int) -> _Leads:
    """Judge the leads of a window and complete the limb leads."""
    ecg = line[:, start : start + ECG_SAMPLES]
    result, mask = np.zeros(ecg.shape, np.float32), np.zeros(N_LEADS, bool)
    quality = np.full(N_LEADS, np.nan, np.float32)
    whole = np.asarray(np.isfinite(ecg).all(axis=1))
    moving = whole & (np.where(whole[:, None], ecg, 0.0).std(axis=1) >= MIN_LEAD_SD_MV)
    quality[moving] = lead_quality(ecg[moving], FS_HZ)
    kept = moving & (np.nan_to_num(quality) >= MIN_QUALITY)
    known = {LEADS[k]: ecg[k].astype(np.float32) for k in np.flatnonzero(kept)}
    for name, samples in complete_limb_leads(known).items():
        result[LEADS.index(name)], mask[LEADS.index(name)] = samples, True
    reason = "ecg_missing" if not whole.any() else "ecg_flat" if not moving.any() else "ecg_poor"
    return _Leads(result, mask, quality, None if mask.any() else reason)


def _window_ppg(line: Array, start: int) -> _Pulse:
    """Cut the PPG of a window with its margins, and judge it."""
    if not len(line):
        return _Pulse()
    cut = np.full((len(line), PPG_SAMPLES), np.nan)
    first, last = max(start - MARGIN_SAMPLES, 0), min(start + ECG_SAMPLES + MARGIN_SAMPLES, line.shape[1])
    place = first - (start - MARGIN_SAMPLES)
    cut[:, place : place + last - first] = line[:, first:last]
    mask = np.isfinite(cut).all(axis=0)
    if mask.mean() < MIN_PPG_SHARE:
        return _Pulse(reason="ppg_missing")
    ppg = zscore_ppg(cut, mask)
    if not ppg.any():
        return _Pulse(reason="ppg_flat")
    quality = float(ppg_quality(ppg, mask, FS_HZ))
    return _Pulse(ppg, mask, quality) if quality >= MIN_QUALITY else _Pulse(reason="ppg_poor")


def _annotated(recording: Recording, start_s: float) -> NDArray[np.float32] | None:
    if recording.r_peaks_s is None:
        return None
    times = recording.r_peaks_s - start_s
    return times[(times >= 0) & (times < WINDOW_S)].astype(np.float32)
