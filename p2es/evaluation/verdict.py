"""What a report says of its model, in a few sentences: refused or not, and what may be claimed.

Two questions are kept apart. *May this version be promoted?* is the recipe's: it names the goals it asks for, and a
recipe that trains for three minutes asks for little. *What does this model show?* is nobody's choice: a model that
draws the same whatever pulse it hears, or whoever it is told of, is refused by name, first on the page, whatever
its recipe asks for and however good its scores are. A sign of a leak or of memorised ECGs answers both with no.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from p2es.evaluation.goals import GOALS, Condition, Goal, judge

_COPIES = tuple(
    Goal("copies", label, (Condition(path, op, threshold, threshold, label),))
    for path, op, threshold, label in (
        ("derived/repeats/value", ">", 0.0, "training ECGs drawn again"),
        # A model that draws too little variety lies near the middle: at about .7 of the distance of unseen people.
        ("memorisation/nn_ratio/high", "<", 0.5, "nearest training ECG, drawn over unseen people, at most"),
        ("memorisation/membership_auc/low", ">", 0.55, "membership inference, AUC at least"),
    )
)
_MISSED = {
    "finite": "Some of what it draws is not a number.",
    "lead_laws": "Its leads contradict each other: the lead laws do not hold.",
    "follows_pulse": "It does not follow the PPG: given another person's pulse, it finds the beats as well.",
    "uses_demographics": "It does not use demographics: intervals and axis are no better with the right ones than with "
    "another person's, and do not change as published.",
}
_NOT_SHOWN = {
    "finite": "It is not shown that what it draws is finite.",
    "lead_laws": "It is not shown that its leads agree with each other.",
    "follows_pulse": "It is not shown that it follows the PPG: nothing was drawn from another person's pulse.",
    "uses_demographics": "It is not shown that it uses demographics: nothing was drawn with other ones.",
}
_NO_AUDIT = "It is not shown that nothing leaks: intervals and axis were not held against a demographic regression."


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
        - `memorised`: the model surely gives its training people away: it draws their ECGs again, or what it draws
          is less than half as far from them as unseen people are, or an attack tells surely better than .55 who was
          trained on. Being somewhat too near is goal G21, missed, and no proof.
        - `refused`: there is a refusal.
        - `headline`: one sentence.
        - `refusals`: what the model does not show, sentences, worst first: a leak, memorised ECGs, the basics (finite,
          lead laws, follows the PPG, uses demographics) that are missed or were not measured, an audit not made.
        - `reasons`: why `passed` is False, sentences; empty when it is True.
        - `claims`: names of the goals that are met and may be claimed: none when stopped or memorised, else those
          whose own grounds (`Goal.rests_on`) are met. A mean waveform may have the lowest RMSE; it does not follow
          the PPG, so nothing is claimed for it.
    """
    rows = {row["name"]: row for row in judge(report)}
    audit = report.get("audit")
    audit = audit if isinstance(audit, Mapping) else {}
    stopped, copies = audit.get("raised") is True, _copies(report)
    grave = [*([_leak(audit)] if stopped else []), *copies]
    refusals = [*grave, *_basics(rows), *([] if _audited(audit) else [_NO_AUDIT])]
    wanted = list(report.get("mandatory") or ()) if mandatory is None else list(mandatory)
    reasons = [*grave, *(_asked(rows, name) for name in wanted if name not in rows or not rows[name]["passed"])]
    if not wanted:
        reasons.append("The recipe asks for nothing, so nothing is passed.")
    claims = [] if grave else _claims(rows)
    return {
        "passed": not reasons,
        "stopped": stopped,
        "memorised": bool(copies),
        "refused": bool(refusals),
        "headline": _headline(rows, stopped, bool(copies), refusals, len(claims)),
        "refusals": refusals,
        "reasons": reasons,
        "claims": claims,
    }


def _leak(audit: Mapping[str, Any]) -> str:
    message = str(audit.get("message") or "the leakage audit raised: the model knows intervals that no pulse tells")
    return f"{message[0].upper()}{message[1:].rstrip('.')}."


def _audited(audit: Mapping[str, Any]) -> bool:
    skills = audit.get("skills")
    figures = skills.values() if isinstance(skills, Mapping) else ()
    return any(isinstance(figure, Mapping) and figure.get("value") is not None for figure in figures)


def _copies(report: Mapping[str, Any]) -> list[str]:
    found = [row for row in judge(report, _COPIES) if row["passed"]]
    signs = "; ".join(f"{row['claim']} {row['measured']:.3g}" for row in found)
    told = f"It gives away ECGs or people that it was trained on: what it draws may be somebody's ({signs})."
    return [told] if found else []


def _basics(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of each basic that is not met whether it was refuted or never shown."""
    missed = [rows[name] for name in _MISSED if not rows[name]["passed"]]
    return [(_MISSED if row["status"] == "missed" else _NOT_SHOWN)[row["name"]] for row in missed]


def _claims(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    met = {name for name, row in rows.items() if row["passed"]}
    return [goal.name for goal in GOALS if goal.name in met and met.issuperset(goal.rests_on)]


def _asked(rows: Mapping[str, Mapping[str, Any]], name: str) -> str:
    if name not in rows:
        return f"The recipe asks for {name}, which is no goal."
    return f"The recipe asks for {name}, which is {rows[name]['status']}: {rows[name]['claim']}."


def _headline(
    rows: Mapping[str, Mapping[str, Any]], stopped: bool, memorised: bool, refusals: Sequence[str], claims: int
) -> str:
    if stopped:
        return "Stopped: a leak is suspected. Nothing on this page counts until it is explained."
    if memorised:
        return "Refused: it gives away what it was trained on."
    missed = {name for name in _MISSED if rows[name]["status"] == "missed"}
    if missed & {"finite", "lead_laws"}:
        return "Refused: what it draws is no ECG."
    ignored = {"follows_pulse": "the PPG", "uses_demographics": "the demographics"}
    if said := [text for name, text in ignored.items() if name in missed]:
        return f"Refused: it ignores {' and '.join(said)}."
    if refusals:
        return "Refused: not shown. A control is missing without which no score means anything."
    return f"It follows the PPG and uses demographics; {claims} of {len(rows)} goals are met and may be claimed."
