"""`python examples/training/images` puts its folders on the path, runs the command line."""

import sys
from pathlib import Path

if __name__ == "__main__":
    training = Path(__file__).resolve().parents[1]
    sys.path[:1] = [str(training), str(training.parent)]
    from images.command_line import main

    sys.exit(main())
