"""Coverage-guided fuzzing of a reader: only samples or a RecordError may come out, in under a second and 600 MB.

Needs atheris, which is no dependency of the project: make an environment of its own that sees this one's packages,

    python -m venv --system-site-packages /tmp/fuzz && /tmp/fuzz/bin/pip install atheris
    /tmp/fuzz/bin/python benchmarks/fuzz_formats.py edf --seconds 300

What it finds is left in the folder that it prints; a finding that is mended becomes a case in the tests.
"""

import argparse
import gzip
import importlib
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

FORMATS = ("edf", "vital", "dicom", "aecg")
ROOT = Path(__file__).parents[1]


def seeds(name: str, folder: Path) -> None:
    """Write valid files of a format, by the writers of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    made = importlib.import_module(f"test_{name}")
    if name == "edf":
        made.write(folder / "a", [made.channel("ECG I", 50, seconds=3), made.channel("PPG", 20, "", seconds=3)])
        made.write(folder / "b", [made.channel("ECG I", 50, seconds=3, bdf=True)])
        made.discontinuous(folder / "c", [0, 1, 5], fs=50)
    elif name == "vital":
        blocks = [*made.blocks(1, made.ramp(60), size=20), *made.blocks(2, made.ramp(60), code="<f4", size=30)]
        tracks = [made.device(1, "SNUADC"), made.track(1, "ECG_II"), made.track(2, "PLETH", unit="", form=1)]
        for packed in (None, 0, 1):
            (folder / f"{packed}").write_bytes(made.vitalfile(*tracks, *blocks, packed=packed))
    elif name == "dicom":
        group = made.group([made.channel(), made.channel("2:3", "Lead V1")], made.steps(50, 2))
        for syntax in (made.ImplicitVRLittleEndian, made.ExplicitVRLittleEndian):
            made.write(folder / syntax.name, group, syntax=syntax, PatientAge="045Y", PatientSize="1.8")
    else:
        sets = made.sequence_set([made.lead(samples=20)]), made.sequence_set([made.lead("MDC_ECG_LEAD_V1", 9)])
        (folder / "a").write_text(made.document(made.rhythm(*sets)))


def target(name: str, path: Path) -> Callable[[bytes], None]:
    """Give the function that is fuzzed; the packets of a `.vital` file are fuzzed and then packed."""
    reader = importlib.import_module(f"p2es.formats.{name}")
    errors = importlib.import_module("p2es.errors")

    def run(data: bytes) -> None:
        path.write_bytes(gzip.compress(data, 0) if name == "vital" else data)
        reader.is_mine(data[:4096])
        try:
            for recording in reader.read(path, "r", "s", []):
                for signal in recording.signals:
                    signal.read(0, 1000)
                    signal.read(max(signal.samples.size - 1000, 0))
        except errors.RecordError as error:
            if "\n" in str(error):
                raise AssertionError("an error of more than one line") from error

    return run


def main() -> None:
    """Fuzz one reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="corpus to go on with; a new one when not given")
    arguments = parser.parse_args()
    try:
        import atheris
    except ImportError:
        parser.error("atheris is not installed: see above how to get it")
    warnings.simplefilter("error")
    with atheris.instrument_imports(include=["p2es.formats", "pydicom", "defusedxml"]):
        importlib.import_module(f"p2es.formats.{arguments.format}")
        if arguments.format == "dicom":
            importlib.import_module("pydicom.filereader")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments.format}-"))
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    seeds(arguments.format, folder / "corpus")
    print(f"corpus and findings: {folder}", flush=True)
    limits = [f"-max_total_time={arguments.seconds}", "-timeout=5", "-rss_limit_mb=600", "-max_len=20000"]
    atheris.Setup(
        [sys.argv[0], *limits, f"-artifact_prefix={folder}/finding-", str(folder / "corpus")],
        target(arguments.format, folder / "input"),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
