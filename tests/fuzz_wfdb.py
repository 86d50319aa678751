"""Coverage-guided fuzzing of the WFDB reader, to be run by hand; the tests use its check, and do not need atheris.

    python -m pip install atheris
    python tests/fuzz_wfdb.py --minutes 10 --corpus /tmp/wfdb-corpus

An input is a record: header, header of a segment `a`, annotations and samples, between lines of `%%`. A crash is
written to the working directory, as libFuzzer does; put it into tests/corpus/wfdb, mend the reader, run the tests.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from wfdb_files import LEAST, encode, ramp

from p2es.errors import RecordError
from p2es.formats import shipped, wfdb
from p2es.recording import LazySamples

BETWEEN = b"\n%%\n"
CORPUS = Path(__file__).parent / "corpus" / "wfdb"
LIMIT_S = 1.0
# What `work_s` takes on two idle cores.
USUAL_WORK_S = 0.20


class Opened:
    """Every file that Python opens while it is watched; a hook of the interpreter can never be taken off."""

    def __init__(self):
        self.watching, self.paths = False, []
        shipped()  # p2es's own mappings, which are read once
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if self.watching and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
            self.paths.append(os.fsdecode(arguments[0]))

    @contextlib.contextmanager
    def within(self, folder):
        """Raise AssertionError when something outside `folder` was opened, modules aside."""
        self.watching, self.paths = True, []
        try:
            yield
        finally:
            self.watching = False
        others = [path for path in self.paths if not os.path.realpath(path).startswith((str(folder), sys.prefix))]
        assert not [path for path in others if not path.endswith((".py", ".pyc"))], others


def write(folder, data):
    """Write an input as the files of a record, and a file outside that nothing may open."""
    header, segment, beats, samples, *_ = [*data.split(BETWEEN, 3), b"", b"", b"", b""]
    archive = folder / "archive"
    archive.mkdir(exist_ok=True)
    for name, content in (
        ("r.hea", header),
        ("a.hea", segment),
        ("r.atr", beats),
        ("r.dat", samples),
        ("a.dat", samples),
    ):
        (archive / name).write_bytes(content)
    (folder / "r.dat").write_bytes(bytes(10_000))
    (folder / "r.hea").write_bytes(b"r 1 125 100\nr.dat 16 200/mV 16 0 0 0 0 II\n")
    return archive / "r.hea"


def seeds():
    """Give inputs that are good records: each format, FLAC, segments, skew, several rates."""
    names = ("II", "V1", "PLETH")
    for code in LEAST:
        lines = "".join(f"r.dat {code} 200(3)/mV 12 0 0 0 0 {name}\n" for name in names)
        steps = np.cumsum(ramp(40, 3) % 3, axis=0).ravel()
        samples = encode(code, steps, (0, 0, 0), (1, 1, 1))
        yield BETWEEN.join([f"r 3 125 40\n{lines}# age: 63 sex: F".encode(), b"", annotation_bytes(), samples])
    inner = "a 2 125 30\na.dat 16x2 200/mV 16 0 0 0 0 II\na.dat 16:3 1000/NU 16 0 0 0 0 PLETH\n"
    master = "r/4 2 125 90\na_layout 0\na 30\n~ 30\na 30\n#subject_id 10014354"
    samples = encode(16, np.arange(90))
    yield BETWEEN.join([master.encode(), inner.encode(), annotation_bytes(), samples])
    flac = io.BytesIO()
    soundfile.write(flac, ramp(80, 2).astype(np.int16), 125, subtype="PCM_16", format="FLAC")
    lines = "".join(f"r.dat 516x2+4 200/mV 14 8192 0 0 0 {name}\n" for name in names[:2])
    yield BETWEEN.join([f"r 2 62.5/999.5(12) 30\n{lines}".encode(), b"", b"", flac.getvalue()])


def annotation_bytes():
    """Give a beat, one far away, a note of the resolution, another beat and the end."""
    note = b"## time resolution: 250"
    words = [22 << 10, 63 << 10 | len(note)]
    return (
        np.array(words, "<u2").tobytes()
        + note
        + b"\0"
        + np.array([1 << 10 | 9, 59 << 10, 0, 7, 5 << 10 | 3, 0], "<u2").tobytes()
    )


def check(header, opened=None):
    """Read a record: it is recordings or a RecordError of one line, in time, and opens nothing outside its folder."""
    started = time.process_time()
    with opened.within(header.parent.parent / "archive") if opened else contextlib.nullcontext():
        outcome = _read(header)
        wfdb.files_of(header, header.stem)
    taken_s = time.process_time() - started
    # A busy machine does everything more slowly: what is over the limit is counted in the work it would do meanwhile.
    assert taken_s < LIMIT_S or taken_s * USUAL_WORK_S / work_s() < LIMIT_S, taken_s
    return outcome


def work_s():
    """Give how long a fixed piece of work of the same kind (lines matched and kept) takes now."""
    line = re.compile(r"(\S+) (\d+)(?: (\d+(?:\.\d+)?))?")
    started = time.process_time()
    for _ in range(20):
        kept = [line.match(f"s{k:07d} {k} 250").groups() for k in range(10_000)]
    assert len(kept) == 10_000
    return time.process_time() - started


def _read(header):
    skipped = []
    try:
        recordings = list(wfdb.read(header, header.stem, "s", skipped))
        for recording in recordings:
            for signal in recording.signals:
                _look_at(signal)
    except RecordError as error:
        skipped.append(error)
        recordings = []
    for error in skipped:
        assert error.reason
        assert "\n" not in str(error)
        assert len(str(error)) < 500
        assert str(header.parent) not in str(error)
    assert recordings or skipped
    return [error.reason for error in skipped] if not recordings else "read"


def _look_at(signal):
    size = signal.samples.size
    assert size >= 2
    assert np.isfinite(signal.fs_hz)
    for start, stop in ((0, 50), (size // 2 - 3, size // 2 + 40), (size - 9, size)):
        samples = signal.read(start, stop)
        assert samples.size == min(stop, size) - max(start, 0)
        assert samples.dtype == np.float32
        assert not np.isinf(samples).any()
    assert isinstance(signal.samples, (np.ndarray, LazySamples))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--corpus", type=Path, required=True, help="folder where inputs that reach new code are kept")
    parser.add_argument("inputs", nargs="*", type=Path, help="read only these inputs, and say what comes of them")
    args = parser.parse_args()
    opened = Opened()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(os.path.realpath(name))
        for path in args.inputs:
            sys.stdout.write(f"{path}: {check(write(folder, path.read_bytes()), opened)}\n")
        if not args.inputs:
            fuzz(folder, opened, args.corpus, args.minutes)


def fuzz(folder, opened, corpus, minutes):
    import atheris

    # Imported above without counters of its branches.
    for module in [name for name in sys.modules if name.startswith("p2es.formats")]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["p2es.formats"]):
        import p2es.formats.wfdb as instrumented
    globals()["wfdb"] = instrumented

    def one(data):
        check(write(folder, data), opened)

    corpus.mkdir(parents=True, exist_ok=True)
    kept = [path.read_bytes() for path in sorted(CORPUS.iterdir())] if CORPUS.is_dir() else []
    for k, data in enumerate([*seeds(), *kept]):
        (corpus / f"seed-{k:03d}").write_bytes(data)
    limits = [f"-max_total_time={round(minutes * 60)}", "-rss_limit_mb=600", "-timeout=5", "-max_len=4096"]
    dictionary = corpus.parent / "wfdb.dict"
    words = [
        " 16 ",
        "x4",
        ":3",
        "+24",
        "212",
        "516",
        "(",
        ")/mV",
        "/2 ",
        "~ ",
        "PLETH",
        "II",
        "nan",
        "../",
        "fLaC",
        "#",
    ]
    dictionary.write_text("\n".join(f'"{word}"' for word in [*words, "\\x0a%%\\x0a", "\\x00\\xec"]) + "\n")
    atheris.Setup([sys.argv[0], str(corpus), f"-dict={dictionary}", "-print_final_stats=1", *limits], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
