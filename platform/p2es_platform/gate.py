"""Whether a version may become champion: a pure function of its report."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from p2es.errors import ConfigError, ModelError
from p2es.evaluation.goals import GOALS
from p2es.evaluation.report import VERSION
from p2es.evaluation.verdict import verdict

FOLLOWS_PULSE = "r_f1_50ms_lag: model - shuffled_ppg"
"""The contrast by which two versions are compared: what the model gains by listening to the right pulse."""


_STOPS = {
    "stopped": "No leak is suspected: intervals and axis are not known better than a pulse tells",
    "memorised": "It gives away no training ECG and none of who was trained on",
}
_SHOWN = 5


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name, claim : str
    measured : str
        What was found, beside what was asked.
    passed, mandatory : bool
    """

    name: str
    claim: str
    measured: str
    passed: bool
    mandatory: bool


@dataclass(frozen=True)
class GateReport:
    """The decision and what it rests on.

    Attributes
    ----------
    passed : bool
        Every mandatory check passed.
    checks : tuple of Check
    champion_compared : bool
        Whether there was a champion measured on the same dataset.
    note : str
        How the comparison went, or why there was none.
    """

    passed: bool
    checks: tuple[Check, ...]
    champion_compared: bool
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Give what the audit keeps."""
        return asdict(self)

    @property
    def missed(self) -> tuple[str, ...]:
        """Names of the mandatory checks that were missed."""
        return tuple(check.name for check in self.checks if check.mandatory and not check.passed)


def decide(
    report: Mapping[str, Any],
    mandatory: Sequence[str],
    goals: Sequence[Mapping[str, Any]],
    *,
    sha256: str | None = None,
    champion: Mapping[str, Any] | None = None,
) -> GateReport:
    """Decide whether the model of a report may become champion.

    Nothing passes by not being measured: a mandatory goal that was not judged, or whose figure is not finite,
    is missed. No recipe lets through a version that its report's verdict stops for a suspected leak or finds to give
    away its training people. The verdict is computed again from the figures; one that the report itself holds can only
    add to it. What else it refuses (`refusals`) is noted, and left to the recipe.

    Parameters
    ----------
    report : mapping
        An evaluation report (format `p2es-report`).
    mandatory : sequence of str
        Names of the goals that must be met.
    goals : sequence of mapping
        The report judged by `p2es.evaluation.goals.judge`.
    sha256 : str, optional
        Of the version's model folder. The report must be of this model.
    champion : mapping, optional
        The champion's report.

    Raises
    ------
    ConfigError
        When `mandatory` is empty or names no goal.
    ModelError
        When `report` is not an evaluation report.
    """
    _require_names(mandatory)
    _require_report(report)
    compared, note, against_champion = _compare(report, champion)
    checks = (
        *_goal_checks(mandatory, goals),
        *_verdict_checks(report),
        _finite_check(report),
        *([_model_check(report, sha256)] if sha256 is not None else []),
        *against_champion,
    )
    passed = all(check.passed for check in checks if check.mandatory)
    return GateReport(passed, checks, compared, note)


def _require_names(mandatory: Sequence[str]) -> None:
    known = [goal.name for goal in GOALS]
    if not mandatory:
        raise ConfigError(f"the gate asks for nothing: name mandatory goals, of {', '.join(known)}")
    for name in mandatory:
        if name not in known:
            raise ConfigError(f"the gate asks for {name!r}, which is no goal: choose from {', '.join(known)}")


def _require_report(report: Mapping[str, Any]) -> None:
    if report.get("format") != "p2es-report" or report.get("version") != VERSION:
        raise ModelError(f"this is no evaluation report of version {VERSION}: run `p2es evaluate` again")
    for part in ("dataset", "model", "figures", "controls", "contrasts", "verdict"):
        if not isinstance(report.get(part), Mapping):
            raise ModelError(f"the evaluation report lacks {part!r}: run `p2es evaluate` again")


def _goal_checks(mandatory: Sequence[str], goals: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """Check every goal; one that is named twice is passed only when it is met both times."""
    for goal in GOALS:
        rows = [row for row in goals if row.get("name") == goal.name]
        must = goal.name in mandatory
        if not rows:
            yield Check(goal.name, goal.claim, "not judged", False, must)
        for row in rows:
            passed = row.get("passed") is True and not _not_finite(row.get("measured"))
            yield Check(goal.name, str(row.get("claim", goal.claim)), _measured(row), passed, must)


def _measured(row: Mapping[str, Any]) -> str:
    value, threshold = row.get("measured"), row.get("threshold")
    if value is None:
        return str(row.get("note") or "given")
    asked = "" if threshold is None else f" (asked: {row.get('op') or ''} {threshold:g})"
    return f"{value:.4g}{asked}"


def _verdict_checks(report: Mapping[str, Any]) -> Iterator[Check]:
    """Check what stops a version in every recipe; and note, without asking for it, what the verdict refuses."""
    found, told = verdict(report), report["verdict"]
    for name, claim in _STOPS.items():
        # Only a literal False of both clears it: a verdict that does not say is no clearance.
        clear = found[name] is False and told.get(name) is False
        reason = next(iter(found["refusals"]), "") if found[name] else "the report's own verdict does not clear it"
        yield Check(name, claim, "clear" if clear else reason, clear, True)
    refusals = " ".join(found["refusals"])
    yield Check("verdict", "The verdict refuses nothing", refusals or found["headline"], not refusals, False)


def _finite_check(report: Mapping[str, Any]) -> Check:
    """Refuse figures that are NaN or infinite; null says not measured, and is left to the goals."""
    bad = list(_infinite({key: value for key, value in report.items() if key != "goals"}, ""))
    claim = "Every figure of the report is a finite number"
    shown = ", ".join(bad[:_SHOWN]) + (f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
    return Check("figures", claim, f"not finite: {shown}" if bad else "all finite", not bad, True)


def _infinite(value: Any, path: str) -> Iterator[str]:
    """Name what is NaN or infinite, wherever in the report it stands."""
    if _not_finite(value):
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _infinite(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for k, inner in enumerate(value):
            yield from _infinite(inner, f"{path}.{k}")


def _model_check(report: Mapping[str, Any], sha256: str) -> Check:
    found = str(report["model"].get("sha256") or "none")
    claim = "The report is of this version's model"
    measured = sha256[:12] if found == sha256 else f"report {found[:12]}, version {sha256[:12]}"
    return Check("model", claim, measured, found == sha256, True)


def _compare(report: Mapping[str, Any], champion: Mapping[str, Any] | None) -> tuple[bool, str, tuple[Check, ...]]:
    """Compare with the champion where both were measured on the same dataset and split.

    The version may be worse by no more than its own interval: the champion's value is not above its end.
    """
    if champion is None:
        return False, "no champion yet: not compared", ()
    if champion.get("version") != report.get("version"):
        return False, f"the champion's report is of version {champion.get('version')}: not compared", ()
    if champion["model"].get("sha256") == report["model"].get("sha256"):
        return False, "this model is the champion: not compared", ()
    same = ("hash", "split", "windows")
    if [champion["dataset"].get(key) for key in same] != [report["dataset"].get(key) for key in same]:
        return False, "the champion was measured on other windows: not compared", ()
    theirs = (champion["contrasts"].get(FOLLOWS_PULSE) or {}).get("value")
    if theirs is None or _not_finite(theirs):
        return False, f"the champion's report has no {FOLLOWS_PULSE!r}: not compared", ()
    ours = report["contrasts"].get(FOLLOWS_PULSE) or {}
    value, high = ours.get("value"), ours.get("high")
    claim = "Follows the pulse no worse than the champion, within its own interval"
    if value is None or high is None:
        return True, "compared with the champion", (Check("champion", claim, "not measured", False, True),)
    measured = f"{value:.4g} (up to {high:.4g}), champion {theirs:.4g}"
    return True, "compared with the champion", (Check("champion", claim, measured, high >= theirs, True),)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
