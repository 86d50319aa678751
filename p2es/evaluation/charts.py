"""The charts of a report: plain figures, no pyplot."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from p2es.leads import LEADS
from p2es.plot import FOOTER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "model": "#1f5fbf",
    "template": "#2a8a57",
    "shuffled_ppg": "#c65a11",
    "mean_waveform": "#8a8a8a",
}
NAMES = {
    "model": "P2Es",
    "template": "template at pulse beats",
    "shuffled_ppg": "P2Es, another person's PPG",
    "mean_waveform": "mean waveform",
}
_TIMING_RANGE_MS = 150


def name_of(system: str) -> str:
    """Give the name a reader sees."""
    return NAMES.get(system, system.replace("_", " "))


def timing(rows: pa.Table) -> "Figure":
    """Draw the R timing errors after one constant lag, the model's over those of its shuffled control."""
    figure, axes = _axes("R peak, drawn minus recorded, after one constant lag a window", "ms", "share of beats")
    bins = [float(edge) for edge in range(-_TIMING_RANGE_MS, _TIMING_RANGE_MS + 1, 10)]
    for system in ("shuffled_ppg", "model"):
        offsets = _flat(rows, system, "offsets_ms")
        if offsets.size:
            weights = np.full(offsets.size, 1 / offsets.size)
            label = name_of(system)
            axes.hist(offsets, bins=bins, weights=weights, alpha=0.65, color=COLOURS[system], label=label)
    axes.legend(frameon=False)
    return figure


def ranks(rows: pa.Table) -> "Figure":
    """Draw where the recording lies among the model's sorted samples: flat when the spread is right."""
    figure, axes = _axes(
        "Rank of the recording among the samples (a hump: they spread too much)", "rank", "share of points"
    )
    counts = _stacked(rows, "model", "rank_counts")
    if counts.size:
        share = counts.sum(axis=0) / counts.sum()
        axes.bar(np.arange(share.size), share, width=0.9, color=COLOURS["model"])
        axes.axhline(1 / share.size, color="#333333", lw=1, ls="--", label="as it should be")
        axes.legend(frameon=False)
    return figure


def lead_correlations(rows: pa.Table) -> "Figure":
    """Draw the mean correlation of one sample with the recording, lead by lead, not aligned."""
    figure, axes = _axes("Correlation of one sample with the recording, by lead, not aligned", "", "r")
    systems = [system for system in ("model", "template", "shuffled_ppg") if system in _systems(rows)]
    width = 0.8 / max(len(systems), 1)
    for k, system in enumerate(systems):
        r = np.ma.masked_invalid(_stacked(rows, system, "correlation_lead"))
        mean = np.ma.filled(r.mean(axis=0), 0.0) if r.size else np.zeros(len(LEADS))
        at = np.arange(len(LEADS)) + (k - (len(systems) - 1) / 2) * width
        axes.bar(at, mean, width=width, color=COLOURS[system], label=name_of(system))
    axes.set_xticks(range(len(LEADS)), LEADS)
    axes.axhline(0, color="#333333", lw=0.8)
    axes.margins(y=0.2)
    axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8)
    return figure


def comparison(systems: Mapping[str, Mapping[str, Mapping[str, Any]]], names: tuple[str, ...]) -> "Figure":
    """Draw figures of each system with their intervals.

    Parameters
    ----------
    systems : mapping of system to metric to Figure
    names : tuple of str
        The metrics to show, which share one unit.
    """
    figure, axes = _axes("R peaks found (F1, 95 % interval over people)", "F1", "")
    for k, (system, figures) in enumerate(systems.items()):
        for row, name in enumerate(names):
            value, low, high = (figures[name][key] for key in ("value", "low", "high"))
            if value is None:
                continue
            y = -row + 0.12 * (len(systems) / 2 - k)
            label = name_of(system) if row == 0 else None
            colour = COLOURS.get(system, "#444444")
            axes.plot([low, high], [y, y], color=colour, lw=2)
            axes.plot([value], [y], "o", color=colour, ms=5, label=label)
    axes.set_yticks([-row for row in range(len(names))], [_short(name) for name in names])
    axes.set_xlim(0, 1.02)
    axes.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.16), fontsize=8)
    return figure


def _short(name: str) -> str:
    return name.removeprefix("r_f1_").replace("ms", " ms").replace("_lag", ",\nlag removed")


def _axes(title: str, x: str, y: str) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(FOOTER, fontsize=7, color="#b00020")
    return figure, axes


def _systems(rows: pa.Table) -> set[str]:
    return set(rows["system"].to_pylist())


def _of(rows: pa.Table, system: str, column: str) -> list[list[float]]:
    chosen = rows.filter(pc.equal(rows["system"], system))[column].to_pylist()
    return [values for values in chosen if values]


def _flat(rows: pa.Table, system: str, column: str) -> NDArray[np.float64]:
    return np.array([x for values in _of(rows, system, column) for x in values], dtype=np.float64)


def _stacked(rows: pa.Table, system: str, column: str) -> NDArray[np.float64]:
    return np.array(_of(rows, system, column), dtype=np.float64)
