"""From a recording to windows, stretch by stretch in constant memory; nothing is left out without being counted."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es import lead_laws
from p2es.amplitude import heart_size, peak_to_peak, unusual_heart
from p2es.delay import pulse_delay
from p2es.errors import RecordError
from p2es.evidence import Fault
from p2es.fingerprint import fingerprint
from p2es.heart_rate import unlikely_ecg, unlikely_ppg
from p2es.judging import Leads, Pulse, judge_leads, judge_pulses
from p2es.leads import LEADS, LIMB, N_LEADS
from p2es.polarity import is_inverted
from p2es.recording import Recording, Signal, SignalKind
from p2es.timeline import Timeline, lay_out
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_SAMPLES, WINDOW_S, Window

# A stretch is ten minutes, less where many fast signals would make it larger than this many samples (32 MB float64).
_STRETCH_S = 600.0
_STRETCH_SAMPLES = 4_000_000
MIN_RATE_HZ = 20.0
"""Slower signals show neither a QRS nor the rise of a pulse."""
MAX_WINDOWS = 128
"""Most windows in one `Segmented` of `cut`: 9 MB of 12 leads and a PPG."""
# What is decided once for a long recording (delay, lead laws, size) is told by three stretches of two minutes of it:
# the delay is stable inside one (IQR 10-20 ms).
_PROBE_S = 120.0
_PROBES = 3
_LEAST_PULSE_S = 8.0
# The filter rings for so long beside a jump.
_SETTLED_S = 2.0
# Converter steps taken as microvolt must give a heart of a size between a third of the usual one and three times it.
_REPAIRED_HEARTS = (1 / 3, 3.0)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Segmented:
    """Windows of a recording, and what was left out.

    Attributes
    ----------
    windows : tuple of Window
    rejected : mapping
        Reason to count: places for a window that gave none.
    candidates : int
        All places for a window: ``len(windows) + sum(rejected.values())``, exactly.
    notes : mapping
        Reason to count: the PPG left out of windows that are kept for their ECG, or the ECG of those kept for
        their PPG; `ppg_turned`, the windows whose PPG was upside down.
    """

    windows: tuple[Window, ...]
    rejected: Mapping[str, int]
    candidates: int
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """What is decided once for a whole recording."""

    ecgs: tuple[Signal, ...]
    """All of them, also of an unknown lead or unit: they tell the time of the beats."""
    rows: tuple[int | None, ...]
    """For each of the 12 leads its place in `ecgs`, where it is in millivolt."""
    ppgs: tuple[Signal, ...]
    law_floor_mv: float
    """What the converter's steps may do to the lead laws."""
    samples: int
    """Length of the recording at 128 Hz."""
    starts: range
    whole: Timeline | None = None
    """The recording, where it is so short that it is laid out once."""
    factors: Array | None = None
    """What makes true millivolt of each of `ecgs`, where the file's gains are wrong."""
    flags: tuple[str, ...] = ()
    """Of its ECG."""
    ppg_flags: tuple[str, ...] = ()
    turned: tuple[bool, ...] = ()
    """Which of `ppgs` are upside down; empty where none is."""
    delay_s: float | None = None
    delay_confidence: float | None = None
    delay_iqr_s: float | None = None


def segment(recording: Recording, *, step_s: float, ids: Callable[..., str], split: str = "test") -> Segmented:
    """Cut a recording into windows, all at once; otherwise as `cut`."""
    parts = list(cut(recording, step_s=step_s, ids=ids, split=split))
    rejected, notes = Counter[str](), Counter[str]()
    for part in parts:
        rejected.update(part.rejected)
        notes.update(part.notes)
    windows = tuple(window for part in parts for window in part.windows)
    return Segmented(windows, dict(rejected), sum(part.candidates for part in parts), dict(notes))


def cut(recording: Recording, *, step_s: float, ids: Callable[..., str], split: str = "test") -> Iterator[Segmented]:
    """Cut a recording into windows, stretch by stretch in constant memory.

    The first window leaves room for the PPG's margin; a recording too short for that, or without PPG, is cut from
    its start. Where windows stand depends on the whole recording, not on the stretches. A window needs a usable lead
    or a usable PPG; `enrolment` names the recording's first earlier window with all 12 leads. A tail shorter than a
    window is no place for one.

    Parameters
    ----------
    recording : Recording
        Its signals may be lazy.
    step_s : float
        From the start of a window to the start of the next.
    ids : callable
        Turns archive ids into the stored ones (`Settings.hashed_id`).
    split : str
        The person's split.

    Yields
    ------
    Segmented
        Of at most `MAX_WINDOWS` windows. A recording shorter than a window is one candidate, rejected.

    Raises
    ------
    RecordError
        When the recording as a whole cannot be used, before anything is yielded: nothing recorded (`no_signal`), or
        limb leads that break the lead laws and cannot be mended (`lead_laws`).
    """
    plan = _plan(recording, step_s)
    if not plan.starts:
        yield Segmented((), {"shorter_than_a_window": 1}, 1)
        return
    common = Window(
        window_id=ids(recording.source, "record", recording.record),
        person=ids(recording.source, "person", recording.person),
        recording=ids(recording.source, "record", recording.record),
        source=recording.source,
        split=split,
        start_s=0.0,
        ecg=None,
        lead_mask=np.zeros(N_LEADS, bool),
        ppg=None,
        ppg_mask=None,
        demographics=recording.demographics,
        delay_s=plan.delay_s,
        delay_confidence=plan.delay_confidence,
        delay_iqr_s=plan.delay_iqr_s,
        simulated=recording.simulated,
    )
    for line, starts in _stretches(plan):
        part = _cut_stretch(plan, line, starts, common, recording.r_peaks_s)
        if common.enrolment is None:
            complete = next((w.window_id for w in part.windows if w.lead_mask.all()), None)
            common = replace(common, enrolment=complete)
        yield part


def _cut_stretch(
    plan: _Plan, line: Timeline, starts: Sequence[int], common: Window, annotated_s: Array | None
) -> Segmented:
    windows: list[Window] = []
    rejected, notes = Counter[str](), Counter[str]()
    enrolment = common.enrolment
    leads_of, pulse_of = judge_leads(line, plan.rows, starts, plan.law_floor_mv), judge_pulses(line, starts)
    for start, leads, pulse in zip(starts, leads_of, pulse_of, strict=True):
        reasons = [reason for reason in (pulse.reason, leads.reason) if reason]
        if not leads.mask.any() and pulse.ppg is None:
            rejected[reasons[0]] += 1
            continue
        notes.update(reasons)
        notes.update(["ppg_turned"] * bool(_turned(plan, pulse)))
        window = _window(plan, line, start, leads, pulse, replace(common, enrolment=enrolment), annotated_s)
        windows.append(window)
        if enrolment is None and leads.mask.all():
            enrolment = window.window_id
    return Segmented(tuple(windows), dict(rejected), len(starts), dict(notes))


def _window(
    plan: _Plan, line: Timeline, start: int, leads: Leads, pulse: Pulse, common: Window, annotated_s: Array | None
) -> Window:
    start_s = start / FS_HZ
    has_ecg = bool(leads.mask.any())
    r_peaks_s = None
    if annotated_s is not None:
        times_s = annotated_s - start_s
        r_peaks_s = times_s[(times_s >= 0) & (times_s < WINDOW_S)].astype(np.float32)
    figures: dict[str, Any] = {**leads.figures, **pulse.figures}
    window = replace(
        common,
        window_id=f"{common.recording}-{round(start_s * 1000):09d}",
        start_s=start_s,
        ecg=leads.ecg if has_ecg else None,
        lead_mask=leads.mask,
        ppg=pulse.ppg,
        ppg_mask=pulse.mask,
        ppg_channels=tuple(plan.ppgs[channel].name for channel in pulse.channels),
        r_peaks_s=r_peaks_s,
        heart_rate_bpm=_heart_rate(line, start_s, has_ecg, pulse.channels),
        flags=_flags(plan, leads, pulse),
        **figures,
    )
    return replace(window, fingerprint=fingerprint(window))


def _flags(plan: _Plan, leads: Leads, pulse: Pulse) -> tuple[str, ...]:
    """Give what is odd about the signals that the window has."""
    ecg = (*plan.flags, *leads.flags) if leads.mask.any() else ()
    ppg = (*plan.ppg_flags, *_turned(plan, pulse)) if pulse.ppg is not None else ()
    return tuple(dict.fromkeys((*ecg, *ppg)))


def _turned(plan: _Plan, pulse: Pulse) -> tuple[str, ...]:
    """Give a flag for each channel of the window that was upside down."""
    return tuple(f"ppg_turned:{plan.ppgs[k].name}" for k in pulse.channels if plan.turned and plan.turned[k])


def _heart_rate(line: Timeline, start_s: float, has_ecg: bool, channels: Sequence[int]) -> float | None:
    """Give the rate in a window, beats a minute: by its R peaks, or else its pulses; None with fewer than three."""
    for times_s in [line.beats_s] * has_ecg + [line.onsets_s[channel] for channel in channels]:
        inside = times_s[(times_s >= start_s) & (times_s < start_s + WINDOW_S)]
        if inside.size >= 3:
            return 60.0 / float(np.median(np.diff(inside)))
    return None


def _stretches(plan: _Plan) -> Iterator[tuple[Timeline, Sequence[int]]]:
    """Give the windows of a plan a few at a time, with the timeline that they stand on."""
    if plan.whole is not None:
        for k in range(0, len(plan.starts), MAX_WINDOWS):
            yield plan.whole, plan.starts[k : k + MAX_WINDOWS]
        return
    length = round(_stretch_s(plan) * FS_HZ)
    step = plan.starts.step
    many = max(min(length // step, MAX_WINDOWS), 1)
    for k in range(0, len(plan.starts), many):
        starts = plan.starts[k : k + many]
        first = max(starts[0] - MARGIN_SAMPLES, 0)
        last = min(starts[-1] + ECG_SAMPLES + MARGIN_SAMPLES, plan.samples)
        yield _laid_out(plan, first, last - first), starts


def _stretch_s(plan: _Plan) -> float:
    a_second = sum(signal.fs_hz for signal in (*plan.ecgs, *plan.ppgs))
    return float(np.clip(_STRETCH_SAMPLES / a_second, 30.0, _STRETCH_S))


def _laid_out(plan: _Plan, first: int, count: int) -> Timeline:
    line = lay_out(plan.ecgs, plan.ppgs, first, count)
    line = line if plan.factors is None else line.scaled(plan.factors)
    return line.turned(plan.turned) if plan.turned else line


def _plan(recording: Recording, step_s: float) -> _Plan:
    """Decide what holds for the whole recording."""
    usable = [s for s in recording.signals if s.samples.size > 1 and s.fs_hz >= MIN_RATE_HZ]
    ecgs = tuple(s for s in usable if s.kind is SignalKind.ECG)
    ppgs = tuple(s for s in usable if s.kind is SignalKind.PPG)
    leads = {name: s for name, s in recording.leads.items() if s.unit == "mV" and any(s is one for one in ecgs)}
    if not leads and not ppgs:
        if any(s.fs_hz < MIN_RATE_HZ for s in recording.signals):
            raise RecordError(f"no signal is as fast as {MIN_RATE_HZ:g} Hz: give a faster recording", "rate")
        raise RecordError("there is neither a standard ECG lead in millivolt nor a PPG", "no_signal")
    rows = tuple(
        next((k for k, s in enumerate(ecgs) if s is leads[name]), None) if name in leads else None for name in LEADS
    )
    samples = int(max(s.end_s for s in [*leads.values(), *ppgs]) * FS_HZ + 1e-6)
    roomy = len(ppgs) > 0 and samples >= ECG_SAMPLES + MARGIN_SAMPLES
    step = max(round(step_s * FS_HZ), 1)
    starts = range(MARGIN_SAMPLES if roomy else 0, samples - ECG_SAMPLES + 1, step)
    limb = [abs(ecgs[row].gain or 0.0) for row in rows[: len(LIMB)] if row is not None]
    plan = _Plan(ecgs, rows, ppgs, lead_laws.floor_mv(limb), samples, starts)
    if not starts:
        return plan
    if samples <= _stretch_s(plan) * FS_HZ:
        probes = [lay_out(ecgs, ppgs, 0, samples)]
    else:
        length = round(min(_PROBE_S, _stretch_s(plan)) * FS_HZ)
        places = np.linspace(0, samples - length, _PROBES).astype(int)
        probes = [lay_out(ecgs, ppgs, int(first), length) for first in places]
    return _decided(plan, probes)


def _decided(plan: _Plan, probes: list[Timeline]) -> _Plan:
    """Check lead laws, size, heart rate, which way up the PPG is, and the delay, on stretches of the recording."""
    factors = _repair(plan, probes)
    flags: tuple[str, ...] = ()
    if factors is not None:
        probes = [probe.scaled(factors) for probe in probes]
        flags = ("gains_repaired",)
    if unusual_heart(_heart_size(plan, probes)):
        flags = (*flags, "amplitude")
    if unlikely_ecg([probe.ecg for probe in probes], FS_HZ):
        flags = (*flags, "rate_unlikely")
    ppg_flags = ("rate_unlikely",) if unlikely_ppg([probe.ppg for probe in probes], FS_HZ) else ()
    turned = tuple(is_inverted([probe.ppg[k] for probe in probes], FS_HZ) for k in range(len(plan.ppgs)))
    turned = turned if any(turned) else ()
    if turned:
        probes = [probe.turned(turned) for probe in probes]
    delay_s, confidence, iqr_s = _delay(probes)
    whole = probes[0] if probes[0].ecg.shape[1] == plan.samples else None
    return replace(
        plan, whole=whole, factors=factors, flags=flags, ppg_flags=ppg_flags, turned=turned,
        delay_s=delay_s, delay_confidence=confidence, delay_iqr_s=iqr_s,
    )  # fmt: skip


def _blocks(probes: Sequence[Timeline], row: int) -> tuple[Array, NDArray[np.bool_]]:
    """Part a signal into blocks of a window's length (block, 1280), and tell which are sound (block,).

    A dead stretch, or the ringing of the filter beside one, says nothing about gains.
    """
    blocks, sound = [], []
    for probe in probes:
        count = probe.ecg.shape[1] // ECG_SAMPLES
        part = probe.ecg[row, : count * ECG_SAMPLES].reshape(count, ECG_SAMPLES)
        starts_s = probe.start_s + WINDOW_S * np.arange(count) - _SETTLED_S
        evidence = probe.ecg_evidence[row]
        bad = sum(evidence.share(fault, starts_s, WINDOW_S + 2 * _SETTLED_S) for fault in (Fault.FLAT, Fault.WRAPPED))
        blocks.append(part)
        sound.append(np.isfinite(part).all(axis=1) & (np.ptp(part, axis=1) > 0) & (bad == 0))
    return np.concatenate(blocks), np.concatenate(sound)


def _repair(plan: _Plan, probes: list[Timeline]) -> Array | None:
    """Give the factor (signal,) that mends leads which break the lead laws; None when there is nothing to mend."""
    limb = {name: row for name, row in zip(LIMB, plan.rows, strict=False) if row is not None}
    blocks = {name: _blocks(probes, row) for name, row in limb.items()}
    most = max((int(sound.sum()) for _, sound in blocks.values()), default=0)
    # A lead that is dead beside live ones must not keep these from being checked.
    names = [name for name, (_, sound) in blocks.items() if most and sound.sum() >= most / 2]
    if len(names) < 3:
        return None
    sound = np.all([blocks[name][1] for name in names], axis=0)
    ecg = np.stack([blocks[name][0][sound] for name in names])
    if not ecg.shape[1] or np.median(lead_laws.broken(names, ecg, floor=plan.law_floor_mv)) == 0.0:
        return None
    gains = np.array([s.gain or np.nan for s in plan.ecgs])
    factors = np.where(np.isfinite(gains), gains, 1.0) * 1e-3
    known = np.isfinite(gains[[row for row in plan.rows if row is not None]]).all()
    steps = ecg * factors[[limb[name] for name in names]][:, None, None]
    share, floor = lead_laws.REPAIRED_SHARE, lead_laws.FLOOR_MV / 5
    if known and not np.median(np.any(lead_laws.broken_or_noisy(names, steps, share, floor), axis=0)):
        size = _heart_size(plan, [probe.scaled(factors) for probe in probes])
        if size is not None and _REPAIRED_HEARTS[0] <= size <= _REPAIRED_HEARTS[1]:
            return factors
    gap, size_mv = lead_laws.misfit(names, ecg)
    hint = lead_laws.what_would_mend(names, ecg) if len(names) > 3 else None
    raise RecordError(
        f"the limb leads break Einthoven's law (by {np.median(gap / size_mv):.0%} of their size): "
        f"{hint or 'check gains and lead names'}",
        "lead_laws",
    )


def _heart_size(plan: _Plan, probes: list[Timeline]) -> float | None:
    """Give the size of the recording over that of a usual heart."""
    sizes, mask = np.zeros(N_LEADS), np.zeros(N_LEADS, bool)
    for k, row in enumerate(plan.rows):
        if row is None:
            continue
        blocks, sound = _blocks(probes, row)
        if sound.any():
            sizes[k], mask[k] = np.median(peak_to_peak(blocks[sound])), True
    return heart_size(sizes, mask)


def _delay(probes: list[Timeline]) -> tuple[float | None, float | None, float | None]:
    """Estimate the delay from R peak to steepest pulse of the recording, its confidence and its IQR."""
    peaks, pulses = [], []
    recorded = np.array([np.isfinite(probe.ppg).sum(axis=1) for probe in probes])
    # The first of the channels that were recorded most: their delays differ by wavelength and site.
    channel = int(np.argmax(recorded.sum(axis=0))) if recorded.size else 0
    for probe, samples in zip(probes, recorded, strict=True):
        # The pulse may have been recorded for a part of it only.
        if len(probe.ecg) and len(probe.ppg) and samples[channel] >= _LEAST_PULSE_S * FS_HZ:
            peaks.append(probe.beats_s)
            pulses.append(probe.onsets_s[channel])
    if not peaks:
        return None, None, None
    found = pulse_delay(np.concatenate(peaks), np.concatenate(pulses))
    return tuple(found) if np.isfinite(found.delay_s) else (None, None, None)  # type: ignore[return-value]
