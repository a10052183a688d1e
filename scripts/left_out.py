"""Print the tests that a run of pytest skipped, a line each, in a form that pytest takes: `pytest @FILE`.

scripts/test --junitxml plain.xml                     # in an environment without the frameworks
python scripts/left_out.py plain.xml > left_out       # what it could not run
scripts/test @left_out                                # in one that has them
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def left_out(report: Path) -> list[str]:
    """Return the ids of the tests that a JUnit report of pytest says were skipped.

    Raises:
        SystemExit: if the report names a file that is not in this checkout, or has no tests at all.
    """
    cases = list(ElementTree.parse(report).iter("testcase"))
    if not cases:
        sys.exit(f"cannot tell what {report} left out: it has no tests; run all of them with --junitxml")
    return [_id(case.attrib["classname"], case.attrib["name"]) for case in cases if case.find("skipped") is not None]


def _id(classname: str, name: str) -> str:
    """Return the id of a test; a module that was skipped whole has no class name, and itself as its name."""
    parts = (classname or name).split(".")
    for n_parts in range(len(parts), 0, -1):
        file = "/".join(parts[:n_parts]) + ".py"
        if Path(file).is_file():
            return "::".join((file, *parts[n_parts:], *([name] if classname else [])))
    sys.exit(f"cannot find the test {name!r} of {classname!r}: no such file below {Path.cwd()}; run it there")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} REPORT.xml")
    print("\n".join(left_out(Path(sys.argv[1]))))
