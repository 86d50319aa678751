"""Register a version, take it through the recipe's gate, make it champion; and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from p2es.errors import ModelError
from p2es.evaluation.goals import judge
from p2es.evaluation.verdict import verdict
from p2es_platform.gate import Check, decide
from p2es_platform.registry import Registry
from p2es_platform.settings import Settings
from pipelines.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class PromoteResult:
    """What the gate decided.

    Attributes
    ----------
    version : str
    passed : bool
        Every mandatory check was met, and the version is champion.
    checks : tuple of Check
        Each goal and check, met or missed.
    alias_moved : bool
        Whether another version was champion before.
    note : str
        How the version compared with the champion.
    """

    version: str
    passed: bool
    checks: tuple[Check, ...]
    alias_moved: bool
    note: str


def run(recipe: Recipe, settings: Settings, *, trained: str, run_id: str, report: Mapping[str, Any]) -> PromoteResult:
    """Register what was trained and evaluated, and promote it when it passes the recipe's gate.

    Parameters
    ----------
    trained : str
        The model's folder.
    run_id : str
        MLflow run that trained it.
    report : mapping
        Its evaluation report.

    Raises
    ------
    ModelError
        When the report is of another model.
    """
    registry = Registry(settings)
    version = registry.register(Path(trained), run_id, report, card(report)).version
    return _through_gate(recipe, registry, version, report)


def again(recipe: Recipe, settings: Settings, *, version: str) -> PromoteResult:
    """Take a registered version through the gate of the recipe that made it, by the report it was registered with.

    `recipe` decides only where the version's own is not one of the named ones.

    Raises
    ------
    ModelError
        When there is no such version.
    """
    registry = Registry(settings)
    chosen = registry.resolve(version)
    report = registry.report(chosen.version)
    # The gate of the recipe that made it: the demo's four goals must not let a large model through.
    own = RECIPES[report["recipe"]]() if report.get("recipe") in RECIPES else recipe
    return _through_gate(own, registry, chosen.version, report)


def rollback(settings: Settings) -> str:
    """Make the champion before this one champion again and give its version; ModelError when there is none."""
    return Registry(settings).rollback().model_version


def models(settings: Settings) -> list[dict[str, str]]:
    """List the versions, oldest first, as rows to print: all values are texts."""
    registry = Registry(settings)
    promoted = {entry.model_version: entry for entry in registry.history()}
    rows = []
    for version in registry.list_versions():
        entry = promoted.get(version.version)
        made = datetime.fromtimestamp(version.created_ms / 1000, UTC)
        rows.append(
            {
                "version": version.version,
                "champion": "now" if version.champion else "was" if entry else "-",
                "since": f"{entry.at[:16]} by {entry.who}" if entry else "-",
                "recipe": version.recipe,
                "model": version.sha256[:12],
                "dataset": version.dataset_hash[:12],
                "registered": made.isoformat(timespec="minutes")[:16],
            }
        )
    return rows


def _through_gate(recipe: Recipe, registry: Registry, version: str, report: Mapping[str, Any]) -> PromoteResult:
    before = registry.champion()
    champion, problem = _champion_report(registry)
    sha256 = registry.resolve(version).sha256
    found = decide(report, recipe.gate.mandatory, judge(report), sha256=sha256, champion=champion)
    if problem is not None:
        found = dataclasses.replace(found, note=problem)
    if found.passed:
        registry.promote(version, found)
    moved = found.passed and (before is None or before.model_version != version)
    return PromoteResult(version, found.passed, found.checks, moved, found.note)


def _champion_report(registry: Registry) -> tuple[dict[str, Any] | None, str | None]:
    """Give the champion's report, and why there is none: a lost one must not bar every later version."""
    champion = registry.champion()
    if champion is None:
        return None, None
    try:
        return registry.report(champion.model_version), None
    except ModelError as error:
        return None, f"the champion's report cannot be read ({error}): not compared"


def card(report: Mapping[str, Any]) -> str:
    """Write the model card of a version: verdict first, its figures beside its controls, the goals and their claims."""
    found = verdict(report)
    return "\n".join(
        [
            f"# P2Es, recipe {report.get('recipe')}",
            "",
            "Everything it draws is **SYNTHETIC**: no recording, and not for diagnosis. A PPG tells rate, rhythm and",
            "pulse timing; it does not tell bundle branch blocks, axis, ST or infarct sites.",
            "",
            *_verdict_lines(found),
            "",
            *_measured_lines(report),
            "",
            *_figure_lines(report),
            "",
            *_goal_lines(report, found["claims"]),
            "",
        ]
    )


def _verdict_lines(found: Mapping[str, Any]) -> list[str]:
    gate = "passed" if found["passed"] else "not passed"
    lines = ["## Verdict", "", f"**{found['headline']}** Gate of the recipe: {gate}.", ""]
    lines += [f"- {text}" for text in dict.fromkeys([*found["refusals"], *found["reasons"]])]
    return [*lines, "", f"May be claimed: {', '.join(found['claims']) or 'nothing'}."]


def _measured_lines(report: Mapping[str, Any]) -> list[str]:
    data = report["dataset"]
    people = "simulated people" if data.get("simulated") else "people"
    simulated = ["Nothing is shown for real people."] if data.get("simulated") else []
    return [
        "## Figures",
        "",
        f"Measured on {data.get('windows')} windows of {data.get('people')} {people} it never saw "
        f"({data.get('split')} split of dataset {str(data.get('hash'))[:12]}); 95 % intervals over people.",
        *simulated,
    ]


def _figure_lines(report: Mapping[str, Any]) -> list[str]:
    figures, controls = report["figures"], report["controls"]
    columns = ["model", *controls]
    lines = ["| figure | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name in figures:
        shown = [_figure(system.get(name)) for system in (figures, *controls.values())]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return lines


def _goal_lines(report: Mapping[str, Any], claims: Sequence[str]) -> list[str]:
    lines = ["## Goals", "", "| goal | result | may be claimed | what |", "|---|---|---|---|"]
    for goal in judge(report):
        claimed = "yes" if goal["name"] in claims else "no"
        lines.append(f"| {goal['name']} | {goal['status']} | {claimed} | {goal['claim']} |")
    return lines


def _figure(figure: Mapping[str, Any] | None) -> str:
    if not figure or figure.get("value") is None:
        return "-"
    low, high = figure.get("low"), figure.get("high")
    interval = "" if low is None or high is None or low == high else f" [{low:.3g}, {high:.3g}]"
    return f"{figure['value']:.3g}{interval} {figure.get('unit') or ''}".strip()
