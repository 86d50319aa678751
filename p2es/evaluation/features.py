"""What a clinician reads off an ECG, as numbers; and two plain pictures of it for tests of realism.

The recorded and the drawn ECG go through the same steps, in the band in which windows are stored (0.5-40 Hz), on
the same leads: those that were recorded. A bias of the delineator, and what the band does to ST and to the ends of P
and T, are then in both. What the delineator does not find is NaN: counted by who reads it, never guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2es.beats import r_peaks
from p2es.delineation import Delineation, delineate, median_beat
from p2es.evaluation.beats import heart_rate_bpm
from p2es.filters import resample
from p2es.leads import INDEPENDENT_INDEX, LEADS, N_LEADS
from p2es.translator import MIN_BAND_SAMPLES
from p2es.windows import FS_HZ


@dataclass(frozen=True)
class Feature:
    """One number of a whole ECG.

    Attributes
    ----------
    name : str
        `hr_bpm`, or a field of `delineation.Delineation`.
    label, unit : str
        What a reader sees.
    circular : bool
        An angle in degrees: 359 and 1 are 2 apart.
    typical_sd : float
        Standard deviation between healthy people. Of heart rate, PR, QRS, QT, QTcF and the axis of QRS it is a
        quarter (1 / 4.107) of the range from the 2nd to the 98th percentile of 46,129 normals (Mason 2007;
        reference/clinical.md, 4.2); the others are this project's, of what it simulates.
    """

    name: str
    label: str
    unit: str
    circular: bool = False
    typical_sd: float = 1.0


FEATURES = (
    Feature("hr_bpm", "Heart rate", "bpm", typical_sd=12.0),
    Feature("p_ms", "P duration", "ms", typical_sd=12.0),
    Feature("pr_ms", "PR interval", "ms", typical_sd=24.0),
    Feature("qrs_ms", "QRS duration", "ms", typical_sd=9.7),
    Feature("qt_ms", "QT interval", "ms", typical_sd=31.0),
    Feature("qtcf_ms", "QTcF", "ms", typical_sd=21.0),
    Feature("p_axis_deg", "P axis", "°", circular=True, typical_sd=25.0),
    Feature("qrs_axis_deg", "QRS axis", "°", circular=True, typical_sd=32.0),
    Feature("t_axis_deg", "T axis", "°", circular=True, typical_sd=25.0),
    Feature("transition", "R transition (V1 is 1, V6 is 6)", "leads", typical_sd=0.8),
)
LEAD_FEATURES = ("p_mv", "r_mv", "s_mv", "t_mv", "st_filtered_mv", "t_polarity")
"""A number a lead: fields of `delineation.Delineation`, of which `st_mv` is named for the band it is measured in."""
