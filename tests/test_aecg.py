import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutating import FUZZ, mutated, refusal_of

from p2es.demographics import Sex
from p2es.errors import RecordError
from p2es.formats import aecg
from p2es.leads import LEADS, law_residuals
from p2es.recording import LazySamples, SignalKind

TIMES = '<value xsi:type="GLIST_TS"><head value="20021122091000"/><increment value="{}" unit="{}"/></value>'
SUBJECT = """<componentOf><timepointEvent><componentOf><subjectAssignment><subject><trialSubject>
<id root="1.2" extension="SBJ-9"/><subjectDemographicPerson><name>Clark Kent</name>
<administrativeGenderCode code="F"/><birthTime value="19531123"/><raceCode code="2106-3" displayName="RaceWhite"/>
</subjectDemographicPerson></trialSubject></subject></subjectAssignment></componentOf></timepointEvent></componentOf>"""


def sequence(code, digits, scale=2.5, unit="uV", origin=0.0, origin_unit=None):
    numbers = " ".join(map(str, digits))
    return (
        f'<component><sequence><code code="{code}"/><value xsi:type="SLIST_PQ"><origin value="{origin}" '
        f'unit="{origin_unit or unit}"/><scale value="{scale}" unit="{unit}"/><digits>{numbers}</digits></value>'
        "</sequence></component>"
    )


def sequence_set(sequences, step="0.002", unit="s"):
    times = f'<component><sequence><code code="TIME_ABSOLUTE"/>{TIMES.format(step, unit)}</sequence></component>'
    return f"<component><sequenceSet>{times}{''.join(sequences)}</sequenceSet></component>"


def document(series, *, subject=SUBJECT, before=""):
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<AnnotatedECG xmlns="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f'<effectiveTime><center value="20021122091000"/></effectiveTime>{subject}'
        f"<component><series>{series}</series></component></AnnotatedECG>"
    )


def rhythm(*sets, code="RHYTHM"):
    return f'<code code="{code}"/>' + "".join(sets)


def write(tmp_path, text, name="a.xml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path, name="r"):
    skipped = []
    return list(aecg.read(path, name, "s", skipped)), skipped


def refusal(path):
    with pytest.raises(RecordError) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    return refused.value.reason


def lead(code="MDC_ECG_LEAD_II", samples=1000, seed=0, **options):
    return sequence(code, np.random.default_rng(seed).integers(-400, 400, samples).tolist(), **options)


def test_digits_become_millivolt_by_scale_and_origin(tmp_path):
    digits = np.arange(-500, 500)
    sequences = [
        sequence("MDC_ECG_LEAD_II", digits),
        sequence("MDC_ECG_LEAD_AVF", digits, scale=0.005, unit="mV", origin=-250, origin_unit="uV"),
        sequence("MDC_ECG_LEAD_X", digits, unit="NU"),
        sequence("MDC_PULS_OXIM_PLETH", digits, scale=2, unit="1", origin=7),
        sequence("MDC_PRESS_BLD_ART", digits, unit="mmHg"),
    ]
    (recording,), skipped = read(write(tmp_path, document(rhythm(sequence_set(sequences, "4", "ms")))))
    assert (skipped, recording.record) == ([], "r")
    found = [(s.lead, s.kind, s.unit, s.fs_hz, s.gain) for s in recording.signals]
    ecg, ppg = SignalKind.ECG, SignalKind.PPG
    expected = [("II", ecg, "mV", 250, 400), ("aVF", ecg, "mV", 250, 200), (None, ecg, "unknown", 250, 0.4)]
    assert found == [*expected, (None, ppg, "1", 250, 0.5)]
    for signal, values in zip(
        recording.signals, (digits / 400, digits / 200 - 0.25, digits * 2.5, digits * 2 + 7), strict=True
    ):
        np.testing.assert_allclose(signal.read(), values, rtol=1e-6)


def test_sex_age_and_id_are_kept_and_nothing_else_of_the_person(tmp_path):
    (recording,), _ = read(write(tmp_path, document(rhythm(sequence_set([lead()])))))
    person = recording.demographics
    assert (recording.person, person.sex, person.age_years) == ("SBJ-9", Sex.FEMALE, 48)
    for word in ("Clark", "1953", "2002", "White", "2106"):
        assert word not in repr(recording)
    (recording,), _ = read(write(tmp_path, document(rhythm(sequence_set([lead()])), subject="")))
    assert (recording.person, recording.demographics.age_years) == ("a", None)


def test_beats_that_stand_for_many_are_no_recording(tmp_path):
    beat = sequence_set([lead(samples=600)])
    derived = f'<derivation><derivedSeries><code code="REPRESENTATIVE_BEAT"/>{beat}</derivedSeries></derivation>'
    (recording,), _ = read(write(tmp_path, document(rhythm(sequence_set([lead()])) + derived)))
    assert recording.duration_s == 2
    assert refusal(write(tmp_path, document(rhythm(beat, code="REPRESENTATIVE_BEAT")))) == "no_signal"
    assert refusal(write(tmp_path, document(derived))) == "no_signal"


def test_each_sequence_set_is_a_recording_and_a_bad_one_is_told(tmp_path):
    sets = [sequence_set([lead()]), sequence_set([lead()], step="0"), sequence_set([lead("MDC_ECG_LEAD_V1", 500)])]
    recordings, (told,) = read(write(tmp_path, document(rhythm(*sets))))
    assert [(r.record, r.signals[0].lead) for r in recordings] == [("r", "II"), ("r/part-2", "V1")]
    assert told.reason == "rate"


def test_a_file_that_ends_early_gives_what_is_whole_and_tells(tmp_path):
    text = document(rhythm(sequence_set([lead()]), sequence_set([lead(samples=900)])))
    (recording,), (told,) = read(write(tmp_path, text[: text.rindex("</digits>") - 200]))
    assert (recording.signals[0].samples.size, told.reason) == (1000, "unreadable")


def test_long_leads_in_small_pieces_come_back_exactly_and_stay_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(aecg, "_PIECE_BYTES", 777)
    monkeypatch.setattr(aecg, "_BUFFER", 1000)
    monkeypatch.setattr("p2es.formats.spool.IN_MEMORY", 5000)
    digits = np.random.default_rng(1).integers(-30000, 30000, 20_000)
    (recording,), _ = read(write(tmp_path, document(rhythm(sequence_set([sequence("MDC_ECG_LEAD_I", digits)])))))
    assert isinstance(recording.signals[0].samples, LazySamples)
    np.testing.assert_allclose(recording.signals[0].read(), digits * 2.5e-3, rtol=1e-6)


BOMB = (
    "<!DOCTYPE a ["
    + '<!ENTITY b0 "ha">'
    + "".join(f'<!ENTITY b{k} "{f"&b{k - 1};" * 10}">' for k in range(1, 10))
    + "]>"
)
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unreadable"),
        ("<AnnotatedECG/>", "no_signal"),
        ("<html/>", "header"),
        ("<AnnotatedECG>", "unreadable"),
        ("not XML", "unreadable"),
        ('<?xml version="1.0" encoding="nonsense"?><AnnotatedECG/>', "unreadable"),
        (document(rhythm(sequence_set([lead()])), before=BOMB), "unreadable"),
        (document(rhythm(sequence_set([lead()])), before=OUTSIDE), "unreadable"),
        (document("<a>" * 100_000), "header"),
        (document(rhythm(sequence_set([lead("MDC_PRESS_BLD")]))), "no_signal"),
        (document(rhythm(sequence_set([]))), "no_signal"),
        (document(rhythm(sequence_set([lead()], unit="d"))), "rate"),
        (document(rhythm(sequence_set([lead()], step="nan"))), "rate"),
        (document(rhythm(sequence_set([lead()]).replace("TIME_ABSOLUTE", "X"))), "rate"),
        (document(rhythm(sequence_set([sequence("MDC_ECG_LEAD_I", ["1", "two"])]))), "unreadable"),
        (document(rhythm(sequence_set([sequence("MDC_ECG_LEAD_I", ["7" * 600_000])]))), "unreadable"),
        (document(rhythm(sequence_set([lead(scale="0")]))), "header"),
        (document(rhythm(sequence_set([lead(scale="1e300")]))), "header"),
        (document(rhythm(sequence_set(["<component><sequence/></component>"] * 600))), "header"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once_with_its_reason(tmp_path, text, reason):
    path = write(tmp_path, text)
    before = time.process_time()
    assert refusal(path) == reason
    assert time.process_time() - before < 1


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.xml"
    with path.open("wb") as file:
        file.truncate(aecg.MAX_BYTES + 1)
    assert refusal(path) == "too_large"
    assert refusal(tmp_path / "b.xml") == "missing_file"


def test_digits_that_are_no_numbers_are_missing(tmp_path):
    (recording,), _ = read(
        write(tmp_path, document(rhythm(sequence_set([sequence("MDC_ECG_LEAD_I", [1, "nan", "1e300", 4])]))))
    )
    assert np.isnan(recording.signals[0].read()).tolist() == [False, True, True, False]


def test_aecg_is_known_by_its_content():
    text = document("")
    assert aecg.is_mine(text.encode()[:4096])
    assert aecg.is_mine(b"\xef\xbb\xbf" + text.encode())
    assert aecg.is_mine(text.encode("utf-16")[:4096])
    assert aecg.is_mine(b"\n<!-- a remark --><v3:AnnotatedECG>")
    assert not aecg.is_mine(b"<html>AnnotatedECG</html>")
    assert not aecg.is_mine(b"")


def test_the_real_files_are_what_they_are(recordings):
    """Einthoven's law holds exactly, Goldberger's to half a step of 2.5 uV."""
    for name, person in (("Example_aECG", "SBJ-123"), ("subject1_0", "subject1"), ("subject2_0", "subject2")):
        (recording,), skipped = read(recordings / "aecg" / f"{name}.xml")
        assert (skipped, recording.person, recording.duration_s) == ([], person, 10)
        assert (recording.demographics.sex, recording.demographics.age_years) == (Sex.MALE, 49)
        residuals = law_residuals(np.stack([recording.leads[k].read() for k in LEADS]))
        assert np.abs(residuals[0]).max() < 1e-6
        assert np.abs(residuals).max() < 1.26e-3
    assert refusal(recordings / "aecg" / "empty.xml") == "no_signal"
    for path in (recordings / "aecg").glob("minimum*.xml"):
        (recording,), skipped = read(path)
        assert (skipped, recording.signals[0].samples.size, recording.leads.keys()) == ([], 13, {"II"})


_WORDS = (
    b"<digits>",
    b"</sequence>",
    b"<sequenceSet>",
    b'value="1e400"',
    b"&lt;",
    b"]]>",
    b"<!--",
    b"\xff",
    b"1_0",
    b"1e39 ",
)


@FUZZ
@given(data=st.data())
def test_whatever_is_done_to_a_file_only_typed_errors_come_out(tmp_path, data):
    text = document(
        rhythm(sequence_set([lead(samples=20), lead("MDC_ECG_LEAD_V1", 20)]), sequence_set([lead(samples=9)]))
    )
    path = tmp_path / "f.xml"
    path.write_bytes(data.draw(mutated([text.encode()], words=_WORDS)))
    refusal_of(aecg.read, path)
