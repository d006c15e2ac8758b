"""Runs benchmarks and writes their tables into docs/benchmarks.md.

python -m benchmarks.run --all, or python -m benchmarks.run trainer tiny; --quick only prints.
"""

import argparse
import os
import platform
import re
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from benchmarks.harness import ROOT, add_options, compete, render, scale_of

NAMES = (
    "trainer", "language_loss", "token_loss", "choices", "prediction", "tiny", "products",
    "preparation", "growth", "serving",
)  # fmt: skip
PAGE = ROOT / "docs" / "benchmarks.md"
PACKAGES = ("torch", "transformers", "accelerate", "datasets")


def main() -> None:
    """Runs the named benchmarks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--all", action="store_true")
    add_options(parser)
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    scale = scale_of(options)
    for name in NAMES if options.all else options.names:
        benchmark = import_module(f"benchmarks.{name}").BENCHMARK
        rounds = options.rounds or (1 if scale.quick else benchmark.rounds)
        table = render(benchmark, compete(benchmark, scale, rounds))
        print(f"\n{table}", flush=True)
        if not scale.quick:
            replace(PAGE, name, f"{circumstances(scale.threads)}\n\n{table}")


def circumstances(threads: int) -> str:
    """Date, machine, load and versions, as a line above each table."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    load = os.getloadavg()[2]
    return (
        f"{date.today()}, {processor()}, {os.cpu_count()} cores of which each contestant used "
        f"{threads}, load of the last quarter of an hour {load:.1f}; {packages}."
    )


def processor() -> str:
    """The processor's name."""
    match = re.search(
        r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    return match[1] if match else platform.processor()


def replace(page: Path, name: str, text: str) -> None:
    """Replaces the text between the two markers of that name."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, after = page.read_text(encoding="utf-8").split(begin)
    after = after.split(end)[1]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
