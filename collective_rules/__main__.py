"""`python -m collective_rules`: the command line."""

import sys

from collective_rules.cli import main

if __name__ == "__main__":
    sys.exit(main())
