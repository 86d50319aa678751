"""Finding the records of an archive: every file is a record, part of a record, a document, or told as unknown.

The format is known by content, never by ending. An archive is seen through a `Tree`, so that a folder of this machine
and a bucket are sorted by the same rules (`p2es_platform.archive`).
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from p2es.errors import InputError, RecordError
from p2es.formats import aecg, dicom, edf, matlab, people, rows, vital
from p2es.formats.mapping import Layout, layout_of, shipped
from p2es.formats.people import PeopleLayout

HEAD_BYTES = 4096
# A multi-segment header of MIMIC lists thousands of segments; 4 MB are some 100,000 lines.
HEADER_BYTES = 4 << 20
MAX_LISTED = 10_000_000

_DOCUMENT = re.compile(
    r"(?i)^(readme|licen[cs]e|copying|changelog|changes|records|annotators|sha256sums?|md5sums?|repo_license|index|"
    r"citation|about)([._-].*)?$|\.(md|rst|html?|pdf|cff|bib|docx?)$"
)
_DOCUMENT_HEADS = (b"%PDF-", b"\x89PNG", b"\xff\xd8\xff")
# Formats that run code when they are loaded, by their beginning.
_CODE = re.compile(rb"^(\x80[\x02-\x05]|\x93NUMPY.{2,6}\{.*'descr': '\|O')", re.DOTALL)
_CODE_NAMES = re.compile(r"(?i)\.(pkl|pickle|joblib|pt|pth|pt2|ckpt|npy|npz)$")


@dataclass(frozen=True)
class RecordRef:
    """Where a record lies; cheap to make and to send.

    Attributes
    ----------
    path : str
        The file that names the record (a WFDB header, a CSV).
    format : str
        Key of the reader; "unknown", "link" or "missing" for what reading will refuse with the reason; "simulated" for
        what is made when it is read.
    name : str
        Path from the archive's root, for WFDB without the ending: unique in the archive.
    bytes : int
        Size of all its files.
    """

    path: str
    format: str
    name: str
    bytes: int = 0


@dataclass(frozen=True)
class Survey:
    """What an archive holds: every file of it is in one of these.

    Attributes
    ----------
    records : list of RecordRef
        Sorted by name; what no reader knows is here too, as format "unknown", so that reading tells it.
    companions : dict of str to str
        Files that are read with a record: path from the root to the record's name.
    documents : list of str
        README, licences, lists, tables of people: paths from the root.
    hidden : list of str
        Files whose name or folder begins with a dot, and `.partial` ones: what an interrupted writer left.
    """

    records: list[RecordRef]
    companions: dict[str, str] = field(default_factory=dict)
    documents: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)


class Tree(Protocol):
    """An archive as files."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Path from the root to bytes, of every file; below 0 for a link that leaves the archive."""
        ...

    def head(self, name: str, count: int) -> bytes:
        """Give the first bytes of a file; OSError when it cannot be read."""
        ...

    def address(self, name: str) -> str:
        """Give what a reference says of a file."""
        ...


class Folder:
    """A folder of this machine; links to files within it are files, links that leave it or lead to folders are told.

    Parameters
    ----------
    root : Path
    names : sequence of str, optional
        Only these paths below it.
    """

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        listed = self._listed("") if names is None else ((name, self._size(name)) for name in names)
        self.sizes: dict[str, int] = dict(listed)

    def _listed(self, below: str) -> Iterator[tuple[str, int]]:
        pending = [below]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        name = f"{folder}/{entry.name}" if folder else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(name)
                        else:
                            yield name, self._size(name) if entry.is_symlink() else _entry_size(entry)
            except OSError:
                # A folder that cannot be listed is told as a record that cannot be read.
                yield folder, 0

    def _size(self, name: str) -> int:
        path = self.root / name
        real = os.path.realpath(path)
        if not (real == self._real or real.startswith(self._real.rstrip("/") + "/")) or Path(real).is_dir():
            return -1
        try:
            return path.stat().st_size
        except OSError:
            return 0

    def head(self, name: str, count: int) -> bytes:
        """Give the first bytes of a file."""
        path = self.root / name
        if not path.is_file():  # a pipe or a device would keep the reader waiting
            raise OSError("no file")
        with path.open("rb") as file:
            return file.read(count)

    def address(self, name: str) -> str:
        """Give the path of a file."""
        return str(self.root / name)


def _entry_size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def survey_tree(
    tree: Tree,
    mappings: tuple[Layout, ...] = (),
    tables: Sequence[PeopleLayout] = (),
    only: Collection[str] | None = None,
) -> Survey:
    """Sort the files of an archive into records, companions, documents and hidden ones.

    Parameters
    ----------
    tree : Tree
    mappings : tuple of Layout
        The user's own layouts of tables.
    tables : sequence of PeopleLayout
        The user's own tables of people.
    only : collection of str, optional
        Files that were asked for; the others are looked at only as companions of these.
    """
    hidden = sorted(name for name in tree.sizes if _is_hidden(name))
    sizes = {name: size for name, size in tree.sizes.items() if not _is_hidden(name)}
    asked = sizes.keys() if only is None else sizes.keys() & set(only)
    headers = _Headers(tree, sizes, asked, mappings)
    companions = headers.companions | {other: name for other, name in _beside(sizes, mappings).items() if name in asked}
    documents: list[str] = []
    formats: dict[str, str] = {}
    for name, size in sizes.items():
        if name in headers.records or name in companions:
            continue
        owner = headers.owner(name)
        kind = _format(tree, name, size, mappings, tables) if name in asked else ("unknown" if owner else "")
        if kind == "document":
            documents.append(name)
        elif owner and kind in {"unknown", "csv", "matlab"}:
            companions[name] = owner
        elif kind:
            formats[name] = kind
    records = _references(tree, sizes, headers.records | {name: name for name in formats}, formats, companions)
    return Survey(records, dict(sorted(companions.items())), sorted(documents), hidden)


def _references(
    tree: Tree,
    sizes: Mapping[str, int],
    records: Mapping[str, str],
    formats: Mapping[str, str],
    companions: Mapping[str, str],
) -> list[RecordRef]:
    """Make the references of records (file to name), each with the bytes of all its files."""
    extra = Counter[str]()
    for name, record in companions.items():
        extra[record] += max(sizes[name], 0)
    found = []
    for name, record in records.items():
        kind = formats.get(name, "link" if sizes[name] < 0 else "wfdb")
        found.append(RecordRef(tree.address(name), kind, record, max(sizes[name], 0) + extra[record]))
    return sorted(found, key=lambda reference: reference.name)


def _is_hidden(name: str) -> bool:
    return name.endswith(".partial") or any(part.startswith(".") for part in name.split("/"))


class _Headers:
    """The WFDB headers of an archive: which are records, and which files belong to them."""

    def __init__(
        self, tree: Tree, sizes: Mapping[str, int], asked: Collection[str], mappings: tuple[Layout, ...]
    ) -> None:
        named: dict[str, list[str]] = {}
        pending = [name for name in asked if name.endswith(".hea")]
        while pending:
            header = pending.pop()
            if header not in named:
                named[header] = [] if sizes[header] < 0 else _named(tree, header) + beside_names(header, mappings)
                pending += [file for file in named[header] if file.endswith(".hea") and file in sizes]
        inner = {file for header, files in named.items() for file in files if file != header}
        # Masters that name each other in a ring are each a record: reading them tells.
        tops = [name for name in named if name not in inner] or list(named)
        self.records = {name: self._record(name, sizes) for name in tops}
        self.companions: dict[str, str] = {}
        for top in tops:
            for file in self._reached(top, named):
                if file in sizes and file not in self.records:
                    self.companions.setdefault(file, self.records[top])
        for name in named:
            if name not in self.companions:
                self.records[name] = self._record(name, sizes)
        self._stems = {name.removesuffix(".hea"): record for name, record in self.records.items()}
        self._stems |= {file.removesuffix(".hea"): r for file, r in self.companions.items() if file.endswith(".hea")}

    @staticmethod
    def _record(header: str, sizes: Mapping[str, int]) -> str:
        """Name the record of a header; with its ending where a file beside has the name without."""
        name = header.removesuffix(".hea")
        return header if name in sizes else name

    @staticmethod
    def _reached(top: str, named: Mapping[str, Sequence[str]]) -> set[str]:
        """Give all files that a header names, and those that they name."""
        reached: set[str] = set()
        pending = [top]
        while pending:
            for file in named.get(pending.pop(), ()):
                if file not in reached and file != top:
                    reached.add(file)
                    pending.append(file)
        return reached

    def owner(self, name: str) -> str | None:
        """Give the record whose annotations (`100.atr`, LUDB's `1.avf`) or numerics (`85594648n.csv.gz`) a file is."""
        folder, _, file = name.rpartition("/")
        stem = file.split(".", 1)[0]
        ending = file[len(stem) + 1 :]
        base = f"{folder}/{stem}" if folder else stem
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]{0,15}", ending) and ending not in {"csv", "mat", "edf", "dcm", "xml"}:
            return self._stems.get(base)
        numerics = base[:-1] if stem.endswith("n") and ending in {"csv.gz", "csv"} else ""
        return self._stems.get(numerics)


def _named(tree: Tree, header: str) -> list[str]:
    try:
        return named_by(header, tree.head(header, HEADER_BYTES))
    except OSError:
        return []


def named_by(header: str, data: bytes) -> list[str]:
    """Give the files beside a WFDB header that it names: signal files, or the headers of segments.

    Parameters
    ----------
    header : str
        Path of the header.
    data : bytes
        Its content.
    """
    text = data.decode("utf-8", errors="replace")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        return []
    multiple = "/" in lines[0][0]
    folder = header.rpartition("/")[0]
    names = dict.fromkeys(line[0] for line in lines[1:] if not re.search(r"[/\\\0]", line[0]) and line[0] != "~")
    return [f"{folder}/{name}" if folder else name for name in (f"{n}.hea" if multiple else n for n in names)]


def beside_names(name: str, mappings: tuple[Layout, ...] = ()) -> list[str]:
    """Give what the second file of a table or a WFDB header may be called (`*_ppg.csv` of `*_ecg.csv`)."""
    found = []
    for layout in (*mappings, *shipped()):
        pair, file = layout.beside, layout.match.file
        if pair and name.endswith(pair.replace) and (not file or re.search(file, name.rpartition("/")[2])):
            found.append(name.removesuffix(pair.replace) + pair.by)
    return found


def _beside(sizes: Mapping[str, int], mappings: tuple[Layout, ...]) -> dict[str, str]:
    """Give the second tables that are there, with the records they belong to."""
    tables = [name for name in sizes if not name.endswith(".hea")]
    return {other: name for name in tables for other in beside_names(name, mappings) if other in sizes}


def _format(tree: Tree, name: str, size: int, mappings: tuple[Layout, ...], tables: Sequence[PeopleLayout]) -> str:
    """Tell what a file is by its beginning: the key of a reader, "document", "link" or "unknown"."""
    if size < 0:
        return "link"
    try:
        head = tree.head(name, HEAD_BYTES)
    except OSError:
        return "unknown"
    file = name.rpartition("/")[2]
    for key, module in (("dicom", dicom), ("edf", edf), ("vital", vital), ("aecg", aecg)):
        if module.is_mine(head):
            return key
    if matlab.version_of(head):
        return "matlab"
    if head.startswith(b"PAR1"):
        return "parquet"
    if _CODE.match(head) or _CODE_NAMES.search(file):
        return "unknown"
    return _text_format(head, file, mappings, tables)


def _text_format(head: bytes, file: str, mappings: tuple[Layout, ...], tables: Sequence[PeopleLayout]) -> str:
    header = rows.head_of(head)
    if header is not None and layout_of("table", file, header.fits, mappings):
        return "csv"
    if header is not None and people.is_people_table(head, tables):
        return "document"
    if head.startswith(_DOCUMENT_HEADS) or (_DOCUMENT.search(file) and not head.startswith(b"\x1f\x8b")):
        return "document"
    # A table that nobody declared is told as one without a layout; a text that is no table is a document.
    if header is not None and re.search(r"(?i)\.(csv|tsv)(\.gz)?$", file):
        return "csv"
    if re.search(r"(?i)\.(csv|tsv)$", file):
        return "csv"
    return "document" if _is_text(head, file) else "unknown"


def _is_text(head: bytes, file: str) -> bool:
    if b"\0" in head or not re.search(r"(?i)\.(txt|text|log|toml|ya?ml|jsonl?|ini|cfg|py|m|r|sh|ipynb)$", file):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4
    return True


def why_unknown(path: Path) -> RecordError:
    """Say why a file is not read: what it is, and what to do."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # Opening a pipe would wait for somebody to write to it.
            return RecordError(f"{path.name} is a pipe or a device: copy what it gives into a file", "unknown_format")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        what = type(error).__name__
        return RecordError(f"{path.name} cannot be opened ({what}): give read permission", "no_permission")
    if _CODE.match(head) or _CODE_NAMES.search(path.name):
        text = f"{path.name} is never loaded, since loading it can run code: export it as Parquet or WFDB"
    elif not head:
        text = f"{path.name} is empty: fetch it again"
    elif head.startswith(b"PK\x03\x04") or head.startswith(b"\x1f\x8b"):
        text = f"{path.name} is packed: unpack it into the archive"
    elif head.startswith(b"\x89HDF"):
        text = f"{path.name} is HDF5, which has no layout: export it as Parquet with a mapping"
    else:
        text = f"{path.name} is of no format that p2es reads: convert it, or leave it out of the archive"
    return RecordError(text, "unknown_format")


def survey(where: str | Path, mappings: tuple[Layout, ...] = (), tables: Sequence[PeopleLayout] = ()) -> Survey:
    """Account for every file of an archive on this machine.

    Parameters
    ----------
    where : str or Path
        A file, a folder with all below it, a glob (`data/*/x*.hea`), a list of paths (`@list.txt`, or a text file or
        WFDB `RECORDS` file given as such; one a line, from the list's folder).
    mappings : tuple of Layout
    tables : sequence of PeopleLayout

    Raises
    ------
    InputError
        When there is nothing there.
    """
    text = str(where)
    listed = text.startswith("@")
    path = Path(text.removeprefix("@")).expanduser()
    if path.is_dir():
        return survey_tree(Folder(path), mappings, tables)
    if not path.exists() and path.with_name(f"{path.name}.hea").exists():
        path = path.with_name(f"{path.name}.hea")
    if path.is_file():
        if listed or _is_list(path):
            return _of_list(path, mappings, tables)
        return _of_files(path.parent, [path.name], mappings, tables)
    if not listed and re.search(r"[*?[]", text):
        return _of_glob(text, mappings, tables)
    raise InputError(f"there is no {text}: give a recording, a folder of recordings, a glob or a list")


def _of_files(root: Path, names: Sequence[str], mappings: tuple[Layout, ...], tables: Sequence[PeopleLayout]) -> Survey:
    """Survey some files, and what belongs to them of the folders they lie in."""
    folders = {PurePosixPath(name).parent.as_posix() for name in names}
    near = [name for folder in sorted(folders) for name in _names_in(root, "" if folder == "." else folder)]
    found = survey_tree(Folder(root, sorted({*near, *names})), mappings, tables, only=set(names))
    return replace(found, hidden=[name for name in found.hidden if name in set(names)])


def _names_in(root: Path, folder: str) -> list[str]:
    try:
        with os.scandir(root / folder) as entries:
            return [f"{folder}/{e.name}" if folder else e.name for e in entries if not e.is_dir()]
    except OSError:
        return []


def _is_list(path: Path) -> bool:
    """Tell whether a text file lists paths that are there: a RECORDS file, or a list given without @."""
    if path.name != "RECORDS" and path.suffix.lower() not in {".txt", ".lst"}:
        return False
    try:
        first = next(_entries(path), "")
    except OSError:
        return False
    return path.name == "RECORDS" or any(_there(path.parent, first))


def _there(base: Path, entry: str) -> Iterator[bool]:
    """Tell of each spelling of a list's entry whether it is there: as written, or a record without its ending."""
    if entry and "\0" not in entry and len(entry) < 4096:
        yield (base / entry).exists()
        yield (base / f"{entry}.hea").exists()


def _of_glob(pattern: str, mappings: tuple[Layout, ...], tables: Sequence[PeopleLayout]) -> Survey:
    # The archive's root is the part before the first wildcard, so that names do not depend on what matched.
    root = Path(re.split(r"[*?[]", pattern)[0] + "x").expanduser().parent
    found = sorted(root.glob(Path(pattern).expanduser().relative_to(root).as_posix())) if root.is_dir() else []
    if not found:
        raise InputError(f"nothing matches {pattern}: give a recording or a folder of recordings")
    names: dict[str, None] = {}
    for path in map(Path, found):
        below = path.relative_to(root).as_posix() if path != root else ""
        if path.is_dir():
            names |= dict.fromkeys(f"{below}/{name}" if below else name for name in Folder(path).sizes)
        else:
            names[below] = None
    return _of_files(root, list(names), mappings, tables)


def _of_list(path: Path, mappings: tuple[Layout, ...], tables: Sequence[PeopleLayout]) -> Survey:
    """Survey what a list names; an entry that is not there, or leaves the list's folder, is a record that says so."""
    root = path.parent.absolute()
    names: dict[str, None] = {}
    refused: list[RecordRef] = []
    for entry in _entries(path):
        absolute = Path(os.path.normpath(root / entry))
        below = os.path.relpath(absolute, root)
        if below.startswith(".."):
            refused.append(RecordRef(str(absolute), "link", entry))
        elif absolute.is_dir():
            names |= dict.fromkeys(f"{below}/{name}" for name in Folder(absolute).sizes)
        elif absolute.with_name(f"{absolute.name}.hea").is_file():
            names[f"{below}.hea"] = None
        elif absolute.is_file():
            names[below] = None
        else:
            refused.append(RecordRef(str(absolute), "missing", entry))
    found = _of_files(root, list(names), mappings, tables)
    records = sorted([*found.records, *refused], key=lambda r: r.name)
    if not records:
        raise InputError(f"{path.name} lists nothing: give one recording a line")
    return Survey(records, found.companions, found.documents, [])


def _entries(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for count, line in enumerate(file):
            if count > MAX_LISTED:
                raise InputError(f"{path.name} lists over {MAX_LISTED} files: give the folder")
            entry = line.strip()
            if entry and not entry.startswith("#") and "\0" not in entry:
                yield entry
