"""Runs the fuzzer on one target: `python tests/fuzz/run.py rows --inputs 300000`.

Needs `pip install 'gptft[fuzz]'`. Starts from the inputs in tests/fuzz/finds, some seeds and, with
`--corpus`, the inputs of earlier runs. An input that fails, or takes more than 10 seconds or 2 GB,
ends the run and is saved in the corpus folder as crash-..., timeout-... or oom-...
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
    """Runs one target, or all of them in turn, and prints the number of inputs."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="folder that collects inputs with new coverage")
    args = parser.parse_args()
    folder = args.corpus or Path(tempfile.mkdtemp(prefix="gptft-corpus-"))
    names = list(TARGETS) if args.target == "all" else [args.target]
    counts = {name: run_process(name, args.inputs, args.seed, folder / name) for name in names}
    print(f"{sum(counts.values()):,} inputs: {counts}; corpus: {folder}")
    return 0


def run_process(name: str, inputs: int, seed: int, corpus: Path) -> int:
    """Runs one target in a subprocess, which the fuzzer exits; returns the number of inputs."""
    from tests.fuzz.seeds import build_seeds
    from tests.fuzz.targets import FINDS

    corpus.mkdir(parents=True, exist_ok=True)
    for k, content in enumerate(build_seeds(name)):
        (corpus / f"seed-{k}").write_bytes(content)
    command = [sys.executable, __file__, "--fuzz", name, *LIMITS, f"-runs={inputs}"]
    command += [f"-max_len={LONGEST.get(name, 4000)}", f"-seed={seed}"]
    command += [f"-artifact_prefix={corpus}/", str(corpus)]
    command += [str(FINDS / name)] if (FINDS / name).is_dir() else []
    # The fuzzer exits without cleanup, so temporary files are removed here.
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
    match = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    if done.returncode or not match:
        sys.exit(f"{name}: failed\n" + "\n".join(done.stderr.splitlines()[-60:]))
    print(f"{name}: {match[1]} inputs; " + done.stderr.splitlines()[-1], flush=True)
    return int(match[1])


def fuzz(name: str, options: list[str]) -> None:
    """Instruments the code and fuzzes one target; runs in the subprocess."""
    import atheris

    with atheris.instrument_imports(include=["finetune", "task_formats", "yaml", "json", "csv"]):
        from tests.fuzz.targets import TARGETS

    if name == "encoder":
        TARGETS[name](b"\0\1\x40a\nb\nc")  # imports everything before inputs are timed
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fuzz"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
