"""``python -m unit_fast``: the command line."""

from unit_fast.cli import main

if __name__ == "__main__":
    main()
