"""Feeds a target inputs that reach new code: `python tests/fuzz/run.py rows --inputs 300000`.

Needs `pip install atheris`. Starts from the finds in the repository, a few seeds and, with
`--corpus`, what earlier runs have gathered. An input that fails, takes more than ten seconds or
more than 2 GB ends the run and is written to the corpus folder as crash-, timeout- or oom-...
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=1024", "-print_final_stats=1"]
LONGEST = {"encoder": 400, "overrides": 200, "recipe": 1500, "rows": 2000, "tensors": 1000}


def main() -> int:
    """Runs one target, or all of them one after the other; prints how many inputs there were."""
    from tests.fuzz.targets import TARGETS

    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("target", choices=[*TARGETS, "all"])
    words.add_argument("--inputs", type=int, default=100_000)
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--corpus", type=Path, help="a folder that gathers what reaches new code")
    told = words.parse_args()
    folder = told.corpus or Path(tempfile.mkdtemp(prefix="gptft-corpus-"))
    names = list(TARGETS) if told.target == "all" else [told.target]
    counts = {name: run_apart(name, told.inputs, told.seed, folder / name) for name in names}
    print(f"{sum(counts.values()):,} inputs: {counts}; what they reached is in {folder}")
    return 0


def run_apart(name: str, inputs: int, seed: int, corpus: Path) -> int:
    """One target in a process of its own, which the fuzzer ends; the number of its inputs."""
    from tests.fuzz.targets import FINDS

    corpus.mkdir(parents=True, exist_ok=True)
    write_seeds(name, corpus)
    command = [sys.executable, __file__, "--fuzz", name, *LIMITS, f"-runs={inputs}"]
    command += [f"-max_len={LONGEST.get(name, 4000)}", f"-seed={seed}"]
    command += [f"-artifact_prefix={corpus}/", str(corpus)]
    command += [str(FINDS / name)] if (FINDS / name).is_dir() else []
    # The fuzzer ends without a word to Python, so what it leaves is swept away from here.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="gptft-fuzz-", dir=memory) as scratch:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "TMPDIR": scratch},
        )
    found = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"{name}: a find!\n" + "\n".join(done.stderr.splitlines()[-60:]))
    print(f"{name}: {found[1]} inputs; " + done.stderr.splitlines()[-1], flush=True)
    return int(found[1])


def write_seeds(name: str, corpus: Path) -> None:
    """Something to begin with, where bytes from nowhere would take long to become one."""
    from tests.fuzz.seeds import build_seeds

    for k, content in enumerate(build_seeds(name)):
        (corpus / f"seed-{k}").write_bytes(content)


def fuzz(name: str, words: list[str]) -> None:
    """In the process of one target: instrument, and give the fuzzer its way."""
    import atheris

    with atheris.instrument_imports(include=["finetune", "task_formats", "yaml", "json", "csv"]):
        from tests.fuzz.targets import TARGETS

    if name == "encoder":
        TARGETS[name](b"\0\1\x40a\nb\nc")  # imports what it needs before time is taken
    atheris.Setup([sys.argv[0], *words], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fuzz"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
