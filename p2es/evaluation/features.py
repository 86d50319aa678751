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
from p2es.delineation import delineate, median_beat
from p2es.evaluation.beats import heart_rate_bpm
from p2es.evaluation.probabilistic import centre
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
        reference/clinical.md, 4.2); the others are those of 300 people that this project simulates.
    """

    name: str
    label: str
    unit: str
    circular: bool = False
    typical_sd: float = 1.0


FEATURES = (
    Feature("hr_bpm", "Heart rate", "bpm", typical_sd=12.0),
    Feature("p_ms", "P duration", "ms", typical_sd=11.0),
    Feature("pr_ms", "PR interval", "ms", typical_sd=24.0),
    Feature("qrs_ms", "QRS duration", "ms", typical_sd=9.7),
    Feature("qt_ms", "QT interval", "ms", typical_sd=31.0),
    Feature("qtcf_ms", "QTcF", "ms", typical_sd=21.0),
    Feature("p_axis_deg", "P axis", "°", circular=True, typical_sd=15.0),
    Feature("qrs_axis_deg", "QRS axis", "°", circular=True, typical_sd=32.0),
    Feature("t_axis_deg", "T axis", "°", circular=True, typical_sd=15.0),
    Feature("transition", "R transition (V1 is 1, V6 is 6)", "leads", typical_sd=0.7),
)
LEAD_FEATURES = ("p_mv", "r_mv", "s_mv", "t_mv", "st_filtered_mv", "t_polarity")
"""A number a lead: fields of `delineation.Delineation`, of which `st_mv` is named for the band it is measured in."""

BEAT_BEFORE_S, BEAT_AFTER_S = 0.25, 0.45
PICTURE_HZ = 64.0
"""Rate of the encoding and of the wave: enough for their shape, and a quarter of the size."""
_STEP = round(FS_HZ / PICTURE_HZ)
_BEAT_OFFSETS = np.arange(-round(BEAT_BEFORE_S * FS_HZ), int(BEAT_AFTER_S * FS_HZ) + 1)
_DELINEATED = {"st_filtered_mv": "st_mv"}

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """What is read off one ECG.

    Attributes
    ----------
    scalars : array (feature,)
        In the order of `FEATURES`; NaN where nothing was found.
    leads : array (lead feature, 12)
        In the order of `LEAD_FEATURES` and `LEADS`; NaN where not measured or not recorded.
    r_peaks_s : array (beat,)
    """

    scalars: Floats
    leads: Floats
    r_peaks_s: Floats


def read_ecg(ecg_mv: Array, mask: Mask) -> Reading:
    """Read the features off an ECG.

    R peaks are those of `beats.r_peaks` on the leads of the mask; the heart rate is 60 over their mean interval. All
    else is `delineation.delineate` of the median beat over the same leads (and the limb leads that follow from them),
    at their R peaks.

    Parameters
    ----------
    ecg_mv : array (12, time)
        At 128 Hz, without NaN.
    mask : array (12,)
        The leads that were recorded: what is drawn is measured on the same ones.
    """
    beats_s = r_peaks(ecg_mv, FS_HZ, mask)
    found = delineate(median_beat(np.where(mask[:, None], ecg_mv, np.nan), FS_HZ, beats_s))
    scalars = [heart_rate_bpm(beats_s), *(getattr(found, feature.name) for feature in FEATURES[1:])]
    leads = np.stack([getattr(found, _DELINEATED.get(name, name)) for name in LEAD_FEATURES])
    return Reading(np.array(scalars, np.float64), np.where(mask, leads, np.nan), beats_s)


def read_draws(draws_mv: Array, mask: Mask) -> list[Reading]:
    """Read each draw of (sample, 12, time); one that equals an earlier one is not read again."""
    known: dict[bytes, Reading] = {}
    result = []
    for draw in draws_mv:
        key = draw[mask].tobytes()
        if key not in known:
            known[key] = read_ecg(draw, mask)
        result.append(known[key])
    return result


def middle_of(readings: Sequence[Reading]) -> tuple[Floats, Floats]:
    """Give the median reading of the draws: scalars (feature,) and leads (lead feature, 12).

    The median is over the draws in which the feature was found, of angles the circular one; NaN with fewer than
    `MIN_BAND_SAMPLES` draws, and where more than half of them failed. A T polarity between two classes is 0.
    """
    scalars = np.stack([reading.scalars for reading in readings])
    leads = np.stack([reading.leads for reading in readings]).reshape(len(readings), -1)
    middle = [_middle(column, f.circular) for column, f in zip(scalars.T, FEATURES, strict=True)]
    shape = (len(LEAD_FEATURES), N_LEADS)
    by_lead = np.array([_middle(column) for column in leads.T]).reshape(shape)
    polarity = LEAD_FEATURES.index("t_polarity")
    by_lead[polarity] = np.rint(by_lead[polarity])
    return np.array(middle), by_lead


def _middle(column: Floats, circular: bool = False) -> float:
    found = column[np.isfinite(column)]
    if len(column) < MIN_BAND_SAMPLES or 2 * found.size < len(column):
        return float("nan")
    return float(centre(found, circular=circular))


def aligned_beat(ecg_mv: Array, beats_s: Floats) -> Floats:
    """Give the median of the beats laid over each other R on R, -0.25 to +0.45 s, (lead, time) at 128 Hz.

    Beats that the ends of the window cut are left out where there are others; samples between samples are interpolated
    linearly. It knows nothing of where the beats were. Without any beat it is a flat line, for a system that draws none
    has drawn one.

    Parameters
    ----------
    ecg_mv : array (lead, time)
        At 128 Hz.
    beats_s : array (beat,)
        R peaks.
    """
    time = ecg_mv.shape[-1]
    at = beats_s * FS_HZ
    whole = at[(at + _BEAT_OFFSETS[0] >= 0) & (at + _BEAT_OFFSETS[-1] <= time - 1)]
    at = whole if whole.size else at
    if not at.size:
        return np.zeros((len(ecg_mv), _BEAT_OFFSETS.size))
    place = np.clip(at[:, None] + _BEAT_OFFSETS, 0, time - 1)
    left = np.minimum(place.astype(np.intp), time - 2)
    share = place - left
    ecg = np.asarray(ecg_mv, np.float64)
    beats = (1 - share) * ecg[:, left] + share * ecg[:, left + 1]
    return np.asarray(np.median(beats, axis=1))


def encoding(ecg_mv: Array, mask: Mask, beats_s: Floats) -> NDArray[np.float32]:
    """Give the shape of the beat as one vector (8 x 45,): every second sample of `aligned_beat` of I, II, V1 to V6.

    Lead by lead, millivolt, -0.25 to +0.4375 s in steps of 1/64 s; NaN in a lead that was not recorded. It is plain on
    purpose: a learned encoder sees what it was taught to see.
    """
    beat = np.full((N_LEADS, _BEAT_OFFSETS.size), np.nan)
    beat[mask] = aligned_beat(ecg_mv[mask], beats_s)
    return beat[INDEPENDENT_INDEX, ::_STEP].ravel().astype(np.float32)


def wave(ecg_mv: Array, mask: Mask) -> NDArray[np.float32]:
    """Give the whole window of lead II, or of the first lead that was recorded, at 64 Hz: (640,), millivolt."""
    lead = LEADS.index("II")
    lead = lead if mask[lead] else int(np.argmax(mask))
    return np.asarray(resample(np.asarray(ecg_mv[lead], np.float64), FS_HZ, PICTURE_HZ), np.float32)
