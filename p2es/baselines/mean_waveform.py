"""The mean training waveform: the yardstick that ignores its input.

Independent re-tests on five corpora found it to have the lowest RMSE of all systems, which is why RMSE alone
proves nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from p2es.baselines.common import (
    Arrays,
    BaselineConfig,
    check_request,
    independent,
    lifted,
    read_arrays,
    read_pulse,
    refuse_more,
    training_windows,
    write_arrays,
)
from p2es.demographics import Demographics
from p2es.leads import N_LEADS
from p2es.translator import BAND, MIN_BAND_SAMPLES, Translation
from p2es.windows import ECG_SAMPLES, WindowStore

_EMPTY = (N_LEADS, ECG_SAMPLES)


@dataclass
class MeanWaveform:
    """The mean over training windows, the same for everybody; every sample is that mean.

    Attributes
    ----------
    mean_mv : array (12, 1280)
        Mean of the 8 independent leads over the windows that have them, lifted.
    band_mv : array (2, 12, 1280)
        The mean plus the 5 % and 95 % quantiles of each lead's deviation from it, pooled over time: windows
        start anywhere in a beat, so time within a window tells nothing.
    """

    mean_mv: NDArray[np.float32] = field(default_factory=lambda: np.zeros(_EMPTY, np.float32))
    band_mv: NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, *_EMPTY), np.float32))
    name: str = "mean_waveform"

    def fit(self, dataset: WindowStore, recipe: BaselineConfig) -> Self:
        """Average the training windows; see `Translator.fit`."""
        batch = training_windows(dataset, recipe)
        ecg, mask = independent(batch)
        weight = mask[..., None] / np.maximum(mask.sum(axis=0), 1)[:, None]
        self.mean_mv = lifted((ecg * weight).sum(axis=0))
        limits = np.zeros((2, N_LEADS, 1), np.float32)
        for lead in range(N_LEADS):
            present = batch.ecg_mv[batch.lead_mask[:, lead], lead]
            if len(present):
                limits[:, lead, 0] = np.quantile(present - self.mean_mv[lead], BAND)
        self.band_mv = self.mean_mv + limits
        return self

    def sample(
        self,
        ppg: NDArray[np.float32],
        demographics: Sequence[Demographics],
        *,
        fs_hz: float,
        known: NDArray[np.float32] | None = None,
        enrolment: NDArray[np.float32] | None = None,
        samples: int = 1,
        evaluations: int = 1,
        seeds: Sequence[int],
    ) -> list[Translation]:
        """Give the mean, as many times as asked; see `Translator.sample`."""
        refuse_more(self.name, known, enrolment)
        check_request(ppg, demographics, seeds, samples)
        draws = np.repeat(self.mean_mv[None], samples, axis=0)
        band = self.band_mv if samples >= MIN_BAND_SAMPLES else None
        pulses = [read_pulse(window, fs_hz) for window in ppg]
        return [Translation(draws, self.mean_mv, band, p.quality, p.rhythm, p.heart_rate_bpm) for p in pulses]

    def save(self, folder: Path) -> None:
        """Write `mean_waveform.npz`."""
        write_arrays(folder, self.name, {"mean_mv": self.mean_mv, "band_mv": self.band_mv})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Undo `save`; ModelError when it is missing or corrupt."""
        arrays = read_arrays(folder, "mean_waveform", _check)
        return cls(arrays["mean_mv"].astype(np.float32), arrays["band_mv"].astype(np.float32))


def _check(arrays: Arrays) -> None:
    if arrays["mean_mv"].shape != _EMPTY or arrays["band_mv"].shape != (2, *_EMPTY):
        raise ValueError("shape")
