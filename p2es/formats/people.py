"""Tables of people beside an archive, joined to its recordings: age, sex, height, weight, and who a record is of.

Which table has which columns, and what joins a row to a recording, is declared in TOML as the layouts are (`mapping`).
Nothing but the declared columns is kept, and no value of a table stands in a message.
"""

import csv
import gzip
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from p2es.demographics import Demographics, parse_number
from p2es.errors import InputError
from p2es.formats.mapping import Value, demographics_of, read_toml
from p2es.formats.rows import Header, frames_of, head_of, header_of
from p2es.formats.table import sex_of
from p2es.recording import Recording

MAX_PEOPLE = 2_000_000
# Ages are rounded either way, and a visit may lie a birthday later than the table.
_AGE_TOLERANCE_YEARS = 1.0


@dataclass(frozen=True)
class PeopleLayout:
    """What a table of people is.

    Attributes
    ----------
    name, description : str
    columns : tuple of str
        Names that its header must have.
    key : str
        Column that joins it.
    record : str
        Regular expression on a recording's name in the archive, its first group the key; empty: the recording's
        person is the key.
    numeric : bool
        Whether keys are whole numbers: `00001`, `1` and `1.0` are one.
    person : str
        Column of the person, where a row is a record and not a person; empty: it says nothing of that.
    demographics : mapping of str to Value
    tried : bool
    """

    name: str
    columns: tuple[str, ...]
    key: str
    record: str = ""
    numeric: bool = True
    person: str = ""
    demographics: Mapping[str, Value] = field(default_factory=dict)
    description: str = ""
    tried: bool = True

    def fits(self, header: Header) -> bool:
        """Tell whether a table's header has the columns."""
        return set(self.columns) <= set(header.first)

    def normal(self, key: str) -> str:
        """Give the one spelling of a key; empty when it is none."""
        key = key.strip()
        if not self.numeric:
            return key
        found = re.fullmatch(r"0*(\d{1,18})(\.0*)?", key)
        return found.group(1) if found else ""

    def key_of(self, recording: Recording) -> str:
        """Give the key of a recording; empty when it has none."""
        if not self.record:
            return self.normal(re.sub(r"^\D+(?=\d+$)", "", recording.person) if self.numeric else recording.person)
        found = re.search(self.record, recording.record)
        return self.normal(found.group(1)) if found else ""


def load_people_layout(path: str | Path) -> PeopleLayout:
    """Read the declaration of a table of people.

    Raises
    ------
    ConfigError
        When it cannot be used; the message names the file and the key.
    """
    table = read_toml(Path(path).expanduser())
    layout = PeopleLayout(
        name=table.take("name", str, ...),
        columns=table.texts("columns"),
        key=table.take("key", str, ...).strip(),
        record=table.pattern("record", 1),
        numeric=table.take("numeric", bool, True),
        person=table.take("person", str, "").strip(),
        demographics=demographics_of(table.table("demographics")),
        description=table.take("description", str, ""),
        tried=table.take("tried", bool, True),
    )
    table.done()
    if not layout.columns or layout.key not in layout.columns:
        raise table.wrong("columns", "must name the columns of such a table, the key among them")
    if any(not isinstance(value.at, str) for value in layout.demographics.values()):
        raise table.wrong("demographics", "are known by the names of their columns")
    return layout


@cache
def shipped_people() -> tuple[PeopleLayout, ...]:
    """Give the tables of people that p2es knows."""
    folder = Path(__file__).parent / "people_tables"
    return tuple(load_people_layout(path) for path in sorted(folder.glob("*.toml")))


def is_people_table(head: bytes, layouts: Sequence[PeopleLayout] = ()) -> bool:
    """Tell by its beginning whether a text file is a table of people."""
    header = head_of(head)
    return header is not None and any(layout.fits(header) for layout in (*layouts, *shipped_people()))


@dataclass(frozen=True)
class Person:
    """What a row says; `id` is empty when the table does not name the person."""

    demographics: Demographics
    id: str = ""


@dataclass(frozen=True)
class People:
    """A table of people, ready to be joined; small enough to send (PTB-XL's 22,000 rows: 2 MB).

    Attributes
    ----------
    layout : PeopleLayout
    rows : mapping of str to Person
        By key.
    notes : mapping of str to int
        What was left out of the table: rows without a key, keys that contradict, codes nobody explained.
    """

    layout: PeopleLayout
    rows: Mapping[str, Person]
    notes: Mapping[str, int] = field(default_factory=dict)

    def join(self, recording: Recording) -> Recording:
        """Fill in what the recording itself does not say.

        What the recording says stays; where the table says otherwise (another sex, an age off by over a year), it is
        marked in `provenance["people"]`: "filled", "not_found", or "differs: ..." with the names of the fields.
        """
        key = self.layout.key_of(recording)
        row = self.rows.get(key) if key else None
        if row is None:
            return replace(recording, provenance={**recording.provenance, "people": "not_found"})
        own, values, differs = recording.demographics, {}, []
        for item in fields(Demographics):
            here, there = getattr(own, item.name), getattr(row.demographics, item.name)
            values[item.name] = there if here is None else here
            if here is not None and there is not None and _contradict(item.name, here, there):
                differs.append(item.name)
        word = f"differs: {', '.join(differs)}" if differs else "filled"
        return replace(
            recording,
            person=row.id or recording.person,
            demographics=Demographics(**values),
            provenance={**recording.provenance, "people": word},
        )


def _contradict(name: str, here: Any, there: Any) -> bool:
    if name == "sex":
        return bool(here is not there)
    return bool(abs(here - there) > (_AGE_TOLERANCE_YEARS if name == "age_years" else 2.0))


def load_people(path: str | Path, layouts: Sequence[PeopleLayout] = ()) -> People:
    """Read a table of people: CSV, TSV or Parquet, gzipped or not.

    Parameters
    ----------
    path : str or Path
    layouts : sequence of PeopleLayout
        The user's own, tried before the shipped ones.

    Raises
    ------
    InputError
        When it cannot be read or is of no declared layout.
    """
    path = Path(path).expanduser()
    header = _header(path)
    layout = next((one for one in (*layouts, *shipped_people()) if header and one.fits(header)), None)
    if header is None or layout is None:
        raise InputError(f"{path.name} is no table of people that p2es knows: declare its columns with --ingest.people")
    found: dict[str, Person] = {}
    notes = {"no_key": 0, "twice": 0, "unexplained_sex": 0}
    dropped: set[str] = set()
    for row in _rows(path, header):
        key = layout.normal(row.get(layout.key, ""))
        if not key:
            notes["no_key"] += 1
            continue
        person = _person(layout, row, notes)
        # Two rows that say different things of one key: neither can be believed.
        if key in dropped or found.setdefault(key, person) != person:
            notes["twice"] += 1
            found.pop(key, None)
            dropped.add(key)
        if len(found) > MAX_PEOPLE:
            raise InputError(f"{path.name} has over {MAX_PEOPLE} rows: it is no table of people")
    if not found:
        raise InputError(f"{path.name} has no row with a key in {layout.key!r}: correct it")
    return People(layout, found, {key: count for key, count in notes.items() if count})


def _header(path: Path) -> Header | None:
    if not path.is_file():
        raise InputError(f"there is no table {path.name}: give the path of a table of people")
    return header_of(path)


def _person(layout: PeopleLayout, row: Mapping[str, str], notes: dict[str, int]) -> Person:
    known: dict[str, Any] = {}
    for name, value in layout.demographics.items():
        text = row.get(str(value.at), "").strip()
        if name != "sex":
            known[name] = parse_number(text, name)
            continue
        try:
            known[name] = sex_of(text, value)
        except InputError:
            notes["unexplained_sex"] += 1
    who = row.get(layout.person, "").strip() if layout.person else ""
    return Person(Demographics(**known), re.sub(r"\.0+$", "", who))


def _rows(path: Path, header: Header) -> Iterator[dict[str, str]]:
    if header.kind == "parquet":
        yield from _parquet_rows(path, header)
        return
    opened = gzip.open if header.gzipped else open
    csv.field_size_limit(1 << 20)
    try:
        with opened(path, "rb") as binary, io.TextIOWrapper(binary, "utf-8-sig", "replace", newline="") as file:
            reader = csv.reader(_bounded(file, path.name), delimiter=header.delimiter, skipinitialspace=True)
            next(reader, None)
            for row in reader:
                yield dict(zip(header.first, row, strict=False))
    except (csv.Error, OSError, EOFError) as error:
        raise InputError(f"{path.name} cannot be read ({type(error).__name__}): fetch it again") from error


def _bounded(file: io.TextIOWrapper, name: str) -> Iterator[str]:
    """Give the lines of a text, none longer than 1 MB and not more in all than any table of people."""
    total = 0
    while line := file.readline(1 << 20):
        total += len(line)
        if total > 1 << 32:
            raise InputError(f"{name} is larger than any table of people: give another")
        yield line


def _parquet_rows(path: Path, header: Header) -> Iterator[dict[str, str]]:
    for frame in frames_of(path, header, list(range(len(header.first)))):
        texts = {header.first[k]: frame[k].astype("string").fillna("") for k in frame.columns}
        for values in zip(*texts.values(), strict=True):
            yield dict(zip(texts, map(str, values), strict=True))
