"""A beat as a sum of Gaussians in time, each with an amplitude along x, y and z.

Three-dipole model (Sameni 2007, Clifford 2010) with parameters of our own, eight Gaussians for a normal beat. Since
each lead is a fixed combination of the same three sums, the lead laws hold to rounding. A body is not quite a dipole:
`residual_mv` is what the dipole does not explain.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2es.leads import N_INDEPENDENT
from p2es.simulator.vector import DOWER

Floats = NDArray[np.float64]

EDGE_SHARE = 0.05
"""A wave begins and ends where the spatial magnitude of its 8 leads passes this share of its peak."""
_STEP_S = 0.001


class Group(IntEnum):
    """The wave of the ECG that a Gaussian is part of."""

    P = 0
    QRS = 1
    T = 2


class Span(NamedTuple):
    """Where a wave begins, is largest, and ends; seconds from R."""

    onset_s: float
    peak_s: float
    offset_s: float


@dataclass(frozen=True)
class Waves:
    """The Gaussians of one beat, seconds from R at an RR interval of 1 s.

    Attributes
    ----------
    group : array (wave,)
        `Group` of each Gaussian.
    centre_s, width_s : array (wave,)
        Width is the standard deviation.
    vector_mv : array (3, wave)
        Amplitude along x (left), y (down), z (back).
    residual_mv : array (8, wave)
        Added to the projected amplitude, lead by lead.
    """

    group: NDArray[np.int64]
    centre_s: Floats
    width_s: Floats
    vector_mv: Floats
    residual_mv: Floats

    @classmethod
    def of(cls, group: Group, *rows: tuple[float, float, float, float, float]) -> "Waves":
        """Make waves of one group from rows (centre, width, x, y, z)."""
        table = np.array(rows, np.float64).reshape(-1, 5)
        count = len(table)
        return cls(
            np.full(count, group), table[:, 0], table[:, 1], table[:, 2:].T.copy(), np.zeros((N_INDEPENDENT, count))
        )

    def __add__(self, other: "Waves") -> "Waves":
        return Waves(
            np.concatenate([self.group, other.group]),
            np.concatenate([self.centre_s, other.centre_s]),
            np.concatenate([self.width_s, other.width_s]),
            np.concatenate([self.vector_mv, other.vector_mv], axis=1),
            np.concatenate([self.residual_mv, other.residual_mv], axis=1),
        )

    def only(self, kept: NDArray[np.bool_]) -> "Waves":
        """Give some of the waves, by a mask (wave,)."""
        return Waves(
            self.group[kept],
            self.centre_s[kept],
            self.width_s[kept],
            self.vector_mv[:, kept],
            self.residual_mv[:, kept],
        )

    def part(self, group: Group) -> "Waves":
        """Give the waves of one group."""
        return self.only(self.group == group)

    def scaled(self, group: Group, vector: Floats | float) -> "Waves":
        """Multiply the vectors of a group, by a number or by (3,) along the axes."""
        inside = self.group == group
        factor = np.where(inside, np.reshape(vector, (-1, 1)), 1.0)
        return replace(self, vector_mv=self.vector_mv * factor)

    def turned(self, group: Group, turn: Floats) -> "Waves":
        """Turn the vectors of a group by a rotation (3, 3)."""
        vector = self.vector_mv.copy()
        inside = self.group == group
        vector[:, inside] = turn @ vector[:, inside]
        return replace(self, vector_mv=vector)

    def stretched(self, group: Group, factor: float, about_s: float = 0.0) -> "Waves":
        """Stretch a group in time about a moment."""
        inside = self.group == group
        centre = np.where(inside, about_s + (self.centre_s - about_s) * factor, self.centre_s)
        return replace(self, centre_s=centre, width_s=np.where(inside, self.width_s * factor, self.width_s))

    def shifted(self, group: Group, by_s: float) -> "Waves":
        """Move a group in time."""
        return replace(self, centre_s=self.centre_s + by_s * (self.group == group))

    def leads_mv(self) -> Floats:
        """Give the amplitudes (8 leads, wave)."""
        return DOWER @ self.vector_mv + self.residual_mv

    def area(self, group: Group) -> Floats:
        """Give the net area (3,) of a group, mV s over sqrt(2 pi)."""
        part = self.part(group)
        return part.vector_mv @ part.width_s

    def lead_areas(self, group: Group) -> Floats:
        """Give the net area (8,) of a group in the leads, mV s over sqrt(2 pi)."""
        part = self.part(group)
        return part.leads_mv() @ part.width_s

    def signal(self, time_s: Floats, lead_gain: Floats | float = 1.0) -> Floats:
        """Give the 8 leads (8, time) at times (time,) from R, mV."""
        return (self.leads_mv() * np.reshape(lead_gain, (-1, 1))) @ gaussians(
            time_s[None], self.centre_s[None], self.width_s[None]
        )[0]

    def span(self, group: Group, lead_gain: Floats | float = 1.0) -> Span:
        """Find where a group begins, is largest and ends: `EDGE_SHARE` of the largest spatial magnitude.

        The peak of QRS is R: each lead counts by the root of its height, as a detector that fuses leads weighs them,
        or a deep S in V1 to V3 would be the largest (28 ms after R in one of 150 people; so it is 4 at most).
        """
        part = self.part(group)
        first, last = (part.centre_s - 4.5 * part.width_s).min(), (part.centre_s + 4.5 * part.width_s).max()
        time_s = np.arange(first, last, _STEP_S)
        leads = part.signal(time_s, lead_gain)
        size = np.linalg.norm(leads, axis=0)
        peak = int(size.argmax())
        level = EDGE_SHARE * size[peak]
        if group is Group.QRS:
            height = np.sqrt(np.abs(leads).max(axis=1, keepdims=True))
            peak = int(np.linalg.norm(leads / np.maximum(height, 1e-9), axis=0).argmax())
        above = np.flatnonzero(size > level)
        before, after = max(int(above[0]), 1), min(int(above[-1]), size.size - 2)
        rise = (level - size[before - 1]) / (size[before] - size[before - 1])
        fall = (size[after] - level) / (size[after] - size[after + 1])
        return Span(time_s[before] + (rise - 1) * _STEP_S, float(time_s[peak]), time_s[after] + fall * _STEP_S)


def gaussians(time_s: Floats, centre_s: Floats, width_s: Floats) -> Floats:
    """Give (beat, wave, time) unit Gaussians at times (beat, time), with (beat, wave) centres and widths."""
    z = (time_s[:, None, :] - centre_s[:, :, None]) / width_s[:, :, None]
    z *= z
    z *= -0.5
    return np.exp(z, out=z)


NAMES = ("P1", "P2", "q", "R", "R2", "s", "T1", "T2")
"""The waves of `NORMAL`, in their order."""
NORMAL = (
    Waves.of(Group.P, (-0.160, 0.018, 0.066, 0.074, 0.022), (-0.128, 0.018, -0.003, -0.001, -0.045))
    + Waves.of(
        Group.QRS,
        (-0.022, 0.0080, -0.090, 0.163, -0.283),
        (-0.002, 0.0095, 0.875, 0.392, -0.085),
        (0.010, 0.0110, 0.579, 0.356, 0.525),
        (0.030, 0.0105, -0.168, -0.063, 0.676),
    )
    + Waves.of(Group.T, (0.215, 0.060, 0.298, 0.151, -0.153), (0.262, 0.032, 0.041, -0.039, -0.138))
)
"""The reference beat: PR 168, QRS 88, QT 396 ms, axis 53 degrees (clinical notes, 7.3; fitted for this project)."""
