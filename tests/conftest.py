"""Make the repository importable from anywhere, ``tests.…`` included."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
