"""`p2es evaluate`: which system, on which dataset, and what is printed of its report."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from p2es.errors import ConfigError
from p2es.files import write_whole
from p2es_platform import storage
from p2es_platform.registry import Registry
from p2es_platform.settings import Settings
from pipelines import demo, evaluate
from pipelines.evaluate_args import EvaluateChoice
from pipelines.recipes import Recipe


def run(recipe: Recipe, choice: EvaluateChoice, settings: Settings, teller: demo.Teller) -> int:
    """Evaluate, print the verdict, and give the exit status: 1 where the audit stopped the report.

    Raises
    ------
    ConfigError
        When more than one thing is asked for.
    """
    asked = [name for name in ("version", "system", "predictions", "requests") if getattr(choice, name) is not None]
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0]} and --{asked[1]} are two questions: ask one at a time")
    ready = None
    if choice.dataset is not None:
        url = _address(choice.dataset, settings)
    else:
        ready = demo.prepare(recipe, settings, teller)
        url = ready.dataset_url
    if choice.requests is not None:
        count = evaluate.write_requests(recipe, dataset_url=url, path=choice.requests)
        teller.write(f"{count} requests in {choice.requests}; answer them, then: p2es evaluate --predictions FILE")
        return 0
    candidate, lineage = _candidate(recipe, choice, settings, ready, teller)
    found = evaluate.run(recipe, settings, candidate=candidate, dataset_url=url, lineage=lineage)
    _say(found.report, teller.write)
    for place in _copied(found, choice.out):
        teller.write(place)
    return 1 if found.report["verdict"]["stopped"] else 0


def _address(dataset: str, settings: Settings) -> str:
    """Give where a dataset lies: by its name in the storage, or as given, which a task in another folder must find."""
    if "/" not in dataset:
        return settings.path("datasets", dataset)
    return str(Path(dataset).resolve()) if storage.is_local(dataset) else dataset


def _candidate(
    recipe: Recipe, choice: EvaluateChoice, settings: Settings, ready: demo.Prepared | None, teller: demo.Teller
) -> tuple[evaluate.Candidate, Mapping[str, Any]]:
    """Give what is evaluated, and where it comes from."""
    if choice.system is not None:
        return evaluate.of_yardstick(choice.system), {"yardstick": choice.system}
    if choice.predictions is not None:
        return evaluate.of_predictions(choice.predictions), {"predictions": choice.predictions.name}
    if choice.version is not None:
        version = Registry(settings).resolve(choice.version)
        return evaluate.of_model(version.folder), {"version": version.version}
    if ready is None:
        ready = demo.prepare(recipe, settings, teller)
    trained = demo.fit(recipe, settings, ready, teller)
    return evaluate.of_model(trained.folder), trained.lineage


def _say(report: Mapping[str, Any], write: Callable[[str], None]) -> None:
    verdict = report["verdict"]
    write(verdict["headline"])
    for line in dict.fromkeys((*verdict["refusals"], *verdict["reasons"])):
        write(f"  {line}")
    met = sum(goal["passed"] for goal in report["goals"])
    write(f"{met} of {len(report['goals'])} goals met, on {report['dataset']['windows']} windows of "
          f"{report['dataset']['people']} people")  # fmt: skip


def _copied(found: evaluate.EvaluateResult, folder: Path | None) -> list[str]:
    """Copy the report where the user wants it; give the places to print."""
    places = [found.report_html, found.report_json]
    if folder is None:
        return [f"report in {places[0]}"]
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / place.rsplit("/", 1)[-1] for place in places]
    for place, target in zip(places, targets, strict=True):
        write_whole(target, storage.read_bytes(place))
    return [str(target) for target in targets]
