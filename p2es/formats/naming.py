"""What a signal is by its name and unit: an ECG, its lead, a PPG, or nothing that is kept. One place for every format.

A monitor stores numbers beside waveforms under nearly the same names (`PLETH` is a pulse wave, `PLETH_SPO2` a
saturation; `SpO2` in per cent is no PPG), so a name is read as words, and one word of a number refuses it.
"""

import re

from p2es.errors import RecordError
from p2es.leads import canonical_lead
from p2es.recording import SignalKind

_TO_MILLIVOLT = {
    "mv": 1.0,
    "millivolt": 1.0,
    "uv": 1e-3,
    "\u00b5v": 1e-3,
    "\u03bcv": 1e-3,
    "microvolt": 1e-3,
    "v": 1e3,
    "volt": 1e3,
    "nv": 1e-6,
    "nanovolt": 1e-6,
}
# Units of numbers and of other waveforms; a PPG in per cent exists (MIMIC), an ECG in per cent does not.
_NEVER_WAVES = {"bpm", "/min", "1/min", "rpm", "mmhg", "cmh2o", "kpa", "ohm", "degc", "\u00b0c", "l/min", "ms"}
_NO_ECG_UNIT = _NEVER_WAVES | {"%", "mm", "s", "hz"}

_WORD = re.compile(r"[^\W_]+")
_PULSE = re.compile(r"pleth\w*|ppg\w*|photopleth\w*|bvp")
_OXIMETER = frozenset({"spo2", "sao2", "pulse", "oximeter", "oximetry"})
_WAVE = frozenset({"wave", "waveform", "wav", "curve"})
_WAVELENGTH = re.compile(r"(?:^|[^a-z0-9])\d{3,4}\s*nm$", re.IGNORECASE)
# The light of a pulse sensor, as a whole name: `RED CELLS` is none.
_LIGHT = re.compile(
    r"(?:(?:led|raw) )?(?:red|ir|infra ?red|green)(?: ?\d{1,2})?(?: (?:led|raw|signal|channel|light))?(?: \d{1,2})?"
)
# What makes a number of a word that would be a pulse wave, behind it; and a respiratory belt, on either side.
_NUMBER = re.compile(r"spo2|sao2|sat|hr|pr|rate|pulse?|perf\w*|pi|pvi|ind\w*|quality|status|o2|rel")
_BELT = re.compile(r"resp\w*|thor\w*|abd\w*|impedance|rip|inductance")
_NO_ECG = re.compile(r"hr|rate|rr|pvc|resp\w*|impedance|st|qt|qtc|edr|quality|status|noise|marker|event\w*|ann\w*")
_ECG = re.compile(r"(?:ecg|ekg)[\w]*")
_OTHER_LEAD = re.compile(r"v[1-9]?r?|mcl\d?|ml[iv]+\d?|mv\d|cm\d|cc\d")
_AROUND = " \t,;:\"'`\u201c\u201d\u2018\u2019"
# `II [mV]`, `II (uV)`; `Lead I (Einthoven)` is a remark.
_BEHIND = re.compile(r"\s*[\[(]\s*([^\[\]()]{1,12}?)\s*[\])]\s*$")
_NUMBERED = re.compile(r"(?:(?:ecg|ekg)[\s_]+)?lead[\s_:\-]*([123])", re.IGNORECASE)
_PREFIX = re.compile(r"^(?:(?:ecg|ekg)(?:[\s_]+lead)?|lead|channel|ch)[\s_:\-]+", re.IGNORECASE)
# A bipolar name is positive minus negative electrode (EDF+ specification, additional item 9).
_BIPOLAR = {("la", "ra"): "I", ("ll", "ra"): "II", ("ll", "la"): "III", ("lf", "ra"): "II", ("lf", "la"): "III"}
# As Spanish, Portuguese and French write the leads of a derivation; `D1` may be a digital channel and is not here.
_DERIVATION = {"di": "I", "dii": "II", "diii": "III"}


def to_millivolt(unit: str) -> float | None:
    """Give what a value in this unit is multiplied by to become millivolt; None when the unit is no voltage."""
    return _TO_MILLIVOLT.get(unit.strip().lower().removesuffix("s"))


def unit_of(name: str, unit: str) -> str:
    """Give the unit of an ECG: what its header says, or what stands in brackets behind its name (`II [mV]`).

    Parameters
    ----------
    name : str
    unit : str
        Of the header, empty where it says none.

    Raises
    ------
    RecordError
        `header`, when the two are different voltages: nothing says which one is right, and they are 1,000 apart.
    """
    behind = _split(name)[1]
    here, there = to_millivolt(unit), to_millivolt(behind)
    if here is not None and there is not None and here != there:
        raise RecordError(f"a signal's name says {behind}, its header {unit.strip()}: correct one of them", "header")
    return unit if unit.strip() else behind


def _split(name: str) -> tuple[str, str]:
    """Part a name from the unit in brackets behind it; empty where there is none."""
    found = _BEHIND.search(name)
    unit = found.group(1) if found else ""
    if found is None or (to_millivolt(unit) is None and unit.lower() not in _NO_ECG_UNIT):
        return name, ""
    return name[: found.start()], unit


def lead_of(name: str) -> str | None:
    """Give the standard lead that a name says, or None.

    As `p2es.leads.canonical_lead`, and with a device in front (`SNUADC/ECG_II`), a remark behind
    (`Lead I (Einthoven)`, `II [mV]`), `EKG`, a number behind the word (`lead 2`; of `ECG 2` nobody knows), and pairs of
    limb electrodes (`ECG LL-RA` is lead II). A pair the other way round is an inverted lead and is none of the twelve.
    """
    # BIDMC's headers write `II,`.
    bare = re.split(r"[(\[]", name)[0].strip(_AROUND).rsplit("/", 1)[-1].strip(_AROUND)
    if numbered := _NUMBERED.fullmatch(bare):
        return "I" * int(numbered.group(1))
    key = _PREFIX.sub("", bare).strip()
    positive, minus, negative = (part.strip().lower() for part in key.partition("-"))
    if minus:
        return _BIPOLAR.get((positive, negative))
    return canonical_lead(key) or _DERIVATION.get(key.lower())


def kind_of(name: str, unit: str = "") -> SignalKind | None:
    """Tell what a waveform is by its name; the unit only refuses what cannot be.

    Parameters
    ----------
    name : str
        As the archive writes it, a device in front or not.
    unit : str
        As the archive writes it; where it is empty, the one in brackets behind the name counts.

    Returns
    -------
    SignalKind or None
        None for everything that is neither an ECG nor a PPG.
    """
    plain, behind = _split(name)
    bare = plain.strip(_AROUND).rsplit("/", 1)[-1]
    words = [word.lower() for word in _WORD.findall(bare.replace("_", " "))]
    measure = unit.strip().lower() or behind.lower()
    if _is_pulse(bare, words) and measure not in _NEVER_WAVES:
        return SignalKind.PPG
    if measure not in _NO_ECG_UNIT and _is_ecg(bare, words):
        return SignalKind.ECG
    return None


def _is_pulse(bare: str, words: list[str]) -> bool:
    if _WAVELENGTH.search(bare) or _LIGHT.fullmatch(" ".join(words)):
        return True
    named = [_PULSE.fullmatch(word) is not None for word in words]
    if any(named):
        at = named.index(True)
        # `SpO2 Pleth` is the wave, `PLETH_SPO2` the number.
        belt = any(_BELT.fullmatch(word) for word in words)
        return not belt and not any(_NUMBER.fullmatch(word) for word in words[at + 1 :])
    return bool(_OXIMETER & set(words)) and bool(_WAVE & set(words))


def _is_ecg(bare: str, words: list[str]) -> bool:
    if lead_of(bare) is not None:
        return True
    if len(words) == 1 and _OTHER_LEAD.fullmatch(words[0]):
        return True
    named = any(_ECG.fullmatch(word) for word in words)
    return named and not any(_NO_ECG.fullmatch(word) for word in words)
