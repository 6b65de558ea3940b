"""Cost against accuracy: what the strong suite, AutoAttack and PGD-40 find, and what they take to find it.

    python bench/speed/cost.py [--n 128] [--threads 1] [MODEL...]

Each cell is one `kwbench evaluate` from an empty record, one after the other, start-up, judging and storage included; strong
with its diagnosis too. Writes a Markdown table to stdout. Seconds are of this machine; compare them within the table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kwbench.provenance import machine, versions

MODELS = ("resnet18-relu", "resnet18-relu-at", "resnet18-kwta0.1-at", "resnet18-slwta2")
PROTOCOLS = {
    "PGD-40": ["--attack", "pgd", "--set", "pgd.steps=40"],
    # What its authors advise: standard, and for a stochastic model the version for random defences.
    "AutoAttack": ["--suite", "{autoattack}"],
    "strong": ["--suite", "strong"],
}
AUTOATTACK = """\
attacks:
  autoattack: {when: deterministic}
  autoattack-rand: {attack: autoattack, version: rand, when: stochastic}
"""


def cell(folder: Path, model: str, options: list[str]) -> tuple[dict[str, Any], float]:
    """The JSON of an evaluation into a record of its own, and how long the whole command took, in seconds."""
    (folder / "autoattack.yaml").write_text(AUTOATTACK, encoding="utf-8")
    (folder / "results.db").unlink(missing_ok=True)
    filled = [each.format(autoattack=folder / "autoattack.yaml") for each in options]
    command = [
        str(Path(sys.executable).with_name("kwbench")),
        "evaluate",
        model,
        *filled,
        "--db",
        str(folder / "results.db"),
        "--json",
    ]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout), time.perf_counter() - started


def row(model: str, protocol: str, found: dict[str, Any], seconds: float) -> str:
    """A line of the table. Passes are of the attacks, per sample of the evaluation."""
    a_rob, n = found["a_rob"], found["n"]
    forwards, backwards = (sum(each[kind] for each in found["attacks"]) / n for kind in ("forwards", "backwards"))
    figure = f"{100 * a_rob['value']:.1f} [{100 * a_rob['low']:.1f}, {100 * a_rob['high']:.1f}]" if a_rob else "none"
    word = (found.get("verdict") or {}).get("verdict", "")
    return f"| {model} | {protocol} | {figure} | {forwards:,.0f} | {backwards:,.0f} | {seconds:.0f} | {word} |"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    about = machine() | versions()
    print(
        f"n = {asked.n}, {asked.threads} thread(s) each; " + ", ".join(f"{key} {value}" for key, value in about.items()),
        end="\n\n",
    )
    print("| model | protocol | A_rob, % | forwards a sample | backwards a sample | seconds, whole command | verdict |")
    print("|:--|:--|--:|--:|--:|--:|:--|")
    with tempfile.TemporaryDirectory() as folder:
        for model in asked.models:
            for protocol, options in PROTOCOLS.items():
                slice_ = ["--n", str(asked.n), "--threads", str(asked.threads)]
                print(row(model, protocol, *cell(Path(folder), model, [*options, *slice_])), flush=True)


if __name__ == "__main__":
    main()
