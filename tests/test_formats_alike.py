"""The same person written in four formats, under names that say nothing, comes out of all of them the same."""

import subprocess
import sys

import edfio
import numpy as np
import pytest
import test_aecg
import test_dicom
import test_edf
import test_vital
from simulated import monitored

from p2es.formats import find_records, read
from p2es.leads import LEADS
from p2es.recording import SignalKind
from p2es.segmenting import segment

CODES = {"I": 1, "II": 2, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64, **{f"V{k}": k + 2 for k in range(1, 7)}}


@pytest.fixture(scope="module")
def person():
    return monitored(3, 7, 40.0)


@pytest.fixture(scope="module")
def archive(person, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alike")
    (ppg,) = person.of_kind(SignalKind.PPG)
    fs = person.leads["I"].fs_hz
    pulse = ppg.read()[: int(40 * ppg.fs_hz)]
    microvolt = {
        lead: np.round(signal.read()[: int(40 * fs)] * 1000).astype(int) for lead, signal in person.leads.items()
    }
    write_edf(folder / "a.0", microvolt, fs, pulse, ppg.fs_hz)
    write_vital(folder / "b.csv", microvolt, fs, pulse, ppg.fs_hz)
    write_dicom(folder / "c.mat", microvolt, fs, pulse, ppg.fs_hz)
    write_aecg(folder, microvolt, fs, pulse)
    return folder


def write_edf(path, microvolt, fs, pulse, ppg_fs):
    limits = (float(np.floor(pulse.min())), float(np.ceil(pulse.max())))
    options = {"physical_dimension": "uV", "physical_range": (-10000, 10000)}
    signals = [edfio.EdfSignal(v.astype(float), fs, label=f"ECG {lead}", **options) for lead, v in microvolt.items()]
    signals.append(edfio.EdfSignal(pulse.astype(float), ppg_fs, label="Pleth", physical_range=limits))
    test_edf.write(path, signals)


def write_vital(path, microvolt, fs, pulse, ppg_fs):
    packets = [test_vital.device(1, "SNUADC"), test_vital.track(99, "PLETH", unit="", fs=ppg_fs, form=1)]
    packets += test_vital.blocks(99, pulse, fs=ppg_fs, size=int(ppg_fs), code="<f4")
    for lead, values in microvolt.items():
        packets.append(test_vital.track(CODES[lead], f"ECG_{lead}", fs=fs))
        packets += test_vital.blocks(CODES[lead], values, fs=fs, size=int(fs))
    test_vital.write(path, *packets)


def write_dicom(path, microvolt, fs, pulse, ppg_fs):
    channels = [test_dicom.channel(f"2:{CODES[lead]}", f"Lead {lead}", sensitivity=1) for lead in microvolt]
    step = float(np.ptp(pulse)) / 30000
    other = test_dicom.channel("150452", "Plethysmogram", unit="1", sensitivity=f"{step:.9g}")
    groups = [test_dicom.group(channels, np.stack([*microvolt.values()], 1), fs=fs)]
    test_dicom.write(path, *groups, test_dicom.group([other], np.round(pulse / step)[:, None], fs=ppg_fs))


def write_aecg(folder, microvolt, fs, pulse):
    step = float(np.ptp(pulse)) / 30000
    sequences = [test_aecg.sequence(f"MDC_ECG_LEAD_{k.upper()}", v, scale=1) for k, v in microvolt.items()]
    sequences.append(
        test_aecg.sequence("MDC_PULS_OXIM_PLETH", np.round(pulse / step).astype(int), scale=step, unit="1")
    )
    text = test_aecg.document(test_aecg.rhythm(test_aecg.sequence_set(sequences, step=str(1 / fs))))
    test_aecg.write(folder, text, "d.txt")


def windows_of(recording):
    return segment(recording, step_s=10.0, ids=lambda *parts: "-".join(parts), split="train").windows


def test_each_format_is_found_by_content_and_gives_the_windows_of_the_truth(person, archive):
    truth = windows_of(person)
    assert truth
    found = {reference.format: reference for reference in find_records(str(archive))}
    assert found.keys() == {"edf", "vital", "dicom", "aecg"}
    for reference in found.values():
        skipped = []
        (recording,) = read(reference, "s", skipped)
        assert (skipped, recording.leads.keys()) == ([], set(LEADS))
        windows = windows_of(recording)
        assert len(windows) == len(truth)
        for ours, theirs in zip(windows, truth, strict=True):
            np.testing.assert_allclose(ours.ecg, theirs.ecg, atol=2e-3)
            # The pulse wave is z-scored.
            np.testing.assert_allclose(ours.ppg, theirs.ppg, atol=5e-3)


def test_reading_opens_the_file_and_nothing_else(archive):
    code = (
        "import sys; from p2es.formats import find_records, read; opened = set()\n"
        "references = find_records(sys.argv[1])\n"
        "def everything():\n"
        "    return [s.read().size for r in references for x in read(r, 's') for s in x.signals]\n"
        "assert len(everything()) == 52\n"  # what a library imports, it imports now
        "doors = ('open', 'socket.connect', 'subprocess.Popen')\n"
        "sys.addaudithook(lambda event, args: event in doors and opened.add(str(args[0])))\n"
        "everything(); print(*sorted(opened), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(archive)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == sorted(str(path) for path in archive.iterdir())
