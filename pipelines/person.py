"""One simulated person: twelve leads on paper with the pulse below, and what is true of them as a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p2es.errors import InputError
from p2es.filters import stored_ecg, stored_ppg
from p2es.formats.simulated import in_whole_frames
from p2es.leads import LEADS
from p2es.recording import SignalKind
from p2es.simulator import Simulation, simulate
from p2es.simulator.rhythm import BeatKind
from p2es.simulator.truth import Truth
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, PPG_SAMPLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHORTEST_S = 12.0
"""Ten seconds on paper and the pulse of one second on either side."""


@dataclass(frozen=True)
class PersonRequest:
    """Whom to simulate, and how long.

    Attributes
    ----------
    seed, index, day : int
    seconds : float
    population : str
    rhythm : str or None
        None draws what the population has.
    morphologies : tuple of str or None
        None draws what the population has.
    demographics : mapping
        Fields to change, all else kept.
    noise : bool
    """

    index: int
    seed: int = 0
    population: str = "healthy"
    day: int = 0
    seconds: float = 14.0
    rhythm: str | None = None
    morphologies: tuple[str, ...] | None = None
    demographics: Mapping[str, Any] = field(default_factory=dict)
    noise: bool = True

    def simulate(self) -> Simulation:
        """Simulate the recording; InputError for what cannot be."""
        if self.seconds < _SHORTEST_S:
            raise InputError(f"{self.seconds:g} seconds are too few to draw: give {_SHORTEST_S:g} or more")
        return simulate(
            self.seed,
            self.index,
            self.seconds,
            self.population,
            day=self.day,
            rhythm=self.rhythm,
            morphologies=self.morphologies,
            demographics=self.demographics,
            noise=self.noise,
        )


def paper(made: Simulation, title: str | None = None) -> "Figure":
    """Draw the ten seconds with most to see, filtered as a dataset stores them; a lead not recorded stays empty."""
    from p2es import plot

    recording = made.recording
    leads = [signal.read() for signal in recording.leads.values()]
    pulse = recording.of_kind(SignalKind.PPG)[0]
    first, ecg_fs_hz = round(_shown_from_s(made) * FS_HZ), recording.leads[LEADS[0]].fs_hz
    ecg = stored_ecg(np.stack(leads), ecg_fs_hz, 0.0, first + round(MARGIN_S * FS_HZ), ECG_SAMPLES)
    ppg = stored_ppg(pulse.read()[None], pulse.fs_hz, 0.0, first, PPG_SAMPLES)
    footer = f"{recording.provenance['device']}, {pulse.name}"
    return plot.window_ecg(ecg, simulated=True, ppg=ppg, title=title or title_of(made), footer=footer)


def _shown_from_s(made: Simulation) -> float:
    """Give where the pulse on paper starts, a margin before the ECG: by beats that are not usual, three will do."""
    truth = made.truth
    odd_s = np.concatenate([truth.beats.r_s[truth.beats.kind != BeatKind.NORMAL], truth.p_alone_s[:, 0]])
    starts_s = np.arange(np.floor(made.recording.duration_s - _SHORTEST_S) + 1)
    # Not at the very edges, where a beat alone says little.
    inside = (odd_s > starts_s[:, None] + MARGIN_S + 1) & (odd_s < starts_s[:, None] + MARGIN_S + 9)
    return float(starts_s[np.argmax(np.minimum(inside.sum(axis=1), 3))])


def title_of(made: Simulation) -> str:
    """Give who it is and what is wrong with the heart, in one line."""
    truth = made.truth
    person = truth.person.demographics
    what = " + ".join([truth.rhythm, *truth.morphologies]).replace("_", " ")
    return (
        f"{made.recording.record}: {what}, {person.age_years:.0f} y, {person.sex}, "
        f"{person.height_cm:.0f} cm, {person.weight_kg:.0f} kg, {truth.heart_rate_bpm:.0f}/min"
    )


def describe(made: Simulation) -> str:
    """Give the truth as lines of name and value."""
    truth, known = made.truth, made.truth.scalars()
    person = truth.person.demographics
    sensor = known["sensor"]
    rows = [
        ("record", f"{made.recording.record}, {made.recording.duration_s:g} s, SYNTHETIC"),
        ("person", f"{made.recording.person}, {person.age_years:.1f} y, {person.sex}, {person.height_cm:.1f} cm, "
                   f"{person.weight_kg:.1f} kg; in the record: {_recorded(made)}"),
        ("latent subtype", str(truth.person.subtype).replace("_", " ")),
        ("rhythm", truth.rhythm.replace("_", " ")),
        ("morphologies", ", ".join(truth.morphologies).replace("_", " ") or "none"),
        ("heart rate", f"{truth.heart_rate_bpm:.0f} /min, beats {_counts(known['beats'])}"),
        ("P, PR, QRS", f"{_ms(truth.p_ms)}, {_ms(truth.pr_ms)}, {_ms(truth.qrs_ms)}"),
        ("QT, QTcF", f"{_ms(truth.qt_ms)}, {_ms(truth.qtcf_ms)}"),
        ("axes P, QRS, T", ", ".join(_degrees(x) for x in (truth.p_axis_deg, truth.axis_deg, truth.t_axis_deg))),
        ("transition", f"V{truth.transition:.1f}" if np.isfinite(truth.transition) else "none within V1-V6"),
        ("pulse", f"{_ms(1000 * truth.delay_s)} from R to the steepest rise, {known['missing_pulses']} beats without"),
        ("sensor", f"{sensor['name']}, perfusion {sensor['perfusion_percent']:.2g} %, {sensor['snr_db']:.0f} dB, "
                   f"contact {sensor['contact']:.2f}"),
        ("artefacts", "; ".join(f"{a} {b} {c:.1f}-{d:.1f} s" for a, b, c, d in truth.artefacts) or "none"),
    ]  # fmt: skip
    return "\n".join([*(f"{name:16s}{value}" for name, value in rows), "", _leads(truth)])


def _leads(truth: Truth) -> str:
    """Give R, S and ST of each lead as a table."""
    lines = ["mV    " + "".join(f"{name:>7s}" for name in LEADS)]
    for name, values in (("R", truth.r_mv), ("S", truth.s_mv), ("ST+60", truth.st_mv)):
        lines.append(f"{name:6s}" + "".join(f"{values[lead]:7.2f}" for lead in LEADS))
    return "\n".join(lines)


def _recorded(made: Simulation) -> str:
    known = made.recording.demographics
    fields = (known.age_years, known.sex, known.height_cm, known.weight_kg)
    units = (" y", "", " cm", " kg")
    return ", ".join("?" if x is None else f"{x:g}{u}" if isinstance(x, float) else str(x)
                     for x, u in zip(fields, units, strict=True))  # fmt: skip


def _counts(beats: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in beats.items() if count)


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if np.isfinite(value) else "-"


def _degrees(value: float) -> str:
    return f"{value:.0f}°" if np.isfinite(value) else "-"


def write(made: Simulation, out: Path, folder: Path | None) -> list[Path]:
    """Write the picture and, where a folder is given, the WFDB record; give what was written."""
    from p2es import plot
    from p2es.simulator.archive import write_wfdb

    header = [] if folder is None else [write_wfdb(in_whole_frames(made.recording), folder, made.truth)]
    out.parent.mkdir(parents=True, exist_ok=True)
    plot.save(paper(made), out)
    return [out, *header]
