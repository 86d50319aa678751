"""The command as a person types it: help, mistakes, exit status."""

import subprocess
import sys

import pytest

from pipelines import cli

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def run(*argv, settings=None, capsys=None):
    try:
        status = cli.main(list(argv))
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr()


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "P2ES_SECRET", "P2ES_ENDPOINT_TOKEN", "P2ES_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("P2ES_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setattr(cli, "_quiet", lambda: None)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)


def test_help_names_every_command_with_an_example(capsys):
    status, said = run("--help", capsys=capsys)
    assert status == 0
    for name, (_, example) in cli.COMMANDS.items():
        assert f"  {name} " in said.out
        assert example in said.out


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_each_command_has_help_with_its_example(command, capsys):
    status, said = run(command, "--help", capsys=capsys)
    assert status == 0
    assert cli.COMMANDS[command][1] in " ".join(said.out.split())


def test_the_number_of_a_recipe_is_the_default_and_can_be_replaced():
    args = cli._parse("train", ["--recipe", "small", "--train.windows", "123"])
    assert args.recipe.name == "small"
    assert args.recipe.train.windows == 123
    assert args.recipe.simulate.people == 2000


MISTAKES = {
    "no such command": (["trian"], "--help"),
    "no such recipe": (["train", "--recipe", "huge"], "demo"),
    "a misspelt key": (["train", "--train.windws", "3"], "--train.windows"),
    "a number that is none": (["train", "--train.windows", "many"], "many"),
    "groups that do not match": (["train", "--group.clusters", "3"], "prototypes"),
    "a missing file": (["translate", "nothing/here.hea"], "there is no nothing/here.hea"),
    "an age over 89 as archives write it": (["translate", "README.md", "--age", ">89"], "give the age in years"),
    "a sex in a digit": (["translate", "README.md", "--sex", "1"], "write F, M"),
    "an impossible height": (["translate", "README.md", "--height-cm", "6"], "outside 50 to 250"),
    "no model yet": (["translate", "README.md"], "p2es"),
    "a version that does not exist": (["promote", "--version", "77"], "77"),
    "nothing to go on from": (["train", "--recipe", "site"], "--from champion"),
    "a version to go on from that does not exist": (["train", "--from", "77"], "77"),
    "a number to search that is not there": (["tune", "--tune.search", "train.rate:log:1:2"], "no train.rate"),
    "no bounds to search in": (["tune", "--tune.search", "train.ema"], "path:log:low:high"),
    "more workers at least than at most": (["train", "--resources.min-workers", "5"], "resources.min-workers"),
    "nothing to roll back": (["rollback"], ""),
    "no cluster to submit to": (["submit", "train"], "RAY_ADDRESS"),
    "nothing to submit": (["submit", "nonsense"], "p2es submit train"),
    "no cluster whose jobs to list": (["jobs"], "RAY_ADDRESS"),
    "no job named": (["jobs", "logs"], "job"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_and_status_2(mistake, capsys):
    argv, says = MISTAKES[mistake]
    status, said = run(*argv, capsys=capsys)
    assert status == 2
    assert "Traceback" not in said.err + said.out
    assert says in " ".join((said.err + said.out).split())
    # What tyro refuses comes with suggestions, a few lines of them.
    if "p2es train --help" not in said.err:
        assert len(said.err.strip().splitlines()) == 1


def test_a_wrong_setting_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    status, said = run("models", capsys=capsys)
    assert status == 2
    assert "127.0.0.1:1" in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_models_of_an_empty_registry_says_what_to_do(capsys):
    status, said = run("models", capsys=capsys)
    assert status == 0
    assert "p2es promote" in said.out


def test_importing_the_command_starts_nothing():
    code = "import sys, pipelines.cli; print(sorted({'ray', 'torch', 'mlflow', 'faiss'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "ray" not in done.stdout
    assert "mlflow" not in done.stdout


@pytest.mark.parametrize(
    "option", [("--ingest.step-s", "0"), ("--ingest.test-share", "2"), ("--ingest.name", "../elsewhere")]
)
def test_numbers_that_cannot_work_are_refused_before_anything_starts(option, capsys):
    assert cli.main(["ingest", "somewhere", *option]) == 2
    assert capsys.readouterr().err.startswith("p2es ingest: ingest.")
