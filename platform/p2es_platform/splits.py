"""The rule that puts people into splits, and the list of it that can be published and checked by anyone.

A dataset keeps keyed hashes of ids only; a split list names people by the archive's own ids, so that others can use
the same split without this software.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from p2es.errors import InputError

_TITLE = "p2es split list 1"
_RULE = (
    "x = first 8 bytes (big-endian) of SHA-256 of the UTF-8 text salt + U+001F + source + U+001F + person, over 2**64; "
    "test where x < test_share, validation where x < test_share + validation_share, else train"
)


@dataclass(frozen=True)
class SplitRule:
    """What decides the split of a person, beside the archive's id.

    Attributes
    ----------
    salt : str
        Public.
    source : str
        Institution family.
    validation_share, test_share : float
    """

    salt: str
    source: str
    validation_share: float
    test_share: float

    def split_of(self, person: str) -> str:
        """Give the split of a person by the archive's id, whatever the secret of the stored ids."""
        digest = hashlib.sha256("\x1f".join([self.salt, self.source, person]).encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        if place < self.test_share:
            return "test"
        # The sum as it stands, not 1 - train: others must come to the same last bit.
        return "validation" if place < self.test_share + self.validation_share else "train"


def write_list(rule: SplitRule, people: Iterable[str]) -> bytes:
    """Give a split list: CSV of the archive's ids and their splits, below the rule and what it needs.

    Parameters
    ----------
    rule : SplitRule
    people : iterable of str
        Ids of the archive; each is listed once, sorted.
    """
    text = io.StringIO()
    text.write(f"# {_TITLE}\n# {json.dumps(asdict(rule), sort_keys=True)}\n# {_RULE}\n")
    # Every field quoted: an id with a carriage return would else break its row.
    rows = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    rows.writerow(["person", "split"])
    rows.writerows((person, rule.split_of(person)) for person in sorted(set(people)))
    return text.getvalue().encode()


def read_list(data: bytes) -> tuple[SplitRule, dict[str, str]]:
    """Read a split list: its rule, and each person's split as the list says it.

    Raises
    ------
    InputError
        When it is not a split list, or names a person twice.
    """
    try:
        lines = io.StringIO(data.decode(), newline="")
        title, rule = (next(lines).removeprefix("# ").strip() for _ in range(2))
        if title != _TITLE:
            raise ValueError(title)
        values = SplitRule(**json.loads(rule))
        next(lines)
        rows = list(csv.reader(lines, strict=True))
        people = {row[0]: row[1] for row in rows[1:]}
        if rows[0] != ["person", "split"] or len(people) != len(rows) - 1:
            raise ValueError("rows")
    except (ValueError, TypeError, StopIteration, IndexError, RuntimeError, csv.Error) as error:
        raise InputError(f"this is no split list of p2es ({_TITLE}), or it names a person twice") from error
    return values, people


def wrong_rows(data: bytes) -> list[str]:
    """Give the people of a list whose split is not what its rule says; none when the list is right."""
    rule, people = read_list(data)
    return [person for person, split in people.items() if rule.split_of(person) != split]
