"""The spool: what is written is read by whoever comes after a kill, at any cut."""

import errno
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es_platform.metric_spool import Line, Spool, runs_in

RUN = "0" * 32
names = st.text("abc_/ é", min_size=1, max_size=8)
lines = st.lists(
    st.builds(
        Line,
        st.integers(0, 10**12),
        st.integers(0, 2**45),
        st.dictionaries(names, st.floats(allow_infinity=False), min_size=1, max_size=4),
    ),
    max_size=8,
)


def same(first, second):
    """Equal, NaN to NaN: repr is exact for floats."""
    return sorted(map(repr, first)) == sorted(map(repr, second))


def dead(folder, written, run_id=RUN):
    """What a process that is gone has left."""
    spool = Spool(folder, run_id)
    for line in written:
        spool.append(line)
    spool.close()


@settings(deadline=None, max_examples=40)
@given(written=lines)
def test_what_was_written_is_taken_over_in_the_order_of_steps(written, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spool")
    dead(folder, written[: len(written) // 2])
    dead(folder, written[len(written) // 2 :])
    heir = Spool(folder, RUN)
    found = heir.adopt()
    assert same(found, written)
    assert [line.step for line in found] == sorted(line.step for line in written)
    # Until MLflow has it, it stays for the next heir, should this one die too.
    heir.close()
    again = Spool(folder, RUN)
    assert same(again.adopt(), written)
    again.forget()
    assert Spool(folder, RUN).adopt() == []
    assert list(folder.glob("*.jsonl")) == []


def test_a_line_that_was_cut_is_told_and_spoils_no_other(tmp_path, caplog):
    written = [Line(step, 1000 + step, {"loss": 1 / step, "é": math.nan}) for step in range(1, 4)]
    dead(tmp_path, written)
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    ends = [sum(map(len, whole.split(b"\n")[: k + 1])) + k for k in (1, 2, 3)]
    for length in range(1, len(whole) + 1):
        path.write_bytes(whole[:length])
        caplog.clear()
        spool = Spool(tmp_path, RUN)
        found = spool.adopt()
        spool.close()
        complete = sum(end <= length for end in ends)
        assert same(found, written[:complete])
        # A cut right behind a line break has taken nothing of the next line that could be told.
        assert ("cut off" in caplog.text) == (length not in ends and whole[length - 1 : length] != b"\n")


def test_what_a_living_process_writes_stays_its_own(tmp_path):
    script = (
        "import sys; from pathlib import Path; from p2es_platform.metric_spool import Line, Spool\n"
        f"spool = Spool(Path(sys.argv[1]), '{RUN}'); spool.append(Line(1, 1, {{'loss': 1.0}})); spool.turn()\n"
        "spool.append(Line(2, 2, {'loss': 0.5})); print('written', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "written\n"
            assert Spool(tmp_path, RUN).adopt() == []
        finally:
            process.kill()
    assert [line.step for line in Spool(tmp_path, RUN).adopt()] == [1, 2]


def test_two_heirs_do_not_get_the_same(tmp_path):
    dead(tmp_path, [Line(1, 1, {"loss": 1.0})])
    first, second = Spool(tmp_path, RUN), Spool(tmp_path, RUN)
    assert len(first.adopt()) == 1
    assert second.adopt() == []


def test_runs_do_not_see_each_other(tmp_path):
    dead(tmp_path, [Line(1, 1, {"loss": 1.0})], "a" * 32)
    dead(tmp_path, [Line(2, 2, {"loss": 1.0})], "b" * 32)
    Spool(tmp_path, "c" * 32).keep_end("FAILED")
    Spool(tmp_path, "d" * 32).keep_file("samples/one.png", b"1")
    assert runs_in(tmp_path) == [letter * 32 for letter in "abcd"]
    assert [line.step for line in Spool(tmp_path, "b" * 32).adopt()] == [2]
    assert runs_in(tmp_path / "nowhere") == []


def test_a_file_that_was_written_over_while_it_was_sent_stays(tmp_path):
    spool = Spool(tmp_path, RUN)
    spool.keep_file("samples/one.png", b"first")
    ((name, path),) = spool.files()
    version = path.stat().st_ino
    spool.keep_file(name, b"second")
    spool.drop_file(path, version)
    assert path.read_bytes() == b"second"
    spool.drop_file(path, path.stat().st_ino)
    assert spool.files() == []
    spool.drop_file(path, version)  # gone already, by another heir


def test_how_the_run_ended_is_kept_until_it_is_dropped(tmp_path):
    spool = Spool(tmp_path, RUN)
    assert spool.end() is None
    spool.keep_end("FAILED")
    status, time_ms = Spool(tmp_path, RUN).end()
    assert status == "FAILED"
    assert time_ms > 1_700_000_000_000
    spool.drop_end()
    assert spool.end() is None


def test_a_full_disk_is_an_error_that_names_the_place(tmp_path, monkeypatch):
    spool = Spool(tmp_path, RUN)
    spool.append(Line(1, 1, {"loss": 1.0}))
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:5]))
    with pytest.raises(OSError, match="takes no more"):
        spool.append(Line(2, 2, {"loss": 1.0}))
    monkeypatch.setattr(os, "write", write)
    spool.append(Line(3, 3, {"loss": 1.0}))
    spool.close()
    assert [line.step for line in Spool(tmp_path, RUN).adopt()] == [1, 3]


def test_a_spool_that_cannot_be_written_costs_no_metrics(tmp_path, caplog, monkeypatch):
    from p2es_platform.metric_sender import Sender

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    sender = Sender("http://127.0.0.1:9", RUN, tmp_path)
    for step in range(3):
        sender.log(step, {"loss": 1.0})
    assert caplog.text.count("No space left") == 1
    assert [line.step for line in sender._waiting] == [0, 1, 2]
    sender.release()
