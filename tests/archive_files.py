"""Small archives for the tests of finding and reading."""

import numpy as np
import pandas as pd
import scipy.io


def write_record(folder, name="r", samples=1500):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.hea").write_text(f"{name} 1 125 {samples}\n{name}.dat 16 200/mV 16 0 0 0 0 II\n")
    (np.arange(samples) % 100).astype("<i2").tofile(folder / f"{name}.dat")
    return folder / f"{name}.hea"


def write_master(folder, name, segments):
    lines = [f"{name}/{len(segments)} 1 125 {1500 * len(segments)}", *(f"{s} 1500" for s in segments)]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")


def write_archive(root):
    """Write an archive with a file of every sort."""
    write_record(root / "a")
    (root / "a" / "r.atr").write_bytes(bytes(40))
    (root / "a" / "r.ii").write_bytes(bytes(40))
    for name in ("s1", "s2"):
        write_record(root / "m", name)
    write_master(root / "m", "m", ["s1", "s2", "gone", "~"])
    (root / "m" / "mn.csv.gz").write_bytes(b"\x1f\x8b" + bytes(30))
    t = np.arange(3000) / 125
    pd.DataFrame({"Time [s]": t, "PLETH": np.sin(t)}).to_csv(root / "b_Signals.csv", index=False)
    pd.DataFrame({"Time [s]": t, "PLETH": np.sin(t)}).to_parquet(root / "c.parquet")
    scipy.io.savemat(root / "A1.mat", {"ECG": {"sex": "Male", "age": 5, "data": np.ones((12, 5000))}})
    for name, data in {
        "README.md": b"# an archive", "LICENSE.txt": b"free", "RECORDS": b"a/r\nm/m\n", "SHA256SUMS.txt": b"0 a\n",
        "notes.txt": b"words", "page.html": b"<html>", "pic.pdf": b"%PDF-1.4",
        "ludb.csv": b'ID,Sex,Age,Rhythms\n1,"F\n",51,x\n',
        "table.csv": b"a,b\n1,2\n", "model.pkl": b"\x80\x04.", "weights.pt": b"PK\x03\x04", "x.npy": b"\x93NUMPY",
        "blob": bytes(range(256)), "empty.dat": b"", ".hidden": b"x", "half.csv.partial": b"x",
        "all.zip": b"PK\x03\x04",
    }.items():  # fmt: skip
        (root / name).write_bytes(data)
    (root / ".part").mkdir()
    write_record(root / ".part", "p")
    return root
