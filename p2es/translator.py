"""The Translator protocol: P2Es, every yardstick and every rival answer to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.windows import WindowStore

BAND = (0.05, 0.95)
"""The quantiles of the 90 % band."""
MIN_BAND_SAMPLES = 20
"""Fewer samples than this give no band worth drawing (design, Bands)."""


@dataclass(frozen=True)
class Translation:
    """The ECG drawn for one window. SYNTHETIC: see docs/model-card.md for what it can and cannot tell.

    Attributes
    ----------
    ecg_mv : array (samples, 12, 1280)
        float32 millivolt at 128 Hz, order of `LEADS`; each row is one draw.
    median_mv : array (12, 1280)
        The pointwise median of the 8 independent leads, lifted, so that the lead laws hold. It is smoother than any
        real ECG; one row of `ecg_mv` is what an ECG could look like.
    band_mv : array (2, 12, 1280) or None
        Pointwise 5 % and 95 % limits, calibrated; None with fewer than `MIN_BAND_SAMPLES` samples.
    ppg_quality : float
        0 (noise) to 1 (clean).
    rhythm : str
        What the pulse tells of the rhythm: `regular`, `irregular` or `unknown`.
    heart_rate_bpm : float
        From the pulse; NaN when no pulse was found.
    """

    ecg_mv: NDArray[np.float32]
    median_mv: NDArray[np.float32]
    band_mv: NDArray[np.float32] | None
    ppg_quality: float
    rhythm: str
    heart_rate_bpm: float


@runtime_checkable
class Translator(Protocol):
    """Anything that turns PPG and demographics into 12 leads."""

    name: str

    def fit(self, dataset: WindowStore, recipe: Any) -> Self:
        """Learn from the training windows."""
        ...

    def sample(
        self,
        ppg: NDArray[np.float32],
        demographics: Sequence[Demographics],
        *,
        fs_hz: float,
        known: NDArray[np.float32] | None = None,
        enrolment: NDArray[np.float32] | None = None,
        samples: int,
        evaluations: int,
        seeds: Sequence[int],
    ) -> list[Translation]:
        """Draw 12-lead ECGs.

        Parameters
        ----------
        ppg : array (batch, channel, time)
            Twelve seconds at `fs_hz`: the window and one second on either side; NaN where nothing was recorded.
        demographics : sequence of Demographics
            One a window.
        fs_hz : float
            Rate of `ppg`.
        known : array (batch, 12, 1280), optional
            Leads recorded together with the PPG, millivolt at 128 Hz; NaN for leads to generate.
        enrolment : array (batch, 12, 1280), optional
            An earlier 12-lead ECG of the same person.
        samples : int
            Draws a window.
        evaluations : int
            Network evaluations a draw.
        seeds : sequence of int
            One a window: the same seed gives the same draws whatever else is in the batch.

        Returns
        -------
        list of Translation
            One a window.

        Raises
        ------
        InputError
            When the PPG is missing, flat, too poor or of the wrong length.
        ModelError
            When the model cannot use what is asked (an enrolment it was not trained with).
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the translator, no pickled code."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Undo `save`."""
        ...
