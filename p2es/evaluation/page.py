"""The page of a report: what people read. Style and pictures are inside it, so that it needs nothing else."""

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from p2es.evaluation.beat_marks import CSE_SD_MS
from p2es.evaluation.columns import MODEL
from p2es.evaluation.definitions import DEFINITIONS, SECTIONS
from p2es.evaluation.ectopy import TITLES
from p2es.evaluation.fairness import OPPORTUNITIES
from p2es.evaluation.features import FEATURES
from p2es.evaluation.metrics import BY_NAME, METRICS
from p2es.evaluation.pictures import Picture, part_of
from p2es.evaluation.systems import SYSTEMS, is_control, order_of, title_of

_TELLING = {
    "shuffled_ppg": ("r_f1_50ms_lag", "hr_error_bpm", "rmse_mv_sample_lag"),
    "warped_ppg": ("r_f1_50ms_lag", "beat_rmse_mv_sample", "feature_crps"),
    "shuffled_demographics": ("feature_crps", "qtcf_error_ms", "r_f1_50ms_lag"),
    "mean_waveform": ("rmse_mv_mean", "r_f1_50ms_lag"),
    "template": ("hr_error_bpm", "correlation_sample_lag", "crps_mv"),
    "regression": ("rmse_mv_mean", "beat_rmse_mv_sample", "crps_mv"),
    "demographic_regression": ("pr_error_ms", "qrs_error_ms", "qtcf_error_ms", "qrs_axis_error_deg"),
    "retrieval": ("beat_rmse_mv_sample", "r_f1_50ms_lag"),
    "other_recording": ("beat_rmse_mv_sample", "qrs_axis_error_deg_sample"),
    "other_segment": ("beat_rmse_mv_sample", "qrs_axis_error_deg_sample"),
    "oracle": ("crps_mv", "feature_crps"),
}
"""The figures in which each yardstick and control can refute the model."""

_MARKS = (
    ("p_on", "P onset"),
    ("p_off", "P end"),
    ("qrs_on", "QRS onset"),
    ("qrs_off", "QRS end"),
    ("t_peak", "T peak"),
    ("t_off", "T end"),
    ("pr_ms", "PR"),
    ("qrs_ms", "QRS"),
    ("qt_ms", "QT"),
)
"""What is held against a cardiologist's marks, in the words of the page."""

_Figure = Mapping[str, Any]
_LEAST_GAIN = 0.05


def render_html(report: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Render one page that needs nothing else, well formed as XML too.

    Parameters
    ----------
    report : mapping
        From `report.compose`.
    pictures : sequence of Picture
        Each goes to the part of the page that its name begins with; see `pictures.SECTIONS`.

    Returns
    -------
    str
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": show, "number": number, "percent": percent, "title": title_of, "span": span}
    environment.filters |= {"sign": _sign, "capital": lambda text: text[:1].upper() + text[1:], "around": _around}
    text = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    figures = {MODEL: report["figures"]} | dict(report["controls"])
    return environment.from_string(text).render(
        report=report,
        verdict=report["verdict"],
        goals=report["goals"],
        counts=_counts(report["goals"]),
        tables=[_table(title, names, figures) for title, names in (*SECTIONS, ("Others", _unsorted()))],
        telling=_telling(figures),
        pictures=_by_part(pictures),
        features={feature.name: feature for feature in FEATURES},
        metrics=BY_NAME,
        kinds=TITLES,
        opportunities=OPPORTUNITIES,
        definitions=[(metric, DEFINITIONS.get(metric.name, "")) for metric in METRICS],
        model=MODEL,
        marks=_MARKS,
        allowed=CSE_SD_MS,
    )


def _counts(goals: Sequence[_Figure]) -> dict[str, int]:
    return {status: sum(goal["status"] == status for goal in goals) for status in ("met", "missed", "not measured")}


def _unsorted() -> tuple[str, ...]:
    known = {name for _, names in SECTIONS for name in names}
    return tuple(metric.name for metric in METRICS if metric.name not in known)


def _table(title: str, names: Sequence[str], figures: Mapping[str, Mapping[str, _Figure]]) -> dict[str, Any]:
    """Lay out one table: a row a metric, a column for each system that has any of them."""
    metrics = [BY_NAME[name] for name in names if any(_has(of.get(name)) for of in figures.values())]
    shown = [
        system
        for system in sorted(figures, key=order_of)
        if system == MODEL or any(_has(figures[system].get(metric.name)) for metric in metrics)
    ]
    rows = [(metric, [(system, figures[system].get(metric.name)) for system in shown]) for metric in metrics]
    return {
        "title": title,
        "systems": [{"name": name, "title": title_of(name), "control": is_control(name)} for name in shown],
        "rows": rows,
    }


def _telling(figures: Mapping[str, Mapping[str, _Figure]]) -> list[dict[str, Any]]:
    """Say of each yardstick and control what it tells, with the figures that tell it."""
    found = []
    for system in SYSTEMS:
        if system.name in figures and system.name != MODEL:
            names = [name for name in _TELLING.get(system.name, ()) if _has(figures[system.name].get(name))]
            pairs = [(BY_NAME[name], figures[MODEL].get(name), figures[system.name][name]) for name in names]
            note = _rhythm_alone(figures) if system.name == "warped_ppg" else ""
            found.append({"title": system.title, "says": system.says, "pairs": pairs, "note": note})
    return found


def _rhythm_alone(figures: Mapping[str, Mapping[str, _Figure]]) -> str:
    """Say how much of what the own PPG gains over another's is left when only its beat times are kept."""
    said = []
    for name in ("r_f1_50ms_lag", "rmse_mv_sample_lag", "beat_rmse_mv_sample"):
        own, warped, other = (figures.get(s, {}).get(name) for s in (MODEL, "warped_ppg", "shuffled_ppg"))
        if own and warped and other and None not in (own["value"], warped["value"], other["value"]):
            gain = own["value"] - other["value"]
            # Without a gain that can be told from none there is nothing to take a share of.
            if abs(gain) > _LEAST_GAIN * max(abs(own["value"]), abs(other["value"])):
                said.append(f"{BY_NAME[name].label} {percent((warped['value'] - other['value']) / gain)}")
    return (
        f"Rate and rhythm alone are this share of the gain over another person's PPG: {'; '.join(said)}."
        if said
        else ""
    )


def _by_part(pictures: Sequence[Picture]) -> dict[str, list[tuple[str, str, str]]]:
    parts: dict[str, list[tuple[str, str, str]]] = {}
    for picture in pictures:
        encoded = base64.b64encode(picture.png).decode()
        parts.setdefault(part_of(picture.name), []).append((picture.name, picture.caption, encoded))
    return parts


def _sign(op: str) -> str:
    return {"<=": "≤", ">=": "≥", "==": "="}.get(op, op)


def _around(condition: Mapping[str, Any]) -> str:
    """Show the interval of what a condition measured, where it has one and is not on an end of it."""
    on_end = condition["figure"].endswith(("/low", "/high"))
    alone = condition["low"] is None and condition["high"] is None
    return "" if on_end or alone else span({"value": condition["measured"], **condition})


def _has(figure: _Figure | None) -> bool:
    return figure is not None and figure.get("value") is not None


def number(value: float | None) -> str:
    """Show a number with three digits that matter; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:.0f}"
    if abs(value) < 1e-3:
        return f"{value:.0e}"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """Show a share as a percentage; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.0f} %"


def span(figure: _Figure | None) -> str:
    """Show the interval of a figure: nothing where it cannot have one (a worst case), a dash where it lacks one."""
    if figure is None or figure.get("value") is None:
        return ""
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None:
        return "[–]"
    return "" if low == high else f"[{number(low)}, {number(high)}]"


def show(figure: _Figure | None) -> str:
    """Show a figure with its interval; a dash for what it lacks."""
    return "–" if not _has(figure) else f"{number(figure['value'])} {span(figure)}".strip()  # type: ignore[index]
