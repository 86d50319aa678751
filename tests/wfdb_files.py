"""Writing WFDB records sample by sample: the oracle of the reader, which works on whole arrays."""

import re

import numpy as np

FS_HZ = 125
LEAST = {8: None, 16: -(2**15), 24: -(2**23), 32: -(2**31), 61: -(2**15), 80: -(2**7), 160: -(2**15)}
LEAST |= {212: -(2**11), 310: -(2**9), 311: -(2**9)}
"""The step of each format that means "not recorded"."""


def encode(code, steps, initial=(), widths=()):
    """Encode samples in the order of the file; `initial` and `widths` (samples a frame) of each signal for format 8."""
    steps = [int(step) for step in steps]
    if code == 8:
        return _differences(steps, initial, widths)
    if code in (16, 24, 32, 61):
        size, order = {16: 2, 24: 3, 32: 4, 61: 2}[code], "big" if code == 61 else "little"
        return b"".join(step.to_bytes(size, order, signed=True) for step in steps)
    if code in (80, 160):
        size = code // 80
        return b"".join((step + (1 << 8 * size - 1)).to_bytes(size, "little") for step in steps)
    return b"".join(_packed(code, steps[k : k + 3 - (code == 212)]) for k in range(0, len(steps), 3 - (code == 212)))


def _packed(code, group):
    if code == 212:
        a, b = (step & 0xFFF for step in [*group, 0][:2])
        return bytes([a & 0xFF, a >> 8 | b >> 8 << 4, b & 0xFF])[: {1: 2, 2: 3}[len(group)]]
    a, b, c = (step & 0x3FF for step in [*group, 0, 0][:3])
    if code == 311:
        whole = (a | b << 10 | c << 20).to_bytes(4, "little")
        return whole[: {1: 2, 2: 3, 3: 4}[len(group)]]
    whole = bytes([(a & 0x7F) << 1, a >> 7 | (c & 0x1F) << 3, (b & 0x7F) << 1, b >> 7 | c >> 5 << 3])
    return whole[: {1: 2, 2: 4, 3: 4}[len(group)]]


def _differences(steps, initial, widths):
    level, found, place = list(initial), [], 0
    owners = [signal for signal, width in enumerate(widths) for _ in range(width)]
    for step in steps:
        owner = owners[place % len(owners)]
        found.append((step - level[owner]) & 0xFF)
        level[owner], place = step, place + 1
    return bytes(found)


def write_header(folder, name, signals, *, comments=(), fs=FS_HZ, samples=1500, count=None):
    lines = [f"{name} {len(signals) if count is None else count} {fs} {samples}".rstrip()]
    lines += [f"{name}.dat {line}" for line in signals]
    (folder / f"{name}.hea").write_text("\n".join([*lines, *(f"# {c}" for c in comments)]) + "\n")
    return folder / f"{name}.hea"


def ramp(samples, width):
    """Steps that tell their place: the frame, and 10 for each column."""
    return np.arange(samples)[:, None] % 1000 + 10 * np.arange(width)


def write_record(folder, name="r", signals=("16 200/mV 16 0 0 0 0 II", "16 1000/NU 16 0 0 0 0 PLETH"), **options):
    """Write a record in one file, of one format; `steps` (frame, samples of all signals) or a ramp."""
    frames = options.get("samples", 1500)
    steps, junk = options.pop("steps", None), options.pop("junk", b"")
    folder.mkdir(parents=True, exist_ok=True)
    header = write_header(folder, name, signals, **options)
    widths = [int((re.search(r"^\d+x(\d+)", line) or [0, 1])[1]) for line in signals]
    steps = ramp(frames, sum(widths)) if steps is None else steps
    code = int(re.match(r"\d+", signals[0])[0])
    initial = [int(line.split()[4]) for line in signals] if code == 8 else ()
    (folder / f"{name}.dat").write_bytes(junk + encode(code, np.ravel(steps), initial, widths))
    return header


def write_segments(folder, layout, *, name="m", fs=FS_HZ, comments=("age: 44", "sex: F")):
    """Write a multi-segment record; `layout` has (name, samples, signals), or (None, samples, None) for a gap.

    A segment without signals is named and not written.
    """
    lines = [f"{name}/{len(layout)} 2 {fs} {sum(samples for _, samples, _ in layout)}"]
    for segment, samples, signals in layout:
        lines.append(f"{segment or '~'} {samples}")
        if signals:
            write_record(folder, segment, signals, samples=samples, fs=fs)
    (folder / f"{name}.hea").write_text("\n".join([*lines, *(f"# {c}" for c in comments)]) + "\n")
    return folder / f"{name}.hea"
