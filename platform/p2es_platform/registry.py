"""Model versions in MLflow, and which of them is champion.

The audit (`p2es_platform.audit`) is the truth of what is champion; the MLflow alias `champion` follows
it, for people who look there.
"""

import getpass
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from p2es.errors import ConfigError, ModelError, RemoteError
from p2es_platform import audit
from p2es_platform.gate import GateReport
from p2es_platform.mlflow_client import MLFLOW_ERRORS, connect, first_line
from p2es_platform.settings import Settings

NAME = "p2es"
CHAMPION = "champion"

_SHA256 = "p2es.sha256"
_REPORT_SHA256 = "p2es.report_sha256"
_RECIPE = "p2es.recipe"
_DATASET = "p2es.dataset_hash"

# Two promoters that set the first alias at once collide in MLflow's table (in 2 of 5 races of six).
_ALIAS_PAUSES_S = (0.1, 0.3, 1.0)

# MLflow takes any text of 255 characters, and keeps `latest` and `v3` for itself.
_ALIAS = re.compile(r"(?!latest$|v\d+$)[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class ResolvedVersion:
    """A version whose files are on this machine and have the hash it was registered with.

    Attributes
    ----------
    version : str
    sha256 : str
    folder : Path
    """

    version: str
    sha256: str
    folder: Path


@dataclass(frozen=True)
class VersionRow:
    """What is listed of a version.

    Attributes
    ----------
    version, sha256, recipe, dataset_hash, run_id : str
    created_ms : int
        Unix time.
    champion : bool
    """

    version: str
    sha256: str
    recipe: str
    dataset_hash: str
    run_id: str
    created_ms: int
    champion: bool


def folder_sha256(folder: str | Path) -> str:
    """Hash a folder: SHA-256 over its sorted relative paths, each with the SHA-256 of its file.

    Raises
    ------
    ModelError
        When the folder is missing or holds no file.
    """
    root = Path(folder)
    files = sorted((p.relative_to(root).as_posix(), p) for p in root.rglob("*") if p.is_file())
    if not files:
        raise ModelError(f"there is no model in {root.name}: the folder is missing or empty")
    whole = hashlib.sha256()
    for name, path in files:
        with path.open("rb") as file:
            whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def resolve(reference: str | int, settings: Settings | None = None) -> ResolvedVersion:
    """Resolve a version where the environment says the registry is; see `Registry.resolve`."""
    return Registry(settings or Settings.model_validate({})).resolve(reference)


class Registry:
    """The registered model `p2es` of one MLflow, its cache of files and its audit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._audit = settings.path("audit")

    @cached_property
    def _client(self) -> mlflow.MlflowClient:
        return connect(self._settings.tracking_uri)

    def register(self, model_folder: str | Path, run_id: str, report: Mapping[str, Any], card: str) -> VersionRow:
        """Make a version of a model, or give the one that has this model and report.

        Parameters
        ----------
        model_folder : path
            Copied to the run's artifacts, below its hash.
        report : mapping
            The evaluation report; it must be of this model.
        card : str
            The model card, Markdown.

        Raises
        ------
        ModelError
            When the folder holds no model, or the report is of another one.
        RemoteError
            When MLflow did not take it.
        """
        sha256 = folder_sha256(model_folder)
        if (report.get("model") or {}).get("sha256") != sha256:
            raise ModelError("the report is of another model: run `p2es evaluate` again")
        text = json.dumps(report, indent=1, sort_keys=True)
        tags = {
            _SHA256: sha256,
            _REPORT_SHA256: hashlib.sha256(text.encode()).hexdigest(),
            _RECIPE: str(report.get("recipe") or ""),
            _DATASET: str((report.get("dataset") or {}).get("hash") or ""),
        }
        same = [v for v in self._versions() if all(v.tags.get(key) == tags[key] for key in (_SHA256, _REPORT_SHA256))]
        if same:
            return self._row(same[-1])
        try:
            source = self._store(Path(model_folder), run_id, tags, text, card)
            made = self._client.create_model_version(
                NAME, source, run_id, tags=tags, description=f"SYNTHETIC ECG from PPG; recipe {tags[_RECIPE]}"
            )
        except MLFLOW_ERRORS as error:
            raise RemoteError(f"MLflow did not take the version ({first_line(error)}): run again") from error
        return self._row(made)

    def _store(self, folder: Path, run_id: str, tags: Mapping[str, str], report: str, card: str) -> str:
        """Copy model, report and card below their hashes, so that no later version can change them."""
        if not self._client.search_registered_models(f"name = '{NAME}'"):
            self._client.create_registered_model(NAME, description="PPG to 12-lead ECG. Its output is SYNTHETIC.")
        place = f"versions/{tags[_SHA256][:16]}-{tags[_REPORT_SHA256][:16]}"
        self._client.log_artifacts(run_id, str(folder), f"{place}/model")
        self._client.log_text(run_id, report, f"{place}/report.json")
        self._client.log_text(run_id, card, f"{place}/model-card.md")
        return f"{self._client.get_run(run_id).info.artifact_uri}/{place}/model"

    def resolve(self, reference: str | int) -> ResolvedVersion:
        """Turn a version, an alias or a `models:/` address into verified files on this machine.

        Parameters
        ----------
        reference : str or int
            `3`, `champion`, `models:/p2es/3`, `models:/p2es@champion`.

        Raises
        ------
        ModelError
            When there is no such version, or its files are not the registered ones.
        """
        name = _parse(str(reference))
        if name == CHAMPION:
            entry = self.champion()
            if entry is None:
                raise ModelError("no version is champion yet: `p2es promote` makes one")
            return self._fetch(self._version(entry.model_version), entry.sha256)
        found = self._version(name) if name.isdigit() else self._aliased(name)
        return self._fetch(found, found.tags.get(_SHA256, ""))

    def report(self, reference: str | int) -> dict[str, Any]:
        """Give the report that a version was registered with; ModelError when it was changed."""
        name = _parse(str(reference))
        found = self._version(name if name.isdigit() else self.resolve(name).version)
        with tempfile.TemporaryDirectory() as folder:
            uri = f"{str(found.source).rpartition('/')[0]}/report.json"
            path = _download(uri, folder, self._settings.tracking_uri)
            raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != found.tags.get(_REPORT_SHA256):
            raise ModelError(f"the report of version {found.version} is not the registered one: evaluate it again")
        return json.loads(raw)

    def promote(self, version: str, gate: GateReport, who: str | None = None) -> audit.Entry:
        """Make a version champion: write it to the audit, then let the alias follow.

        Raises
        ------
        ModelError
            When the gate did not pass, or the version's files are missing or changed.
        """
        if not gate.passed:
            raise ModelError(f"version {version} is not promoted: it missed {', '.join(gate.missed)}")
        chosen = self.resolve(version)
        while True:
            entries = self.history()
            standing = _standing(entries)
            if standing and (standing[-1].model_version, standing[-1].sha256) == (
                chosen.version,
                chosen.sha256,
            ):
                entry = standing[-1]
                break
            written = self._append(entries, "promote", chosen.version, chosen.sha256, who, gate.to_dict())
            if written is not None:
                entry = written
                break
        self._follow()
        return entry

    def rollback(self, who: str | None = None) -> audit.Entry:
        """Make the champion before this one champion again.

        Raises
        ------
        ModelError
            When there is none, or its files are missing or changed.
        """
        while True:
            entries = self.history()
            standing = _standing(entries)
            if len(standing) < 2:
                raise ModelError("there is no earlier champion to go back to: `p2es models` lists the versions")
            before = standing[-2]
            self._fetch(self._version(before.model_version), before.sha256)
            details = {"from_version": standing[-1].model_version}
            written = self._append(entries, "rollback", before.model_version, before.sha256, who, details)
            if written is not None:
                self._follow()
                return written

    def champion(self) -> audit.Entry | None:
        """Give the audit entry that made the present champion; None before the first."""
        entries = self.history()
        return entries[-1] if entries else None

    def history(self) -> list[audit.Entry]:
        """Give every promotion and rollback, oldest first."""
        return audit.read(self._audit)

    def list_versions(self) -> list[VersionRow]:
        """List every version, oldest first."""
        champion = self.champion()
        return [self._row(version, champion) for version in self._versions()]

    def _append(
        self,
        entries: Sequence[audit.Entry],
        action: str,
        version: str,
        sha256: str,
        who: str | None,
        details: Any,
    ) -> audit.Entry | None:
        """Write the next entry; None when another promoter took its number."""
        try:
            return audit.append(
                self._audit,
                len(entries),
                action=action,
                model_version=version,
                sha256=sha256,
                who=who or _user(),
                details=details,
            )
        except FileExistsError:
            return None

    def _follow(self) -> None:
        """Set the alias to the audit's last entry, again while another promoter wrote one meanwhile."""
        seen = None
        while (last := self.champion()) is not None and last.number != seen:
            seen = last.number
            self._set_alias(last.model_version)

    def _set_alias(self, version: str) -> None:
        for pause_s in (*_ALIAS_PAUSES_S, None):
            try:
                self._client.set_registered_model_alias(NAME, CHAMPION, version)
                return
            except MLFLOW_ERRORS as error:
                if pause_s is None:
                    raise RemoteError(
                        f"version {version} is champion, but MLflow did not take the alias "
                        f"({first_line(error)}): promote it again to set it"
                    ) from error
                time.sleep(pause_s)

    def _versions(self) -> list[ModelVersion]:
        try:
            found = self._client.search_model_versions(f"name = '{NAME}'")
        except MLFLOW_ERRORS as error:
            raise RemoteError(f"MLflow does not list the versions ({first_line(error)}): see `p2es doctor`") from error
        return sorted(found, key=lambda version: int(version.version))

    def _version(self, number: str) -> ModelVersion:
        try:
            return self._client.get_model_version(NAME, number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise RemoteError(f"MLflow gave no version ({first_line(error)}): see `p2es doctor`") from error
            raise ModelError(f"there is no version {number} of {NAME}; `p2es models` lists them") from None

    def _aliased(self, alias: str) -> ModelVersion:
        try:
            return self._client.get_model_version_by_alias(NAME, alias)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise RemoteError(f"MLflow gave no version ({first_line(error)}): see `p2es doctor`") from error
            raise ModelError(f"no version of {NAME} is called {alias!r}; `p2es models` lists them") from None

    def _row(self, version: ModelVersion, champion: audit.Entry | None = None) -> VersionRow:
        return VersionRow(
            version=str(version.version),
            sha256=version.tags.get(_SHA256, ""),
            recipe=version.tags.get(_RECIPE, ""),
            dataset_hash=version.tags.get(_DATASET, ""),
            run_id=version.run_id or "",
            created_ms=int(version.creation_timestamp or 0),
            champion=champion is not None and champion.model_version == str(version.version),
        )

    def _fetch(self, version: ModelVersion, sha256: str) -> ResolvedVersion:
        """Give the version's files from the cache, which is filed by hash, or fetch and verify them."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ModelError(f"version {version.version} was not registered by p2es: it carries no sha256")
        folder = self._cache / sha256
        if folder.is_dir() and _hash_or_none(folder) == sha256:
            return ResolvedVersion(str(version.version), sha256, folder)
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self._cache) as staging:
            fetched = _download(str(version.source), staging, self._settings.tracking_uri)
            if _hash_or_none(fetched) != sha256:
                raise ModelError(f"the files of version {version.version} are not the registered ones: refused")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                fetched.rename(folder)
            except OSError:
                # Another process put the same files there first.
                if _hash_or_none(folder) != sha256:
                    raise
        return ResolvedVersion(str(version.version), sha256, folder)

    @property
    def _cache(self) -> Path:
        if self._settings.is_local:
            return Path(self._settings.path("cache"))
        return Path.home() / ".cache" / "p2es"


def _parse(reference: str) -> str:
    """Give the version number or alias that a reference names."""
    name = reference
    if reference.startswith("models:/"):
        model, mark, name = re.fullmatch(r"models:/([^/@]*)([/@]?)(.*)", reference).groups()  # type: ignore[union-attr]
        if model != NAME or not mark or (mark == "/") != name.isdigit():
            raise ModelError(f"{reference} is no version of {NAME}: write models:/{NAME}/3 or models:/{NAME}@champion")
    if not (re.fullmatch(r"[1-9][0-9]{0,8}", name) or _ALIAS.fullmatch(name)):
        raise ConfigError(f"{name!r} is no version: give a number, or an alias such as champion")
    return name


def _standing(entries: Sequence[audit.Entry]) -> list[audit.Entry]:
    """Give the champions a rollback can go back through: a promotion adds one, a rollback takes one off."""
    standing: list[audit.Entry] = []
    for entry in entries:
        if entry.action == "rollback":
            standing.pop()
        else:
            standing.append(entry)
    return standing


def _download(uri: str, folder: str, tracking_uri: str) -> Path:
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=tracking_uri))
    except MLFLOW_ERRORS as error:
        raise ModelError(f"the files of the version are missing ({first_line(error)}): register it again") from error


def _hash_or_none(folder: Path) -> str | None:
    try:
        return folder_sha256(folder)
    except ModelError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"
