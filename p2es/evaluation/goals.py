"""What a model must show, as numbers, and the judgement of a report against them.

`demo` goals say that the machinery works and that the model listens to the pulse. `release` goals say what
may be claimed of it. A goal whose figure is missing or not a number is missed: nothing passes by not being
measured.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Condition:
    """One comparison.

    Attributes
    ----------
    figure : str
        Path into the report, parts joined by `/`.
    op : str
    threshold : float
    """

    figure: str
    op: str
    threshold: float


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes
    ----------
    name, claim : str
    conditions : tuple of Condition
        All must hold. None of them, and no needs: the goal is not measured yet.
    needs : tuple of str
        Paths that must hold a text that is not empty.
    mandatory_in : tuple of str
        Kinds of recipe that usually ask for it.
    """

    name: str
    claim: str
    conditions: tuple[Condition, ...] = ()
    needs: tuple[str, ...] = ()
    mandatory_in: tuple[str, ...] = ("release",)


def _value(name: str, op: str, threshold: float) -> Condition:
    return Condition(f"figures/{name}/value", op, threshold)


def _contrast(name: str, bound: str, op: str, threshold: float) -> Condition:
    return Condition(f"contrasts/{name}/{bound}", op, threshold)


_BOTH = ("demo", "release")

GOALS = (
    Goal("finite", "Every sample is finite", (_value("finite_share", "==", 1.0),), mandatory_in=_BOTH),
    Goal(
        "lead_laws",
        "Lead laws hold within 1 µV. By construction (8 leads lifted to 12), so this proves no skill",
        (_value("lead_law_uv", "<=", 1.0),),
        mandatory_in=_BOTH,
    ),
    Goal(
        "lineage",
        "Dataset, recipe and model can be traced",
        needs=("dataset/hash", "recipe", "model/sha256"),
        mandatory_in=_BOTH,
    ),
    Goal(
        "follows_pulse",
        "R peaks after one constant lag are better than with another person's PPG; 95 % interval above 0",
        (_contrast("r_f1_50ms_lag: model - shuffled_ppg", "low", ">", 0.0),),
        mandatory_in=_BOTH,
    ),
    Goal("G1", "Lead laws, largest residual at most 1 µV", (_value("lead_law_uv", "<=", 1.0),)),
    Goal("G2", "Heart rate within 1 bpm, mean absolute", (_value("hr_error_bpm", "<=", 1.0),)),
    Goal(
        "G3",
        "R peaks after one constant lag: F1 at least .99 within 150 ms and .97 within 50 ms",
        (_value("r_f1_50ms_lag", ">=", 0.97), _value("r_f1_150ms_lag", ">=", 0.99)),
    ),
    Goal(
        "G4",
        "RR intervals within 5 ms (mean absolute), R timing after one constant lag within 8 ms (median)",
        (_value("rr_error_ms", "<=", 5.0), _value("r_timing_ms_lag", "<=", 8.0)),
    ),
    Goal(
        "G5",
        "RMSE of the mean of the samples at least 10 % below the template's",
        (_contrast("rmse_mv_mean: model / template", "value", "<=", 0.90),),
    ),
    Goal(
        "G6",
        "Correlation of one sample after one constant lag, median over people, at least .80",
        (_value("correlation_sample_lag", ">=", 0.80),),
    ),
    Goal("G7", "PR interval as good as a demographic regression"),
    Goal("G8", "QRS duration as good as a demographic regression"),
    Goal("G9", "QTcF as good as a demographic regression"),
    Goal("G10", "QRS axis as good as a demographic regression"),
    Goal("G11", "No invented ST shift: |J+60| within .05 mV (median) and .10 mV (95 %)"),
    Goal("G12", "T wave polarity right in 95 % (I, II, V4 to V6)"),
    Goal("G13", "R transition within one lead in 90 %"),
    Goal("G14", "Amplitudes vary over people as in life: variance ratio .8 to 1.25"),
    Goal(
        "G15",
        "The 90 % band holds 85 to 95 % of the recording, and CRPS is no worse than the template's",
        (
            _value("coverage_90", ">=", 0.85),
            _value("coverage_90", "<=", 0.95),
            _contrast("crps_mv: model - template", "value", "<=", 0.0),
        ),
    ),
    Goal("G16", "Realism: relative FD at most 1.5, real-against-drawn AUROC at most .65"),
    Goal("G17", "Rhythm classes survive translation: AUROC ratio .97, AF F1 .95"),
    Goal("G18", "Morphology classes: no claim unless above demographics and heart rate"),
    Goal("G19", "Subgroup gaps: RMSE within 15 %, coverage within .05"),
    Goal("G20", "A changed demographic changes the ECG as published: right sign, 50 to 150 % of the size"),
    Goal("G21", "Privacy: no memorised training ECG"),
    Goal("G22", "Delineator on clean simulations: SD of PR, QRS, QT at most 3 ms"),
    Goal(
        "G23",
        "With another person's PPG, one sample's RMSE after one constant lag is worse by 20 %, surely worse",
        (
            _contrast("rmse_mv_sample_lag: shuffled_ppg / model", "value", ">=", 1.20),
            _contrast("rmse_mv_sample_lag: shuffled_ppg / model", "low", ">", 1.0),
        ),
    ),
)


def judge(report: Mapping[str, Any], goals: Sequence[Goal] = GOALS) -> list[dict[str, Any]]:
    """Judge a report.

    Returns
    -------
    list of dict
        For each goal `name`, `claim`, `figure`, `measured`, `op`, `threshold` (of the first condition that
        fails, else of the first), `passed`, `mandatory_in`, and `note`: why one without a figure is missed.
    """
    return [_judge(report, goal) for goal in goals]


def _judge(report: Mapping[str, Any], goal: Goal) -> dict[str, Any]:
    result: dict[str, Any] = {"name": goal.name, "claim": goal.claim, "figure": None, "measured": None}
    result |= {
        "op": None,
        "threshold": None,
        "passed": False,
        "mandatory_in": list(goal.mandatory_in),
        "note": "",
    }
    if not goal.conditions and not goal.needs:
        return result | {"note": "not measured"}
    missing = [path for path in goal.needs if not _text(_find(report, path))]
    if missing:
        return result | {"figure": missing[0], "note": f"{missing[0]} is missing"}
    if not goal.conditions:
        return result | {"figure": ", ".join(goal.needs), "passed": True}
    failed = [condition for condition in goal.conditions if not _holds(report, condition)]
    shown = (failed or goal.conditions)[0]
    measured = _number(_find(report, shown.figure))
    return result | {
        "figure": shown.figure,
        "measured": measured,
        "op": shown.op,
        "threshold": shown.threshold,
        "passed": not failed,
        "note": "no figure" if measured is None else "",
    }


def _holds(report: Mapping[str, Any], condition: Condition) -> bool:
    measured = _number(_find(report, condition.figure))
    return measured is not None and bool(_COMPARE[condition.op](measured, condition.threshold))


def _find(report: Mapping[str, Any], path: str) -> Any:
    """Follow a path; keys may hold `/` themselves, so the longest key that fits is taken first."""
    if path in report:
        return report[path]
    for split in range(len(path) - 1, 0, -1):
        inner = report.get(path[:split]) if path[split] == "/" else None
        if isinstance(inner, Mapping):
            return _find(inner, path[split + 1 :])
    return None


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""
