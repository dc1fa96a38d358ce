"""Compare speed with stock Keras and PyTorch: see docs/performance.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import main

if __name__ == "__main__":  # its worker processes import this file
    sys.exit(main())
