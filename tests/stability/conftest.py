"""What several files of this room use stands in `watched_models`, which they import by name, so its folder must be on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
