"""What is true of a simulated recording: every wave of every beat, every pulse, and what was done to the signals."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.leads import INDEPENDENT, LEADS, lift
from p2es.simulator.ecg import repolarisation
from p2es.simulator.heart import Heart
from p2es.simulator.people import Person
from p2es.simulator.pulse import PulseTrain
from p2es.simulator.rhythm import SYMBOLS, BeatKind, Rhythm
from p2es.simulator.waves import Floats, Group

_J_S = 0.060
_PRECORDIAL = [INDEPENDENT.index(name) for name in ("V1", "V2", "V3", "V4", "V5", "V6")]


@dataclass(frozen=True)
class Beats:
    """The waves of each beat, seconds from the start of the recording; NaN for what is not there. All are (beat,).

    Attributes
    ----------
    r_s : array
        Largest magnitude of the QRS over the leads, each by the root of its height (`waves.Waves.span`).
    kind : array
        `BeatKind`.
    rr_s : array
        Interval that ends at the beat.
    p_on_s, p_off_s : array
        Of the P wave that led to the beat.
    qrs_on_s, qrs_off_s, t_on_s, t_peak_s, t_off_s : array
        Where the spatial magnitude of the wave alone passes 5 % of its peak, and T's peak.
    pulse_foot_s, pulse_steepest_s : array
        Foot and steepest rise of the pulse where the sensor's samples have it: on its clock, which drifts.
    pulse_amplitude : array
        1 is usual.
    """

    r_s: Floats
    kind: NDArray[np.int64]
    rr_s: Floats
    p_on_s: Floats
    p_off_s: Floats
    qrs_on_s: Floats
    qrs_off_s: Floats
    t_on_s: Floats
    t_peak_s: Floats
    t_off_s: Floats
    pulse_foot_s: Floats
    pulse_steepest_s: Floats
    pulse_amplitude: Floats

    def only(self, kept: NDArray[np.bool_]) -> "Beats":
        """Give some of the beats, by a mask (beat,)."""
        return Beats(**{name: getattr(self, name)[kept] for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Truth:
    """What is true of one simulated recording.

    Attributes
    ----------
    rhythm : str
    morphologies : tuple of str
    person : Person
        As they are on the day.
    beats : Beats
        Those of the recording.
    p_alone_s : array (p, 2)
        Start and end of P waves that lead to no beat.
    pr_ms, qrs_ms, qt_ms, qtcf_ms, p_ms : float
        Medians over conducted beats (all beats where none is conducted); NaN for what is not there.
    heart_rate_bpm : float
        60 over the mean interval.
    axis_deg, p_axis_deg, t_axis_deg : float
        Frontal axes by net areas, breathing at rest.
    transition : float
        Precordial lead (1 to 6, between leads by interpolation) where R grows as large as S; NaN when nowhere.
    st_mv : mapping
        ST level of each of the 12 leads 60 ms after the end of QRS, against the line before QRS.
    r_mv, s_mv : mapping
        Largest and smallest value of the QRS in each of the 12 leads.
    delay_s : float
        From R to the steepest rise of the pulse, median; NaN without pulses.
    sensor, electrodes : mapping
        What was drawn for the devices.
    artefacts : tuple
        (signal, kind, start_s, stop_s) of what spoiled signals for a while.
    """

    rhythm: str
    morphologies: tuple[str, ...]
    person: Person
    beats: Beats
    p_alone_s: Floats
    p_ms: float
    pr_ms: float
    qrs_ms: float
    qt_ms: float
    qtcf_ms: float
    heart_rate_bpm: float
    axis_deg: float
    p_axis_deg: float
    t_axis_deg: float
    transition: float
    st_mv: Mapping[str, float]
    r_mv: Mapping[str, float]
    s_mv: Mapping[str, float]
    delay_s: float
    sensor: Mapping[str, Any] = field(default_factory=dict)
    electrodes: Mapping[str, Any] = field(default_factory=dict)
    artefacts: tuple[tuple[str, str, float, float], ...] = ()

    def scalars(self) -> dict[str, Any]:
        """Give what fits in a line: everything but the beats, plain numbers and words; None for NaN."""
        person = asdict(self.person)
        person.pop("demographics")
        known = {
            "rhythm": self.rhythm,
            "morphologies": list(self.morphologies),
            **{name: getattr(self, name) for name in _SCALARS},
            "st_mv": dict(self.st_mv),
            "r_mv": dict(self.r_mv),
            "s_mv": dict(self.s_mv),
            "beats": {SYMBOLS[kind]: int((self.beats.kind == kind).sum()) for kind in BeatKind},
            "missing_pulses": int(np.isnan(self.beats.pulse_foot_s).sum()),
            "traits": person,
            "sensor": dict(self.sensor),
            "electrodes": dict(self.electrodes),
            "artefacts": [list(one) for one in self.artefacts],
        }
        plain: dict[str, Any] = json.loads(json.dumps(known, default=_plain), parse_constant=lambda _: None)
        return plain


_SCALARS = (
    "delay_s",
    "heart_rate_bpm",
    "p_ms",
    "pr_ms",
    "qrs_ms",
    "qt_ms",
    "qtcf_ms",
    "axis_deg",
    "p_axis_deg",
    "t_axis_deg",
    "transition",
)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else np.asarray(value).tolist()


def beats_of(heart: Heart, rhythm: Rhythm, train: PulseTrain, delay_s: float, clock: float = 1.0) -> Beats:
    """Give the waves and pulses of all beats, also those beyond the recording's ends.

    `clock` is what a second of the sensor's lasts: its samples are placed by its own clock, and so are the pulses.
    """
    n = rhythm.r_s.size
    columns = {
        name: np.full(n, math.nan) for name in ("qrs_on", "r", "qrs_off", "t_on", "t_peak", "t_off", "p_on", "p_off")
    }
    factor = repolarisation(rhythm)
    for kind in map(BeatKind, np.unique(rhythm.kind)):
        inside = rhythm.kind == kind
        at = rhythm.r_s[inside]
        for name, value in zip(("qrs_on", "r", "qrs_off"), heart.qrs[kind], strict=True):
            columns[name][inside] = at + value
        onset = heart.qrs[kind].onset_s
        for name, value in zip(("t_on", "t_peak", "t_off"), heart.t[kind], strict=True):
            columns[name][inside] = at + onset + (value - onset) * factor[inside]
    on_s, off_s = _p_bounds(heart, rhythm)
    led = rhythm.p_beat >= 0
    columns["p_on"][rhythm.p_beat[led]], columns["p_off"][rhythm.p_beat[led]] = on_s[led], off_s[led]
    return Beats(
        kind=rhythm.kind,
        rr_s=rhythm.rr_s,
        pulse_foot_s=(train.foot_s + delay_s) / clock,
        pulse_steepest_s=(train.steepest_s + delay_s) / clock,
        pulse_amplitude=train.amplitude,
        **{f"{name}_s": values for name, values in columns.items()},
    )


def _p_bounds(heart: Heart, rhythm: Rhythm) -> tuple[Floats, Floats]:
    on_s = rhythm.p_s - rhythm.pr_s + heart.onset_s + heart.p_later_s
    early = rhythm.p_premature
    length = {key: span.offset_s - span.onset_s for key, span in heart.p_span.items()}
    return on_s, on_s + np.where(early, length[True], length[False])


def _median(values: Floats) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else math.nan


def truth_of(
    person: Person,
    heart: Heart,
    rhythm: Rhythm,
    train: PulseTrain,
    *,
    duration_s: float,
    delay_s: float,
    clock: float,
    morphologies: tuple[str, ...],
    sensor: Mapping[str, Any],
    electrodes: Mapping[str, Any],
    artefacts: tuple[tuple[str, str, float, float], ...],
) -> Truth:
    """Gather what is true of a recording of `duration_s` whose sensor adds `delay_s`; `clock` as in `beats_of`."""
    every = beats_of(heart, rhythm, train, delay_s, clock)
    inside = (every.r_s >= 0) & (every.r_s < duration_s)
    beats = every.only(inside)
    chosen = beats.kind == BeatKind.NORMAL
    chosen = chosen if chosen.any() else np.ones(beats.kind.size, bool)
    usual = beats.only(chosen)
    wide = usual.kind[0] if usual.kind.size else BeatKind.NORMAL
    qt_ms = 1000 * (usual.t_off_s - usual.qrs_on_s)
    rr_s = float(beats.rr_s.mean()) if beats.rr_s.size else math.nan
    on_s, off_s = _p_bounds(heart, rhythm)
    alone = (rhythm.p_beat < 0) & (on_s >= 0) & (off_s < duration_s)
    factor = repolarisation(rhythm)
    return Truth(
        rhythm=rhythm.name,
        morphologies=morphologies,
        person=person,
        beats=beats,
        p_alone_s=np.stack([on_s[alone], off_s[alone]], axis=1),
        p_ms=_median(1000 * (usual.p_off_s - usual.p_on_s)),
        pr_ms=_median(1000 * (usual.qrs_on_s - usual.p_on_s)),
        qrs_ms=_median(1000 * (usual.qrs_off_s - usual.qrs_on_s)),
        qt_ms=_median(qt_ms),
        # By the factor with which this heart follows its rate: pauses and early beats do not change it.
        qtcf_ms=_median(1000 * (usual.t_off_s - usual.qrs_on_s) / factor[inside][chosen]),
        heart_rate_bpm=60 / rr_s,
        delay_s=_median(beats.pulse_steepest_s - beats.r_s),
        sensor=sensor,
        electrodes=electrodes,
        artefacts=artefacts,
        **_shape(heart, BeatKind(wide), float(np.median(factor)) if factor.size else 1.0),
        p_axis_deg=math.nan if rhythm.fibrillates else _axis_deg(heart.p.lead_areas(Group.P)),
    )


def _axis_deg(areas: Floats) -> float:
    """Give the frontal axis by net areas (8,)."""
    twelve = lift(areas[:, None])[:, 0]
    return float(np.rad2deg(np.arctan2(2 / np.sqrt(3) * twelve[LEADS.index("aVF")], twelve[0])))


def _shape(heart: Heart, kind: BeatKind, qt_factor: float) -> dict[str, Any]:
    """Give axes, transition, ST and QRS amplitudes of a kind of beat, breathing at rest."""
    waves, span = heart.of(kind), heart.qrs[kind]
    time_s = np.arange(span.onset_s, span.offset_s, 0.001)
    stretched = waves.stretched(Group.T, qt_factor, span.onset_s)
    eight = stretched.signal(np.append(time_s, span.offset_s + _J_S), heart.lead_gain)
    twelve = lift(eight)
    highest, lowest = twelve[:, :-1].max(axis=1), twelve[:, :-1].min(axis=1)
    return {
        "axis_deg": _axis_deg(waves.lead_areas(Group.QRS)),
        "t_axis_deg": _axis_deg(waves.lead_areas(Group.T)),
        "transition": _transition(eight[_PRECORDIAL, :-1].max(axis=1), -eight[_PRECORDIAL, :-1].min(axis=1)),
        "st_mv": dict(zip(LEADS, map(float, twelve[:, -1]), strict=True)),
        "r_mv": dict(zip(LEADS, map(float, highest), strict=True)),
        "s_mv": dict(zip(LEADS, map(float, lowest), strict=True)),
    }


def _transition(r_mv: Floats, s_mv: Floats) -> float:
    """Give the first precordial lead (1 to 6) with R at least as large as S, between leads by the logarithm."""
    ratio = np.log(np.maximum(r_mv, 1e-3) / np.maximum(s_mv, 1e-3))
    above = np.flatnonzero(ratio >= 0)
    if above.size == 0:
        return math.nan
    k = int(above[0])
    return 1.0 if k == 0 else float(k + -ratio[k - 1] / (ratio[k] - ratio[k - 1]))
