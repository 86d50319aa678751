"""Another real ECG of the same person, as it was recorded: how different two real ECGs of one heart are.

It is no rival but a floor. It sees what no translator sees, and still differs from the window it is held against by
breathing and rate and, when it is of another recording, by electrodes and the day. Whoever passes the enrolment says
which it is: the evaluation files them apart, as `other_recording` and `other_segment`. What comes closer than this to
a person's intervals or amplitudes, from a pulse, asks for a search for a leak.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from p2es.baselines.common import Arrays, BaselineConfig, check_request, read_arrays, read_pulse, write_arrays
from p2es.demographics import Demographics
from p2es.errors import InputError, ModelError
from p2es.leads import N_LEADS
from p2es.translator import Translation
from p2es.windows import ECG_SAMPLES, WindowStore

_FORMAT = 1


@dataclass
class OtherSegment:
    """Gives back the enrolment; there is nothing to learn."""

    name: str = "other_segment"

    def fit(self, dataset: WindowStore, recipe: BaselineConfig) -> Self:
        """Learn nothing; see `Translator.fit`."""
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
        """Give the enrolment as every sample, as it is; see `Translator.sample`.

        Its leads obey the lead laws as far as the recorder's did. There is never a band: one ECG tells no spread. The
        PPG is only read for its quality, rate and rhythm, so that this refuses the windows that others refuse.

        Raises
        ------
        ModelError
            Without an enrolment, or one of another shape, or with known leads.
        InputError
            When a window's own enrolment misses a lead or a sample.
        """
        if known is not None:
            raise ModelError(f"{self.name} uses no known leads: leave them out")
        if enrolment is None:
            raise ModelError(f"{self.name} gives back an earlier ECG of the person: pass one as enrolment")
        check_request(ppg, demographics, seeds, samples)
        given = np.asarray(enrolment, np.float32)
        if given.shape != (len(ppg), N_LEADS, ECG_SAMPLES):
            raise ModelError(f"the earlier ECG has shape {given.shape}: give ({len(ppg)}, {N_LEADS}, {ECG_SAMPLES})")
        results = []
        for window, ecg in zip(ppg, given, strict=True):
            if not np.isfinite(ecg).all():
                raise InputError("the person has no other whole ECG: leave this window out")
            pulse = read_pulse(window, fs_hz)
            draws = np.repeat(ecg[None], samples, axis=0)
            results.append(Translation(draws, ecg.copy(), None, pulse.quality, pulse.rhythm, pulse.heart_rate_bpm))
        return results

    def save(self, folder: Path) -> None:
        """Write `other_segment.npz`, which says only that it is one."""
        write_arrays(folder, self.name, {"format": np.array(_FORMAT)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Undo `save`; ModelError when it is missing or corrupt."""
        read_arrays(folder, "other_segment", _check)
        return cls()


def _check(arrays: Arrays) -> None:
    if arrays["format"].item() != _FORMAT:
        raise ValueError("format")
