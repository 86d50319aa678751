from datetime import date

import pytest

from p2es.demographics import Sex
from p2es.formats.naming import kind_of, lead_of, to_millivolt
from p2es.formats.subject import age_at, day_of, person_of, sex_of
from p2es.leads import LEADS, canonical_lead
from p2es.recording import SignalKind

PULSES = "Pleth;PLETH;pleth_1;PPG;PPG_RED;PPG IR;BVP;SpO2 waveform;SpO2 Pleth;Plethysmogram"
NUMBERS = """SpO2 %;SpO2 ?;Solar8000/PLETH_SPO2 %;Solar8000/PLETH_HR /min;Pleth rate ?;Intellivue/PLETH_SAT_O2 %
PLETH bpm;PLETH_PERF_REL ?;Pulse bpm;Thor Pleth ?;RESP Ohm;ABP mmHg;ECG HR bpm;ECG HR ?;ECG Resp ohm;Solar8000/ST_II mm
vx mV;EEG Fpz-Cz uV;EMG chin uV;V1 %;II mmHg;EDF Annotations ?"""
NAMED = """ECG I=I;EKG II=II;ECG LL-RA=II;ECG LA-RA=I;LL-LA=III;SNUADC/ECG_V5=V5;Lead I (Einthoven)=I;lead_II=II;MLII=II
DIII=III"""
UNNAMED = "ECG RA-LL;ECG ECGL-ECGR;ECG 1;ecg;V;MCL1;mv2"


@pytest.mark.parametrize(
    "name",
    [*PULSES.split(";"), "Pulse wave", "photoplethysmogram", "brachial_660nm", "carotid_880nm", "MDC_PULS_OXIM_PLETH"],
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
