"""A stretch of a recording at 128 Hz on the recording's own clock: filtered, with what was wrong with it before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from p2es.beats import QRS_BAND_HZ, pulse_onsets, r_peaks_in_band
from p2es.evidence import Evidence, examine
from p2es.filters import bandpass, bridge, stored_ecg, stored_ppg
from p2es.recording import Signal
from p2es.windows import FS_HZ

PAD_S = 12.0
"""Read on either side of a stretch, so that filters have settled: with 10 s (and the 2 s that a gap may be bridged) a
window of a stretch is the window of the whole recording to 1e-8 of the offset that is filtered away."""

Array = NDArray[np.float64]
_Filter = Callable[[NDArray[np.floating], float, float, int, int], Array]


@dataclass(frozen=True)
class Timeline:
    """All signals of a stretch at 128 Hz; NaN where nothing was recorded, or nothing to be believed.

    Attributes
    ----------
    first : int
        Number of the first sample: k is at ``k / 128`` s of the recording's clock.
    ecg : array (signal, time)
        0.5-40 Hz, in the unit of the signals.
    ppg : array (channel, time)
        0.4-8 Hz.
    ecg_evidence, ppg_evidence : tuple of Evidence
        What was wrong with each signal as recorded.
    """

    first: int
    ecg: Array
    ppg: Array
    ecg_evidence: tuple[Evidence, ...] = field(repr=False)
    ppg_evidence: tuple[Evidence, ...] = field(repr=False)

    @property
    def start_s(self) -> float:
        """Time of the first sample, seconds."""
        return self.first / FS_HZ

    @cached_property
    def beats_s(self) -> Array:
        """R peaks by all ECG signals, seconds on the recording's clock."""
        recorded = np.isfinite(self.ecg).sum(axis=1) >= 2 * FS_HZ
        return self.start_s + r_peaks_in_band(self.qrs[recorded], FS_HZ)

    @cached_property
    def qrs(self) -> Array:
        """The ECG (signal, time) in 5-30 Hz, gaps bridged."""
        return np.asarray(bandpass(bridge(self.ecg)[0], FS_HZ, QRS_BAND_HZ))

    @cached_property
    def pulses(self) -> Array:
        """The PPG (channel, time), gaps bridged."""
        return bridge(self.ppg)[0]

    @cached_property
    def onsets_s(self) -> tuple[Array, ...]:
        """Steepest rises of each PPG channel, seconds on the recording's clock."""
        return tuple(self.start_s + pulse_onsets(row, FS_HZ) for row in self.ppg)

    def scaled(self, factors: Array) -> "Timeline":
        """Multiply each ECG signal by its factor (signal,)."""
        return replace(self, ecg=self.ecg * factors[:, None])

    def turned(self, channels: Sequence[bool]) -> "Timeline":
        """Turn the PPG channels (channel,) that are upside down."""
        return replace(self, ppg=self.ppg * np.where(channels, -1.0, 1.0)[:, None])


def lay_out(ecgs: Sequence[Signal], ppgs: Sequence[Signal], first: int, count: int) -> Timeline:
    """Read a stretch of signals, in constant memory, and bring it onto the timeline.

    Parameters
    ----------
    ecgs, ppgs : sequence of Signal
        May be lazy: only the stretch and `PAD_S` on either side are read.
    first, count : int
        Samples at 128 Hz.
    """
    ecg, ecg_evidence = _rows(ecgs, stored_ecg, first, count)
    ppg, ppg_evidence = _rows(ppgs, stored_ppg, first, count)
    return Timeline(first, ecg, ppg, ecg_evidence, ppg_evidence)


def _rows(signals: Sequence[Signal], stored: _Filter, first: int, count: int) -> tuple[Array, tuple[Evidence, ...]]:
    """Filter signals to rows (signal, count), those of one rate and length together."""
    rows = np.full((len(signals), count), np.nan)
    evidence: list[Evidence] = []
    together: dict[tuple[float, float, int], list[tuple[int, NDArray[np.floating]]]] = {}
    for place, signal in enumerate(signals):
        part = signal.between(first / FS_HZ - PAD_S, (first + count) / FS_HZ + PAD_S)
        samples = part.read()
        evidence.append(examine(samples, part.fs_hz, part.start_s, part.gain))
        if evidence[-1].wrapped is not None:
            samples = np.where(evidence[-1].wrapped, np.nan, samples)
        if samples.size:
            together.setdefault((part.fs_hz, part.start_s, samples.size), []).append((place, samples))
    for (fs_hz, start_s, _), group in together.items():
        leads = np.stack([row for _, row in group], dtype=np.float64, casting="unsafe")
        rows[[place for place, _ in group]] = stored(leads, fs_hz, start_s, first, count)
    return rows, tuple(evidence)
