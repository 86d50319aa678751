"""The pictures of a report: which there are, and where on the page each stands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from p2es import plot
from p2es.evaluation import charts
from p2es.evaluation.columns import MODEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEATS = ("r_f1_50ms", "r_f1_150ms", "r_f1_50ms_lag", "r_f1_150ms_lag")
_CAPTIONS = {
    "systems": "The model and every yardstick and control in six figures, with 95 % intervals over people. Open marks "
    "are the model with another input.",
    "beats": "R peaks found by each system, as drawn and after one constant lag.",
    "timing": "R timing errors with the person's own PPG and with another's: the model must be narrower.",
    "leads": "Correlation of one sample with the recording in each lead, not aligned.",
    "spectra": "Power spectra of recorded and drawn ECGs: what is drawn too smooth falls off to the right.",
    "bland_altman_median": "Bland-Altman: median of the samples against the recording. A falling cloud is a model that "
    "answers with the mean.",
    "bland_altman_sample": "Bland-Altman: one sample against the recording. It must spread more than the median.",
    "amplitudes": "Drawn over recorded amplitudes: a cloud along the dashed line is faithful, a round one knows how "
    "people vary, a flat one only the mean.",
    "reliability": "How often the recorded feature lies in the central 50, 80 and 90 % of the samples.",
    "pit": "Where recorded features lie among the samples (PIT): flat when the samples spread as they should.",
    "ranks": "Rank of the recorded signal among the samples, point by point.",
    "groups": "Figures by sex, age, body mass index and rhythm. Groups of fewer than 30 people are left empty.",
    "counterfactual": "Effects of a changed demographic, found over published; in the green band they are 50 to 150 % "
    "of the published size, red marks have the wrong sign.",
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page: PNG bytes, its name and what it shows.

    Attributes
    ----------
    name : str
        Its prefix says where on the page it stands: see `SECTIONS`.
    caption : str
        Read out where the picture cannot be seen, so it says what there is to see.
    png : bytes
    """

    name: str
    caption: str
    png: bytes


SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("worst", ("worst",)),
    ("examples", ("ecg", "lead_ii", "example")),
    ("systems", ("systems", "beats", "timing", "leads", "spectra")),
    ("intervals", ("bland_altman",)),
    ("amplitudes", ("amplitudes",)),
    ("probability", ("reliability", "pit", "ranks")),
    ("groups", ("groups",)),
    ("counterfactual", ("counterfactual",)),
)
"""Parts of the page and the prefixes of the pictures in each."""


def part_of(name: str) -> str:
    """Give the part of the page for a picture; `further` for one that fits none."""
    for part, prefixes in SECTIONS:
        if any(name == prefix or name.startswith(f"{prefix}_") for prefix in prefixes):
            return part
    return "further"


def draw(report: Mapping[str, Any], rows: pa.Table) -> list[Picture]:
    """Draw every chart for which the report has figures.

    Parameters
    ----------
    report : mapping
        From `report.compose`.
    rows : pyarrow.Table
        The rows it was composed of.
    """
    return [Picture(name, _CAPTIONS[name], plot.png(make())) for name, make in wanted(report, rows).items()]


def wanted(report: Mapping[str, Any], rows: pa.Table) -> dict[str, "Callable[[], Figure]"]:
    """Give the charts for which a report has figures, by name, as functions that draw them."""
    figures = {MODEL: report["figures"]} | dict(report["controls"])
    agreed, calibrated = report["agreement"], report["calibration"]
    found: dict[str, Callable[[], Figure]] = {
        "systems": partial(charts.systems, figures),
        "beats": partial(charts.comparison, figures, _BEATS),
        "timing": partial(charts.timing, rows),
        "leads": partial(charts.lead_correlations, rows),
        "spectra": partial(charts.spectra, rows),
        "ranks": partial(charts.ranks, rows),
    }
    for kind in ("median", "sample"):
        if kind in agreed.get(MODEL, {}):
            found[f"bland_altman_{kind}"] = partial(charts.bland_altman, rows, agreed, kind)
    if MODEL in report["morphology"]:
        found["amplitudes"] = partial(charts.amplitudes, rows, report["morphology"])
    if MODEL in calibrated:
        found["reliability"] = partial(charts.reliability, calibrated)
        found["pit"] = partial(charts.pit, calibrated)
    if report["fairness"]:
        found["groups"] = partial(charts.groups, report["fairness"], report["figures"])
    if report["counterfactual"]:
        found["counterfactual"] = partial(charts.counterfactuals, report["counterfactual"])
    return found
