"""`make bench-check`: the ratios of the last run against the committed ones; ends with 1 on a regression.

`python -m bench.check --commit` makes the last run's ratios the ones to compare with.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.ratios import Ratio, compare, ratios_in

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "latest.json"
RATIOS = HERE / "ratios.json"


def commit(result: dict[str, Any], ratios: Path) -> int:
    """The file holds the ratios of that run, which must have been a whole one."""
    failed = [missing["name"] for missing in result["missing"] if missing["failed"]]
    if not result["whole"] or failed:
        print(f"Not committed: the run was not whole. {'Failed: ' if failed else ''}{', '.join(failed)}")
        return 1
    known = {key: asdict(ratio) for key, ratio in sorted(ratios_in(result["rows"]).items())}
    document = {"date": result["date"], "machine": result["machine"], "ratios": known}
    ratios.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{len(known)} ratios are in {ratios.name}.")
    return 0


def check(result: dict[str, Any], ratios: Path) -> int:
    """What is found is printed; returns 1 for a regression or a measurement that failed, 2 with nothing to compare."""
    if not ratios.exists():
        print(
            f"There is no {ratios.name} yet: make one with `make bench`, then `python -m bench.check --commit`."
        )
        return 2
    document = json.loads(ratios.read_text())
    if document["machine"] != result["machine"]:
        print(f"Committed on another machine ({document['machine']}; here {result['machine']}).")
    committed = {key: Ratio(**fields) for key, fields in document["ratios"].items()}
    findings = compare(ratios_in(result["rows"]), committed)
    failed = [missing for missing in result["missing"] if missing["failed"]]
    print("\n".join([*map(str, findings), *(f"{one['name']}: FAILED, {one['why']}" for one in failed)]))
    return 1 if failed or any(finding.is_regression for finding in findings) else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=RESULTS, help="what `make bench` wrote")
    parser.add_argument("--ratios", type=Path, default=RATIOS, help="the committed ones")
    parser.add_argument("--commit", action="store_true", help="make that result the one to compare with")
    options = parser.parse_args(arguments)
    if not options.result.exists():
        print(f"There is no {options.result.name}: run `make bench` first.")
        return 2
    result = json.loads(options.result.read_text())
    return (commit if options.commit else check)(result, options.ratios)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
