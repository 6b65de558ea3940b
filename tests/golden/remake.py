"""Write golden.json anew for the parts whose behaviour was meant to change.

    python tests/golden/remake.py [PART ...]

A part is written anew if it is new, if one of its revisions was raised, or if a library behind it has another version. Where
outcomes changed without any of these, nothing is written, the change is shown, and the exit status is 1: raise the revision
that the message names, or undo the change. Parts without a revision, such as `statistics`, are written anew when named.
Run it from an environment in which kwbench is installed; it takes about a minute.
"""

import sys
from pathlib import Path

# As a script, the folder of this file is on the path; imports start at tests/.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from golden.every_part import every_part  # noqa: E402
from golden.parts import read, remade, write  # noqa: E402


def main(accepted: list[str]) -> int:
    """Write golden.json, or show what keeps it from being written. Return the exit status."""
    parts, golden = every_part(), read()
    unknown = [name for name in accepted if name not in {part.name for part in parts}]
    if unknown:
        print(f"no part is called {', '.join(unknown)}; there are {', '.join(part.name for part in parts)}", file=sys.stderr)
        return 2
    entries, problems = remade(parts, golden, accepted)
    if problems:
        print("\n\n".join(problems), file=sys.stderr)
        return 1
    write(entries)
    changed = [name for name, entry in entries.items() if golden.get(name) != entry]
    gone = [name for name in golden if name not in entries]
    print(f"written anew: {', '.join(changed) or 'nothing'}" + (f"; removed: {', '.join(gone)}" if gone else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
