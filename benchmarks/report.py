"""What was measured, as documents: tables and pictures from the result files.

python -m benchmarks.report                            # fill the tables of README.md and docs/, draw docs/images/
python -m benchmarks.report --compare OLD.json NEW.json # what changed by more than its spread
"""

import argparse
import sys
from pathlib import Path

from benchmarks import plots, tables
from benchmarks.compare import changes


def main() -> None:
    """Make the documents, or compare two runs; status 1 when something became slower beyond its spread."""
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
    slower = [change for change in found if change.beyond_spread and change.ratio > 1]
    faster = [change for change in found if change.beyond_spread and change.ratio < 1]
    sys.stdout.write(f"{len(found)} rows: {len(slower)} slower and {len(faster)} faster beyond their spread\n")
    sys.exit(bool(slower))


if __name__ == "__main__":
    main()
