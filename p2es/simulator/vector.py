"""The heart's electric vector: matrices that project it to leads, rotations, and the axis that leads show.

Axes are x (left), y (down) and z (back), as in Dower's matrix.
"""

from math import acos, atan2, cos, hypot, pi, radians, sin

import numpy as np
from numpy.typing import NDArray

from p2es.leads import LEADS, LIFT

Floats = NDArray[np.float64]

DOWER: Floats = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
"""Dower: rows I, II, V1..V6; columns x, y, z."""
DOWER.setflags(write=False)

ATRIAL: Floats = np.array(
    [
        [0.988, 0.016, 0.277],
        [0.063, 1.292, 0.201],
        [-0.213, 0.210, -1.322],
        [0.528, 0.086, -1.161],
        [0.753, 0.315, -1.191],
        [0.927, 0.419, -1.008],
        [0.969, 0.401, -0.555],
        [0.938, 0.409, -0.318],
    ]
)
"""Pseudo-inverse of Guillem's atrial matrix (2008), for f waves; rows and columns as in `DOWER`."""
ATRIAL.setflags(write=False)

_LEAD_I, _LEAD_AVF = LEADS.index("I"), LEADS.index("aVF")
# Leads I and aVF span the frontal plane; aVF is recorded against an augmented reference, hence 2 / sqrt(3).
_FRONTAL: Floats = (LIFT @ DOWER)[[_LEAD_I, _LEAD_AVF]] * np.array([[1.0], [2 / np.sqrt(3)]])


def rotations(x_deg: Floats, y_deg: Floats, z_deg: Floats) -> Floats:
    """Give (n, 3, 3) rotations about x, then y, then z by angles (n,) in degrees."""
    result = np.broadcast_to(np.eye(3), (len(x_deg), 3, 3))
    for axis, degrees in enumerate((x_deg, y_deg, z_deg)):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = np.zeros((len(degrees), 3, 3))
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[:, axis, axis] = 1.0
        turn[:, first, first] = turn[:, second, second] = c
        turn[:, first, second], turn[:, second, first] = -s, s
        result = turn @ result
    return result


def rotation(x_deg: float = 0.0, y_deg: float = 0.0, z_deg: float = 0.0) -> Floats:
    """Give one rotation (3, 3) about x, then y, then z."""
    return rotations(np.array([x_deg]), np.array([y_deg]), np.array([z_deg]))[0]


def frontal_axis_deg(area: Floats) -> float:
    """Give the frontal axis of a vector (3,), as the net areas of I and aVF show it; degrees, -180 to 180."""
    i, f = _FRONTAL @ area
    return float(np.rad2deg(atan2(f, i)))


def turned_to_axis(area: Floats, axis_deg: float) -> Floats:
    """Give the rotation (3, 3) about z after which a vector (3,) has a frontal axis.

    The leads' areas are linear in cos and sin of the angle, so the condition
    `A_aVF' cos(axis) = A_I sin(axis)` has two roots; of those on the right side the smaller turn is taken.
    Where the part along z keeps the axis out of reach the nearest is taken.
    """
    x, y, z = area
    target = radians(axis_deg)
    # Rows: I and aVF'; columns: the factors of cos, sin and 1.
    linear = np.stack(
        [
            _FRONTAL[:, 0] * x + _FRONTAL[:, 1] * y,
            _FRONTAL[:, 1] * x - _FRONTAL[:, 0] * y,
            _FRONTAL[:, 2] * z,
        ],
        axis=1,
    )
    across = cos(target) * linear[1] - sin(target) * linear[0]
    along = sin(target) * linear[1] + cos(target) * linear[0]
    middle, size = atan2(across[1], across[0]), hypot(across[0], across[1])
    half = acos(float(np.clip(-across[2] / max(size, 1e-12), -1.0, 1.0)))
    angles = [(middle + sign * half + pi) % (2 * pi) - pi for sign in (1, -1)]
    right = [angle for angle in angles if along @ (cos(angle), sin(angle), 1.0) > 0] or angles
    return rotation(z_deg=float(np.rad2deg(min(right, key=abs))))
