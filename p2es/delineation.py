"""P, QRS and T of the median beat: intervals, axes, amplitudes and ST levels of a short ECG.

The beats of the dominant shape are laid over each other to a fraction of a sample; their median, lead by lead, is
measured. Global times are those of the 8 independent leads at once, on the spatial magnitude: the length of the vector
whose components are the leads. A wave begins and ends where that magnitude leaves and reaches 5 % of the wave's own
largest (reference/clinical.md, 3.3 and 7.3).

Nothing is high-passed, because 0.5 Hz moves ST levels and the ends of P and T: the baseline is a spline through the
quietest moment of each beat, and levels count from the isoelectric line before QRS. In the stored windows, which are
0.5-40 Hz, QT comes out 1 to 9 ms short (SD 3 to 6): compare like with like.

On Gaussian beats of 12 morphologies PR, QRS and QT have a bias and an SD below 3 ms, at 128 to 500 Hz; but PR an SD of
3 to 5 ms at low voltage, and QT a bias of -6 ms where the end of T meets a raised ST. Cardiologists begin QRS about
20 ms earlier and end it as much later (LUDB); P and T they mark alike within 7 ms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import atan2, degrees, hypot, inf, isfinite, nan, sqrt

import numpy as np
from numpy.typing import NDArray

from p2es.boundaries import Wave, find_waves
from p2es.leads import LEADS, LIFT, N_LEADS
from p2es.median_beat import WORK_HZ, Array, Mask, MedianBeat, dominant_shape, median_beat

__all__ = ["WORK_HZ", "Delineation", "MedianBeat", "delineate", "dominant_shape", "measure_ecg", "median_beat"]

_MIN_R_MV, _FLAT_T_MV = 0.02, 0.05
# Below these net areas an axis is left out (clinical.md 3.3: 10 uV s); of P the usual area is 8 uV s itself.
_MIN_AREA_MV_S = {"QRS": 0.010, "T": 0.010, "P": 0.002}
_T_FROM_J_S = 0.04


@dataclass(frozen=True)
class Delineation:
    """What was measured. What was not found is NaN, with its reason in `missing`.

    Attributes
    ----------
    p_on_s, p_peak_s, p_off_s, qrs_on_s, qrs_off_s, t_peak_s, t_off_s : float
        Global times, seconds from R.
    rr_s : float
    p_axis_deg, qrs_axis_deg, t_axis_deg : float
        Frontal axes from net areas, (-180, 180].
    p_mv, q_mv, r_mv, s_mv, t_mv : array (12,)
        Amplitudes against the isoelectric line; Q and S are 0 or negative, R is 0 or positive. A QRS without R counts
        as S.
    st_mv : array (12,)
        At J + 60 ms, above 100 beats a minute at J + 40 ms.
    t_polarity : array (12,)
        1, -1, or 0 where T stays within 0.05 mV.
    transition : float
        Where R/S becomes 1 on the way from V1 (1) to V6 (6), between leads by interpolation.
    transition_lead : str or None
        The first lead with R/S >= 1.
    kept, left_out : int
        As in `MedianBeat`.
    missing : mapping
        Of what was not found ("QRS", "P", "T", "RR", "QRS axis", ...): the reason.
    """

    p_on_s: float = nan
    p_peak_s: float = nan
    p_off_s: float = nan
    qrs_on_s: float = nan
    qrs_off_s: float = nan
    t_peak_s: float = nan
    t_off_s: float = nan
    rr_s: float = nan
    p_axis_deg: float = nan
    qrs_axis_deg: float = nan
    t_axis_deg: float = nan
    p_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    q_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    r_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    s_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    t_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    st_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    t_polarity: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    transition: float = nan
    transition_lead: str | None = None
    kept: int = 0
    left_out: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def p_ms(self) -> float:
        """Duration of P."""
        return 1000.0 * (self.p_off_s - self.p_on_s)

    @property
    def pr_ms(self) -> float:
        """From the onset of P to that of QRS."""
        return 1000.0 * (self.qrs_on_s - self.p_on_s)

    @property
    def qrs_ms(self) -> float:
        """Duration of QRS."""
        return 1000.0 * (self.qrs_off_s - self.qrs_on_s)

    @property
    def qt_ms(self) -> float:
        """From the onset of QRS to the end of T."""
        return 1000.0 * (self.t_off_s - self.qrs_on_s)

    @property
    def qtcf_ms(self) -> float:
        """QT at 60 beats a minute, after Fridericia: QT / RR^(1/3)."""
        return self.qt_ms / self.rr_s ** (1 / 3)

    @property
    def qtcb_ms(self) -> float:
        """QT at 60 beats a minute, after Bazett: QT / RR^(1/2)."""
        return self.qt_ms / self.rr_s**0.5


def measure_ecg(ecg_mv: NDArray[np.floating], fs_hz: float) -> Delineation:
    """Measure an ECG: `delineate` of its `median_beat`."""
    return delineate(median_beat(ecg_mv, fs_hz))


def delineate(beat: MedianBeat) -> Delineation:
    """Measure a median beat, between the ends of the waves that `boundaries.find_waves` finds."""
    waves, missing, level = find_waves(beat)
    if not isfinite(beat.rr_s):
        missing = {"RR": beat.reason or "there is one beat only"} | missing
    if "QRS" not in waves:
        return _nothing(beat, missing)
    return _measured(beat, LIFT @ (beat.ecg_mv - level), waves, missing)


def _measured(beat: MedianBeat, ecg_mv: Array, waves: Mapping[str, Wave], missing: dict[str, str]) -> Delineation:
    """Gather what is measured between the marks on all leads (12, time), which count from the isoelectric line."""
    ecg_mv = np.where(_lifted(beat.present)[:, None], ecg_mv, nan)
    nowhere = Wave(nan, nan, nan)
    p, qrs, t = (waves.get(name, nowhere) for name in ("P", "QRS", "T"))
    spans = {"QRS": (qrs.on, qrs.off), "T": (qrs.off + _T_FROM_J_S * WORK_HZ, t.off), "P": (p.on, p.off)}
    axes, peaks, areas = {}, {}, {}
    for name, (on, off) in spans.items():
        part = ecg_mv[:, round(on) : round(off) + 1] if isfinite(on) and isfinite(off) else ecg_mv[:, :0]
        areas[name] = part.sum(axis=1) / WORK_HZ if part.size else np.full(N_LEADS, nan)
        peaks[name] = _extreme(part)
        axes[name] = _axis_deg(areas[name], _MIN_AREA_MV_S[name])
        if part.size and not isfinite(axes[name]):
            missing[f"{name} axis"] = f"the net area of {name} in the limb leads is too small, or they are not there"
    q_mv, r_mv, s_mv = _q_r_s(ecg_mv[:, round(qrs.on) : round(qrs.off) + 1])
    transition, lead = _transition(r_mv[6:], s_mv[6:])
    if not isfinite(transition):
        missing["transition"] = "R stays below S in V1 to V6, or one of these leads is not there"
    polarity = np.where(np.abs(peaks["T"]) < _FLAT_T_MV, 0.0 * peaks["T"], np.sign(areas["T"]))
    seconds = {f"{name}_s": (at - beat.r_sample) / WORK_HZ for name, at in _marks(p, qrs, t).items()}
    found = replace(_nothing(beat, missing), **seconds)  # type: ignore[arg-type]
    return replace(
        found,
        p_axis_deg=axes["P"],
        qrs_axis_deg=axes["QRS"],
        t_axis_deg=axes["T"],
        p_mv=peaks["P"],
        q_mv=q_mv,
        r_mv=r_mv,
        s_mv=s_mv,
        t_mv=peaks["T"],
        st_mv=_st(ecg_mv, qrs.off, beat.rr_s),
        t_polarity=polarity,
        transition=transition,
        transition_lead=lead,
    )


def _nothing(beat: MedianBeat, missing: dict[str, str]) -> Delineation:
    return Delineation(rr_s=beat.rr_s, kept=beat.kept, left_out=beat.left_out, missing=missing)


def _marks(p: Wave, qrs: Wave, t: Wave) -> dict[str, float]:
    marks = {"p_on": p.on, "p_peak": p.peak, "p_off": p.off, "qrs_on": qrs.on, "qrs_off": qrs.off}
    return marks | {"t_peak": t.peak, "t_off": t.off}


def _lifted(present: Mask) -> Mask:
    """Tell which of the 12 leads follow from those of the 8 that are present."""
    return ~(LIFT[:, ~present] != 0).any(axis=1)


def _extreme(part: Array) -> Array:
    """Give the value (lead,) of largest size of (lead, time), with its sign; NaN when there is none."""
    if not part.size:
        return np.full(part.shape[0], nan)
    at = np.argmax(np.abs(part), axis=1)
    return np.asarray(np.take_along_axis(part, at[:, None], axis=1)[:, 0])


def _axis_deg(area: Array, least: float) -> float:
    """Give the frontal axis from net areas (12,) in mV s: I, and aVF with 2 / sqrt(3), for its leads are shorter."""
    x, y = float(area[0]), 2.0 / sqrt(3.0) * float(area[5])
    return degrees(atan2(y, x)) if hypot(x, y) >= least else nan


def _q_r_s(part: Array) -> tuple[Array, Array, Array]:
    """Give Q, R and S (lead,) of a QRS (lead, time); where R is below 0.02 mV all of it is S."""
    top = np.argmax(np.where(np.isnan(part), -inf, part), axis=1)[:, None]
    r_mv = np.maximum(np.take_along_axis(part, top, axis=1)[:, 0], 0.0)
    r_mv = np.where(r_mv < _MIN_R_MV, 0.0, r_mv)
    before = (np.arange(part.shape[1]) < top) & (r_mv > 0)[:, None]
    q_mv = np.where(before, part, 0.0).min(axis=1, initial=0.0)
    s_mv = np.where(before, 0.0, part).min(axis=1, initial=0.0)
    absent = np.isnan(part).any(axis=1)
    return tuple(np.where(absent, nan, x) for x in (q_mv, r_mv, s_mv))  # type: ignore[return-value]


def _transition(r_mv: Array, s_mv: Array) -> tuple[float, str | None]:
    """Give where R/S becomes 1 (V1 is 1, V6 is 6), and the first lead at or beyond it, of V1..V6 (6,)."""
    balance = (r_mv + s_mv) / np.maximum(r_mv - s_mv, 1e-9)
    reached = np.flatnonzero(balance >= 0.0)
    if np.isnan(balance).any() or not reached.size:
        return nan, None
    k = int(reached[0])
    part = float(balance[k - 1] / (balance[k - 1] - balance[k])) if k else 1.0
    return k + part, LEADS[6 + k]


def _st(ecg_mv: Array, j: float, rr_s: float) -> Array:
    """Give the level (12,) at J + 60 ms, above 100 beats a minute at J + 40 ms; mean of 10 ms."""
    at = round(j + (0.04 if rr_s < 0.6 else 0.06) * WORK_HZ)
    return np.asarray(ecg_mv[:, at - 2 : at + 3].mean(axis=1) if at + 3 <= ecg_mv.shape[1] else ecg_mv[:, 0] * nan)
