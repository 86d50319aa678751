"""Why something of an archive was left out, changed or doubted, in plain words."""

REASONS = {
    "amplitude": "beats under 0.02 or over 10 mV: the unit cannot be millivolt",
    "annotations": "beat annotations cannot be read; the recording is kept without them",
    "checksum": "samples do not add up to the header's checksum; the recording is kept",
    "compressed": "samples in a compression that is not read here",
    "deleted": "the person was deleted from this dataset",
    "demographics": "a code of sex that nobody declared; kept as unknown",
    "duplicate": "the same bytes or samples as a record that is there",
    "ecg_clipped": "the ECG sits at the converter's rail",
    "ecg_flat": "the ECG does not move: a lead that is off",
    "ecg_missing": "gaps in the ECG",
    "ecg_poor": "more noise than heart beats in the ECG",
    "ecg_wrapped": "the ECG jumps by the converter's whole range: the file is corrupt",
    "header": "a header contradicts itself or its format",
    "layout": "a table or MATLAB file that no mapping fits",
    "lead_laws": "limb leads that contradict each other: exchanged, inverted, or with wrong gains",
    "lead_laws_noise": "limb leads off the lead laws by noise of their own, at most 0.03 mV; kept",
    "link": "a link leads out of the archive",
    "missing_file": "a record names a file that is not there",
    "missing_segment": "a record names a segment that is not there",
    "near_duplicate": "the same stretch of the same heart is there under another name",
    "no_permission": "a file may not be read",
    "no_segments": "no segment with signals",
    "no_signal": "neither ECG nor PPG, or no sample of either",
    "outside": "a header names a file outside the archive",
    "people_differ": "the table of people says another sex or age than the file, which holds",
    "people_not_found": "the table of people does not know the record",
    "ppg_clipped": "the PPG sits at the converter's rail",
    "ppg_flat": "the PPG does not move: a dead sensor",
    "ppg_missing": "gaps in the PPG",
    "ppg_poor": "more noise than pulses in the PPG",
    "ppg_turned": "the PPG fell in systole (light received); it is kept, turned",
    "ppg_wrapped": "the PPG jumps by the converter's whole range: the file is corrupt",
    "rate": "no sampling rate, an impossible one, or one that the clock contradicts",
    "rate_unlikely": "a heart rate or QRS that no heart has: the sampling rate may be written wrongly; kept",
    "shape": "samples of the wrong shape",
    "shorter_than_a_window": "less than 10 s in one piece",
    "time_gaps": "time stamps with more gaps than a recording, or a stretch of under two samples",
    "too_large": "larger than a recording can be, or than it should unpack to",
    "truncated": "a file is shorter than its header says",
    "unexpected": "an error nobody foresaw: a bug of P2Es",
    "unknown_format": "no format known here",
    "unreadable": "a damaged file",
}
"""Reason codes of the quarantine table and of the notes, with what they mean."""
KEPT = frozenset({"annotations", "demographics", "people_differ", "people_not_found", "ppg_turned"})
"""Reasons of what is told but costs no signal."""


def explain(reason: str) -> str:
    """Say a reason in plain words; a reason that is not known, by its own."""
    return REASONS.get(reason, reason.replace("_", " "))
