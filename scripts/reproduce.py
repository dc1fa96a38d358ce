"""Trains the rows of the results table: see docs/reproduce.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reproduce import main

sys.exit(main())
