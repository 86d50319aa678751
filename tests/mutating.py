"""What is done to the bytes of a valid file to see that a reader ends in a typed error or in samples."""

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from p2es.errors import RecordError

# The machine is shared: a second is the promise for one file, and the deadline has some room over it.
FUZZ = settings(max_examples=300, deadline=2000, suppress_health_check=list(HealthCheck))
_WORDS = (b"nan", b"-1", b"1e308", b"0", b"99999999", b"1e-300", b"\xb2", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f")


@st.composite
def mutated(draw, valid, *, within=1 << 30, words=_WORDS):
    """Draw a file of `valid` with one to four changes among its first `within` bytes."""
    raw = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(min(len(raw) - 1, within), 0)))
        act = draw(st.sampled_from(["flip", "word", "cut", "insert", "delete", "repeat"]))
        if act == "flip":
            raw[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif act == "word":
            word = draw(st.sampled_from(words))
            raw[at : at + len(word)] = word
        elif act == "cut":
            del raw[at:]
        elif act == "insert":
            raw[at:at] = draw(st.binary(max_size=9))
        elif act == "delete":
            del raw[at : at + draw(st.integers(1, 64))]
        else:
            raw[at:at] = raw[at : at + draw(st.integers(1, 256))] * draw(st.integers(1, 8))
    return bytes(raw)


def refusal_of(read, path):
    """Read everything a reader gives of a file; the reason of its refusal, or None. Other errors come out."""
    try:
        for recording in read(path, "r", "s", []):
            assert recording.signals
            for signal in recording.signals:
                for start in (0, max(signal.samples.size - 1000, 0)):
                    samples = signal.read(start, start + 1000)
                    assert samples.dtype in (np.float32, np.float64)
                    assert samples.size == min(1000, signal.samples.size - start)
    except RecordError as error:
        text = str(error)
    else:
        return None
    assert "\n" not in text
    assert str(path.parent) not in text
    return text
