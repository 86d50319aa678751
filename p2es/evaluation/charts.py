"""The charts of a report: plain figures, no pyplot."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from p2es.evaluation.columns import MODEL, of_system, scalars, vectors, wrap_deg
from p2es.evaluation.features import FEATURES
from p2es.evaluation.memorisation import WAVE_HZ
from p2es.evaluation.metrics import BY_NAME
from p2es.evaluation.systems import colour_of, is_control, order_of, title_of
from p2es.leads import LEADS, N_LEADS
from p2es.plot import FOOTER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

HEADLINES = ("r_f1_50ms_lag", "hr_error_bpm", "rmse_mv_mean", "beat_rmse_mv_sample", "crps_mv", "feature_crps")
"""What the systems are shown side by side in: timing, rate, error, shape, and the two probability scores."""
AGREED = ("pr_ms", "qrs_ms", "qtcf_ms", "qrs_axis_deg")
SCATTERED = (("r_mv", "V3"), ("r_mv", "V5"), ("s_mv", "V1"), ("t_mv", "II"))
GROUPED = ("r_f1_50ms_lag", "rmse_mv_mean", "coverage_90")

_MODEL, _REAL, _GREY, _WARN = colour_of(MODEL), "#111111", "#8a8a8a", "#b00020"
_FEATURES = {feature.name: feature for feature in FEATURES}
_GROUPS = {"sex": "", "bmi": "BMI"}
_TIMING_RANGE_MS = 150
_WELCH_S = 2.0
_LOWEST_HZ = 0.5


def systems(figures: Mapping[str, Mapping[str, Mapping[str, Any]]], names: Sequence[str] = HEADLINES) -> "Figure":
    """Draw figures of each system with their intervals, a panel a figure.

    Parameters
    ----------
    figures : mapping of system to metric to Figure
    names : sequence of str
    """
    order = [system for system in sorted(figures, key=order_of) if _any(figures[system], names)]
    columns = 3 if len(names) > 4 else 2
    rows = -(-len(names) // columns)
    figure, panels = _panels(
        "Systems side by side: mean over people and 95 % interval",
        rows,
        columns,
        (9.6, 0.9 + rows * (0.8 + 0.2 * len(order))),
    )
    for k, name in enumerate(names):
        axes, metric = panels[k], BY_NAME[name]
        for y, system in enumerate(order):
            _dot(axes, figures[system].get(name), -y, colour_of(system), open_mark=is_control(system))
        better = f"{metric.better} is better" if isinstance(metric.better, str) else f"near {metric.better:g} is better"
        axes.set_title(_wrapped(metric.label), fontsize=8, loc="left")
        axes.set_xlabel(", ".join(part for part in (metric.unit, better) if part), fontsize=8)
        first = k % columns == 0
        axes.set_yticks([-y for y in range(len(order))], [title_of(s) for s in order] if first else [])
        axes.grid(axis="y", color="#eeeeee", zorder=0)
        axes.margins(x=0.08)
    _spare(panels, len(names))
    return figure


def comparison(figures: Mapping[str, Mapping[str, Mapping[str, Any]]], names: tuple[str, ...]) -> "Figure":
    """Draw figures of each system in one panel, for figures that share one unit from 0 to 1.

    Parameters
    ----------
    figures : mapping of system to metric to Figure
    names : tuple of str
    """
    order = [system for system in sorted(figures, key=order_of) if _any(figures[system], names)]
    figure, axes = _axes("R peaks found (F1, 95 % interval over people)", "F1", "", height=0.9 * len(names) + 2.2)
    for k, system in enumerate(order):
        for row, name in enumerate(names):
            y = -row + 0.8 / len(order) * (len(order) / 2 - k)
            label = title_of(system) if row == 0 else None
            _dot(axes, figures[system].get(name), y, colour_of(system), open_mark=is_control(system), label=label)
    axes.set_yticks([-row for row in range(len(names))], [_short(name) for name in names])
    axes.set_xlim(-0.02, 1.02)
    axes.legend(frameon=False, loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.14), fontsize=7)
    return figure


def timing(rows: pa.Table) -> "Figure":
    """Draw the R timing errors after one constant lag, the model's over those of its shuffled control."""
    figure, axes = _axes("R peak, drawn minus recorded, after one constant lag a window", "ms", "share of beats")
    bins = [float(edge) for edge in range(-_TIMING_RANGE_MS, _TIMING_RANGE_MS + 1, 10)]
    for system in ("shuffled_ppg", MODEL):
        offsets = _flat(rows, system, "offsets_ms")
        if offsets.size:
            weights = np.full(offsets.size, 1 / offsets.size)
            axes.hist(offsets, bins=bins, weights=weights, alpha=0.65, color=colour_of(system), label=title_of(system))
    axes.legend(frameon=False)
    return figure


def ranks(rows: pa.Table) -> "Figure":
    """Draw where the recording lies among the model's sorted samples: flat when the spread is right."""
    figure, axes = _axes(
        "Rank of the recording among the samples (a hump: they spread too much)", "rank", "share of points"
    )
    counts = _stacked(rows, MODEL, "rank_counts")
    if counts.size:
        share = counts.sum(axis=0) / counts.sum()
        axes.bar(np.arange(share.size), share, width=0.9, color=_MODEL)
        axes.axhline(1 / share.size, color="#333333", lw=1, ls="--", label="as it should be")
        axes.legend(frameon=False)
    return figure


def lead_correlations(rows: pa.Table) -> "Figure":
    """Draw the mean correlation of one sample with the recording, lead by lead, not aligned."""
    figure, axes = _axes("Correlation of one sample with the recording, by lead, not aligned", "", "r")
    there = set(rows["system"].to_pylist())
    shown = [system for system in (MODEL, "template", "shuffled_ppg") if system in there]
    width = 0.8 / max(len(shown), 1)
    for k, system in enumerate(shown):
        r = np.ma.masked_invalid(_stacked(rows, system, "correlation_lead"))
        mean = np.ma.filled(r.mean(axis=0), 0.0) if r.size else np.zeros(len(LEADS))
        at = np.arange(len(LEADS)) + (k - (len(shown) - 1) / 2) * width
        axes.bar(at, mean, width=width, color=colour_of(system), label=title_of(system))
    axes.set_xticks(range(len(LEADS)), LEADS)
    axes.axhline(0, color="#333333", lw=0.8)
    axes.margins(y=0.2)
    axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8)
    return figure


def bland_altman(rows: pa.Table, agreement: Mapping[str, Any], kind: str) -> "Figure":
    """Draw drawn - recorded over their mean, for PR, QRS, QTcF and the QRS axis of the model.

    Parameters
    ----------
    rows : pyarrow.Table
    agreement : mapping
        The report's, for bias and limits.
    kind : str
        `median` of the samples, or one `sample`.
    """
    what = "median of the samples" if kind == "median" else "one sample"
    figure, panels = _panels(f"Bland-Altman: {what} against the recording, a dot a window", 2, 2, (8.4, 6.0))
    mine = of_system(rows, MODEL)
    for axes, name in zip(panels, AGREED, strict=True):
        feature = _FEATURES[name]
        real, drawn = (
            scalars(mine, f"real_{name}"),
            scalars(mine, f"{'median' if kind == 'median' else 'drawn'}_{name}"),
        )
        apart = wrap_deg(drawn - real) if feature.circular else drawn - real
        # Of two angles the mean is half of the shorter arc on from the recorded one.
        axes.plot(real + apart / 2, apart, "o", ms=3, color=_MODEL, alpha=0.45, mew=0, zorder=3)
        found = agreement.get(MODEL, {}).get(kind, {}).get(name)
        if found is not None:
            _limits(axes, found, feature.unit)
        axes.set_title(_title_with(feature.label, found), fontsize=9, loc="left")
        axes.set_xlabel(f"mean of drawn and recorded, {feature.unit}", fontsize=8)
        axes.set_ylabel(f"drawn - recorded, {feature.unit}", fontsize=8)
    return figure


def _limits(axes: "Axes", found: Mapping[str, Any], unit: str) -> None:
    """Draw bias and limits of agreement, each with its number."""
    marks = ((found["bias"]["value"], "-", "bias"), *((end, "--", "") for end in found["loa"] or ()))
    for value, style, said in marks:
        if value is not None:
            axes.axhline(value, color=_WARN, lw=1, ls=style, zorder=2)
            text = f"{said} {value:+.0f} {unit}".strip()
            axes.annotate(
                text, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
                ha="right", va="bottom", fontsize=7, color=_WARN, zorder=4,
            )  # fmt: skip


def _title_with(label: str, found: Mapping[str, Any] | None) -> str:
    failures = None if found is None else found.get("drawn_failures")
    return label if not failures else f"{label} ({failures:.0%} could not be measured)"


def reliability(calibration: Mapping[str, Any]) -> "Figure":
    """Draw how often the recorded feature lay inside the central 50, 80 and 90 % of the model's samples."""
    figure, axes = _axes(
        "Reliability: how often the recording lies inside the samples' central share", "central share", "share inside"
    )
    shares = (0.5, 0.8, 0.9)
    axes.plot([0.4, 1], [0.4, 1], color="#333333", lw=1, ls="--", label="as it should be")
    found = calibration.get(MODEL, {})
    for k, (name, figures) in enumerate(found.items()):
        at = [share + 0.004 * (k - len(found) / 2) for share in shares]
        kept = [figures[f"coverage_{round(100 * share)}"] for share in shares]
        value = [np.nan if f["value"] is None else f["value"] for f in kept]
        colour, mark = f"C{k % 10}", "osD^v<>Pph"[k % 10]
        axes.plot(at, value, mark, ms=5, color=colour, label=_FEATURES[name].label, zorder=3)
        for x, f in zip(at, kept, strict=True):
            if f["low"] is not None:
                axes.plot([x, x], [f["low"], f["high"]], color=colour, lw=1, alpha=0.6)
    axes.set_xticks(shares, [f"{share:.0%}" for share in shares])
    axes.set_xlim(0.44, 0.96)
    axes.set_ylim(0, 1.03)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def pit(calibration: Mapping[str, Any]) -> "Figure":
    """Draw where the recorded features lie among the samples (PIT), a panel a feature: flat when calibrated."""
    names = [name for name in (*AGREED, "hr_bpm", "qt_ms") if name in calibration.get(MODEL, {})]
    rows = max(1, -(-len(names) // 3))
    figure, panels = _panels(
        "Where the recording lies among the samples (PIT): a U is too sure, a hump too unsure",
        rows, 3, (8.4, 0.7 + 2.1 * rows),
    )  # fmt: skip
    for axes, name in zip(panels, names, strict=False):
        counts = np.array(calibration[MODEL][name]["pit"], dtype=np.float64)
        axes.bar(np.arange(counts.size) + 0.5, counts / max(counts.sum(), 1.0), width=0.92, color=_MODEL)
        axes.axhline(1 / counts.size, color="#333333", lw=1, ls="--")
        axes.set_title(_FEATURES[name].label, fontsize=9, loc="left")
        axes.set_xticks([0, 5, 10], ["0", ".5", "1"])
        axes.set_ylim(0, max(0.25, 1.1 * float(counts.max() / max(counts.sum(), 1.0))))
    _spare(panels, len(names))
    return figure


def groups(fairness: Mapping[str, Any], figures: Mapping[str, Any], names: Sequence[str] = GROUPED) -> "Figure":
    """Draw figures of the model by group of people, beside everybody's; a group too small has its place, empty."""
    levels = [(group, level, parts) for group, g in fairness.items() for level, parts in g["levels"].items()]
    figure, panels = _panels(
        "By group of people: mean and 95 % interval; the line is everybody's",
        1,
        len(names),
        (9.6, 1.3 + 0.27 * len(levels)),
    )
    for k, (axes, name) in enumerate(zip(panels, names, strict=True)):
        everybody = figures[name]["value"]
        if everybody is not None:
            axes.axvline(everybody, color=_GREY, lw=1)
        for y, (_, _, parts) in enumerate(levels):
            _dot(axes, parts.get(name), -y, _MODEL)
            if parts.get(name) is None:
                axes.text(0.03, -y, "too few people", transform=axes.get_yaxis_transform(), va="center", fontsize=7,
                          color=_GREY)  # fmt: skip
        labels = [f"{_GROUPS.get(group, group)} {level}, {parts['n']} people" for group, level, parts in levels]
        axes.set_yticks([-y for y in range(len(levels))], labels if k == 0 else [], fontsize=8)
        axes.set_ylim(0.6 - len(levels), 0.6)
        for y in range(1, len(levels)):
            if levels[y][0] != levels[y - 1][0]:
                axes.axhline(0.5 - y, color="#dddddd", lw=0.8)
        axes.set_title(_wrapped(BY_NAME[name].label), fontsize=8, loc="left")
        axes.set_xlabel(BY_NAME[name].unit, fontsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.15)
    return figure


def spectra(rows: pa.Table) -> "Figure":
    """Draw the power spectra of recorded and drawn lead II (Welch, 2 s): mean in dB and central 90 % of windows."""
    from scipy.signal import welch

    figure, axes = _axes("Power spectra of lead II: median over windows, and central 90 %", "Hz", "dB (mV²/Hz)")
    mine = of_system(rows, MODEL)
    for column, colour, label in (("real_wave", _REAL, "recorded"), ("drawn_wave", _MODEL, "drawn")):
        waves = vectors(mine, column)
        waves = waves[np.isfinite(waves).all(axis=1)] if waves.size else waves
        if not waves.size:
            continue
        frequency, power = welch(waves, WAVE_HZ, nperseg=round(_WELCH_S * WAVE_HZ))
        kept = frequency >= _LOWEST_HZ
        level = 10 * np.log10(np.maximum(power[:, kept], 1e-12))
        low, middle, high = np.quantile(level, (0.05, 0.5, 0.95), axis=0)
        axes.fill_between(frequency[kept], low, high, color=colour, alpha=0.16, lw=0)
        axes.plot(frequency[kept], middle, color=colour, lw=1.6, label=label)
    axes.set_xlim(_LOWEST_HZ, WAVE_HZ / 2)
    if axes.get_lines():
        axes.legend(frameon=False)
    return figure


def amplitudes(rows: pa.Table, morphology: Mapping[str, Any]) -> "Figure":
    """Draw drawn over recorded amplitudes of the model, a dot a window, with the regression towards the mean."""
    figure, panels = _panels(
        "Amplitudes, one sample over the recording (slope of drawn - recorded: 0 faithful, -1 knows the mean only)",
        2,
        2,
        (8.4, 7.0),
    )
    mine = of_system(rows, MODEL)
    for axes, (feature, lead) in zip(panels, SCATTERED, strict=True):
        k = LEADS.index(lead)
        real, drawn = (vectors(mine, f"{of}_{feature}", N_LEADS)[:, k] for of in ("real", "drawn"))
        both = np.isfinite(real) & np.isfinite(drawn)
        title = f"{feature[0].upper()} in {lead}"
        if both.any():
            everything = np.concatenate([real[both], drawn[both]])
            ends = [float(everything.min()), float(everything.max())]
            axes.plot(real[both], drawn[both], "o", ms=3, color=_MODEL, alpha=0.45, mew=0, zorder=3)
            axes.plot(ends, ends, color="#333333", lw=1, ls="--", label="faithful")
            title += _regression(axes, (real[both], drawn[both]), morphology, feature, lead)
            axes.legend(frameon=False, fontsize=7, loc="upper left")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("recorded, mV", fontsize=8)
        axes.set_ylabel("drawn, mV", fontsize=8)
    return figure


def _regression(axes: "Axes", pair: tuple[Array, Array], morphology: Mapping[str, Any], feature: str, lead: str) -> str:
    """Draw the line that the slope of (drawn - recorded) on the recorded gives; say both figures."""
    found = morphology.get(MODEL, {}).get("amplitude", {}).get(feature, {}).get("by_lead", {}).get(lead, {})
    slope, ratio = found.get("slope"), found.get("variance_ratio")
    if slope is None or ratio is None:
        return ""
    real, drawn = pair
    ends = np.array([real.min(), real.max()])
    line = drawn.mean() + (1 + slope) * (ends - real.mean())
    axes.plot(ends, line, color=_WARN, lw=1.4, label="regression")
    return f": slope {slope:+.2f}, variance ratio {ratio:.2f}"


def counterfactuals(effects: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw each found effect as a share of the published one: 1 as published, 0 no effect, 0.5 to 1.5 in range."""
    shown = [effect for effect in effects if effect["published"]]
    figure, axes = _axes(
        "A changed demographic, the same PPG\n",
        "effect found, as a share of the published one", "", height=1.4 + 0.33 * len(shown),
    )  # fmt: skip
    axes.axvspan(0.5, 1.5, color="#2a8a57", alpha=0.12, lw=0)
    axes.axvline(1, color="#2a8a57", lw=1)
    axes.axvline(0, color="#333333", lw=1)
    labels = []
    for y, effect in enumerate(shown):
        found, published, feature = effect["found"], effect["published"], effect["feature"]
        share = {key: None if found[key] is None else found[key] / published for key in ("value", "low", "high")}
        # The line between the ends is the same whichever way a negative effect turns them.
        _dot(axes, share, -y, _MODEL if effect["right_sign"] else _WARN)
        name = _FEATURES[feature].label if feature in _FEATURES else "T amplitude"
        labels.append(f"{effect['change']}: {name} {published:+g} {effect['unit']}")
    axes.set_yticks([-y for y in range(len(shown))], labels, fontsize=8)
    axes.set_ylim(0.6 - len(shown), 0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.6), max(high, 2.1))
    axes.annotate("none", (0, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)
    axes.annotate("as published", (1, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)
    return figure


def _dot(
    axes: "Axes",
    figure: Mapping[str, Any] | None,
    y: float,
    colour: str,
    *,
    open_mark: bool = False,
    label: str | None = None,
) -> None:
    """Draw a value and its interval on a line; a control's mark is open. Nothing where there is no value."""
    if figure is None or figure["value"] is None:
        return
    if figure["low"] is not None:
        axes.plot([figure["low"], figure["high"]], [y, y], color=colour, lw=2, zorder=2)
    fill = "white" if open_mark else colour
    axes.plot([figure["value"]], [y], "o", color=colour, markerfacecolor=fill, ms=5, label=label, zorder=3)


def _any(figures: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> bool:
    return any(name in figures and figures[name]["value"] is not None for name in names)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 36)


def _short(name: str) -> str:
    return name.removeprefix("r_f1_").replace("ms", " ms").replace("_lag", ",\nlag removed")


def _axes(title: str, x: str, y: str, *, height: float = 3.6) -> "tuple[Figure, Axes]":
    figure = _figure((7.2, height))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _panels(title: str, rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    figure = _figure(size)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    panels = [figure.add_subplot(rows, columns, k + 1) for k in range(rows * columns)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, panels


def _spare(panels: "Sequence[Axes]", used: int) -> None:
    for axes in panels[used:]:
        axes.set_visible(False)


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.supxlabel(FOOTER, fontsize=7, color=_WARN)
    return figure


def _of(rows: pa.Table, system: str, column: str) -> list[list[float]]:
    chosen = rows.filter(pc.equal(rows["system"], system))[column].to_pylist()
    return [values for values in chosen if values]


def _flat(rows: pa.Table, system: str, column: str) -> Array:
    return np.array([x for values in _of(rows, system, column) for x in values], dtype=np.float64)


def _stacked(rows: pa.Table, system: str, column: str) -> Array:
    return np.array(_of(rows, system, column), dtype=np.float64)
