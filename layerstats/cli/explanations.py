"""How `layerstats schedule --explain` prints: tables that a new user understands by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerstats.cli.console import amount, print_table

if TYPE_CHECKING:
    from layerstats.schedules import Explanation, Schedule
    from layerstats.schedules.cost import Cost

__all__ = ["print_explanation"]

PARTS = {
    "weights": "weights of what trains",
    "gradients": "their gradients",
    "adam_states": "their Adam states",
    "active_sum": "together",
    "frozen_weights": "weights of the frozen rest",
    "with_frozen": "together with the frozen rest",
}


def print_explanation(schedule: Schedule, found: Explanation) -> None:
    """Print what a schedule is, each layer's part in the run, the whole run, and warnings."""
    _print_heading(schedule, found)
    print_table(
        ["layer", "score", "target", "inclusion", "intervals", "steps", "never"],
        [
            [
                layer.layer, layer.score, layer.target, layer.inclusion,
                round(layer.expected_intervals, 2), round(layer.expected_steps, 1),
                _percent(layer.chance_never),
            ]
            for layer in found.layers
        ],
    )  # fmt: skip
    print("\nscore      what the rule gives the layer; probabilities are in proportion to it")
    print(
        "target     wanted chance that the layer trains in an interval (at most 1; sum = expected)"
    )
    print("inclusion  the chance that the sampling law really gives it, exact")
    print(f"intervals  expected number of the {found.intervals} intervals that the layer trains in")
    print(f"steps      expected number of the {found.steps} steps that the layer trains in")
    print(f"never      chance that the layer does not train at all in {found.steps} steps\n")
    print_table(["the whole run", "value"], _whole(schedule, found))
    if found.cost is not None and found.cost_99 is not None:
        print()
        _print_cost(schedule, found, found.cost, found.cost_99)
    else:
        print("\nparameters and bytes: give the model's statistics as --stats DIR")
    print()
    for warning in found.warnings:
        print(f"warning: {warning}")
    if not found.warnings:
        print("no warnings")


def _print_heading(schedule: Schedule, found: Explanation) -> None:
    model = f" of {schedule.model.id}" if schedule.model.id else ""
    metric = f", metric {schedule.metric}" if schedule.metric else ""
    print(f"model  {schedule.num_layers} layers{model}")
    print(f"rule   {schedule.rule}{metric}")
    print(f"       {found.rule_summary}")
    for name, value in schedule.provenance.parameters.items():
        print(f"       {name.replace('_', ' ')}: {_setting(value)}")
    print(f"law    {found.law}: {found.law_summary}")
    print(
        f"run    {found.steps} steps = {found.intervals} intervals of {schedule.interval_steps} "
        f"steps, seed {schedule.seed}\n"
    )


def _whole(schedule: Schedule, found: Explanation) -> list[list[Any]]:
    counted = "" if schedule.law.independent else " (this seed's plan, counted)"
    return [
        ["layers active in an interval, expected", f"{found.expected_active:g}"],
        ["  in 99 % of the intervals at most", str(found.active_99)],
        ["  at most", str(found.active_max)],
        ["layers that never train, expected", f"{found.expected_untrained:.3g}{counted}"],
        ["always trained beside them", ", ".join(schedule.always_active) or "nothing"],
    ]


def _print_cost(schedule: Schedule, found: Explanation, worst: Cost, usual: Cost) -> None:
    rows: list[list[str]] = []
    always = " + ".join(f"{kind} {amount(size)}" for kind, size in worst.always_parameters.items())
    total = sum(worst.always_parameters.values())
    rows.append(
        ["always-active parameters", f"{amount(total)}" + (f" = {always}" if always else "")]
    )
    rows.append([f"the {worst.layers} largest layers", amount(worst.layer_parameters)])
    rows.append(["what trains at most", f"{amount(worst.active_parameters)} parameters"])
    share = worst.active_parameters / max(1, worst.total_parameters)
    rows.append(["  of the whole model", f"{_percent(share)} of {amount(worst.total_parameters)}"])
    rows.append(["  share of the always-active group", _percent(worst.always_share)])
    print_table(["worst interval", "value"], rows)
    print()
    bf16, fp32 = worst.bytes_in("bf16"), worst.bytes_in("fp32")
    columns = ["memory of the worst interval", "bf16", "fp32"]
    table = [
        [words, amount(bf16[key], "B"), amount(fp32[key], "B")] for key, words in PARTS.items()
    ]
    if usual.layers != worst.layers:
        columns[0] = f"memory with all {worst.layers} layers active"
        rare = [usual.bytes_in(dtype)["with_frozen"] for dtype in ("bf16", "fp32")]
        table.append(
            [f"  with {usual.layers} layers (99 %)", *(amount(size, "B") for size in rare)]
        )
    print_table(columns, table)
    low_rank = (
        f"; Adam states by GaLore, rank {schedule.low_rank.rank}" if schedule.low_rank else ""
    )
    print(
        "bf16 and fp32: weights, gradients and both Adam moments all in that type; states of\n"
        "layers frozen again are dropped; no activations, biases or norms" + low_rank
    )


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
