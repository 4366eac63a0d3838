"""What was measured, as documents: tables and pictures from the result files.

python -m benchmarks.report                            # fill the tables of README.md and docs/, draw docs/images/
python -m benchmarks.report --compare OLD.json NEW.json # what changed by more than its spread
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from benchmarks import plots, tables
from benchmarks.compare import changes


def main() -> None:
    """Make the documents, or compare two runs; status 1 when a figure is gone, or slower or worse beyond its spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    options = parser.parse_args()
    if options.compare is None:
        tables.main()
        plots.main()
        return
    try:
        found = changes(*options.compare)
    except ValueError as error:
        parser.error(str(error))
    for change in found:
        sys.stdout.write(f"{change}\n")
    verdicts = Counter(change.verdict for change in found if change.beyond_spread)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "none changed"
    sys.stdout.write(f"{len(found)} figures, beyond their spread: {counted}\n")
    sys.exit(any(verdicts[bad] for bad in ("slower", "worse", "gone")))


if __name__ == "__main__":
    main()
