#!/usr/bin/python3
"""Made `v2` from `v1`: the same with version 2 in the description of the repository and every header."""
import json, pathlib, shutil

here = pathlib.Path(__file__).parent
shutil.copytree(here / "v1", here / "v2", ignore=shutil.ignore_patterns("data", "wal", "index"))
for path in (here / "v2" / "repository").rglob("*"):
    if path.is_file() and path.name != "repository":
        data = bytearray(path.read_bytes())
        data[8] = 2
        path.write_bytes(data)
line = {"format": "dr-store", "version": 2, "identity": {"random": "0123"}, "features": ["unheard-of"]}
(here / "v2" / "repository" / "repository").write_text(json.dumps(line) + "\n")
for name in ("expected.json", "second.key", "passphrase.txt", "age-identity.txt"):
    (here / "v2" / name).unlink()
