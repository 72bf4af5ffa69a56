"""`layerstats demo`: the main job on a real checkpoint, each step shown as a user would type it."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from layerstats.cli.console import note

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(demo)


def demo(
    out: Path = typer.Option(
        Path("demo-output"), metavar="DIR", help="Where results and pictures go."
    ),
) -> None:
    """Measure, correlate, schedule and plot SmolLM2-135M (fetched once, then cached)."""
    from layerstats.cli import run
    from layerstats.demo_data import calibration_text

    checkpoint = _checkpoint(out)
    stats, made = str(out / "stats"), str(out / "schedule.json")
    text = str(calibration_text())
    commands = [
        ["inspect", checkpoint],
        [
            "measure",
            checkpoint,
            "--metrics",
            "frobenius_norm,mean_abs,stable_rank,alpha_hill,lod",
            "--tokens",
            text,
            "--samples",
            "16",
            "--seq-len",
            "512",
            "--m",
            "7,13",
            "--out",
            stats,
            "--overwrite",
        ],
        ["correlate", stats, "--metrics", "lod_m7,heavy_tail,frobenius_norm"],
        [
            "schedule",
            stats,
            "--rule",
            "owlore",
            "--expected-active",
            "2",
            "--interval-steps",
            "20",
            "--seed",
            "0",
            "--out",
            made,
        ],
    ]
    for kind in ("layer-norms", "lod", "alpha", "esd", "correlation"):
        commands.append(["plot", stats, "--kind", kind, "--out", str(out / f"{kind}.png")])
    commands.append(["plot", made, "--kind", "schedule", "--out", str(out / "schedule.png")])
    for command in commands:
        print(f"\n$ layerstats {shlex.join(command)}", flush=True)
        code = run(command)
        if code:
            raise typer.Exit(code)
    print(
        f"\nEverything is in {out}: statistics in stats/, the schedule in "
        "schedule.json, six pictures."
    )


def _checkpoint(out: Path) -> str:
    """Fetch the real checkpoint; without a registry make a random one and say so."""
    from layerstats.demo_data import demo_checkpoint, random_checkpoint
    from layerstats.errors import MissingError, NetworkError

    try:
        return str(demo_checkpoint(progress=note))
    except (NetworkError, MissingError) as error:
        note(f"{error}")
        note(
            "going on with a small model of RANDOM weights, which shows the commands "
            "and nothing else"
        )
        path = out / "random-checkpoint"
        return str(path if path.exists() else random_checkpoint(path))
