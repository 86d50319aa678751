"""What a report says of its model, in a few sentences: refused or not, and what may be claimed.

Two questions are kept apart. *May this version be promoted?* is the recipe's: it names the goals it asks for, and a
recipe that trains for three minutes asks for little. *What does this model show?* is nobody's choice: a model that
draws the same whatever pulse it hears, or whoever it is told of, is refused by name, first on the page, whatever
its recipe asks for and however good its scores are. A sign of a leak or of memorised ECGs answers both with no.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from p2es.evaluation.goals import GOALS, Condition, Goal, judge

_COPIES = (
    Goal("copies", "", (Condition("memorisation/duplicates", ">", 0, 0, "duplicates of training ECGs"),)),
    # A model that only draws too little variety lies near the middle, at about .7 of the distance of unseen people.
    Goal(
        "copies", "", (Condition("memorisation/nn_ratio/high", "<", 0.5, 0.5, "distance to training ECGs, high end"),)
    ),
    Goal("copies", "", (Condition("memorisation/membership_auc/low", ">", 0.55, 0.55, "membership AUC, low end"),)),
)
_REFUSALS = {
    "finite": "It draws what is not a number.",
    "lead_laws": "Its leads contradict each other: the lead laws do not hold.",
    "follows_pulse": "It does not follow the PPG: with another person's pulse it places the beats as well.",
    "uses_demographics": "It does not use demographics: whoever it is told of, intervals and axes stay as they are.",
}
_NOT_SHOWN = {
    "finite": "It is not shown that what it draws is finite.",
    "lead_laws": "It is not shown that its leads agree with each other.",
    "follows_pulse": "It is not shown that it follows the PPG: there is no control with another person's pulse.",
    "uses_demographics": "It is not shown that it uses demographics: there is no control with other demographics.",
}


def verdict(report: Mapping[str, Any], mandatory: Sequence[str] | None = None) -> dict[str, Any]:
    """Give the verdict of a report: a pure function of its figures, which reads none of its judgements.

    Parameters
    ----------
    report : mapping
        From `report.compose`; parts may be missing, and then nothing is shown by them.
    mandatory : sequence of str, optional
        Goals that the recipe asks for; the report's own `mandatory` without it.

    Returns
    -------
    dict
        - `passed`: every mandatory goal is met, nothing is stopped and nothing is memorised. The gate's answer.
        - `stopped`: the leakage audit raised (`audit.raised`).
        - `memorised`: the model surely copies or tells its training people: duplicates of training ECGs, or twice
          as near to them as unseen people are, or a membership inference that is surely better than .55. Being
          somewhat too near is goal G21, missed, and no proof.
        - `refused`: there is a refusal.
        - `headline`: one sentence.
        - `refusals`: what the model does not show, sentences, worst first: a leak, memorised ECGs, then the basics
          (finite, lead laws, follows the PPG, uses demographics) that are missed or were not measured.
        - `reasons`: why `passed` is False, sentences; empty when it is True.
        - `claims`: names of the goals that are met and may be claimed: none when stopped or memorised, else those
          whose own grounds (`Goal.rests_on`) are met. A mean waveform may have the lowest RMSE; it does not follow
          the PPG, so nothing is claimed for it.
    """
    rows = {row["name"]: row for row in judge(report)}
    audit = report.get("audit")
    stopped = isinstance(audit, Mapping) and audit.get("raised") is True
    copies = _copies(report)
    refusals = [*_leak(audit, stopped), *copies, *_basics(rows)]
    wanted = list(report.get("mandatory") or ()) if mandatory is None else list(mandatory)
    missed = [name for name in wanted if name not in rows or not rows[name]["passed"]]
    reasons = [*_leak(audit, stopped), *copies, *(f"The recipe asks for {_named(rows, name)}." for name in missed)]
    if not wanted:
        reasons.append("The recipe asks for nothing, so nothing was passed.")
    return {
        "passed": not reasons,
        "stopped": stopped,
        "memorised": bool(copies),
        "refused": bool(refusals),
        "headline": _headline(rows, stopped, copies, refusals),
        "refusals": refusals,
        "reasons": reasons,
        "claims": [] if stopped or copies else _claims(rows),
    }


def _leak(audit: Any, stopped: bool) -> list[str]:
    if not stopped:
        return []
    return [str(audit.get("message") or "The leakage audit raised: it knows intervals that no pulse tells.")]


def _copies(report: Mapping[str, Any]) -> list[str]:
    found = [row["conditions"][0] for row in judge(report, _COPIES) if row["passed"]]
    if not found:
        return []
    signs = "; ".join(f"{c['label']}: {c['measured']:.3g}" for c in found)
    return [f"It reproduces ECGs or people that it was trained on ({signs}): a drawn ECG may be somebody's."]


def _basics(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of each basic that is not met whether it was refuted or never shown."""
    missed = [rows[name] for name in _REFUSALS if not rows[name]["passed"]]
    return [(_REFUSALS if row["status"] == "missed" else _NOT_SHOWN)[row["name"]] for row in missed]


def _claims(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    met = {name for name, row in rows.items() if row["passed"]}
    return [goal.name for goal in GOALS if goal.name in met and met.issuperset(goal.rests_on)]


def _named(rows: Mapping[str, Mapping[str, Any]], name: str) -> str:
    row = rows.get(name)
    if row is None:
        return f"{name}, which is no goal"
    return f"{name} ({row['claim'][0].lower()}{row['claim'][1:]}), which is {row['status']}"


def _headline(
    rows: Mapping[str, Mapping[str, Any]], stopped: bool, copies: Sequence[str], refusals: Sequence[str]
) -> str:
    if stopped:
        return "Stopped: possible leak. Nothing on this page counts until it is explained."
    if copies:
        return "Refused: it reproduces what it was trained on."
    pulse, demographics = (rows[name]["status"] for name in ("follows_pulse", "uses_demographics"))
    if "missed" in (pulse, demographics):
        ignored = [n for n, s in (("the PPG", pulse), ("the demographics", demographics)) if s == "missed"]
        return f"Refused: it ignores {' and '.join(ignored)}."
    if refusals:
        return "Refused: not shown. A control or a figure is missing without which no score means anything."
    claims = len(_claims(rows))
    return f"It follows the PPG and uses demographics; {claims} of {len(rows)} goals are met and may be claimed."
