"""The recorded ECG of the training window whose pulse and person are nearest: the yardstick that makes nothing up.

What it gives is real, bit for bit: it looks like an ECG because it is one, and it is a copy of a training record, which
every test of memorisation must catch. What it shows of this person is what the nearest other person has in common.

The retrieved ECG is neither shifted nor stretched. To move its first beat under the first pulse would leave a hole at
one end and help one beat only, as the rhythm is another person's; the figures after one constant lag, which every
system gets, grant the shift without spoiling the record. Its raw timing is therefore at chance, as it should be.
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
    fit_scaler,
    independent,
    lifted,
    onsets_of,
    read_arrays,
    read_pulse,
    refuse_more,
    scaler_arrays,
    scaler_from,
    training_pulse,
    training_windows,
    translation,
    write_arrays,
)
from p2es.baselines.pulse_shape import PULSE_S, mean_pulse
from p2es.demographics import Demographics, DemographicScaler
from p2es.errors import DatasetError, InputError
from p2es.leads import N_INDEPENDENT
from p2es.signals import pulse_onsets
from p2es.translator import Translation
from p2es.windows import ECG_SAMPLES, FS_HZ, WindowBatch, WindowStore

# 8 Hz is sampled often enough at 31 Hz.
_STEP = 8
_POINTS = len(range(0, PULSE_S.size, _STEP))
_PULSE_TERMS = _POINTS + 1

Floats = NDArray[np.float64]


@dataclass
class Retrieval:
    """Nearest training windows by pulse, rate and person.

    Attributes
    ----------
    ecg_mv : array (window, 8, 1280)
        The independent leads, of windows that have all of them; where no window has, of those that have any, and the
        missing ones are flat lines.
    pulses : array (window, 26)
        `embedding` of the pulse before standardisation.
    people : array (window, 4)
    person : array (window,)
        Number of the person.
    scaler : DemographicScaler
    """

    ecg_mv: NDArray[np.float32] = field(default_factory=lambda: np.zeros((1, N_INDEPENDENT, ECG_SAMPLES), np.float32))
    pulses: Floats = field(default_factory=lambda: np.zeros((1, _PULSE_TERMS)))
    people: Floats = field(default_factory=lambda: np.full((1, 4), np.nan))
    person: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    scaler: DemographicScaler = field(default_factory=lambda: DemographicScaler.fit(np.empty((0, 4))))
    name: str = "retrieval"

    def fit(self, dataset: WindowStore, recipe: BaselineConfig) -> Self:
        """Keep the training windows that have a pulse; see `Translator.fit`."""
        batch = training_windows(dataset, recipe)
        complete = np.flatnonzero(batch.lead_mask.all(axis=1))
        batch = batch.take(complete) if complete.size else batch
        found = [_training_embedding(batch, row) for row in range(len(batch))]
        kept = np.array([row for row, pulse in enumerate(found) if pulse is not None], np.int64)
        if kept.size == 0:
            raise DatasetError("no training window has both an ECG and a pulse: nothing can be retrieved")
        self.scaler = fit_scaler(batch)
        self.ecg_mv = independent(batch)[0][kept]
        self.pulses = np.stack([pulse for pulse in found if pulse is not None])
        self.people = batch.people[kept]
        self.person = np.unique(batch.person[kept], return_inverse=True)[1].astype(np.int64)
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
        """Give the ECGs of the nearest people, one each, the nearest first; see `Translator.sample`.

        Nothing is drawn: seeds and `evaluations` have no meaning here. People come again when more samples are asked
        for than there are.
        """
        refuse_more(self.name, known, enrolment)
        check_request(ppg, demographics, seeds, samples)
        results = []
        for window, person in zip(ppg, demographics, strict=True):
            pulse = read_pulse(window, fs_hz)
            found = embedding(pulse.ppg[0], pulse.mask, onsets_of(pulse))
            if found is None:
                raise InputError("no whole pulse was found in the PPG: choose a stretch with less motion")
            rows = self._nearest(found, person.to_array())
            results.append(translation(lifted(self.ecg_mv[np.resize(rows, samples)]), pulse))
        return results

    def save(self, folder: Path) -> None:
        """Write `retrieval.npz`: 41 kB a training window."""
        own = {name: getattr(self, name) for name in ("ecg_mv", "pulses", "people", "person")}
        write_arrays(folder, self.name, own | scaler_arrays(self.scaler))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Undo `save`; ModelError when it is missing or corrupt."""
        a = read_arrays(folder, "retrieval", _check)
        pulses, people = (a[name].astype(np.float64) for name in ("pulses", "people"))
        return cls(a["ecg_mv"].astype(np.float32), pulses, people, a["person"].astype(np.int64), scaler_from(a))

    def _nearest(self, pulse: Floats, person: Floats) -> NDArray[np.intp]:
        """Give the nearest window of each person, nearest person first.

        The squared distance is the sum of three, each in units of its own variance between training windows: of the
        shape of the pulse (mean over its points), of the logarithm of the heart rate, and of the demographics (mean
        over the fields, expected value where one is unknown).
        """
        spread = np.maximum(self.pulses.std(axis=0), 1e-6)
        # All points of the shape share one scale: where all pulses are alike, small differences are noise.
        spread[:_POINTS] = max(float(np.sqrt(np.square(spread[:_POINTS]).mean())), 1e-6)
        apart = np.square((self.pulses - pulse) / spread)
        whom = self.scaler.index_coordinates(self.people) - self.scaler.query_coordinates(person[None])
        distance = apart[:, :_POINTS].mean(axis=1) + apart[:, _POINTS] + np.square(whom).sum(axis=1) / 4
        order = np.argsort(distance, kind="stable")
        first = np.unique(self.person[order], return_index=True)[1]
        return order[np.sort(first)]


def embedding(ppg: NDArray[np.float32], mask: NDArray[np.bool_], onsets_s: Floats) -> Floats | None:
    """Give (26,): the mean pulse at 31 Hz and the logarithm of the usual interval; None without a whole pulse."""
    pulse = mean_pulse(ppg, mask, onsets_s) if onsets_s.size >= 2 else None
    return None if pulse is None else np.append(pulse[::_STEP], np.log(np.median(np.diff(onsets_s))))


def _training_embedding(batch: WindowBatch, row: int) -> Floats | None:
    pulse = training_pulse(batch, row)
    return None if pulse is None else embedding(*pulse, pulse_onsets(pulse[0], FS_HZ, pulse[1]))


def _check(arrays: Arrays) -> None:
    scaler_from(arrays)
    n = len(arrays["person"])
    wanted = {"ecg_mv": (n, N_INDEPENDENT, ECG_SAMPLES), "pulses": (n, _PULSE_TERMS), "people": (n, 4)}
    if n == 0 or any(arrays[name].shape != shape for name, shape in wanted.items()):
        raise ValueError("shape")
