"""Writes the results as Markdown."""

import shutil

MIB = 1 << 20
# What a row must reach: of which programs' best, at most what part.
TARGETS = {
    ("postgres", "first"): [(("restic",), 0.5), (("rustic",), 0.75)],
    ("documents", "first"): [(("restic", "borg"), 0.6), (("rustic",), 0.8)],
    ("postgres", "second"): [(("restic", "borg", "rustic"), 0.8)],
    ("documents", "second"): [(("restic", "borg", "rustic"), 0.8)],
    ("postgres", "restore"): [(("restic", "borg", "rustic"), 0.7)],
    ("documents", "restore"): [(("restic", "borg", "rustic"), 0.7)],
    ("s3", "first"): [(("local",), 1.25)],
    ("s3", "restore"): [(("local",), 1.25)],
}
FLOOR_RATIO = 1.15
MEMORY_MAX = 256 * MIB


def which(program: str) -> str | None:
    return shutil.which(program)


def _cells(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def row(row: dict) -> str:
    """One row of results as a small table."""
    tools = row["tools"]
    own = tools.get("dr")
    lines = [f"### {row['title'][0].upper()}{row['title'][1:]}", ""]
    if "source_bytes" in row:
        lines += [f"{row['source_bytes'] / 1e6:,.0f} MB", ""]
    lines += [
        _cells("", "wall, median (min to max)", "dr's share of it", "CPU", "peak memory", "stored"),
        _cells(*["---"] * 6),
    ]
    for name, figures in tools.items():
        wall = f"{figures['wall_s']:.2f} s ({figures['wall_min_s']:.2f} to {figures['wall_max_s']:.2f})"
        ratio = f"{own['wall_s'] / figures['wall_s']:.2f}" if own and name != "dr" else ""
        stored = f"{figures['stored_bytes'] / 1e6:,.1f} MB" if "stored_bytes" in figures else ""
        lines.append(_cells(name, wall, ratio, f"{figures['cpu_s']:.2f} s", f"{figures['memory_bytes'] / MIB:,.0f} MiB", stored))
    return "\n".join([*lines, "", *judgements(row), ""])


def judgements(row: dict) -> list[str]:
    """Each target of a row with what came of it."""
    tools = row["tools"]
    own = tools.get("dr") or tools.get("s3")
    said = []
    if own is None:
        return said
    floor = tools.get("floor")
    for names, part in TARGETS.get((row["part"], row["what"]), []):
        there = {name: tools[name]["wall_s"] for name in names if name in tools}
        if not there:
            continue
        best = min(there, key=there.__getitem__)
        ratio = own["wall_s"] / there[best]
        verdict = "met" if ratio <= part else "missed"
        if verdict == "missed" and floor and own["wall_s"] <= FLOOR_RATIO * floor["wall_s"]:
            verdict = f"missed, within {FLOOR_RATIO} of the floor"
        said.append(f"* {ratio:.2f} of {best}'s time, at most {part}: {verdict}")
    if floor:
        said.append(f"* {own['wall_s'] / floor['wall_s']:.2f} of the floor's time")
    if "stored_bytes" in own and "stored_bytes" in tools.get("restic", {}):
        ratio = own["stored_bytes"] / tools["restic"]["stored_bytes"]
        wanted = ", at most 1.03: " + ("met" if ratio <= 1.03 else "missed") if row["part"] == "postgres" else ""
        said.append(f"* {ratio:.3f} of restic's stored bytes{wanted}")
    if row["part"] in ("postgres", "documents", "s3"):
        verdict = "met" if own["memory_bytes"] <= MEMORY_MAX else "missed"
        said.append(f"* {own['memory_bytes'] / MIB:.0f} MiB of memory, at most {MEMORY_MAX // MIB}: {verdict}")
    return said


def document(results: dict) -> str:
    """The whole run."""
    machine = results["machine"]
    lines = [
        f"{machine['processor']}, {machine['processors']} processors, {machine['memory_gib']} GiB of memory, "
        f"{machine['system']}. Every program on processors {', '.join(map(str, results['cpus']))}. "
        f"Commit {machine['commit']}. {results['runs']} runs each, in turn; warm page cache; everything encrypted. "
        f"Load of the machine {machine['load_at_start']:.1f} at the start, {machine.get('load_at_end', 0):.1f} at the end.",
        "",
        f"Command: `{results['command']}`",
        "",
        *[f"* {name}: {version}" for name, version in results["versions"].items()],
        "",
    ]
    return "\n".join(lines) + "\n" + "\n".join(row(each) for each in results["rows"])
