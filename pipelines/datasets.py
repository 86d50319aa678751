"""What `p2es dataset` does: show, verify, compare, delete a person, collect, list versions and splits."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from p2es.errors import DatasetError, InputError, P2EsError
from p2es_platform import maintenance, splits, storage, versions
from p2es_platform.dataset import SPLITS, Dataset
from p2es_platform.differences import diff as difference
from p2es_platform.exposure import models_that_saw
from p2es_platform.settings import Settings
from p2es_platform.verifying import problems


@dataclass(frozen=True)
class Answer:
    """What to print, and whether all is well (else the command exits with 1)."""

    text: str
    ok: bool = True

    def __str__(self) -> str:
        return self.text


def show(url: str, version: int | None = None) -> Answer:
    """Count what is in a dataset, from its manifest and quarantine tables alone."""
    dataset = Dataset.open(url, version)
    manifest = dataset.manifest
    left_out: dict[str, Counter[str]] = {"window": Counter(), "record": Counter()}
    table = dataset.quarantine()
    for what, reason, count in zip(*(table[name].to_pylist() for name in ("what", "reason", "count")), strict=True):
        left_out.setdefault(what, Counter())[reason] += count
    sources: Counter[str] = Counter()
    for shard in dataset.shards():
        sources[f"{shard.source} (simulated)" if shard.simulated else shard.source] += shard.rows
    size = sum(shard.bytes for shard in dataset.shards())
    rows, rejected = int(manifest["windows"]), sum(left_out["window"].values())
    each_kb = size / max(rows, 1) / 1e3
    lines = [
        ("dataset", f"{_name(url)}, version {dataset.version} (hash {dataset.hash[:12]})"),
        ("windows", f"{rows:,} ({_list({split: dataset.rows(split) for split in SPLITS})})"),
        ("people", f"{sum(manifest['people'].values()):,} ({_list(manifest['people'])})"),
        ("sources", _list(sources)),
        ("records", f"{manifest['records']:,}, of which {sum(left_out['record'].values()):,} could not be used"),
        ("tried", f"{manifest['candidates']:,} windows = {rows:,} kept + {rejected:,} left out"),
        *((_heading(what), _list(counts)) for what, counts in sorted(left_out.items()) if counts),
        ("left out of kept", _list(_summed(part["notes"] for part in manifest["parts"]))),
        ("size", f"{size / 1e6:,.1f} MB in {len(dataset.shards()):,} shards, {each_kb:.1f} kB a window"),
        ("made with", ", ".join(f"{name} {value}" for name, value in sorted(manifest["ingest"].items()))),
        ("deleted people", f"{len(dataset.deleted)}" if dataset.deleted else ""),
    ]  # fmt: skip
    return Answer("\n".join(f"{name:22s}{value}" for name, value in lines if value))


def _heading(what: str) -> str:
    return "changed, kept" if what == "change" else f"{what}s left out"


def _name(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _summed(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return total


def verify(url: str, version: int | None = None, *, quiet: bool = False) -> Answer:
    """Check every file, window, person and count of a dataset."""
    dataset = Dataset.open(url, version)
    shards = dataset.shards()
    with tqdm(total=len(shards), desc="verify", unit="shard", leave=False, disable=quiet) as bar:
        found = problems(dataset, lambda _: bar.update())
    if found:
        return Answer("\n".join(found), ok=False)
    rows, people = dataset.manifest["windows"], sum(dataset.manifest["people"].values())
    return Answer(
        f"version {dataset.version} of {_name(url)} is whole: {rows:,} windows in {len(shards):,} shards have their "
        f"sha256, none is there twice, {people:,} people are in one split each, and the counts add up"
    )


def list_versions(url: str) -> Answer:
    """List the versions that are there, and what is kept of those that were removed."""
    lines = [_version_line(body, "removed") for body in versions.remembered(url)]
    for number in versions.numbers(url):
        try:
            lines.append(_version_line(versions.read(url, number), ""))
        except DatasetError as error:
            lines.append(f"{number:6d}  {error}")
    if not lines:
        raise DatasetError(f"there is no dataset in {url}: `p2es ingest` makes one")
    return Answer("\n".join(sorted(lines)))


def _version_line(body: Mapping[str, object], note: str) -> str:
    counts = body["people"]
    assert isinstance(counts, dict)
    size = f"{body['windows']:>10,} windows  {sum(counts.values()):>7,} people"
    return f"{body['number']:6d}  {body['hash']!s:.12}  {size}  {note}".rstrip()


def diff(url: str, before: int | None, after: int | None = None, *, other: str | None = None) -> Answer:
    """Say what is in one version and not in the other; `other` compares with another dataset.

    Without `before`, the one before `after` is taken.
    """
    new = Dataset.open(other or url, after)
    if before is None and other is None:
        earlier = [number for number in versions.numbers(url) if number < new.version]
        if not earlier:
            raise InputError(f"{_name(url)} has one version only: there is nothing to compare")
        before = earlier[-1]
    found = difference(Dataset.open(url, before), new)
    lines = [
        f"{sign}{sum(counts.values()):,} {what}: {_list(counts)}"
        for sign, groups in (("+", found.added), ("-", found.removed))
        for what, counts in groups.items()
        if counts
    ]
    lines += [f"~{found.changed:,} windows have other signals"] if found.changed else []
    lines += [f"{name}: {old} -> {now}" for name, (old, now) in found.configuration.items()]
    return Answer("\n".join(lines) or "nothing differs")


def delete(url: str, person: str, source: str, settings: Settings) -> Answer:
    """Delete a person, named by the archive's own id, and list the models that saw them."""
    done = maintenance.delete_person(url, settings.hashed_id(source, "person", person))
    removed = (
        f"; versions {', '.join(map(str, done.purged))} and {done.files:,} files are removed" if done.purged else ""
    )
    lines = [f"version {done.version} of {_name(url)} is without the person: {done.windows:,} windows fewer{removed}"]
    try:
        saw = models_that_saw(done.hashes, settings)
        lines += ["no model saw the person"] if not saw else ["these models saw the person:"]
        lines += [f"  {model.kind} {model.name}{' (champion)' if model.champion else ''}" for model in saw]
    except P2EsError as error:
        lines.append(f"which models saw the person is not known: {error}; the same command asks again")
    lines.append(
        "not touched: models, checkpoints, reports, translations, copies and backups, object versions that a bucket "
        "keeps, and the archive itself; what the quarantine table says of recordings nobody could be named for"
    )
    return Answer("\n".join(lines))


def would_delete(url: str, person: str, source: str, settings: Settings) -> Answer:
    """Say whether a person is in a dataset, and that nothing was done yet."""
    hashed = settings.hashed_id(source, "person", person)
    dataset = Dataset.open(url)
    parts = [part for part in dataset.parts if hashed in part.people]
    if not parts:
        raise InputError(f"the person is not in version {dataset.version} of {_name(url)}: check --person and --source")
    return Answer(
        f"the person is in {len(parts)} of {len(dataset.parts)} parts of version {dataset.version} of {_name(url)}; "
        "nothing was deleted: add --yes to do it, for good, in every version"
    )


def collect(
    url: str, *, keep_versions: int | None = None, grace_s: float = maintenance.GRACE_S, dry_run: bool = False
) -> Answer:
    """Remove old versions and the files that no version names."""
    done = maintenance.collect(url, keep_versions=keep_versions, grace_s=grace_s, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} versions {', '.join(map(str, done.versions))}"] if done.versions else []
    lines.append(f"{verb} {len(done.files):,} files of {sum(done.files.values()) / 1e6:,.1f} MB that no version names")
    if done.spared:
        lines.append(f"kept {done.spared:,} files younger than {grace_s / 3600:g} h, which an ingest may still use")
    return Answer("\n".join([*lines, *(f"  {path}" for path in done.files if dry_run)]))


def split_list(url: str, settings: Settings, *, source: str, check: str | None = None) -> Answer:
    """Say by which rule people are split; with a published list, check it against the rule and the dataset."""
    dataset = Dataset.open(url)
    rule = rule_of(dataset, source)
    parts = [part for part in dataset.parts if any(shard.source == source for shard in part.shards)]
    people = {person: split for part in parts for person, split in part.people.items()}
    counts = _list(Counter(people.values()))
    if check is None:
        return Answer(
            f"{len(people):,} people ({counts}), split by salt {rule.salt!r}, source {rule.source!r}, "
            f"{rule.test_share:g} test, {rule.validation_share:g} validation; the list with the archive's ids is "
            "written with --archive WHERE --out FILE"
        )
    data = storage.read_bytes(check) if not storage.is_local(check) else _local(check)
    theirs, listed = splits.read_list(data)
    lines = [f"{len(splits.wrong_rows(data))} of {len(listed)} people are not where the list's own rule puts them"]
    hashed = {settings.hashed_id(theirs.source, "person", person): split for person, split in listed.items()}
    wrong = sum(people.get(person, split) != split for person, split in hashed.items())
    missing = len(people.keys() - hashed.keys())
    lines += [f"the list's rule is {theirs}, the dataset's {rule}"] if theirs != rule else []
    lines += [f"{wrong} people of the list are in another split of the dataset"] if wrong else []
    lines += [f"{missing} people of the dataset are not in the list"] if missing else []
    ok = not (splits.wrong_rows(data) or wrong or missing or theirs != rule)
    if ok:
        return Answer(
            f"the list is right: {len(listed):,} people, all {len(people):,} of the dataset among them ({counts})"
        )
    return Answer("\n".join(line for line in lines if not line.startswith("0 ")), ok=False)


def rule_of(dataset: Dataset, source: str) -> splits.SplitRule:
    """Give the rule by which a family of a dataset was split."""
    made = dataset.manifest["ingest"]
    try:
        return splits.SplitRule(made["salt"], source, made["validation_share"], made["test_share"])
    except KeyError as error:
        raise DatasetError(f"the manifest of {dataset.url} has no {error.args[0]}: ingest again") from error


def _local(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{Path(path).name} cannot be read ({error.strerror}): give a split list") from error
