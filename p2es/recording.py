"""Recording: what every reader yields, whatever the format it reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.errors import RecordError


class SignalKind(StrEnum):
    """What a signal measures."""

    ECG = "ecg"
    PPG = "ppg"


@dataclass(frozen=True)
class Signal:
    """One signal of a recording, at its own rate.

    Attributes
    ----------
    name : str
        As the archive writes it.
    kind : SignalKind
    samples : array (time,)
        float32 or float64; NaN where nothing was recorded.
    fs_hz : float
        Samples a second.
    unit : str
        "mV" for ECG once a reader has converted it; PPG units are arbitrary and kept as written.
    start_s : float
        Time of the first sample from the start of the recording.
    lead : str or None
        Standard lead name, None for a PPG and for an ECG lead that is not one of the 12.
    """

    name: str
    kind: SignalKind
    samples: NDArray[np.floating]
    fs_hz: float
    unit: str
    start_s: float = 0.0
    lead: str | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.fs_hz) and 1.0 <= self.fs_hz <= 100_000.0):
            raise RecordError(f"signal {self.name!r} has a rate of {self.fs_hz} Hz: give the true rate", "rate")
        if self.samples.ndim != 1:
            raise RecordError(f"signal {self.name!r} has {self.samples.ndim} dimensions, not 1", "shape")

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
