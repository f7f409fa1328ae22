"""`python -m ci_client`: the `ci` command where its script is not on the path."""

import sys
from pathlib import Path

if sys.path[0] == str(Path.cwd()) and not Path("ci_client").is_dir():
    del sys.path[0]  # Python would look for our libraries in the project that we are started in

from ci_client.cli import main

if __name__ == "__main__":
    main()
