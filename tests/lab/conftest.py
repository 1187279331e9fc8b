"""Worker processes import the trial functions of `squares` by name, so its folder must be on the path before any worker starts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
