"""Each target against its own matching rule, restated from its documentation or source.

The model has 20 layers, so that a pattern for layer 1 that also hits 10 to 19 is caught.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from layerstats.errors import UsageError
from layerstats.schedules import Schedule, schedule, water_fill
from layerstats.schedules.exporters import EXPORTERS, export
from layerstats.schedules.sampling import Target
from layerstats.schedules.successive import successive_inclusion
from layerstats.stats import LayerStats
from tests.schedules.conftest import LAYERS, MODULES, SCORES, made, text

Stats = Callable[..., LayerStats]
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def parameter_names() -> list[str]:
    inside = [
        f"model.layers.{layer}.{part}"
        for layer in range(LAYERS)
        for part in (
            *(f"{module}.weight" for module in MODULES),
            "self_attn.q_proj.bias",
            "input_layernorm.weight",
        )
    ]
    return [*inside, *OUTSIDE]


def bash_array(script: str, name: str) -> list[str]:
    code = f'source /dev/stdin; printf "%s\\n" "${{{name}[@]}}"'
    run = subprocess.run(
        ["bash", "-euc", code], input=script, capture_output=True, text=True, check=True
    )
    return run.stdout.splitlines()


def trained(names: list[str], layers: Any) -> set[str]:
    wanted = tuple(f"model.layers.{layer}." for layer in layers)
    return {name for name in names if name.startswith(wanted)}


# --- axolotl: every dot that is not before a plus is literal; re.match from the start -----------


def axolotl_unfreezes(patterns: list[str], name: str) -> bool:
    return any(re.match(re.sub(r"\.(?!\+)", r"\\.", pattern), name) for pattern in patterns)


def test_the_restated_axolotl_rule_has_its_traps() -> None:
    assert axolotl_unfreezes(["model.layers.1"], "model.layers.11.mlp.up_proj.weight")
    assert not axolotl_unfreezes([r"^model\.layers\.1\.mlp"], "model.layers.1.mlp.up_proj.weight")
    assert not axolotl_unfreezes(["layers.1.mlp"], "model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("interval", [0, 3, 17])
def test_axolotl_unfreezes_exactly_the_interval(interval: int) -> None:
    plan = made()
    done = export("axolotl", plan, interval=interval)
    config = yaml.safe_load(text(done, "axolotl-unfrozen.yml"))
    names = parameter_names()
    chosen = {name for name in names if axolotl_unfreezes(config["unfrozen_parameters"], name)}
    assert chosen == trained(names, plan.active_layers(interval)) | set(OUTSIDE)
    assert config["gradient_checkpointing_kwargs"] == {"use_reentrant": False}


def test_axolotl_top_fraction_without_embeddings() -> None:
    done = export("axolotl", made(always_active=("norm",)), top_fraction=0.15)
    config = yaml.safe_load(text(done, "axolotl-unfrozen.yml"))
    names = parameter_names()
    chosen = {name for name in names if axolotl_unfreezes(config["unfrozen_parameters"], name)}
    assert chosen == trained(names, [0, 7, 14]) | {"model.norm.weight"}


def test_axolotl_lisa_keys_and_what_they_lose() -> None:
    done = export("axolotl", made(interval_steps=30), source="plans/s.json")
    lisa = text(done, "axolotl-lisa.yml")
    assert yaml.safe_load(lisa) == {
        "lisa_n_layers": 3, "lisa_step_interval": 30, "lisa_layers_attribute": "model.layers",
    }  # fmt: skip
    flat = " ".join(lisa.replace("\n# ", " ").split())
    assert "NOT this schedule" in flat
    assert "draws all layers alike (0.15 each); rule owlore wants 0.00" in flat
    plugin = yaml.safe_load(text(done, "axolotl-plugin.yml"))
    assert plugin == {
        "plugins": ["layerstats.integrations.axolotl.LayerstatsPlugin"],
        "layerstats_schedule": "plans/s.json",
    }
    uniform = export("axolotl", made(rule="lisa"))
    assert "NOT this schedule" not in text(uniform, "axolotl-lisa.yml")
    assert "own random numbers" in text(uniform, "axolotl-lisa.yml").replace("\n# ", " ")


def test_axolotl_without_a_whole_number_writes_no_lisa() -> None:
    done = export("axolotl", made(expected_active=2.5))
    assert "axolotl-lisa.yml" not in [file.name for file in done.files]
    assert any("no axolotl-lisa.yml" in note for note in done.notes)


# --- ms-swift: freeze_parameters_ratio 1 freezes all, re.search brings back ---------------------


@pytest.mark.parametrize("interval", [0, 3, 17])
def test_ms_swift_regex_brings_back_exactly_the_interval(interval: int) -> None:
    plan = made()
    done = export("ms-swift", plan, interval=interval)
    flags = bash_array(text(done, "ms-swift-static.sh"), "SWIFT_ARGS")
    pairs = dict(zip(flags[::2], flags[1::2], strict=True))
    assert pairs["--freeze_parameters_ratio"] == "1"
    names = [*parameter_names(), "vision.model.layers.1.mlp.weight"]
    found = {name for name in names if re.search(pairs["--trainable_parameters_regex"], name)}
    assert found == trained(names, plan.active_layers(interval)) | set(OUTSIDE)
    lisa = bash_array(text(done, "ms-swift-lisa.sh"), "SWIFT_ARGS")
    assert lisa[:2] == ["--tuner_type", "full"]
    assert lisa[2:] == ["--lisa_activated_layers", "3", "--lisa_step_interval", "20"]


# --- LMFlow: dataclass field names as flags, the attribute path starts at the trainer -----------


def test_lmflow_flags() -> None:
    flags = bash_array(text(export("lmflow", made()), "lmflow-lisa.sh"), "LISA_ARGS")
    pairs = dict(zip(flags[::2], flags[1::2], strict=True))
    assert pairs == {
        "--use_lisa": "1", "--lisa_activated_layers": "3", "--lisa_interval_steps": "20",
        "--lisa_layers_attribute": "model.model.layers",
    }  # fmt: skip
    causal = SimpleNamespace(model=SimpleNamespace(layers=["a", "b"]))
    found: Any = SimpleNamespace(model=causal)
    for part in pairs["--lisa_layers_attribute"].split("."):
        found = getattr(found, part)
    assert found == ["a", "b"]


# --- OwLore: fixed file name, a float a line, divided by their sum ------------------------------


def test_owlore_reads_its_probabilities_back(tmp_path: Path) -> None:
    plan = made(low_rank={"rank": 256, "update_interval": 100, "scale": 1.0})
    done = export("owlore", plan)
    done.write(tmp_path)
    lines = (tmp_path / "metric_cache" / "llama2_ratio_13.txt").read_text().splitlines()
    scores = [float(line.strip()) for line in lines]
    probabilities = np.array(scores) / sum(scores)
    assert probabilities == pytest.approx(np.array(SCORES) / sum(SCORES))
    flags = bash_array((tmp_path / "owlore-args.sh").read_text(), "OWLORE_ARGS")
    assert dict(zip(flags[::2], flags[1::2], strict=True)) == {
        "--use_lisa": "1", "--lisa_activated_layers": "3", "--lisa_interval_steps": "20",
        "--lisa_prob_mode": "owl", "--galore": "True",
    }  # fmt: skip
    theirs = successive_inclusion(Target(tuple(SCORES), plan.probabilities, 3))
    worst = int(np.abs(theirs - plan.probabilities).argmax())
    said = f"layer {worst} gets {theirs[worst]:.4g} instead of {plan.probabilities[worst]:.4g}"
    assert any(said in note for note in done.notes)
    same = export("owlore", made(sampling="successive"))
    assert not any("instead of" in note for note in same.notes)


@pytest.mark.parametrize(
    ("rule", "mode"), [("lisa", "uniform"), ("lisa-d", "decrease"), ("lisa-d-mirror", "increase")]
)
def test_owlore_knows_these_rules_itself(rule: str, mode: str) -> None:
    done = export("owlore", made(rule=rule))
    assert [file.name for file in done.files] == ["owlore-args.sh"]
    assert f"--lisa_prob_mode {mode}" in done.files[0].text
    warm = export("owlore", made(rule=rule, temperature=2.0))
    assert "--lisa_prob_mode owl" in text(warm, "owlore-args.sh")


def test_owlore_with_a_floor_gets_probabilities() -> None:
    done = export("owlore", made(floor=0.05))
    lines = text(done, "metric_cache/llama2_ratio_13.txt").splitlines()
    assert [float(line) for line in lines] == list(water_fill(SCORES, 3, floor=0.05))
    assert any("holds probabilities" in note for note in done.notes)


# --- Spectrum: of each type the top int(count * fraction) by snr --------------------------------


def spectrum_takes(data: dict[str, dict[str, Any]], fraction: float) -> list[str]:
    chosen = []
    for kind in {entry["type"] for entry in data.values()}:
        rows = [(name, entry["snr"]) for name, entry in data.items() if entry["type"] == kind]
        rows.sort(key=lambda row: row[1], reverse=True)
        chosen += [name for name, _ in rows[: int(len(rows) * fraction)]]
    return chosen


def test_spectrum_file_is_found_and_takes_the_top_layers(llama_stats: Stats) -> None:
    done = export("spectrum", made(), stats=llama_stats(LAYERS), top_fraction=0.15)
    keys = yaml.safe_load(text(done, "axolotl-spectrum.yml"))
    assert keys["plugins"] == ["axolotl.integrations.spectrum.SpectrumPlugin"]
    slug = keys["spectrum_model_name"].replace("/", "-").replace("_", "-")
    raw = text(done, f"model_snr_results/snr_results_{slug}.json")
    data = json.loads(raw, parse_constant=lambda word: pytest.fail(word))
    assert data["model.layers.3.mlp.down_proj"] == {"snr": SCORES[3], "type": "mlp.down_proj"}
    assert len(data) == LAYERS * len(MODULES)
    patterns = spectrum_takes(data, keys["spectrum_top_fraction"])
    names = [name for name in parameter_names() if name.split(".")[-2] in str(list(MODULES))]
    chosen = {name for name in names if axolotl_unfreezes(patterns, name)}
    assert chosen == trained(names, [0, 7, 14])
    own = yaml.safe_load(
        text(done, f"model_snr_results/snr_results_{slug}_unfrozenparameters_15percent.yaml")
    )
    assert sorted(own["unfrozen_parameters"][2:]) == sorted(patterns)


def test_spectrum_with_a_metric_goes_by_matrix_and_skips_what_is_missing(
    llama_stats: Stats,
) -> None:
    stats = llama_stats(LAYERS)
    stats.matrices.loc[1, "alpha_hill"] = float("inf")
    stats.matrices.loc[2, "alpha_hill"] = float("nan")
    done = export("spectrum", made(), stats=stats, metric="heavy_tail")
    data = json.loads(text(done, "model_snr_results/snr_results_org-tiny-llama.json"))
    assert len(data) == LAYERS * len(MODULES) - 2
    row = stats.matrices.set_index("name").loc["model.layers.5.mlp.up_proj.weight"]
    assert data["model.layers.5.mlp.up_proj"]["snr"] == -row["alpha_hill"]
    assert any("no value: 2 matrices" in note for note in done.notes)


# --- all targets --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_every_target_says_what_it_cannot(target: str, llama_stats: Stats, tmp_path: Path) -> None:
    options = {"stats": llama_stats(LAYERS)} if "stats" in EXPORTERS[target].options else {}
    done = export(target, made(low_rank={"rank": 8}), **options)
    assert done.target == target
    assert done.notes
    assert done.write(tmp_path) == [tmp_path / file.name for file in done.files]
    comments = [
        " ".join(file.text.replace("\n#", " ").split())
        for file in done.files
        if file.text.startswith("#")
    ]
    assert any("Note:" in comment for comment in comments)
    assert any("seed" in note or "plan" in note for note in done.notes)
    for file in done.files:
        assert file.text.endswith("\n")
        if file.name.endswith(".json"):
            json.loads(file.text, parse_constant=lambda word: pytest.fail(word))


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("axolotl", {"metric": "x"}, "does not use --metric; it uses --interval, --layers-path"),
        ("torchtune", {}, "unknown target 'torchtune'"),
        ("axolotl", {"interval": 0, "top_fraction": 0.5}, "give one of them"),
        ("axolotl", {"top_fraction": 1.5}, "above 0 and at most 1"),
        ("spectrum", {}, "give --stats DIR"),
        ("spectrum", {"metric": "lod_m7"}, "give --stats too"),
        ("spectrum", {"top_fraction": 0.0}, "above 0 and at most 1"),
        ("peft", {"mean_rank": 0}, "mean_rank must be"),
        ("sparsity", {"sparsity": 1.2}, "between 0 and 1"),
        ("sparsity", {"sparsity": 0.98}, "lower --spread"),
        ("sparsity", {"method": "magnitude"}, "unknown method"),
    ],
)
def test_what_is_refused(target: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        export(target, made(), **options)
    assert "\n" not in str(error.value)


def test_more_refusals(llama_stats: Stats) -> None:
    bare = schedule("lisa", num_layers=LAYERS, expected_active=3)
    with pytest.raises(UsageError, match="--layers-path"):
        export("lmflow", bare)
    with pytest.raises(UsageError, match="--model-name"):
        export("spectrum", bare, stats=llama_stats(LAYERS))
    for target in ("lmflow", "owlore"):
        with pytest.raises(UsageError, match="whole number of layers"):
            export(target, made(expected_active=2.5))
    with pytest.raises(UsageError, match="20 layers but the model has 12"):
        export("spectrum", made(), stats=llama_stats(12))
    lonely = made(rule="lisa", expected_active=0.1)
    empty = [lonely.active_layers(interval) for interval in range(9)].index(())
    with pytest.raises(UsageError, match="has no layer"):
        export("axolotl", lonely, interval=empty)


def test_a_path_from_a_strange_file_cannot_run_commands() -> None:
    data = made().to_dict()
    data["model"]["layers_path"] = "model.layers; echo gotcha"
    for target in ("lmflow", "axolotl", "ms-swift"):
        with pytest.raises(UsageError, match="is no path such as"):
            export(target, Schedule.from_dict(data))
    data = made().to_dict()
    data["rule"] = data["model"]["id"] = "x\ntouch gotcha\n"
    for target in ("lmflow", "owlore", "ms-swift"):
        for file in export(target, Schedule.from_dict(data)).files:
            assert "\ntouch" not in file.text


def test_gpt2_names() -> None:
    """Files of GPT-2 say h.0; the model that trainers build says transformer.h.0."""
    plan = schedule("lisa", num_layers=12, expected_active=1)
    done = export("axolotl", plan, layers_path="transformer.h")
    patterns = yaml.safe_load(text(done, "axolotl-unfrozen.yml"))["unfrozen_parameters"]
    [layer] = plan.active_layers(0)
    names = ["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"]
    for name in (*names, f"transformer.h.{layer}.attn.c_attn.weight"):
        assert axolotl_unfreezes(patterns, name)
    assert not axolotl_unfreezes(patterns, "transformer.h.99.attn.c_attn.weight")


def test_unknown_names_outside_the_blocks_are_said() -> None:
    done = export("axolotl", made(), layers_path="backbone.blocks")
    assert any("embed and head and norm should train too" in note for note in done.notes)
