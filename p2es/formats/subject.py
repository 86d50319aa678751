"""What a file says of its subject: an id, an age from two dates. The dates themselves are never kept."""

import re
from datetime import date

from p2es.demographics import Sex, parse_number, parse_sex
from p2es.errors import InputError

# Ids that de-identification leaves behind: taken as true, they would make one person of a whole archive.
_NO_ID = re.compile(
    r"[x0?\-_.\s*#]*|anon\w*|unknown|none|n/?a|null|test|patient|subject|removed|deleted", re.IGNORECASE
)
_DAY = re.compile(r"(\d{4})(-?)(\d{2})\2(\d{2})", re.ASCII)


def person_of(text: str, otherwise: str) -> str:
    """Give the id that a file states, or `otherwise` where it states none that could be one person's."""
    stated = " ".join(text.split())
    return otherwise if _NO_ID.fullmatch(stated) else stated


def day_of(text: str) -> date | None:
    """Read the day of `YYYYMMDD...` or `YYYY-MM-DD...`; None when it is none."""
    found = _DAY.match(text.strip())
    try:
        return date(*map(int, found.group(1, 3, 4))) if found else None
    except ValueError:
        return None


def age_at(birth: date | None, day: date | None) -> float | None:
    """Give the age in whole years, over 89 as 90; None when a date is missing or the age impossible."""
    if birth is None or day is None:
        return None
    years = day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))
    return parse_number(str(years), "age_years") if years >= 0 else None


def sex_of(text: str) -> Sex | None:
    """Read a sex where letters are sure (EDF+, DICOM, HL7); None for what says neither F nor M."""
    try:
        return parse_sex(text)
    except InputError:
        return None
