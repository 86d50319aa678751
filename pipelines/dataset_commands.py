"""`p2es dataset ...`: look at a dataset, check it, change what is in it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from p2es.errors import DatasetError, InputError
from p2es.files import write_whole
from p2es_platform import splits, storage, versions
from p2es_platform.dataset import Dataset
from p2es_platform.settings import Settings
from pipelines import datasets, names
from pipelines.dataset_args import DatasetArgs
from pipelines.datasets import Answer


@dataclass(frozen=True)
class Call:
    """A command: its arguments, the dataset's address, and a way to start Ray."""

    args: DatasetArgs
    url: str
    settings: Settings
    ray: Callable[[], AbstractContextManager[None]]

    def source(self, dataset: Dataset) -> str:
        """Give the family that is meant; InputError when that is not clear."""
        known = sorted(dataset.manifest["ingest"]["sources"])
        if self.args.source in known:
            return str(self.args.source)
        if self.args.source is None and len(known) == 1:
            return known[0]
        raise InputError(f"say which --source: this dataset has {', '.join(known)}")


def run(args: DatasetArgs, settings: Settings, ray: Callable[[], AbstractContextManager[None]]) -> Answer:
    """Do what is asked; the answer is what to print."""
    if args.action == "list":
        return _list(settings)
    if args.dataset is None:
        raise InputError(f"say which dataset: `p2es dataset {args.action} NAME`; `p2es dataset list` names them")
    url = args.dataset if "/" in args.dataset else settings.path("datasets", args.dataset)
    return _ACTIONS[args.action](Call(args, url.rstrip("/"), settings, ray))


def _list(settings: Settings) -> Answer:
    root = settings.path("datasets")
    lines = []
    for name in storage.listing(root):
        url = storage.join(root, name)
        try:
            if versions.exists(url):
                dataset = Dataset.open(url)
                lines.append(f"{name:40s} version {dataset.version:3d} {dataset.manifest['windows']:>10,} windows")
        except DatasetError as error:
            lines.append(f"{name:40s} {error}")
    return Answer("\n".join(lines) or "no dataset yet: `p2es ingest ARCHIVE` makes one")


def _report(call: Call) -> Answer:
    from pipelines import dataset_report

    return Answer(f"report in {dataset_report.run(call.url, call.settings, call.args.out)}")


def _diff(call: Call) -> Answer:
    before, after = call.args.versions or (None, None)
    return datasets.diff(call.url, before, after)


def _quarantine(call: Call) -> Answer:
    dataset = Dataset.open(call.url)
    rows = names.left_out(dataset, call.settings, call.source(dataset), call.args.archive)
    lines = [f"{row.record:32s} {row.what:12s} {row.reason:20s} {row.count:7d}  {row.detail}".rstrip() for row in rows]
    return Answer("\n".join(lines) or "nothing was left out")


def _splits(call: Call) -> Answer:
    args = call.args
    dataset = Dataset.open(call.url)
    rule = datasets.rule_of(dataset, call.source(dataset))
    if args.check is not None or args.archive is None:
        return datasets.split_list(call.url, call.settings, source=rule.source, check=args.check)
    if args.out is None:
        raise InputError("say where the list goes: --out splits.csv; it names people by the archive's own ids")
    with call.ray():
        people = names.people_of(dataset, args.archive, rule.source, call.settings, args.mapping, args.people)
    write_whole(args.out, splits.write_list(rule, people))
    return Answer(
        f"{len(people):,} people in {args.out}, by the archive's own ids: publish it only where they are public"
    )


def _delete(call: Call) -> Answer:
    args = call.args
    if args.person is None:
        raise InputError("say who: --person ID, the archive's own id, and --source FAMILY")
    source = call.source(Dataset.open(call.url))
    if not args.yes:
        return datasets.would_delete(call.url, args.person, source, call.settings)
    return datasets.delete(call.url, args.person, source, call.settings)


_ACTIONS: dict[str, Callable[[Call], Answer]] = {
    "show": lambda call: datasets.show(call.url, call.args.version),
    "verify": lambda call: datasets.verify(call.url, call.args.version),
    "report": _report,
    "versions": lambda call: datasets.list_versions(call.url),
    "diff": _diff,
    "quarantine": _quarantine,
    "splits": _splits,
    "delete": _delete,
    "collect": lambda call: datasets.collect(
        call.url, keep_versions=call.args.keep, grace_s=call.args.grace_h * 3600, dry_run=not call.args.yes
    ),
}
