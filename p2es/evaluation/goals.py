"""What a model must show, as numbers, and the judgement of a report against them.

`G1` to `G23` are the project's numeric goals. Each carries two thresholds, one for simulated people, whose truth is
known, and one for real people; the report says which of them its people are. Beside them stand the basics: that the
machinery works (`finite`, `lead_laws`, `lineage`), and that the model listens to what it is given (`follows_pulse`,
`uses_demographics`), without which no other goal proves anything.

A goal whose figure is missing or not a number is missed: nothing passes by not being measured.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2es.evaluation.metrics import BY_NAME

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "within ±": lambda measured, threshold: abs(measured) <= threshold,
}
_LEAST_RATIO = 1e-3
_GROUPS = ("sex", "age", "bmi", "rhythm")


@dataclass(frozen=True)
class Condition:
    """One comparison.

    Attributes
    ----------
    figure : str
        Path into the report, parts joined by `/`; `derived/...` is computed by `derive`.
    op : str
        `<=`, `>=`, `==`, `<`, `>`, or `within ±` for the size of a figure with a sign.
    simulated, real : float or None
        Threshold for simulated and for real people; None where nothing is asked of them.
    label : str
        What a reader sees.
    """

    figure: str
    op: str
    simulated: float | None
    real: float | None
    label: str


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes
    ----------
    name, claim : str
    conditions : tuple of Condition
        All that ask something of the people at hand must hold.
    otherwise : tuple of Condition
        Another way to meet the goal: all of these.
    needs : tuple of str
        Paths that must hold a text that is not empty.
    unmeasured : str
        What nothing here measures. Such a goal is never met.
    rests_on : tuple of str
        Goals without which this one proves nothing, and may not be claimed.
    mandatory_in : tuple of str
        Kinds of recipe that usually ask for it.
    """

    name: str
    claim: str
    conditions: tuple[Condition, ...] = ()
    otherwise: tuple[Condition, ...] = ()
    needs: tuple[str, ...] = ()
    unmeasured: str = ""
    rests_on: tuple[str, ...] = ("follows_pulse",)
    mandatory_in: tuple[str, ...] = ("release",)


def _value(name: str, op: str, simulated: float | None, real: float | None) -> Condition:
    return Condition(f"figures/{name}/value", op, simulated, real, _label(name))


def _by_rhythm(name: str, op: str, regular: float, irregular: float) -> tuple[Condition, ...]:
    """Ask other values of people whose rhythm is regular and of those whose is not, real ones only."""
    path = "fairness/rhythm/levels/{}/" + name + "/value"
    return tuple(
        Condition(path.format(level), op, None, threshold, f"{_label(name)}, {level} rhythm")
        for level, threshold in (("regular", regular), ("irregular", irregular))
    )


def _contrast(name: str, bound: str, op: str, simulated: float | None, real: float | None, label: str) -> Condition:
    return Condition(f"contrasts/{name}/{bound}", op, simulated, real, label)


def _part(path: str, op: str, simulated: float | None, real: float | None, label: str) -> Condition:
    return Condition(path, op, simulated, real, label)


def _label(name: str) -> str:
    return BY_NAME[name].label if name in BY_NAME else name.replace("_", " ")


def _interval(feature: str, title: str) -> tuple[Condition, ...]:
    """Ask that the posterior median is as good as a regression on demographics, and that it can be measured."""
    metric = feature.replace("_ms", "_error_ms").replace("_deg", "_error_deg")
    ratio = f"{metric}: model / demographic_regression"
    failures = f"{title}: share that cannot be measured although it can in the recorded ECG"
    return (
        _contrast(ratio, "value", "<=", 1.05, 1.05, f"{title}: error of the median / of the demographic regression"),
        _part(f"agreement/model/median/{feature}/drawn_failures", "<=", 0.05, 0.05, failures),
    )


def _spread(feature: str, title: str, bias: float | None, sd: float | None) -> tuple[Condition, ...]:
    path, of = f"agreement/model/median/{feature}", f"{title} of the posterior median"
    asked = (("bias", "within ±", bias), ("sd", "<=", sd))
    return tuple(
        _part(f"{path}/{name}/value", op, threshold, threshold, f"{of}: {name.replace('sd', 'SD')}, ms")
        for name, op, threshold in asked
        if threshold is not None
    )


def _amplitude(feature: str, title: str) -> Condition:
    return _part(
        f"derived/variance_ratio_{feature}/value",
        "<=",
        1.25,
        1.25,
        f"{title} amplitude: variance over people, drawn / recorded, or its inverse",
    )


_BOTH = ("demo", "release")
_PRIOR = ("follows_pulse", "uses_demographics")
"""What a PPG does not tell can only be right for the right reason: demographics."""
_HEARD = "r_f1_50ms_lag: model - shuffled_ppg"
_TOLD = "feature_crps: model - shuffled_demographics"
_IRREGULAR = (
    _part("rhythm/model/irregular/f1/value", ">=", 0.95, 0.90, "irregular rhythm, F1"),
    _part("rhythm/model/irregular/kappa/value", ">=", 0.85, 0.80, "irregular rhythm, kappa"),
)

BASICS = (
    Goal(
        "finite",
        "Every sample is finite",
        (_value("finite_share", "==", 1.0, 1.0),),
        rests_on=(),
        mandatory_in=_BOTH,
    ),
    Goal(
        "lead_laws",
        "Lead laws hold. By construction (8 leads lifted to 12), so this proves no skill",
        (_value("lead_law_uv", "<=", 1.0, 1.0),),
        rests_on=(),
        mandatory_in=_BOTH,
    ),
    Goal(
        "lineage",
        "Dataset, recipe and model can be traced",
        needs=("dataset/hash", "recipe", "model/sha256"),
        rests_on=(),
        mandatory_in=_BOTH,
    ),
    Goal(
        "follows_pulse",
        "R peaks after one constant lag are better than with another person's PPG: the 95 % interval is above 0",
        (_contrast(_HEARD, "low", ">", 0.0, 0.0, "gain in F1 over another person's PPG, low end"),),
        rests_on=(),
        mandatory_in=_BOTH,
    ),
    Goal(
        "uses_demographics",
        "A changed demographic surely changes the ECG, mostly the published way; or surely changes it, and clinical "
        "features are surely worse with another person's demographics",
        (
            _part("derived/counterfactual_follows/value", ">", 0.5, 0.5, "share of effects with the right sign"),
            _part(
                "derived/counterfactual_sure/value",
                ">=",
                1,
                1,
                "effects surely the published way, less those surely the other way",
            ),
        ),
        otherwise=(
            _contrast(_TOLD, "high", "<", 0.0, 0.0, "CRPS of features less that with another's demographics, high end"),
            # A gain of a model that no change of demographics moves is chance.
            _part("derived/counterfactual_idle/value", "<=", 0.0, 0.0, "changes were tried and none had an effect (1)"),
        ),
        rests_on=(),
    ),
)

NUMBERED = (
    Goal("G1", "Lead laws, largest residual", (_value("lead_law_uv", "<=", 1.0, 1.0),), rests_on=()),
    Goal(
        "G2",
        "Heart rate",
        (_value("hr_error_bpm", "<=", 1.0, None), *_by_rhythm("hr_error_bpm", "<=", 2.0, 5.0)),
    ),
    Goal(
        "G3",
        "R peaks after one constant lag, within 150 ms and within 50 ms",
        (
            _value("r_f1_50ms_lag", ">=", 0.97, 0.90),
            _value("r_f1_150ms_lag", ">=", 0.99, None),
            *_by_rhythm("r_f1_150ms_lag", ">=", 0.99, 0.95),
        ),
    ),
    Goal(
        "G4",
        "RR intervals, and R timing after one constant lag",
        (
            _value("rr_error_ms", "<=", 5.0, None),
            *_by_rhythm("rr_error_ms", "<=", 15.0, 25.0),
            _value("r_timing_ms_lag", "<=", 8.0, 20.0),
        ),
    ),
    Goal(
        "G5",
        "Mean of the samples beats the template and is no worse than linear regression, in RMSE",
        (
            _contrast("rmse_mv_mean: model / template", "value", "<=", 0.90, None, "RMSE / template's"),
            _contrast("rmse_mv_mean: model / regression", "value", "<=", 1.0, None, "RMSE / linear regression's"),
            _contrast("rmse_mv_mean: model / regression", "high", "<=", None, 1.05, "RMSE / regression's, high end"),
        ),
    ),
    Goal(
        "G6",
        "Correlation of one sample after one constant lag, mean over leads, median over people",
        # Section 6 asks .60 of lead II and .50 of the precordial leads: .60 of all of them is at least as much.
        (_value("correlation_sample_lag", ">=", 0.80, 0.60),),
    ),
    Goal(
        "G7",
        "PR interval as good as a demographic regression",
        (*_interval("pr_ms", "PR"), *_spread("pr_ms", "PR", 10.0, None)),
        rests_on=_PRIOR,
    ),
    Goal(
        "G8",
        "QRS duration as good as a demographic regression",
        (*_interval("qrs_ms", "QRS"), *_spread("qrs_ms", "QRS", 10.0, 10.0)),
        rests_on=_PRIOR,
    ),
    Goal(
        "G9",
        "QTcF as good as a demographic regression",
        (*_interval("qtcf_ms", "QTcF"), *_spread("qt_ms", "QT", 25.0, 30.0)),
        rests_on=_PRIOR,
    ),
    Goal("G10", "QRS axis as good as a demographic regression", _interval("qrs_axis_deg", "QRS axis"), rests_on=_PRIOR),
    Goal(
        "G11",
        "No invented ST shift, in the windows' band",
        (
            _part("morphology/model/st_filtered/median_abs_mv/value", "<=", 0.05, 0.05, "ST difference, median, mV"),
            _part("morphology/model/st_filtered/p95_abs_mv/value", "<=", 0.10, 0.10, "ST difference, 95 %, mV"),
            _part("morphology/model/st_filtered/false_elevation/value", "<=", None, 0.02, "false ST elevation, share"),
        ),
        rests_on=_PRIOR,
    ),
    Goal(
        "G12",
        "T wave polarity (I, II, V4 to V6)",
        (_value("t_polarity_agreement_sample", ">=", 0.95, 0.90),),
        rests_on=_PRIOR,
    ),
    Goal(
        "G13",
        "R transition within one lead",
        (_part("morphology/model/transition/within_one/value", ">=", 0.90, 0.80, "share within one lead"),),
        rests_on=_PRIOR,
    ),
    Goal(
        "G14",
        "Amplitudes vary over people as in life: variance ratio .8 to 1.25",
        tuple(_amplitude(f"{wave}_mv", wave.upper()) for wave in ("r", "s", "t", "p")),
        rests_on=_PRIOR,
    ),
    Goal(
        "G15",
        "The 90 % band holds what it says, and CRPS is no worse than the template's and the regression's",
        (
            _value("coverage_90", ">=", 0.85, 0.85),
            _value("coverage_90", "<=", 0.95, 0.95),
            _contrast("crps_mv: model - template", "value", "<=", 0.0, 0.0, "CRPS less the template's, mV"),
            _contrast("crps_mv: model - regression", "value", "<=", 0.0, 0.0, "CRPS less the regression's, mV"),
        ),
    ),
    Goal(
        "G16",
        "Realism: Fréchet distance of features relative to a real half; a classifier hardly tells drawn from recorded",
        (
            _part("realism/model/frechet_feature/relative", "<=", 1.5, 2.0, "Fréchet distance, relative to real half"),
            _part("realism/model/c2st_auroc/value", "<=", 0.65, 0.70, "drawn against recorded, AUROC"),
        ),
    ),
    Goal(
        "G17",
        "Rhythm classes survive translation, for a classifier trained on recorded ECGs",
        _IRREGULAR,
        unmeasured="no classifier is trained here, so the AUROC ratio is not measured; irregularity alone is",
    ),
    Goal(
        "G18",
        "Morphology classes (blocks, hypertrophy, infarct) survive translation",
        unmeasured="not measured, and no claim is made: a PPG does not tell them",
        rests_on=_PRIOR,
    ),
    Goal(
        "G19",
        "Groups of people are served alike",
        (
            _part("derived/gap_rmse_mv_mean/value", "<=", 0.15, 0.15, "largest gap in RMSE, share of the RMSE of all"),
            _part("derived/gap_coverage_90/value", "<=", 0.05, 0.05, "largest gap in coverage of the 90 % band"),
        ),
    ),
    Goal(
        "G20",
        "A changed demographic changes the ECG as published",
        (
            _part("derived/counterfactual_effects/value", ">=", 6, 6, "published effects that were measured"),
            _part("derived/counterfactual_right_sign/value", ">=", 1.0, 0.80, "share with the right sign"),
            _part("derived/counterfactual_in_range/value", ">=", 0.80, None, "share of 50 to 150 % of the size"),
        ),
        rests_on=_PRIOR,
    ),
    Goal(
        "G21",
        "Privacy: no memorised training ECG, no sign of who was trained on",
        (
            _part("derived/repeats/value", "<=", 0, 0, "training ECGs drawn again"),
            _part("memorisation/nn_ratio/value", ">=", 0.95, 0.95, "nearest training ECG, drawn / unseen people"),
            _part("memorisation/nn_ratio/value", "<=", 1.05, 1.05, "nearest training ECG, drawn / unseen people"),
            _part("memorisation/below_first_percentile/value", "<=", 0.02, 0.02, "share nearer than 99 % of people"),
            _part("memorisation/membership_auc/value", "<=", 0.55, 0.55, "membership inference, AUC"),
        ),
    ),
    Goal(
        "G22",
        "The delineator itself, on clean simulations",
        (
            *(
                _part(f"extra/delineator_check/{way}as_made/{name}/sd_ms", "<=", 3.0, None, f"SD of {title}, {of}, ms")
                for way, of in (("", "median beat"), ("beat_by_beat/", "every beat"))
                for name, title in (("pr_ms", "PR"), ("qrs_ms", "QRS"), ("qt_ms", "QT"))
            ),
            _part("extra/delineator_check/least_f1", ">=", 0.99, None, "R peaks within 50 ms, F1"),
        ),
        rests_on=(),
    ),
    Goal(
        "G23",
        "With another person's PPG, one sample's RMSE after one constant lag is worse",
        (
            _contrast("rmse_mv_sample_lag: shuffled_ppg / model", "value", ">=", 1.20, None, "RMSE, other PPG / own"),
            _contrast("rmse_mv_sample_lag: shuffled_ppg / model", "low", ">", 1.0, 1.0, "RMSE, other / own, low end"),
        ),
    ),
)

IRREGULAR = Goal(
    "irregular_rhythm",
    "An irregular rhythm is drawn irregular, and a regular one regular",
    _IRREGULAR,
    mandatory_in=(),
)

GOALS = (*BASICS, *NUMBERED, IRREGULAR)


def derive(report: Mapping[str, Any]) -> dict[str, Any]:
    """Compute figures that goals ask for and that several parts of a report make together.

    Returns
    -------
    dict
        `value` of each, None where it is not defined:

        - `counterfactual_effects`: how many were measured; `counterfactual_right_sign`, `counterfactual_in_range`:
          shares of them; `counterfactual_follows`: share with the right sign of those for which a change is published;
          `counterfactual_sure`: of these, intervals wholly on the published side of 0, less those wholly on the other;
          `counterfactual_idle`: 1 where such were measured and none has an interval that leaves 0 out, else 0
        - `repeats`: training ECGs drawn again, for others or for training people, less those that recorded test ECGs
          repeat by chance
        - `gap_rmse_mv_mean`, `gap_coverage_90`: largest gap between groups; of RMSE as a share of the RMSE of all
        - `variance_ratio_<feature>`: that of the amplitude or its inverse, whichever is above 1
    """
    found = {
        **_counterfactual(report.get("counterfactual")),
        "repeats": _repeats(report.get("memorisation")),
        "gap_rmse_mv_mean": _gap(report, "rmse_mv_mean", "relative"),
        "gap_coverage_90": _gap(report, "coverage_90", "value"),
    }
    derived = {name: {"value": value} for name, value in found.items()}
    for wave in ("p", "r", "s", "t"):
        derived[f"variance_ratio_{wave}_mv"] = _above_one(report, f"{wave}_mv")
    return derived


def judge(report: Mapping[str, Any], goals: Sequence[Goal] = GOALS) -> list[dict[str, Any]]:
    """Judge a report; nothing that it says of its own goals is read.

    Returns
    -------
    list of dict
        For each goal `name`, `claim`, `status` (`met`, `missed`, `not measured`), `passed`, `sure` (met at the worse
        ends of the intervals too), `conditions` (each with `label`, `figure`, `measured`, `low`, `high`, `op`,
        `threshold`, `met`, `sure`), the first condition that fails, else the first one, as `figure`, `measured`,
        `low`, `high`, `op`, `threshold`; `mandatory_in`, and `note`: why one without a figure is missed.
    """
    whole = {**report, "derived": derive(report)}
    return [_judge(whole, goal) for goal in goals]


def _judge(report: Mapping[str, Any], goal: Goal) -> dict[str, Any]:
    missing = [path for path in goal.needs if not _text(_find(report, path))]
    ways = [_hold(report, way) for way in (goal.conditions, goal.otherwise)]
    conditions = next((way for way in ways if way and all(c["met"] for c in way)), _telling(ways))
    met = not missing and not goal.unmeasured and all(c["met"] for c in conditions)
    met = met and bool(conditions or goal.needs)
    failed = [c for c in conditions if not c["met"] and c["measured"] is not None]
    absent = [c for c in conditions if c["measured"] is None]
    shown = next(iter([*failed, *absent, *conditions]), _nothing(goal, missing))
    note = goal.unmeasured or _why_missing(missing, shown, goal)
    # What was measured and fails is missed; where that is not so, the rest was not measured.
    unmeasured = bool(goal.unmeasured) or not (met or missing or failed)
    return {
        "name": goal.name,
        "claim": goal.claim,
        **{key: shown[key] for key in ("figure", "measured", "low", "high", "op", "threshold")},
        "passed": met,
        "status": "met" if met else "not measured" if unmeasured else "missed",
        "sure": met and all(c["sure"] for c in conditions),
        "conditions": conditions,
        "mandatory_in": list(goal.mandatory_in),
        "note": "" if met else note,
    }


def _telling(ways: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Choose the way to show where none is met: the first that has a figure, else the first."""
    return next((way for way in ways if any(c["measured"] is not None for c in way)), ways[0])


def _why_missing(missing: Sequence[str], shown: Mapping[str, Any], goal: Goal) -> str:
    if missing:
        return f"{missing[0]} is missing"
    if goal.needs or shown["measured"] is not None:
        return ""
    return "no figure" if shown["figure"] else "not measured"


def _nothing(goal: Goal, missing: Sequence[str]) -> dict[str, Any]:
    figure = missing[0] if missing else ", ".join(goal.needs) or None
    return {"figure": figure, "measured": None, "low": None, "high": None, "op": None, "threshold": None}


def _hold(report: Mapping[str, Any], conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Hold a report against those conditions that ask something of its people."""
    data = report.get("dataset")
    simulated = isinstance(data, Mapping) and data.get("simulated") is True
    held = []
    for condition in conditions:
        threshold = condition.simulated if simulated else condition.real
        if threshold is not None:
            held.append(_compare(report, condition, threshold))
    return held


def _compare(report: Mapping[str, Any], condition: Condition, threshold: float) -> dict[str, Any]:
    measured = _number(_find(report, condition.figure))
    around = _find(report, condition.figure.rpartition("/")[0])
    low, high = (_number(around.get(key)) if isinstance(around, Mapping) else None for key in ("low", "high"))
    holds = _COMPARE[condition.op]
    met = measured is not None and holds(measured, threshold)
    # A condition on an end of an interval asks for sureness itself.
    on_end = condition.figure.endswith(("/low", "/high"))
    ends = [end for end in (low, high) if end is not None and not on_end]
    return {
        "label": condition.label,
        "figure": condition.figure,
        "measured": measured,
        "low": low,
        "high": high,
        "op": condition.op,
        "threshold": threshold,
        "met": met,
        "sure": met and all(holds(end, threshold) for end in ends),
    }


def _counterfactual(effects: Any) -> dict[str, float | None]:
    """Count the effects that were measured, and how they compare with the published ones."""
    measured = [
        effect
        for effect in (effects if isinstance(effects, Sequence) else ())
        if isinstance(effect, Mapping) and _number(_find(effect, "found/value")) is not None
    ]
    # Where nothing must change, a model that never changes anything is right: that is no use of demographics.
    changing = [effect for effect in measured if effect.get("published")]
    return {
        "counterfactual_effects": float(len(measured)) if measured else None,
        "counterfactual_right_sign": _share(effect.get("right_sign") is True for effect in measured),
        "counterfactual_in_range": _share(effect.get("in_range") is True for effect in measured),
        "counterfactual_follows": _share(effect.get("right_sign") is True for effect in changing),
        "counterfactual_sure": float(sum(map(_sure, changing))) if changing else None,
        "counterfactual_idle": float(bool(changing) and not any(map(_sure, changing))),
    }


def _share(flags: Iterable[bool]) -> float | None:
    counted = list(flags)
    return sum(counted) / len(counted) if counted else None


def _sure(effect: Mapping[str, Any]) -> int:
    """Give 1 for an interval wholly on the right side of 0, -1 for one wholly on the wrong side, else 0."""
    low, high = _number(_find(effect, "found/low")), _number(_find(effect, "found/high"))
    if low is None or high is None or low <= 0.0 <= high:
        return 0
    return 1 if effect.get("right_sign") is True else -1


def _repeats(memorisation: Any) -> float | None:
    if not isinstance(memorisation, Mapping):
        return None
    drawn, members, chance = (
        _number(memorisation.get(name)) for name in ("duplicates", "duplicates_members", "duplicates_real")
    )
    if drawn is None:
        return None
    return max(0.0, drawn - (chance or 0.0)) + max(0.0, (members or 0.0) - (chance or 0.0))


def _gap(report: Mapping[str, Any], metric: str, key: str) -> float | None:
    """Give the largest gap over all groups; None unless every one was measured."""
    gaps = [_number(_find(report, f"fairness/{group}/gaps/{metric}/{key}")) for group in _GROUPS]
    known = [gap for gap in gaps if gap is not None]
    return max(known) if len(known) == len(_GROUPS) else None


def _above_one(report: Mapping[str, Any], feature: str) -> dict[str, float | None]:
    """Turn a variance ratio and its interval so that 1 is best and more is worse."""
    figure = _find(report, f"morphology/model/amplitude/{feature}/variance_ratio")
    if not isinstance(figure, Mapping):
        return {"value": None}
    value, low, high = (_number(figure.get(key)) for key in ("value", "low", "high"))
    if value is None or value >= 1.0:
        return {"value": value, "low": low, "high": high}
    # A system that draws everybody alike has a ratio of 0: it is missed by a wide margin, not left out.
    turned = [None if end is None else 1.0 / max(end, _LEAST_RATIO) for end in (value, high, low)]
    return dict(zip(("value", "low", "high"), turned, strict=True))


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
