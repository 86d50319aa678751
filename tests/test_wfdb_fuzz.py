import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_wfdb import BETWEEN, CORPUS, Opened, check, seeds, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2es.formats.wfdb_header import MAX_HEADER_BYTES

# Field by field what the specification allows, and what it does not.
WHOLE = st.one_of(st.integers(-3, 60), st.sampled_from([2**31, 10**15, -(2**63), 10**30]))
NUMBER = st.one_of(
    WHOLE,
    st.floats(width=32),
    st.sampled_from(["nan", "inf", "-inf", "1e-300", "1e999", "0", "٣", "1_0", "0x10", "+5."]),
)
NAME = st.sampled_from(
    ["r.dat", "r.dat", "a.dat", "~", "../r.dat", "/etc/passwd", "..", "-", "r.hea", "x", "a/../../r.dat"]
)
SEGMENT = st.sampled_from(["a", "a", "r", "x", "~", "../r", "", "a_layout"])
CODE = st.sampled_from([0, 8, 16, 24, 32, 61, 80, 160, 212, 310, 311, 508, 516, 524, 999])
LEAD = st.sampled_from(["II", "V1", "PLETH", "ECG 1", "Resp", "", "ABP", "\xb5", "carotid_880nm", "II+"])
UNIT = st.sampled_from(["mV", "uV", "NU", "", "%", "mV/s", "(", "\xb5V"])


@st.composite
def signal_line(draw):
    code = f"{draw(CODE)}"
    for mark in draw(st.lists(st.sampled_from("x:+"), max_size=3)):
        code += f"{mark}{draw(WHOLE)}"
    gain = f"{draw(NUMBER)}" + draw(st.sampled_from(["", "(%s)"])).replace("%s", f"{draw(NUMBER)}") + f"/{draw(UNIT)}"
    fields = [draw(NAME), code, gain, *(f"{draw(WHOLE)}" for _ in range(5)), draw(LEAD)]
    # The last fields may be missing; sometimes one in the middle is.
    fields = fields[: draw(st.sampled_from([9, 9, 9, 8, 5, 3, 2, 1]))]
    if draw(st.integers(0, 9)) == 0:
        del fields[draw(st.integers(0, len(fields) - 1))]
    return draw(st.sampled_from([" ", " ", "\t", "\x1c", "\x0b", "\u2028"])).join(fields)


@st.composite
def header_text(draw):
    segments = draw(st.booleans())
    count = draw(st.integers(0, 4))
    lines = [f"{draw(SEGMENT)} {draw(WHOLE)}" if segments else draw(signal_line()) for _ in range(count)]
    claimed = draw(st.one_of(st.just(count), st.just(count), WHOLE))
    name = f"r/{claimed}" if segments else "r"
    signals = 2 if segments else claimed
    rate = draw(st.one_of(st.just("125"), st.just("62.4725/999.56(5)"), NUMBER))
    length = draw(st.one_of(st.just(20), WHOLE, st.just("")))
    comments = draw(
        st.lists(
            st.sampled_from(["# age: >89", "#<sex>: F", "#", "\x1c", "\x85", " \u3000", "# person: x", "\0", "#\xb5"]),
            max_size=2,
        )
    )
    text = draw(st.sampled_from(["\n", "\n", "\r\n"])).join([*comments, f"{name} {signals} {rate} {length}", *lines])
    return text.encode(draw(st.sampled_from(["utf-8", "latin-1"])), errors="replace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def opened():
    return Opened()


GENEROUS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@GENEROUS
@given(header=header_text(), segment=header_text(), beats=st.binary(max_size=30), samples=st.binary(max_size=600))
def test_any_header_is_recordings_or_a_typed_error(folder, opened, header, segment, beats, samples):
    check(write(folder, BETWEEN.join([header, segment, beats, samples])), opened)


SEEDS = list(seeds())


@GENEROUS
@given(data=st.data())
def test_any_damage_to_a_good_record_is_recordings_or_a_typed_error(folder, opened, data):
    record = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(record) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "double", "swap", "digits"]))
        piece = record[at : at + data.draw(st.integers(1, 20))]
        if kind == "set":
            record[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del record[at : at + len(piece)]
        elif kind == "double":
            record[at:at] = piece
        elif kind == "swap":
            record[at : at + len(piece)] = piece[::-1]
        else:
            record[at:at] = str(data.draw(WHOLE)).encode()
        record = record or bytearray(b"r")
    check(write(folder, bytes(record)), opened)


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_the_seeds_are_good_records(folder, opened, number):
    assert check(write(folder, SEEDS[number]), opened) == "read"


def test_the_watch_sees_what_is_opened_outside(folder, opened):
    with pytest.raises(AssertionError, match="outside"), opened.within(folder / "archive"):
        (folder / "outside").write_bytes(b"")


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*")), ids=lambda path: path.name)
def test_findings_of_the_fuzzer_stay_mended(folder, opened, path):
    check(write(folder, path.read_bytes()), opened)


LINE = b"r.dat 16 200/mV 16 0 0 0 0 II\n"
GOOD = b"r 1 125 100\n" + LINE
FILL = MAX_HEADER_BYTES - 200
HUGE = {
    "a billion signals": (b"r 1000000000 125 100\n" + LINE, b""),
    "a quadrillion samples": (b"r 1 125 1000000000000000\n" + LINE, b""),
    "ten billion samples": (b"r 1 125 10000000000\n" + LINE, b""),
    "a million samples a frame": (b"r 1 0.1 0\n" + LINE.replace(b" 16 ", b" 16x1000000 ", 1), b""),
    "comment lines": (GOOD + b"#\n" * (FILL // 2), b""),
    "a comment of ages": (GOOD + b"#" + b"age " * (FILL // 4), b""),
    "a comment of blanks": (GOOD + b"#person" + b" " * FILL, b""),
    "empty lines": (GOOD + b"\n" * FILL, b""),
    "lines that are not announced": (GOOD + b"x 16\n" * (FILL // 5), b""),
    "a long name": (b"r 1 125 100\nr.dat 16 200/mV 16 0 0 0 0 " + b"ppg x" * (FILL // 5), b""),
    "a long gain": (b"r 1 125 100\nr.dat 16 " + b"1" * FILL + b" II\n", b""),
    "a long rate": (b"r 1 " + b"1" * FILL + b"\n", b""),
    "segments that are not there": (b"r/20000 1 125 0\n" + b"".join(b"s%07d 20\n" % k for k in range(20_000)), b""),
    "one segment over and over": (b"r/20000 1 125 0\n" + b"a 20\n" * 20_000, GOOD.replace(b"r", b"a", 1)),
    "one bad segment over and over": (b"r/20000 1 125 0\n" + b"a 20\n" * 20_000, b"nothing"),
    "too large": (GOOD + b"#" * MAX_HEADER_BYTES * 3, b""),
}


def test_no_header_costs_more_than_a_second_or_300_mb(tmp_path):
    cases = tmp_path / "cases"
    cases.mkdir()
    for k, (header, segment) in enumerate(HUGE.values()):
        (cases / f"{k:02d}").write_bytes(BETWEEN.join([header, segment, b"\0\0", bytes(4000)]))
    program = (
        "import json, os, re, sys; from pathlib import Path; import fuzz_wfdb\n"
        "opened, folder, found = fuzz_wfdb.Opened(), Path(os.path.realpath(sys.argv[2])), []\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    outcome = fuzz_wfdb.check(fuzz_wfdb.write(folder, path.read_bytes()), opened)\n"
        "    found.append(outcome if outcome == 'read' else outcome[-1])\n"
        # What getrusage says begins with the memory of the parent.
        "peak_kb = int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "print(json.dumps([found, peak_kb / 1024]))"
    )
    work = tmp_path / "work"
    work.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", program, str(cases), str(work)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found, peak_mb = json.loads(run.stdout)
    assert peak_mb < 300
    refused = {
        "a billion signals": "header",
        "a quadrillion samples": "header",
        "ten billion samples": "truncated",
        "a million samples a frame": "no_signal",
        "a long gain": "header",
        "a long rate": "rate",
        "segments that are not there": "missing_segment",
        "one bad segment over and over": "header",
        "too large": "header",
    }
    assert dict(zip(HUGE, found, strict=True)) == {name: refused.get(name, "read") for name in HUGE}
