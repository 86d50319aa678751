"""Recording: what every reader yields, whatever the format it reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.errors import RecordError


class SignalKind(StrEnum):
    """What a signal measures."""

    ECG = "ecg"
    PPG = "ppg"


class Samples(Protocol):
    """Samples (time,) that can be cut: an array in memory, or `LazySamples`."""

    @property
    def size(self) -> int:
        """Number of samples."""
        ...

    @property
    def ndim(self) -> int:
        """Always 1."""
        ...

    def __getitem__(self, part: slice, /) -> NDArray[np.floating]: ...


@dataclass(frozen=True)
class LazySamples:
    """Samples that stay in their file until a stretch of them is asked for: a day's record needs no day's memory.

    Attributes
    ----------
    size : int
        Number of samples.
    load : callable
        `load(start, stop)` reads samples start to stop, 0 <= start <= stop <= size, as (stop - start,) float32;
        RecordError when the file does not hold them.
    """

    size: int
    load: Callable[[int, int], NDArray[np.floating]] = field(repr=False)
    ndim: int = 1

    def __getitem__(self, part: slice) -> NDArray[np.floating]:
        start, stop, step = part.indices(self.size)
        assert step == 1
        return self.load(start, max(start, stop))


@dataclass(frozen=True)
class Signal:
    """One signal of a recording, at its own rate.

    Attributes
    ----------
    name : str
        As the archive writes it.
    kind : SignalKind
    samples : array (time,) or LazySamples
        float32 or float64; NaN where nothing was recorded. `read` and `between` give arrays of either.
    fs_hz : float
        Samples a second.
    unit : str
        "mV" for ECG once a reader has converted it; PPG units are arbitrary and kept as written.
    start_s : float
        Time of the first sample from the start of the recording.
    lead : str or None
        Standard lead name, None for a PPG and for an ECG lead that is not one of the 12.
    gain : float or None
        Converter steps for one unit of `unit`, where the file says so: with it the steps can be had back when the
        gains turn out to be wrong (LUDB).
    """

    name: str
    kind: SignalKind
    samples: Samples
    fs_hz: float
    unit: str
    start_s: float = 0.0
    lead: str | None = None
    gain: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.fs_hz) and 1.0 <= self.fs_hz <= 100_000.0):
            raise RecordError(f"signal {self.name!r} has a rate of {self.fs_hz} Hz: give the true rate", "rate")
        if self.samples.ndim != 1:
            raise RecordError(f"signal {self.name!r} has {self.samples.ndim} dimensions, not 1", "shape")

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.floating]:
        """Give samples start to stop, clipped to what there is, as an array."""
        return np.asarray(self.samples[max(start, 0) : self.samples.size if stop is None else max(stop, 0)])

    def between(self, start_s: float, stop_s: float) -> "Signal":
        """Cut out the samples at start_s <= time < stop_s of the recording's clock, in memory."""
        first, last = (
            min(max(int(np.ceil((time_s - self.start_s) * self.fs_hz - 1e-6)), 0), self.samples.size)
            for time_s in (start_s, stop_s)
        )
        start = self.start_s + first / self.fs_hz
        return replace(self, samples=self.read(first, max(first, last)), start_s=start)

    @property
    def end_s(self) -> float:
        """Time just after the last sample, seconds."""
        return self.start_s + self.samples.size / self.fs_hz


@dataclass(frozen=True)
class Recording:
    """Signals of one person on one occasion.

    Attributes
    ----------
    record : str
        Name of the record in its archive, unique within `source`.
    source : str
        Institution family (`mimic`, `ptbxl`, `simulated`, ...): sets that share people share a family.
    person : str
        The archive's id of the person; the record name where the archive has none.
    signals : tuple of Signal
    demographics : Demographics
    r_peaks_s : array or None
        Annotated R peaks, seconds from the start, where the archive has them.
    simulated : bool
        Whether a program made it.
    provenance : mapping
        Whatever else should be kept (file names, format); no personal data.
    """

    record: str
    source: str
    person: str
    signals: tuple[Signal, ...]
    demographics: Demographics = Demographics()
    r_peaks_s: NDArray[np.float64] | None = None
    simulated: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of_kind(self, kind: SignalKind) -> tuple[Signal, ...]:
        """Give the signals of one kind, in their order."""
        return tuple(signal for signal in self.signals if signal.kind is kind)

    def between(self, start_s: float, stop_s: float) -> "Recording":
        """Cut out a stretch, in memory; the clock and the annotated R peaks stay the recording's."""
        return replace(self, signals=tuple(signal.between(start_s, stop_s) for signal in self.signals))

    @property
    def leads(self) -> dict[str, Signal]:
        """The standard leads by name; where a lead comes twice, the first."""
        result: dict[str, Signal] = {}
        for signal in self.of_kind(SignalKind.ECG):
            if signal.lead is not None:
                result.setdefault(signal.lead, signal)
        return result

    @property
    def duration_s(self) -> float:
        """Time from the start to the end of the longest signal, seconds."""
        return max((signal.end_s for signal in self.signals), default=0.0)
