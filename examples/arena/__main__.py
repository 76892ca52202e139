"""`python examples/arena` puts the package's folder on the path and runs its command line."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from arena.command_line import main

    sys.exit(main())
