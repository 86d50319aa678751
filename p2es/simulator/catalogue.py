"""The rhythms and morphologies that can be simulated, and which of them can be in one heart."""

from collections.abc import Iterable

from p2es.errors import InputError

SINUS_RHYTHMS = ("sinus", "sinus_arrhythmia", "sinus_tachycardia", "sinus_bradycardia")
"""Rhythms in which the sinus node leads to every beat."""
RHYTHMS = (
    *SINUS_RHYTHMS,
    "atrial_fibrillation",
    "premature_atrial",
    "premature_ventricular",
    "av_block_1",
    "av_block_2_wenckebach",
    "av_block_2_mobitz",
    "av_block_3",
)
"""Names of the rhythms."""
MORPHOLOGIES = (
    # Those whose recipes look waves up by name come first: afterwards the order of `waves.NAMES` is gone.
    "lvh",
    "rvh",
    "wpw",
    "lbbb",
    "rbbb",
    "st_elevation_anterior",
    "st_elevation_inferior",
    "st_depression",
    "long_qt",
    "low_voltage",
)
"""Names of the morphologies, in the order in which they are applied."""

_ALTERNATIVES = (
    {"rbbb", "lbbb", "wpw"},
    {"lvh", "rvh", "lbbb", "low_voltage"},
    {"st_elevation_anterior", "st_elevation_inferior", "st_depression", "lvh", "lbbb", "wpw"},
)
"""Of each set a heart has one at most: the rest cannot be, or cannot be read beside it."""
# An accessory pathway needs an atrium that beats and a node that conducts, or the delta wave is another one.
_NOT_WITH = {"wpw": {"atrial_fibrillation", "av_block_1", "av_block_2_wenckebach", "av_block_2_mobitz", "av_block_3"}}


def compatible(morphologies: Iterable[str], rhythm: str) -> bool:
    """Tell whether physiology allows some morphologies together, under a rhythm."""
    names = set(morphologies)
    return all(len(names & one) <= 1 for one in _ALTERNATIVES) and not any(
        rhythm in _NOT_WITH.get(name, set()) for name in names
    )


def check(morphologies: Iterable[str], rhythm: str) -> tuple[str, ...]:
    """Give morphologies in the order of `MORPHOLOGIES`.

    Raises
    ------
    InputError
        For an unknown name, or a combination that physiology does not allow.
    """
    names = set(morphologies)
    unknown = sorted(names - set(MORPHOLOGIES))
    if unknown:
        raise InputError(f"there is no morphology {unknown[0]!r}: choose among {', '.join(MORPHOLOGIES)}")
    if not compatible(names, rhythm):
        told = " and ".join(sorted(names))
        raise InputError(f"{told} under {rhythm} cannot be in one heart: choose fewer")
    return tuple(name for name in MORPHOLOGIES if name in names)
