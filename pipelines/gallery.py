"""The gallery: a picture of each rhythm and morphology that is simulated, of some together, and of each population."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from p2es.demographics import Sex
from p2es.errors import InputError
from p2es.files import write_whole
from p2es.simulator import MORPHOLOGIES, POPULATIONS, RHYTHMS, Simulation
from pipelines.person import PersonRequest, paper

_DPI, _COLOURS = 112, 32
"""Small enough that all pictures are under 2.5 MB, fine enough for a P wave."""
# One person in all plates of rhythms and morphologies: what differs between two plates is the rhythm or the morphology.
_WHO: Mapping[str, Any] = {"age_years": 58.0, "sex": Sex.MALE, "height_cm": 176.0, "weight_kg": 79.0}
_PLATE = PersonRequest(index=365, seed=1, seconds=60.0, rhythm="sinus", morphologies=(), demographics=_WHO)

RHYTHM_SIGNS = {
    "sinus": "A P wave before each QRS, upright in I and II and negative in aVR, at a constant PR; R grows from V1 to "
    "V4 and S shrinks, T is upright in all leads but aVR and perhaps V1.",
    "sinus_arrhythmia": "As in sinus rhythm, but the rate swings with the breath: RR shortens and lengthens within a "
    "few beats, P and PR stay the same.",
    "sinus_tachycardia": "Above 100 a minute; P close behind the T before it, PR and QT short for the rate.",
    "sinus_bradycardia": "Below 60 a minute; long TP intervals, one normal P for each QRS.",
    "atrial_fibrillation": "No P waves; fine uneven waves of the baseline, best in V1 and II; RR irregular "
    "throughout; pulses of very different size, weak after short RR.",
    "premature_atrial": "Early beats with narrow QRS behind an early P of another shape, then a pause that is not "
    "fully compensatory; the early pulse is small.",
    "premature_ventricular": "Early wide beats without P, T opposite to QRS, a compensatory pause behind them; the "
    "pulse of the early beat is weak or missing, the one behind the pause large.",
    "av_block_1": "Every P is followed by a QRS, at a constant PR above 200 ms.",
    "av_block_2_wenckebach": "PR grows from beat to beat until a P has no QRS, then it starts short again: beats in "
    "groups.",
    "av_block_2_mobitz": "Now and then a P without QRS, while PR of the others stays the same.",
    "av_block_3": "P waves march through at their own rate, unrelated to a slow regular escape rhythm.",
}  # fmt: skip
MORPHOLOGY_SIGNS = {
    "lvh": "Deep S in V1-V2 and tall R in V5-V6 (Sokolow-Lyon above 3.5 mV), and T turned over in I, aVL, V5-V6 "
    "(strain).",
    "rvh": "Axis to the right (I negative, aVF positive), tall R in V1, deep S in V5-V6, T negative in V1-V2.",
    "lbbb": "QRS above 120 ms; QS or rS in V1-V3, broad upright R without q in I, aVL, V5-V6; ST and T opposite "
    "to QRS.",
    "rbbb": "QRS above 120 ms; a late R' in V1, a broad S in I, V5-V6, T negative in V1.",
    "wpw": "Short PR, a slurred start of QRS (delta wave), QRS widened by it.",
    "st_elevation_anterior": "ST raised in V1-V4, going over into T; little or mirrored in the inferior leads.",
    "st_elevation_inferior": "ST raised in II, III, aVF, most in III, and depressed in I and aVL (reciprocal).",
    "st_depression": "ST below the baseline, level, in V3-V6 and the lateral limb leads.",
    "long_qt": "T late and broad: QTcF about 500 ms, T ends beyond the middle of RR.",
    "low_voltage": "QRS under 0.5 mV in all limb leads and under 1 mV in the chest leads.",
}
_TOGETHER: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("af-rbbb", "atrial_fibrillation", ("rbbb",), "Irregular without P, each QRS with the late R' of the block."),
    ("af-lvh", "atrial_fibrillation", ("lvh",), "Irregular without P, tall voltages and strain."),
    ("pvc-lbbb", "premature_ventricular", ("lbbb",), "Early beats that are wide in another way than the block."),
    ("block-1-rbbb", "av_block_1", ("rbbb",), "Long PR and a right bundle branch block."),
    ("tachycardia-inferior", "sinus_tachycardia", ("st_elevation_inferior",), "Fast, with inferior ST elevation."),
    ("rvh-rbbb", "sinus", ("rvh", "rbbb"), "Axis to the right, broad tall R' in V1."),
)  # fmt: skip
_POPULATION_SIGNS = {
    "healthy": "A good recording of a healthy heart at home.",
    "clinic": "Some baseline wander and muscle noise, as on an outpatient's paper.",
    "ward": "More wander and muscle, electrodes that move, a pulse of poor perfusion now and then.",
    "stress": "Everything at once: motion, muscle, power line, lost packets, perhaps an electrode off.",
    "other": "Other hearts, other sensors: wider QRS, later transition, a pulse with little reflection.",
}


@dataclass(frozen=True)
class Plate:
    """One picture: its file's name, whom it shows, and what a reader should see there."""

    name: str
    group: str
    request: PersonRequest
    signs: str
    heading: str = field(default="")


def plates() -> list[Plate]:
    """Give all pictures, in the order of the page."""
    rhythms = [
        Plate(f"rhythm-{_file(name)}", "Rhythms", replace(_PLATE, rhythm=name), RHYTHM_SIGNS[name], name)
        for name in RHYTHMS
    ]
    shapes = [
        Plate(
            f"shape-{_file(name)}", "Morphologies", replace(_PLATE, morphologies=(name,)), MORPHOLOGY_SIGNS[name], name
        )
        for name in MORPHOLOGIES
    ]
    together = [
        Plate(f"both-{name}", "Together", replace(_PLATE, rhythm=rhythm, morphologies=found), signs,
              " + ".join((rhythm, *found)))
        for name, rhythm, found, signs in _TOGETHER
    ]  # fmt: skip
    populations = [
        Plate(f"population-{name}", "Populations", PersonRequest(index=2, seed=1, population=name, seconds=16.0),
              _POPULATION_SIGNS[name], name)
        for name in POPULATIONS
    ]  # fmt: skip
    return [*rhythms, *shapes, *together, *populations, *_one_person_twice()]


def _one_person_twice() -> list[Plate]:
    """Give a person on another day, and the counterfactual twin."""
    plain = replace(_PLATE, demographics={})
    twin = {"age_years": 80.0, "sex": Sex.FEMALE, "height_cm": 160.0, "weight_kg": 80.0}
    return [
        Plate("person-today", "One person", plain, "A person as drawn.", "a day"),
        Plate("person-another-day", "One person", replace(plain, day=1),
              "The same person another day: rate, axis and electrodes a little off, the same heart.", "another day"),
        Plate("person-twin", "One person", replace(plain, demographics=twin),
              "The twin with age, sex, height and weight changed and all else kept: less voltage, axis to the left, "
              "lower T, an older pulse.", "counterfactual twin"),
    ]  # fmt: skip


def _file(name: str) -> str:
    return name.replace("_", "-")


def run(folder: Path, only: Sequence[str] = (), tell: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Draw the gallery, and the page `<folder>.md` beside its folder; the same bytes each time.

    Parameters
    ----------
    folder : Path
    only : sequence of str
        Names of plates; then the page stays as it is.
    tell : callable
        Is told each picture.

    Raises
    ------
    InputError
        For a name that no plate has.
    """
    from p2es import plot

    every = plates()
    unknown = sorted(set(only) - {plate.name for plate in every})
    if unknown:
        raise InputError(f"the gallery has no {unknown[0]!r}: it has {', '.join(plate.name for plate in every)}")
    written, made = [], {}
    folder.mkdir(parents=True, exist_ok=True)
    for plate in every:
        if only and plate.name not in only:
            continue
        made[plate.name] = plate.request.simulate()
        picture = folder / f"{plate.name}.png"
        write_whole(picture, plot.png(paper(made[plate.name]), dpi=_DPI, colours=_COLOURS))
        tell(f"{picture}")
        written.append(picture)
    if not only:
        page = folder.with_suffix(".md")
        write_whole(page, _page(every, made, os.path.relpath(folder, page.parent)).encode())
        written.append(page)
    return written


def _page(every: Sequence[Plate], made: Mapping[str, Simulation], folder: str) -> str:
    """Give the page in Markdown."""
    lines = [_HEAD]
    group = ""
    for plate in every:
        if plate.group != group:
            group = plate.group
            lines.append(f"\n## {group}\n")
        lines += [
            f"### {plate.heading.replace('_', ' ')}\n",
            f"{plate.signs} *True: {_true(made[plate.name])}.*\n",
            f"![{plate.heading.replace('_', ' ')}]({folder}/{plate.name}.png)\n",
        ]
    return "\n".join([*lines, _FLAWS])


def _true(made: Simulation) -> str:
    truth = made.truth
    said = [f"{truth.heart_rate_bpm:.0f}/min"]
    said += [f"{name} {value:.0f} ms" for name, value in
             (("PR", truth.pr_ms), ("QRS", truth.qrs_ms), ("QTcF", truth.qtcf_ms)) if np.isfinite(value)]  # fmt: skip
    said.append(f"axis {truth.axis_deg:.0f}°")
    rhythm = [truth.rhythm, *truth.morphologies]
    return ", ".join([" + ".join(rhythm).replace("_", " "), *said])


_HEAD = """# Gallery of the simulator

Made by `make gallery` (`p2es gallery`). Everything here is SYNTHETIC. 25 mm/s, 10 mm/mV, 0.5-40 Hz as a dataset stores
it; below, the pulse of the same ten seconds, later by the sensor's delay. All plates of rhythms and morphologies show
one person, so that what differs is the rhythm or the morphology.
"""
_FLAWS = """
## What looks wrong or is simplified

Looked at strip by strip, at the size of the page:

- QRS in V1 to V4 is notched in some people: what no dipole explains is drawn as small waves of its own.
- LBBB: V3 may be small, and QRS looks narrow in II.
- RBBB: V1 and V2 keep their deep S before R' (rSR' rather than rsR').
- Hearts with an axis beyond -60 degrees may have next to nothing in V5 and V6, where life has an S.
- P is taller in V4 than in II in some people.
- The sinus P within a ventricular beat is not to be seen; Mobitz II has a narrow QRS unless a block is asked for; in AV
  block III the atrial rhythm does not change with the ventricles'.
- QT follows the rate with a lag of some beats; there is no dispersion between leads.
- Tall voltages run over into the row above, as on paper.
- No pacemaker, atrial flutter, ectopic rhythms of other origin, Q waves of old infarction, fascicular blocks, or
  change of ST and T over time.
"""


def summary(written: Sequence[Path]) -> str:
    """Say what was written."""
    size = sum(path.stat().st_size for path in written) / 1e6
    return f"{len(written)} files, {size:.2f} MB, in {written[0].parent}"
