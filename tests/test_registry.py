import json
import multiprocessing
import shutil
import threading
from pathlib import Path

import mlflow
import pytest

from p2es.errors import ConfigError, ModelError
from p2es.evaluation.goals import GOALS
from p2es.evaluation.report import VERSION
from p2es_platform import audit, registry
from p2es_platform.gate import FOLLOWS_PULSE, Check, GateReport
from p2es_platform.mlflow_client import connect
from p2es_platform.registry import Registry, folder_sha256
from p2es_platform.settings import Settings
from p2es_platform.tracking import Tracker
from pipelines import promote
from pipelines.recipes import demo

# MLflow 3.17 maps its tables in a way that SQLAlchemy 2.1 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PASSED = GateReport(True, (Check("finite", "", "1", True, True),), False, "no champion yet")
MISSED = GateReport(False, (Check("finite", "", "0", False, True),), False, "no champion yet")


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory):
    # MLflow takes 2 s to lay out its tables; the tests copy them.
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def settings(tmp_path, empty_mlflow):
    (tmp_path / "storage").mkdir()
    shutil.copy(empty_mlflow, tmp_path / "storage" / "mlflow.db")
    return Settings(P2ES_STORAGE=str(tmp_path / "storage"), MLFLOW_TRACKING_URI=None)


@pytest.fixture
def run_id(settings):
    return Tracker.start(
        settings.tracking_uri,
        experiment="p2es",
        name="demo",
        fingerprint="aa",
        params={},
        tags={},
        dataset_name="demo",
        dataset_digest="dd",
        artifact_root=settings.path("mlartifacts"),
    ).run_id


def model(folder: Path, weights: bytes) -> Path:
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(weights)
    (folder / "inner" / "config.json").write_text('{"name": "p2es"}')
    return folder


def register(settings, run_id, tmp_path, weights: bytes, figure: float = 0.5):
    folder = model(tmp_path / f"model-{weights.hex()}", weights)
    report = {
        "recipe": "demo",
        "dataset": {"hash": "dd"},
        "model": {"sha256": folder_sha256(folder)},
        "figures": {"a": figure},
    }
    return Registry(settings).register(folder, run_id, report, "# card")


def alias(settings) -> str:
    client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
    return str(client.get_model_version_by_alias("p2es", "champion").version)


def test_the_hash_sees_every_byte_and_name_and_nothing_else(tmp_path):
    first = folder_sha256(model(tmp_path / "a", b"123"))
    assert folder_sha256(shutil.copytree(tmp_path / "a", tmp_path / "copy")) == first
    assert folder_sha256(model(tmp_path / "b", b"124")) != first
    (tmp_path / "copy" / "weights.bin").rename(tmp_path / "copy" / "weights2.bin")
    assert folder_sha256(tmp_path / "copy") != first
    (tmp_path / "a" / "more").write_bytes(b"")
    assert folder_sha256(tmp_path / "a") != first
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "nowhere"):
        with pytest.raises(ModelError, match="missing or empty"):
            folder_sha256(tmp_path / missing)


def test_what_is_registered_comes_back_byte_for_byte_from_another_process_view(settings, run_id, tmp_path):
    row = register(settings, run_id, tmp_path, b"one")
    for reference in (row.version, int(row.version), f"models:/p2es/{row.version}"):
        found = Registry(settings).resolve(reference)
        assert (found.version, found.sha256) == (row.version, row.sha256)
        assert (found.folder / "weights.bin").read_bytes() == b"one"
    assert Registry(settings).report(row.version)["figures"] == {"a": 0.5}
    tags = mlflow.MlflowClient(tracking_uri=settings.tracking_uri).get_model_version("p2es", row.version).tags
    assert (tags["p2es.recipe"], tags["p2es.dataset_hash"]) == ("demo", "dd")


def test_the_same_model_and_report_are_one_version(settings, run_id, tmp_path):
    first = register(settings, run_id, tmp_path, b"one")
    assert register(settings, run_id, tmp_path, b"one").version == first.version
    other_report = register(settings, run_id, tmp_path, b"one", figure=0.6)
    other_model = register(settings, run_id, tmp_path, b"two")
    assert len({first.version, other_report.version, other_model.version}) == 3
    assert Registry(settings).report(first.version)["figures"] == {"a": 0.5}
    assert [row.version for row in Registry(settings).list_versions()] == ["1", "2", "3"]


def test_a_report_of_another_model_is_not_registered(settings, run_id, tmp_path):
    folder = model(tmp_path / "m", b"one")
    with pytest.raises(ModelError, match="another model"):
        Registry(settings).register(folder, run_id, {"model": {"sha256": "0" * 64}}, "")
    assert Registry(settings).list_versions() == []


def test_a_spoilt_cache_is_fetched_again_and_a_spoilt_artifact_is_refused(settings, run_id, tmp_path):
    row = register(settings, run_id, tmp_path, b"one")
    found = Registry(settings).resolve(row.version)
    (found.folder / "weights.bin").write_bytes(b"bad")
    assert (Registry(settings).resolve(row.version).folder / "weights.bin").read_bytes() == b"one"
    for path in Path(settings.path("mlartifacts")).rglob("weights.bin"):
        path.write_bytes(b"bad")
    assert Registry(settings).resolve(row.version).sha256 == row.sha256  # the cache still holds the good ones
    shutil.rmtree(settings.path("cache"))
    with pytest.raises(ModelError, match="not the registered ones"):
        Registry(settings).resolve(row.version)
    assert list(Path(settings.path("cache")).iterdir()) == []
    shutil.rmtree(settings.path("mlartifacts"))
    with pytest.raises(ModelError, match="missing") as caught:
        Registry(settings).resolve(row.version)
    assert "\n" not in str(caught.value)


def test_a_changed_report_is_refused(settings, run_id, tmp_path):
    row = register(settings, run_id, tmp_path, b"one")
    for path in Path(settings.path("mlartifacts")).rglob("report.json"):
        path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(ModelError, match="report of version 1 is not the registered one"):
        Registry(settings).report(row.version)


@pytest.mark.parametrize("reference", ["7", "models:/p2es/7", "challenger", "models:/p2es@challenger", "champion"])
def test_a_version_that_does_not_exist_is_one_clear_line(settings, reference):
    with pytest.raises(ModelError, match=r"p2es models|p2es promote") as caught:
        Registry(settings).resolve(reference)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reference", ["latest", "v3", "../x", "", "0", "-1", "a b", "CHAMPION", "é", "a" * 64])
def test_names_that_are_no_version_are_refused(settings, reference):
    with pytest.raises(ConfigError, match="no version"):
        Registry(settings).resolve(reference)


@pytest.mark.parametrize("reference", ["models:/other/3", "models:/p2es", "models:/p2es@3", "models:/p2es/champion"])
def test_addresses_of_other_models_are_refused(settings, reference):
    with pytest.raises(ModelError, match="models:/p2es/3"):
        Registry(settings).resolve(reference)


def test_promotions_and_rollbacks_walk_back_through_the_champions(settings, run_id, tmp_path):
    for weights in (b"1", b"2", b"3"):
        register(settings, run_id, tmp_path, weights)
    here = Registry(settings)
    assert here.champion() is None
    for version in ("1", "2", "3"):
        here.promote(version, PASSED, who="ann")
        assert (here.resolve("champion").version, alias(settings)) == (version, version)
    assert [row.champion for row in here.list_versions()] == [False, False, True]
    here.promote("3", PASSED)  # again: nothing changes
    assert here.champion().number == 3
    assert here.rollback().model_version == "2"
    assert here.rollback().model_version == "1"
    assert (here.resolve("champion").version, alias(settings)) == ("1", "1")
    with pytest.raises(ModelError, match="no earlier champion"):
        here.rollback()
    here.promote("3", PASSED)
    assert here.rollback().model_version == "1"
    actions = [(entry.number, entry.action) for entry in audit.read(settings.path("audit"))]
    assert actions == list(
        enumerate(["promote", "promote", "promote", "rollback", "rollback", "promote", "rollback"], start=1)
    )


def test_a_version_that_missed_the_gate_or_lost_its_files_is_not_promoted(settings, run_id, tmp_path):
    register(settings, run_id, tmp_path, b"1")
    register(settings, run_id, tmp_path, b"2")
    here = Registry(settings)
    with pytest.raises(ModelError, match="missed finite"):
        here.promote("1", MISSED)
    here.promote("1", PASSED)
    here.promote("2", PASSED)
    shutil.rmtree(settings.path("cache"))
    shutil.rmtree(settings.path("mlartifacts"))
    with pytest.raises(ModelError):
        here.promote("1", PASSED)
    with pytest.raises(ModelError):
        here.rollback()
    assert here.champion().model_version == "2"


def test_the_audit_rules_over_an_alias_moved_by_hand(settings, run_id, tmp_path):
    register(settings, run_id, tmp_path, b"1")
    register(settings, run_id, tmp_path, b"2")
    here = Registry(settings)
    here.promote("1", PASSED)
    mlflow.MlflowClient(tracking_uri=settings.tracking_uri).set_registered_model_alias("p2es", "champion", "2")
    assert here.resolve("champion").version == "1"
    here.promote("1", PASSED)
    assert alias(settings) == "1"


def _promote(storage: str, version: str) -> None:
    Registry(Settings(P2ES_STORAGE=storage, MLFLOW_TRACKING_URI=None)).promote(version, PASSED, who=version)


def test_racing_promoters_are_all_audited_and_the_alias_is_the_last(settings, run_id, tmp_path):
    versions = [register(settings, run_id, tmp_path, bytes([k])).version for k in range(6)]
    for version in versions:
        Registry(settings).resolve(version)
    threads = [threading.Thread(target=_promote, args=(settings.root, version)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = audit.read(settings.path("audit"))
    assert sorted(entry.model_version for entry in entries) == versions
    assert alias(settings) == entries[-1].model_version == Registry(settings).resolve("champion").version


def append(folder: str, after: int, version: str = "1") -> audit.Entry:
    return audit.append(
        folder,
        after,
        action="promote",
        model_version=version,
        sha256="a" * 64,
        who="ann",
        details={"passed": True},
    )


def _race(folder: str, barrier, results) -> None:
    barrier.wait()
    try:
        append(folder, 0)
    except FileExistsError:
        results.put("taken")
    else:
        results.put("written")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_only_one_of_many_processes_gets_a_number(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_race, args=(str(tmp_path / "audit"), barrier, results)) for _ in range(8)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(outcomes) == ["taken"] * 7 + ["written"]
    assert [path.name for path in (tmp_path / "audit").iterdir()] == ["000001.json"]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_the_audit_reads_back_and_refuses_a_second_entry_of_a_number(where, tmp_path):
    folder = str(tmp_path / "audit") if where == "local" else f"memory://{tmp_path.name}/audit"
    assert audit.read(folder) == []
    written = [append(folder, k, str(k + 5)) for k in range(3)]
    assert audit.read(folder) == written
    with pytest.raises(FileExistsError):
        append(folder, 2, "9")
    assert audit.read(folder) == written


@pytest.mark.parametrize("fault", ["changed", "removed", "torn", "swapped"])
def test_an_audit_that_was_tampered_with_is_refused(fault, tmp_path):
    for k in range(3):
        append(str(tmp_path), k, str(k + 5))
    second = tmp_path / "000002.json"
    if fault == "changed":
        fields = json.loads(second.read_text())
        second.write_text(json.dumps(fields | {"model_version": "1"}, indent=1))
    elif fault == "removed":
        second.unlink()
    elif fault == "torn":
        second.write_bytes(second.read_bytes()[:40])
    else:
        third = tmp_path / "000003.json"
        a, b = second.read_bytes(), third.read_bytes()
        second.write_bytes(b)
        third.write_bytes(a)
    with pytest.raises(ModelError, match="audit"):
        audit.read(str(tmp_path))


def test_the_module_function_reads_the_environment(settings, run_id, tmp_path, monkeypatch):
    row = register(settings, run_id, tmp_path, b"one")
    monkeypatch.setenv("P2ES_STORAGE", settings.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert registry.resolve(f"models:/p2es/{row.version}").sha256 == row.sha256


def evaluated(folder: Path, follows_pulse=(0.4, 0.35, 0.45)):
    value, low, high = follows_pulse
    return {
        "format": "p2es-report",
        "version": VERSION,
        "recipe": "demo",
        "dataset": {"hash": "d" * 64, "split": "test", "people": 9, "windows": 40, "simulated": True},
        "model": {"sha256": folder_sha256(folder)},
        "figures": {"finite_share": {"value": 1.0}, "lead_law_uv": {"value": 0.01, "low": None, "high": None}},
        "controls": {"shuffled_ppg": {"finite_share": {"value": 1.0}}},
        "contrasts": {FOLLOWS_PULSE: {"value": value, "low": low, "high": high}},
        "verdict": {"stopped": False, "memorised": False},
    }


def stage(settings, run_id, tmp_path, weights: bytes, follows_pulse=(0.4, 0.35, 0.45)):
    folder = model(tmp_path / f"model-{weights.hex()}", weights)
    report = evaluated(folder, follows_pulse)
    return promote.run(demo(), settings, trained=str(folder), run_id=run_id, report=report)


def test_the_stage_promotes_what_passes_and_only_registers_what_does_not(settings, run_id, tmp_path):
    missed = stage(settings, run_id, tmp_path, b"0", (0.1, -0.1, 0.3))
    assert (missed.version, missed.passed, missed.alias_moved) == ("1", False, False)
    assert [c.name for c in missed.checks if c.mandatory and not c.passed] == ["follows_pulse"]
    with pytest.raises(ModelError, match="no version is champion"):
        Registry(settings).resolve("champion")
    first = stage(settings, run_id, tmp_path, b"1")
    assert (first.version, first.passed, first.alias_moved) == ("2", True, True)
    assert "no champion" in first.note
    worse = stage(settings, run_id, tmp_path, b"2", (0.2, 0.15, 0.25))
    assert not worse.passed
    assert Registry(settings).resolve("champion").version == "2"
    repeated = stage(settings, run_id, tmp_path, b"1")
    assert (repeated.version, repeated.passed, repeated.alias_moved) == ("2", True, False)
    assert len(Registry(settings).history()) == 1


def test_a_registered_version_is_judged_again_by_its_own_report(settings, run_id, tmp_path):
    stage(settings, run_id, tmp_path, b"1")
    stage(settings, run_id, tmp_path, b"2", (0.5, 0.45, 0.55))
    # The second is champion and better than the first's interval allows.
    refused = promote.again(demo(), settings, version="1")
    assert [c.name for c in refused.checks if c.mandatory and not c.passed] == ["champion"]
    assert promote.rollback(settings) == "1"
    assert promote.again(demo(), settings, version="2").alias_moved
    rows = promote.models(settings)
    assert [(row["version"], row["champion"]) for row in rows] == [("1", "was"), ("2", "now")]
    with pytest.raises(ModelError, match="no version 9"):
        promote.again(demo(), settings, version="9")


def test_a_lost_report_of_the_champion_is_noted_and_bars_nobody(settings, run_id, tmp_path):
    stage(settings, run_id, tmp_path, b"1")
    for path in Path(settings.path("mlartifacts")).rglob("report.json"):
        path.unlink()
    second = stage(settings, run_id, tmp_path, b"2", (0.2, 0.15, 0.25))
    assert second.passed
    assert "champion's report cannot be read" in second.note
    assert "no champion" not in second.note


def test_the_card_says_synthetic_and_shows_each_figure_and_goal(tmp_path):
    report = evaluated(model(tmp_path / "m", b"1"))
    text = promote.card(report)
    assert "SYNTHETIC" in text
    assert "simulated people" in text
    assert text.index("It is not shown that it uses demographics") < text.index("| finite_share |")
    assert "May be claimed: finite, lead_laws, lineage, follows_pulse, G1" in text
    for name in (*report["figures"], *report["controls"], *(goal.name for goal in GOALS)):
        assert f"| {name} |" in text


def test_the_card_of_a_leak_says_so_before_any_figure(tmp_path):
    report = evaluated(model(tmp_path / "m", b"1"))
    text = promote.card(report | {"audit": {"raised": True, "message": "leakage suspected: look for shared people"}})
    assert text.index("Leakage suspected: look for shared people.") < text.index("## Figures")
    assert "May be claimed: nothing." in text


def test_a_stopped_report_is_registered_and_not_promoted(settings, run_id, tmp_path):
    folder = model(tmp_path / "leak", b"1")
    report = evaluated(folder) | {"audit": {"raised": True, "message": "leakage suspected: look for shared people"}}
    found = promote.run(demo(), settings, trained=str(folder), run_id=run_id, report=report)
    assert not found.passed
    assert [c.name for c in found.checks if c.mandatory and not c.passed] == ["stopped"]
    with pytest.raises(ModelError, match="no version is champion"):
        Registry(settings).resolve("champion")


def test_a_report_of_the_first_version_is_told_in_one_line(settings, run_id, tmp_path):
    folder = model(tmp_path / "old", b"1")
    with pytest.raises(ModelError, match="p2es evaluate") as caught:
        promote.run(demo(), settings, trained=str(folder), run_id=run_id, report=evaluated(folder) | {"version": 1})
    assert "\n" not in str(caught.value)
