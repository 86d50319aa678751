import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"p2es": ROOT, "p2es_platform": ROOT / "platform", "pipelines": ROOT, "serve": ROOT}


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a checkout: no list of tracked files")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def modules() -> list[str]:
    found = []
    for package, home in PACKAGES.items():
        for path in sorted((home / package).rglob("*.py")):
            parts = path.relative_to(home).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.parametrize("folder", ["platform", "tests/platform", "tests"])
def test_nothing_shadows_the_standard_librarys_platform(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_platform_is_still_the_standard_librarys_in_the_checkout():
    done = subprocess.run(
        [sys.executable, "-c", "import platform, uuid; print(platform.system())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_layers_go_one_way():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


# What an import may not do: write, start processes or threads, connect, or start an engine.
_WATCH = """
import importlib, os, sys, threading
seen = []
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.fork", "socket.connect", "os.mkdir", "os.remove", "os.rename"):
        if watching: seen.append((event, str(arguments)[:200]))
    elif event == "open" and watching and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append((event, str(arguments)[:200]))
# Whatever the libraries do at their own import is theirs.
for name in ("torch", "mlflow", "faiss", "ray", "ray.data", "ray.train", "ray.train.torch", "ray.serve", "scipy.signal",
             "pyarrow.parquet", "sleepecg", "fsspec", "tyro", "fastapi", "pydantic_settings", "safetensors.torch",
             "ray.job_submission", "matplotlib.figure", "tqdm", "requests", "wfdb"):
    importlib.import_module(name)
watching = False
sys.addaudithook(watch)
threads, environment, watching = threading.active_count(), dict(os.environ), True
for name in sys.argv[1:]:
    importlib.import_module(name)
watching = False
import ray
changed = {k for k in {*os.environ, *environment} if os.environ.get(k) != environment.get(k)}
print(seen, threading.active_count() - threads, ray.is_initialized(), sorted(changed))
"""


def imported(folder: Path, *names: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-B", "-W", "ignore", "-c", _WATCH, *names],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_happens_at_import(tmp_path):
    done = imported(tmp_path, *modules())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines() == ["[] 0 False []"]
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_happens_at_import_is_seen(tmp_path):
    (tmp_path / "busy.py").write_text(
        "import os, subprocess, threading, time\n"
        "open('left', 'w').close()\n"
        "subprocess.run(['true'])\n"
        "os.environ['LEFT'] = '1'\n"
        "threading.Thread(target=time.sleep, args=(2,), daemon=True).start()\n"
    )
    said = imported(tmp_path, "busy").stdout
    assert "('open'" in said
    assert "('subprocess.Popen'" in said
    assert said.strip().endswith("1 False ['LEFT']")


# Split, so that this file does not hold what it forbids.
_FORBIDDEN = re.compile(
    r"(?:^|[\s\"'=(:`])/(?:work|farm|root)/"
    r"|/tmp/" + r"bash_jobs|pypi\." + r"org|python" + r"hosted|registry\.npm" + r"js|deb\.deb" + r"ian",
    re.MULTILINE,
)


def test_no_tracked_file_names_a_machine_path_or_a_registry():
    hits = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        hits += [f"{path.relative_to(ROOT)}: {found.group().strip()}" for found in _FORBIDDEN.finditer(text)]
    assert hits == []


@pytest.mark.parametrize("text", ["open('/wo" + "rk/x')", "/ro" + "ot/.ray", "https://pypi." + "org/simple"])
def test_the_search_for_machine_paths_finds_them(text):
    assert _FORBIDDEN.search(text)


def test_no_recording_and_nothing_large_is_tracked():
    kinds = {".dat", ".hea", ".mat", ".edf", ".dcm", ".parquet", ".safetensors", ".db", ".npz", ".pkl", ".pt"}
    assert [str(path.relative_to(ROOT)) for path in tracked() if path.suffix in kinds] == []
    assert [str(path.relative_to(ROOT)) for path in tracked() if path.stat().st_size > 2**20] == []


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line.strip() and not line.startswith("#"))


def closure() -> dict[str, Requirement]:
    """Follow the requirements of the base and dev installs through what is installed."""
    listed = project()["project"]
    waiting = [Requirement(text) for text in (*listed["dependencies"], *listed["optional-dependencies"]["dev"])]
    found: dict[str, Requirement] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        found.setdefault(name, requirement)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        for text in metadata.requires(name) or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                waiting.append(inner)
    return found


def test_the_constraints_fit_what_the_project_asks_for():
    pinned = constraints()
    listed = project()["project"]
    for text in (*listed["dependencies"], *listed["optional-dependencies"]["dev"]):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name], prereleases=True), text


def test_the_constraints_pin_everything_that_is_brought_along():
    missing = sorted(set(closure()) - {canonicalize_name(name) for name in constraints()})
    assert missing == []


def test_the_wheel_holds_the_packages_and_only_them():
    packed = project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(Path(name).name for name in packed) == sorted(PACKAGES)
