"""The 12 leads by name and order, the lift from 8 to 12, and the lead laws.

Of the 12 standard leads only 8 are independent (I, II, V1..V6). The others follow from them:
III = II - I, aVR = -(I + II)/2, aVL = I - II/2, aVF = II - I/2 (Einthoven, Goldberger).
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
INDEPENDENT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
LIMB = LEADS[:6]

N_LEADS = len(LEADS)
N_INDEPENDENT = len(INDEPENDENT)

INDEPENDENT_INDEX = np.array([LEADS.index(name) for name in INDEPENDENT])

# Rows: the 12 leads; columns: the 8 independent ones.
LIFT: NDArray[np.float64] = np.zeros((N_LEADS, N_INDEPENDENT))
LIFT[0, 0] = LIFT[1, 1] = 1.0
LIFT[2, :2] = (-1.0, 1.0)
LIFT[3, :2] = (-0.5, -0.5)
LIFT[4, :2] = (1.0, -0.5)
LIFT[5, :2] = (-0.5, 1.0)
LIFT[6:, 2:] = np.eye(6)
LIFT.setflags(write=False)

# Spellings found in archives. A bare "V" or "MCL" is an unknown precordial and is deliberately not here.
_ALIASES = {name.lower(): name for name in LEADS} | {"mli": "I", "mlii": "II", "mliii": "III"}

Floating = TypeVar("Floating", np.float32, np.float64)


class LeadRole(IntEnum):
    """What a lead is to the model in one window."""

    ABSENT = 0
    """Not recorded: neither input nor part of the loss."""
    TARGET = 1
    """To be generated; in training it is known and enters the loss."""
    GIVEN = 2
    """Recorded and shown to the model: an input, returned as it came."""


def canonical_lead(name: str) -> str | None:
    """Give the standard name of a lead, or None when it is not one of the 12.

    Case, surrounding blanks and the prefixes "ECG", "ECG lead" and "lead" do not matter.
    """
    key = name.strip().lower().replace("_", " ")
    for prefix in ("ecg lead ", "ecg ", "lead "):
        key = key.removeprefix(prefix)
    return _ALIASES.get(key.strip())


def lift(independent: NDArray[Floating]) -> NDArray[Floating]:
    """Lift the 8 independent leads to 12.

    Parameters
    ----------
    independent : array (..., 8, time)
        Leads in the order of `INDEPENDENT`.

    Returns
    -------
    array (..., 12, time)
        Leads in the order of `LEADS`, same unit and dtype.
    """
    return np.matmul(LIFT.astype(independent.dtype), independent)


def law_residuals(ecg: NDArray[np.floating]) -> NDArray[np.floating]:
    """Give what is left of the lead laws, zero when they hold.

    Parameters
    ----------
    ecg : array (..., 12, time)

    Returns
    -------
    array (..., 4, time)
        I - II + III, aVR + (I + II)/2, aVL - I + II/2, aVF - II + I/2, in the unit of `ecg`.
    """
    i, ii, iii, avr, avl, avf = (ecg[..., k, :] for k in range(6))
    return np.stack([i - ii + iii, avr + (i + ii) / 2, avl - i + ii / 2, avf - ii + i / 2], axis=-2)


def complete_limb_leads(leads: Mapping[str, NDArray[Floating]]) -> dict[str, NDArray[Floating]]:
    """Complete the six limb leads from any two of them; observed leads are kept as they are.

    Each limb lead is a known combination of I and II, and so of any two different limb leads, (time,) or (..., time).
    Precordial leads pass through. With fewer than two limb leads nothing can be added.
    """
    result = dict(leads)
    present = [name for name in LIMB if name in leads]
    if len(present) < 2 or len(present) == len(LIMB):
        return result
    first, second = present[:2]
    rows = LIFT[[LEADS.index(first), LEADS.index(second)], :2]
    weights = LIFT[: len(LIMB), :2] @ np.linalg.inv(rows)
    for name, (a, b) in zip(LIMB, weights, strict=True):
        if name not in result:
            result[name] = (a * leads[first] + b * leads[second]).astype(leads[first].dtype)
    return result
