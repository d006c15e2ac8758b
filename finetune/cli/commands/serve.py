"""`gptft serve`."""

import os

from typer import Option

from finetune.cli.commands.evaluate import load_predictor
from finetune.cli.console import print_line
from finetune.cli.options import Calibrated, Device, Precision, PythonTask, Run, Trust
from finetune.optional_packages import require_package
from task_formats import UsageError

TOKEN_VARIABLE = "GPTFT_SERVE_TOKEN"
"""Environment variable with the bearer token that clients must send."""
_LOOPBACK = ("127.", "localhost", "::1")


def serve(
    run: Run,
    host: str = Option("127.0.0.1", help="Address to listen on; 0.0.0.0 is all of this machine."),
    port: int = Option(8000, min=0, max=65535, help="Port to listen on; 0 is any free one."),
    max_rows: int = Option(256, min=1, max=4096, help="Most rows of one request."),
    max_body: int = Option(1024, min=1, max=2**20, help="Largest body of a request in KiB."),
    max_waiting: int = Option(1024, min=1, help="Most rows that wait; beyond: status 503."),
    access_log: bool = Option(False, "--access-log", help="Print a line for every request."),
    calibrated: Calibrated = False,
    task: PythonTask = None,
    device: Device = None,
    precision: Precision = None,
    trust_remote_code: Trust = False,
) -> None:
    """Serve a run over HTTP, with a page to try it.

    Example: gptft serve runs/rte

    POST one row or a list of rows to /predict. GPTFT_SERVE_TOKEN sets a bearer token.
    """
    for name in ("fastapi", "uvicorn"):
        require_package(name, "serve", "gptft serve")
    from finetune.serving.app import ServingLimits, create_app
    from finetune.serving.server import open_socket, run_server

    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and not token.strip():
        raise UsageError(f"{TOKEN_VARIABLE} is empty", cure="Give it a value, or unset it.")
    with open_socket(host, port) as listening:
        predictor = load_predictor(
            run, task, device, trust_remote_code, calibrated=calibrated, precision=precision
        )
        limits = ServingLimits(max_rows, max_body * 1024, max_waiting)
        app = create_app(predictor, title=run.absolute().name, token=token, limits=limits)
        if token is None and not host.startswith(_LOOPBACK):
            warning = f"everyone who reaches this address can use it; {TOKEN_VARIABLE} protects it"
            print_line(("note: ", "yellow"), warning, stderr=True)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        print_line(f"Serving {run} on ", (address, "bold"), ". Press Ctrl-C to stop.", stderr=True)
        run_server(app, listening, access_log=access_log)
    print_line("Stopped.", stderr=True)
