"""`he-client plan`: what training takes of this device's memory, and what fits in a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from he_client.importing import NAMED, load_named
from he_party import console
from he_party.console import OutputFormat, command
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_MODULE, BAD_SETTINGS, MISSING_PACKAGE

if TYPE_CHECKING:
    from he_client.training import TrainingPlan


@command
def plan(
    function: Annotated[
        str, typer.Argument(help="FILE.py:FUNCTION or MODULE:FUNCTION; gives module, loss, inputs, targets")
    ],
    budget: Annotated[str | None, typer.Option(help='memory for torch, such as "128 KiB"; without it, any')] = None,
    form: OutputFormat = "text",
) -> None:
    """Measure what training single records takes of this device's memory, and propose what fits in it.

    FUNCTION takes nothing, and returns a PyTorch module, the loss of a batch of one record, and inputs and targets: an
    example of a batch, of public data or of random numbers in the same shapes. Each row is a choice of last layers,
    in the fastest way that fits the budget. Peak memory is what torch allocates, the module included; Python itself
    needs tens of MB more. Work is floating-point operations, for one record. Nothing is trained, and nothing is sent.
    """
    try:
        from he_client.training import parse_size, plans
    except ModuleNotFoundError as error:
        how = "pip install 'hushsum[torch]'"
        raise ProblemError(MISSING_PACKAGE, f"{error.name} is not there", expected=how) from None
    allowed = None if budget is None else parse_size(budget)
    module, loss, inputs, targets = _example(function)
    with console.err.status("measuring"):
        try:
            found = list(plans(module, loss, inputs, targets, allowed))
        except ProblemError:
            raise
        except Exception as error:  # whatever the module or the loss raise
            what = f"the module cannot be trained: {type(error).__name__}: {error}"
            raise ProblemError(BAD_MODULE, what.partition("\n")[0]) from None
    fits = [each for each in found if allowed is None or each.peak_bytes <= allowed]
    console.show([_row(each, each in fits[:1]) for each in found], form, "plans")
    if allowed is not None and not fits:
        from he_client.training.plans import over_budget

        raise over_budget(allowed, min(each.peak_bytes for each in found))


def _example(name: str) -> Any:
    """What the user's function gives. Raises `bad-settings` for one that is none, fails, or gives something else."""
    make = load_named(name)
    expected = f"{NAMED} of a function that returns module, loss, inputs, targets"
    if not callable(make):
        raise ProblemError(BAD_SETTINGS, f"{name!r} cannot be called", expected=expected, got=type(make))
    try:
        found = make()
    except (Exception, SystemExit) as error:
        what = f"{name!r} failed: {type(error).__name__}: {error}".partition("\n")[0]
        raise ProblemError(BAD_SETTINGS, what, expected=expected) from None
    from torch import nn

    if not (isinstance(found, tuple) and len(found) == 4 and isinstance(found[0], nn.Module) and callable(found[1])):
        raise ProblemError(BAD_SETTINGS, f"what {name!r} returned", expected=expected, got=type(found))
    return found


def _row(plan: TrainingPlan, proposed: bool) -> dict[str, object]:
    first, last = plan.tensors[0], plan.tensors[-1]
    return {
        "tensors": first if first == last else f"{first} to {last}",
        "parameters": plan.parameters,
        "method": plan.method,
        "microbatch": plan.microbatch,
        "peak_bytes": plan.peak_bytes,
        "seconds": float(f"{plan.seconds:.3g}"),
        "work": plan.work,
        "proposed": proposed,
    }
