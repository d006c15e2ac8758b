"""`gptft scale`: runs and fits of scaling laws, and plans made with them."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typer import Argument, Context, Option, Typer

from finetune.cli.commands.scale_noise import noise
from finetune.cli.commands.scale_run import run
from finetune.cli.console import console, make_table, print_line, show_status
from finetune.cli.options import MultiValueCommand
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.scaling.analysis import ScalingFits
    from finetune.scaling.extrapolation import Extrapolation
    from finetune.scaling.fitting import Interval
    from finetune.scaling.planning import Allocation
    from finetune.scaling.points import Points

scale = Typer(
    name="scale",
    context_settings={"help_option_names": ["--help", "-h"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
scale.command(cls=MultiValueCommand)(run)
_JOINT = ("hoffmann", "kaplan")


@scale.callback(invoke_without_command=True)
def start(context: Context) -> None:
    """Scaling laws: fit them to measured losses, and plan a compute budget."""
    if context.invoked_subcommand is None:
        print_line(context.get_help())


@scale.command()
def fit(
    source: Path = Argument(metavar="FILE|DIR", help="Table of N, D, loss and C, or a folder."),
    output: Path | None = Option(
        None, "--output", "-o", metavar="OUT", help="Write all fits as JSON, for scale plan."
    ),
    column: list[str] = Option(
        [], metavar="N=NAME", help="Column of N, D, loss, C or S_min, if it is not guessed."
    ),
    compute: list[float] = Option(
        [], metavar="FLOPS", help="Predict the best N and D for this budget. Repeatable."
    ),
    at: list[str] = Option([], metavar="N,D", help="Predict the loss at N and D. Repeatable."),
    extrapolated: float | None = Option(
        None,
        "--extrapolate",
        metavar="F",
        help="Fit this fraction of the points, those with the least C, and predict the others.",
    ),
    plots: Path | None = Option(
        None, metavar="DIR", help="Write figures as PNG files to this folder."
    ),
    bootstrap: int = Option(400, min=20, help="Bootstrap draws for the intervals."),
    seed: int = Option(0, min=0, help="Seed of the draws."),
    leave_out_highest: int = Option(
        0, min=0, metavar="K", help="Leave out the K points with the highest loss."
    ),
    all_points: bool = Option(
        False, "--all-points", help="Fit L(N), L(D), L(C) to all points, not to the frontier."
    ),
) -> None:
    """Fit scaling laws to measured losses.

    Example: gptft scale fit losses.csv -o fit.json --compute 1e21 --at 7e9,1.4e11
    """
    from finetune.scaling.analysis import fit_points, write_fits
    from finetune.scaling.extrapolation import extrapolate
    from finetune.scaling.figures import check_matplotlib, draw_figures
    from finetune.scaling.planning import allocate_by_fit, predict_loss
    from finetune.scaling.points import read_points

    if plots is not None:
        check_matplotlib()
    budgets = [_check_positive(value, "--compute") for value in compute]
    places = [_parse_place(text) for text in at]
    points = read_points(source, dict(map(_parse_column, column)), leave_out_highest)
    names = ", ".join(f"{name} from {column!r}" for name, column in points.columns.items())
    print_line(f"{len(points.loss)} points: {names}")
    if points.left_out:
        print_line(f"left out, the highest losses: {'; '.join(points.left_out)}")
    with show_status(" fitting"):
        fits = fit_points(points, bootstrap=bootstrap, seed=seed, all_points=all_points)
        checks = []
        if extrapolated is not None:
            checks = extrapolate(points, extrapolated, bootstrap=bootstrap, seed=seed)
    _print_constants(fits)
    _print_quality(fits)
    _print_isoflop(fits)
    laws = [law for law in _JOINT if law in fits.fits]
    if (budgets or places) and not laws:
        raise UsageError(
            "predictions need a fit of L(N, D)", cure="Give a table in which N and D vary."
        )
    allocations = {law: [allocate_by_fit(fits, law, value) for value in budgets] for law in laws}
    if budgets:
        _print_allocations(allocations)
    losses = [(law, n, d, predict_loss(fits, law, n, d)) for law in laws for n, d in places]
    if losses:
        rows = ([law, _short(n), _short(d), *_cells(loss)] for law, n, d, loss in losses)
        console().print(make_table(["law", "N", "D", "loss", "95 % interval"], rows))
    if checks:
        _print_extrapolations(checks)
    for note in fits.notes:
        print_line(("note: ", "yellow"), note)
    if output is not None:
        described = _describe(source, points)
        if checks:
            described["extrapolations"] = checks
        if budgets or losses:
            places_and_losses = [
                {"law": law, "N": n, "D": d, "loss": loss} for law, n, d, loss in losses
            ]
            described["predictions"] = {"budgets": allocations, "losses": places_and_losses}
        write_fits(fits, output, described)
        print_line("all fits are in ", (str(output), "bold"))
    if plots is not None:
        print_line(f"{', '.join(draw_figures(points, fits, plots))} are in ", (str(plots), "bold"))


@scale.command()
def plan(
    compute: float = Option(metavar="FLOPS", help="Compute budget, such as 1e18."),
    by: str = Option(
        "hoffmann",
        metavar="FIT|NAME",
        help="JSON of scale fit, or the constants of hoffmann, besiroglu or kaplan.",
    ),
    law: Literal["hoffmann", "kaplan"] | None = Option(
        None, help="Form of L(N, D) in a fit.", show_default="hoffmann"
    ),
    batch: float | None = Option(
        None, metavar="TOKENS", help="Tokens per update.", show_default="the critical batch"
    ),
    rate: float | None = Option(
        None, metavar="FLOPS/S", help="FLOPs per second that the hardware reaches in training."
    ),
) -> None:
    """Plan a compute budget: model size, tokens, batch size and time.

    Example: gptft scale plan --compute 1e18 --by fit.json --rate 1e14
    """
    from finetune.scaling.analysis import read_fits
    from finetune.scaling.laws import SOURCES
    from finetune.scaling.planning import plan_by_fit, plan_by_hoffmann, plan_by_kaplan

    _check_positive(compute, "--compute")
    for value, option in ((batch, "--batch"), (rate, "--rate")):
        if value is not None:
            _check_positive(value, option)
    options: dict[str, Any] = {"batch": batch, "rate": rate}
    published = {"hoffmann": SOURCES.hoffmann, "besiroglu": SOURCES.refit}
    if law is not None and (by in published or by == "kaplan"):
        raise UsageError("--law is for fits only", cure=f"Leave it out, or give --by {law}.")
    if by in published:
        found = plan_by_hoffmann(compute, published[by], **options)
    elif by == "kaplan":
        found = plan_by_kaplan(compute, **options)
    elif Path(by).is_file():
        found = plan_by_fit(read_fits(Path(by)), law or "hoffmann", compute, **options)
    else:
        cure = "Give the JSON of gptft scale fit -o, or hoffmann, besiroglu or kaplan."
        raise UsageError(f"there is no file {by!r}", where="--by", cure=cure)
    allocation = found.allocation
    rows = [
        ["compute", f"{compute:.4g} FLOPs", ""],
        ["parameters", *_cells(allocation.parameters)],
        ["tokens", *_cells(allocation.tokens)],
        ["tokens per parameter", _short(allocation.tokens.value / allocation.parameters.value), ""],
        ["loss", *_cells(allocation.loss)],
        ["batch", f"{_short(found.batch)} tokens", ""],
        ["updates", f"{max(found.updates, 1):,.0f}", ""],
    ]
    if found.seconds is not None:
        rows.append(["time", _format_duration(found.seconds), ""])
    console().print(make_table([found.source, "", "95 % interval"], rows))
    for note in found.notes:
        print_line(("note: ", "yellow"), note)


scale.command()(noise)


def _print_constants(fits: "ScalingFits") -> None:
    from finetune.scaling.laws import LAWS, PUBLISHED

    rows = []
    for name, fitted in fits.fits.items():
        published = [entry for entry in PUBLISHED if entry.law == name]
        for constant, interval in fitted.constants.items():
            others = (
                f"{_short(entry.constants[constant])} {entry.source.split()[0]}"
                for entry in published
            )
            rows.append([name, constant, *_cells(interval), "; ".join(others)])
    header = ["law", "constant", "value", "95 % interval", "published, for other data"]
    table = make_table(header, rows)
    table.caption = "\n".join(f"{name}: {LAWS[name].formula}" for name in fits.fits)
    table.caption_justify = "left"
    console().print(table)


def _print_quality(fits: "ScalingFits") -> None:
    rows = (
        [
            name,
            str(fitted.points),
            _short(fitted.objective),
            f"{fitted.rms:.3%}",
            f"{max(map(abs, fitted.residuals)):.3%}",
            _short(fitted.condition),
        ]
        for name, fitted in fits.fits.items()
    )
    header = ["law", "points", "log-Huber loss", "rms residual", "largest", "condition"]
    console().print(make_table(header, rows))


def _print_isoflop(fits: "ScalingFits") -> None:
    if fits.isoflop is None:
        return
    rows = []
    for profile in fits.isoflop.profiles:
        best = ["", "", "", profile.refused]
        if not profile.refused:
            n = math.exp(profile.log_parameters)
            d = profile.compute / fits.flops_factor / n
            best = [_short(n), _short(d), f"{profile.loss:.4f}", ""]
        rows.append([_short(profile.compute), str(len(profile.indices)), *best])
    table = make_table(["IsoFLOP budget", "points", "best N", "best D", "loss", "refused"], rows)
    exponent, factor = fits.isoflop.exponent, fits.isoflop.factor
    if exponent is not None and factor is not None:
        table.caption = (
            f"best N = {_short(factor.value)} C^{_short(exponent.value)}, "
            f"exponent {_cells(exponent)[1]}"
        )
        table.caption_justify = "left"
    console().print(table)


def _print_extrapolations(checks: "list[Extrapolation]") -> None:
    rows = (
        [
            item.law,
            f"{item.points}, C up to {_short(item.compute)}",
            str(len(item.predictions)),
            f"{item.rms:.2%}",
            f"{item.bias:+.2%}",
            f"{item.inside} of {len(item.predictions)}",
        ]
        for item in checks
    )
    header = ["extrapolation", "fitted", "predicted", "rms error", "bias", "inside 95 % interval"]
    console().print(make_table(header, rows))


def _print_allocations(allocations: "dict[str, list[Allocation]]") -> None:
    rows = (
        [
            law,
            _short(item.compute),
            *_cells(item.parameters),
            *_cells(item.tokens),
            *_cells(item.loss),
        ]
        for law, items in allocations.items()
        for item in items
    )
    interval = "95 % interval"
    header = ["law", "budget", "best N", interval, "best D", interval, "loss", interval]
    console().print(make_table(header, rows))


def _describe(source: Path, points: "Points") -> dict[str, Any]:
    return {
        "source": str(source),
        "columns": points.columns,
        "points": len(points.loss),
        "left_out": points.left_out,
    }


def _cells(interval: "Interval") -> list[str]:
    known = math.isfinite(interval.low)
    ends = f"{_short(interval.low)} to {_short(interval.high)}" if known else ""
    return [_short(interval.value), ends]


def _short(value: float) -> str:
    """Four digits: 0.3478, 482, 6.4e+13."""
    return f"{value:.4g}"


def _format_duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} seconds"


def _parse_column(text: str) -> tuple[str, str]:
    variable, separator, name = text.partition("=")
    if not separator or not name:
        raise UsageError(f"{text!r} is not VARIABLE=NAME", where="--column", cure="N=params")
    return variable, name


def _parse_place(text: str) -> tuple[float, float]:
    try:
        n, d = (_check_positive(float(part), "--at") for part in text.split(","))
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        cure = "Give parameters and tokens: --at 7e9,1.4e11"
        raise UsageError(f"{text!r} is not N,D", where="--at", cure=cure) from None
    return n, d


def _check_positive(value: float, option: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{value:g} is not a positive number", where=option)
    return value
