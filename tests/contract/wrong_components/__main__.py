"""Print which rules each wrong component breaks: ``python tests/contract/wrong_components [NAME ...]``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import shelf
import wrong_backends
import wrong_encoders
import wrong_hooks
import wrong_learners
import wrong_memories
import wrong_sequences
import wrong_tasks

from kshot.testing import suite

MODULES = (wrong_learners, wrong_sequences, wrong_tasks, wrong_memories, wrong_backends, wrong_hooks, wrong_encoders)


def main(names: list[str]) -> None:
    """Run the suite of each component, or of those with these names."""
    chosen = [wrong for wrong in [*shelf.RIGHT, *shelf.WRONG] if not names or wrong.name in names]
    caught = 0
    for wrong in chosen:
        report = suite(**{wrong.group: wrong.component}, **wrong.more).run()
        failed = {f.rule: f.message for f in report if f.outcome in ("failed", "warned")}
        caught += bool(failed) and wrong in shelf.WRONG
        expected = wrong.rule or "none"
        sign = "as expected" if (wrong.rule in failed if wrong.rule else not failed) else "NOT AS EXPECTED"
        print(f"{wrong.group} {wrong.name}: {', '.join(failed) or 'none'} ({sign}: {expected})", flush=True)
        if names or sign != "as expected":
            for rule, message in failed.items():
                print(f"    {rule}: {message}")
    wrongs = sum(wrong in shelf.WRONG for wrong in chosen)
    print(f"{caught} of {wrongs} wrong components are caught")


if __name__ == "__main__":
    main(sys.argv[1:])
