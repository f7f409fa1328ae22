"""`python -m ci_controller.probes [names]`: every probe of the package, one JSON line each."""

from __future__ import annotations

import json
import sys

from ci_controller.probes.all import PROBES
from ci_controller.probes.attempt import run

for _name in sys.argv[1:] or PROBES:
    sys.stdout.write("\n" + json.dumps(run(_name)._asdict()) + "\n")
    sys.stdout.flush()
