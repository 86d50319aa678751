from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2es.demographics import Sex
from p2es.errors import RecordError
from p2es.formats.naming import kind_of, lead_of, to_millivolt, unit_of
from p2es.formats.subject import age_at, day_of, person_of, sex_of
from p2es.leads import LEADS, canonical_lead
from p2es.recording import SignalKind

PULSES = """Pleth;PLETH;pleth_1;Pleth 1;PPG;PPG_RED;PPG IR;IR_PPG;PPG_green;PPG-infrared;BVP;SpO2 waveform;SpO2 Pleth
Plethysmogram;Pleth [NU];red;RED;ir;IR;infrared;infra-red;green;Red1;ir_2;LED red;green LED;IR signal;"red";raw_ir"""
NUMBERS = """SpO2 %;SpO2 ?;Solar8000/PLETH_SPO2 %;Solar8000/PLETH_HR /min;Pleth rate ?;Intellivue/PLETH_SAT_O2 %
PLETH bpm;PLETH_PERF_REL ?;Pulse bpm;Thor Pleth ?;RESP Ohm;ABP mmHg;ECG HR bpm;ECG HR ?;ECG Resp ohm;Solar8000/ST_II mm
vx mV;EEG Fpz-Cz uV;EMG chin uV;V1 %;II mmHg;EDF Annotations ?;RED CELLS ?;Resp ?;red blood cells ?;infra ?;IR temp ?
IR degC;ir [degC] ?;predicted ?;irregular ?;greenhouse ?;air ?;dir ?;red flag ?;RED HR ?;IR DC 100 ?;lead 4 ?;lead 0 ?
lead 12 ?;mislead 2 ?;V1 [%] ?;II [mmHg] ?;PLETH [bpm] ?;PLETH_SPO2 [%] ?;I [s] ?"""
NAMED = """ECG I=I;EKG II=II;ECG LL-RA=II;ECG LA-RA=I;LL-LA=III;SNUADC/ECG_V5=V5;Lead I (Einthoven)=I;lead_II=II;MLII=II
DIII=III;"II"=II;'aVF'=aVF;\u201cV2\u201d=V2;`iii`=III;lead 1=I;Lead 2=II;LEAD_3=III;lead-2=II;Lead2=II;ECG lead 2=II
lead iii=III;II [mV]=II;II (mV)=II;II[uV]=II;aVR ( \u00b5V )=aVR;ECG V5 [mV]=V5;"V6" [mV]=V6;Device/ECG_II [V]=II
lead 2 [mV]=II;ECG LL-RA [uV]=II"""
UNNAMED = 'ECG RA-LL;ECG ECGL-ECGR;ECG 1;ECG 2;EKG_3;ecg;V;MCL1;mv2;V [mV];MCL1 (mV);ECG 1 [uV];ECG [mV];"V"'


@pytest.mark.parametrize(
    "name",
    [
        *PULSES.replace("\n", ";").split(";"),
        "Pulse wave",
        "photoplethysmogram",
        "brachial_660nm",
        "carotid_880nm",
        "MDC_PULS_OXIM_PLETH",
    ],
)
def test_pulse_waves_are_ppg_whatever_their_unit(name):
    # PLETH labelled mV and % are in the real recordings.
    assert {kind_of(name, unit) for unit in ("", "NU", "a.u.", "mV", "%")} == {SignalKind.PPG}


@pytest.mark.parametrize("text", NUMBERS.replace("\n", ";").split(";"))
def test_numbers_belts_and_other_signals_are_neither(text):
    name, unit = text.rsplit(" ", 1)
    assert kind_of(name, unit.replace("?", "")) is None


@pytest.mark.parametrize("text", [*NAMED.replace("\n", ";").split(";"), *(f"{name}=" for name in UNNAMED.split(";"))])
def test_an_ecg_has_the_lead_that_its_name_says_and_no_other(text):
    name, lead = text.split("=")
    assert kind_of(name, "mV") is SignalKind.ECG
    assert lead_of(name) == (lead or None)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("form", ["{}", "ECG {}", "EKG_{}", "ecg lead {}", "Lead {}", "Device/ECG_{}"])
def test_every_lead_is_found_in_every_form_and_case(lead, form):
    for name in (form.format(lead), form.format(lead).upper(), form.format(lead).lower()):
        assert lead_of(name) == lead
        assert kind_of(name) is SignalKind.ECG


NAMES = [text.split("=")[0] for text in NAMED.replace("\n", ";").split(";")]
NAMES = [name for name in (*NAMES, *UNNAMED.split(";"), *PULSES.replace("\n", ";").split(";")) if name[-1] not in "])"]
NUMBERED = ["ECG HR", "PLETH_SPO2", "RESP", "RED CELLS", "vx", "lead 4"]


@given(
    name=st.sampled_from([*NAMES, *NUMBERED]),
    unit=st.sampled_from(["mV", "uV", "\u00b5V", "V", "nV"]),
    form=st.sampled_from(["{} [{}]", "{} ({})", "{}[{}]", " {}  [ {} ] "]),
)
def test_a_voltage_in_brackets_changes_nothing_but_the_unit(name, unit, form):
    whole = form.format(name, unit)
    assert kind_of(whole) == kind_of(name, unit) == kind_of(whole, unit)
    assert lead_of(whole) == lead_of(name)
    assert (unit_of(whole, ""), unit_of(whole, unit)) == (unit, unit)
    assert (unit_of(name, ""), unit_of(name, unit)) == ("", unit)


@given(st.text(max_size=20), st.sampled_from(["", "mV", "bpm", "%"]))
def test_any_text_is_a_lead_of_the_twelve_or_none(name, unit):
    assert lead_of(name) in {*LEADS, None}
    assert unit not in {"bpm", "%"} or kind_of(name, unit) is not SignalKind.ECG
    for lead in LEADS:
        # A name that goes on is another name.
        assert lead_of(f"{lead}x{name}") != lead or "/" in name


@given(
    light=st.sampled_from(["red", "ir", "infrared", "green"]),
    word=st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=8),
)
def test_a_colour_with_another_word_is_no_pulse_wave_by_the_colour(light, word):
    allowed = {"red", "led", "raw", "signal", "channel", "light", "ir"}
    known = kind_of(f"x {word}") is not None or word in allowed
    assert known or kind_of(f"{light} {word}") is None
    assert known or kind_of(f"{word} {light}") is None
    assert kind_of(f"{light}{word}") is None or kind_of(word) is not None or word in allowed


@pytest.mark.parametrize(
    ("name", "unit", "said"),
    [
        ("II", "mV", "mV"), ("II", "", ""), ("II [uV]", "", "uV"), ("II [uV]", "\u00b5V", "\u00b5V"),
        # What is no voltage holds too: the header's word, not the name's.
        ("II [mV]", "NU", "NU"), ("II (Einthoven)", "", ""), ("II (Einthoven)", "mV", "mV"), ("II [mV]", " ", "mV"),
    ],
)  # fmt: skip
def test_the_header_says_the_unit_and_else_the_name(name, unit, said):
    assert unit_of(name, unit) == said


@pytest.mark.parametrize(("name", "unit"), [("II [uV]", "mV"), ("II (mV)", "uV"), ("V1 [V]", "millivolt")])
def test_a_name_and_a_header_of_two_units_are_refused(name, unit):
    with pytest.raises(RecordError, match="correct one of them") as refused:
        unit_of(name, unit)
    assert refused.value.reason == "header"


def test_no_lead_is_found_that_the_leads_themselves_do_not_know():
    for name in ("V7", "V3R", "aVX", "IV", "V10", "ECG V1-V2", "-aVR", "aVR-"):
        assert lead_of(name) is None
        assert canonical_lead(name) is None


VOLTAGES = {
    "mV": 1.0,
    "mv": 1.0,
    "uV": 1e-3,
    "\u00b5V": 1e-3,
    "\u03bcV": 1e-3,
    "microvolts": 1e-3,
    " V ": 1e3,
    "nV": 1e-6,
}


@pytest.mark.parametrize(
    ("unit", "factor"), [*VOLTAGES.items(), *((unit, None) for unit in ("NU", "%", "", "mmHg", "s"))]
)
def test_voltages_have_a_factor_to_millivolt_and_nothing_else_has(unit, factor):
    assert to_millivolt(unit) == factor


@pytest.mark.parametrize("text", ["", "X", "000", "Anonymous", "ANON12", "unknown", "N/A", "??", "anonymized"])
def test_what_deidentification_leaves_is_no_persons_id(text):
    assert person_of(text, "record7") == "record7"


def test_ids_ages_and_sexes():
    assert person_of(" 64 2341 ", "r") == "64 2341"
    assert day_of("20021122091000") == day_of("2002-11-22T09:10") == date(2002, 11, 22)
    assert day_of("20021322") is day_of("22.11.2002") is day_of("") is None
    assert age_at(date(1953, 5, 8), date(2002, 5, 7)) == 48
    assert age_at(date(1953, 5, 8), date(2002, 5, 8)) == 49
    assert age_at(date(1900, 1, 1), date(2002, 5, 8)) == 90
    assert age_at(date(2003, 1, 1), date(2002, 5, 8)) is age_at(None, date(2002, 5, 8)) is None
    assert (sex_of("F"), sex_of("m"), sex_of("X"), sex_of("O"), sex_of("UN")) == (
        Sex.FEMALE,
        Sex.MALE,
        None,
        None,
        None,
    )


def test_a_comma_behind_a_name_is_no_part_of_it():
    assert lead_of("II,") == "II"
    assert kind_of("AVR,", "mV") is SignalKind.ECG
