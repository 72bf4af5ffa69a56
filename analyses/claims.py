"""The table of figures/README.md: what the papers claim, what came out here, from the JSON files.

`python -m analyses.claims` writes it anew. In a row, `{a/b/c:.2f}` is the number at that place of
figures/NAME.json, `{a/b:.2~}` a mean or rho with its interval; `{same_direction}` is yes, no or
not settled.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.bench import FIGURES

__all__ = ["table", "write"]

START, END = "<!-- python -m analyses.claims -->", "<!-- end -->"
HEAD = ("analysis", "claim", "published", "ours", "same direction", "why, and what it is not")
#: Name, claim, published, ours, same direction, why.
ROWS = (
    (
        "lisa_convergence",
        "Layer sampling converges: the mean gap of T steps is O(1/√T) on convex problems (LISA, "
        "Theorem 1)",
        "slope at most −1/2 on log-log axes",
        "last decade of T: all layers {arms/Adam, all layers/slope:.2~}; 2 of 16 with Adam's state "
        "kept {arms/Adam, 2 of 16, state kept/slope:.2~}, dropped "
        "{arms/Adam, 2 of 16, state dropped/slope:.2~}",
        "yes",
        "An upper bound for all of them. It does not say that sampling is free: after "
        "{inputs/steps} steps the gap is {arms/Adam, 2 of 16, state "
        "kept/times_all_layers/mean:.2f} times that of all layers, "
        "{arms/Adam, 2 of 16, state dropped/times_all_layers/mean:.2f} times with the state "
        "dropped, {arms/SGD, 2 of 16/times_all_layers/mean:.2f} times with SGD. Logistic "
        "regression in {inputs/LAYERS} layers, not a language model",
    ),
    (
        "owlore_fig2_lod_alpha",
        "Layers with many outliers have heavy tails (OwLore, Fig. 2)",
        "Spearman {published/spearman/LLaMA-2-7B:.2f} (LLaMA-2-7B), "
        "{published/spearman/LLaMA-2-13B:.2f} (13B)",
        "LLaMA-2-7B, public scores: {spearman/LLaMA-2-7B, published scores:.2~}; SmolLM2-135M, "
        "measured: {spearman/smollm2-135m, measured here:.2~}",
        "yes, weaker",
        'The small model\'s interval says no more than "positive". By the fit with the best KS '
        "distance and M = 3 its rho is {other_choices_measured_here/lod_m3 ~ minus alpha_ks:.2~}, "
        "by the median and M = 3 {other_choices_measured_here/lod_m3 ~ minus alpha_mid:.2~}",
    ),
    (
        "sampling_laws",
        "Layers train with {published/formula} (OwLore, eq. 1)",
        "the formula; no measured rates",
        "code against formula, over all layers: {gammas/2/relative_error_percent/0:.1f} to "
        "{gammas/2/relative_error_percent/1:+.1f} % for gamma 2, "
        "{gammas/8/relative_error_percent/0:.1f} to {gammas/8/relative_error_percent/1:+.1f} % for "
        "gamma 8. Bernoulli draws, gamma 2: no layer in {bernoulli_count/none_percent:.1f} % of "
        "the intervals, 4 or more in {bernoulli_count/four_or_more_percent:.1f} %",
        "yes, other numbers",
        "numpy's choice without replacement draws one after the other, so heavy layers train more "
        "rarely than the formula says and light ones more often. Of {gammas/8/capped_layers} layer "
        "the formula asks more than certainty at gamma 8. Exact; simulated {inputs/draws} times",
    ),
    (
        "owlore_table2_memory",
        "OwLore trains LLaMA-2-7B in 21 to 27 GB, LISA in 23 to 36 (OwLore, Tables 2, 3, App. B)",
        "e.g. 23 GB for LISA with 1 layer, 61 GB for full training; 1.16 GB a LISA layer",
        "simulated, nothing fitted: mean error "
        "{errors/simulated_peak_gb/mean_absolute_percent:.1f} % as true peak, "
        "{errors/sum_of_parts_gb/mean_absolute_percent:.1f} % as sum of the parts' own peaks; "
        "{gb_per_layer/lisa/simulated_peak_gb:.2f} and {gb_per_layer/lisa/sum_of_parts_gb:.2f} GB "
        "a LISA layer, {gb_per_layer/owlore/simulated_peak_gb:.2f} and "
        "{gb_per_layer/owlore/sum_of_parts_gb:.2f} GB an OwLore layer (printed "
        "{gb_per_layer/owlore/published_gb:.2f})",
        "yes, lower",
        "All simulated values lie below the printed ones; what the tables count is not said. "
        "LoRA's 26 GB and an offset of 1 to 2 GB stay unexplained. Sequences of 1024, batch 1 and "
        "bf16 states are assumed",
    ),
    (
        "alpha_fragility",
        "Alpha is a number of a layer (AlphaPruning, OwLore)",
        "one value, {published/bins} bins",
        "over 50 to 200 bins a layer's alpha ranges over {layers/spread_over_bins_mean:.2f}, "
        "layers differ by {layers/spread_between_layers_sd:.2f} (sd); {matrices/tied} of "
        "{inputs/matrices} matrices have a tie. Kendall's tau with the usual ranking: "
        "{layers/agreement_with_100_bins/90 bins/kendall:.2~} with 90 bins, "
        "{layers/agreement_with_100_bins/xmin the median/kendall:.2~} with the median as xmin, "
        "{layers/agreement_with_100_bins/xmin by best KS/kendall:.2~} by best KS",
        "no such claim tested",
        "Small matrices: 100 bins for 192 to 576 eigenvalues; weights that went through 4 bits. "
        "The slip in the published window is harmless: tau "
        "{layers/agreement_with_100_bins/window as it was meant/kendall:.3~}",
    ),
    (
        "lod_anatomy",
        "LOD measures the outliers of a layer (OWL, OwLore)",
        "{published/windows} windows of {published/seq_len} tokens, no rule for the first token",
        "LOD (M = 7) is {mean_lod_percent_m7/joined, as OWL and OwLore:.2f} % on average, "
        "{mean_lod_percent_m7/tensors of equal mean score:.2f} % with all tensors of a block at "
        "one mean score; rho of the two {agreement/tensors of equal mean score:.2~}, with weights "
        "alone {agreement/weights alone:.2~}. First token out: {agreement/first token out:.3~}. "
        "One window of {inputs/seq_len} tokens against another: {windows/1/m7/mean:.3f}",
        "no such claim tested",
        "A third of LOD is scale between tensors, half in the last layers; the order of layers "
        "survives it. Against our expectation neither the first token nor the size of the "
        "calibration matters here: one small model, one book",
    ),
    (
        "lisa_fig2_weight_norms",
        "LoRA's weight norm is skewed to embedding or head, that of full fine-tuning is not (LISA, "
        "Fig. 2)",
        "the direction; no numbers printed",
        "LoRA's embedding over the median block: update "
        "{over_the_median_block/update/LoRA/embed:.2~} (full "
        "{over_the_median_block/update/full/embed:.2~}), weights in use "
        "{over_the_median_block/weights in use/LoRA/embed:.2~} (full "
        "{over_the_median_block/weights in use/full/embed:.2~}), A and B themselves "
        "{over_the_median_block/trained numbers/LoRA/embed:.1~}; head, update "
        "{over_the_median_block/update/LoRA/head:.2~} (full "
        "{over_the_median_block/update/full/head:.2~})",
        "{same_direction}",
        "The paper does not say of what the norm is. Before any step the embedding's adapter has "
        "norm {adapter_at_start/embed:.1f}, a block's {adapter_at_start/block:.1f}: peft's initial "
        "draw, no training. The model's tied tables are one tensor to full training, two to LoRA",
    ),
    (
        "lisa_theory_probabilities",
        "p = w_LoRA / w_full is high for embedding and head and alike for blocks (LISA, section 3)",
        "1, γ/N, ..., γ/N, 1: ends {published/ends_over_blocks:.0f} times a block",
        "by the update: embedding {probabilities/update/embed_over_blocks:.2~}, head "
        "{probabilities/update/head_over_blocks:.2~} times the mean block; blocks' largest over "
        "least {probabilities/update/max_over_min:.2~}; rho with LOD "
        "{probabilities/update/spearman_with_lod:.2~}",
        "{same_direction}",
        "Other readings of the norm are in the JSON. Small tied model, {inputs/seeds} seeds",
    ),
    (
        "iteration_time",
        "LISA's iteration is faster than full's and LoRA's (LISA, Fig. 4)",
        "{published/speedup_of_lisa_over/full:.1f} and {published/speedup_of_lisa_over/lora:.1f} "
        "times, as quoted",
        "time over full: LISA {methods/lisa/over_full:.2~}, LoRA {methods/lora/over_full:.2~}; "
        "LISA over LoRA {lisa_over_lora:.2~}",
        "{same_direction}",
        "By matrix products alone LISA needs {methods/lisa/products_over_full:.2f} of full here, "
        "{products_over_full_llama_2_7b/lisa:.2f} on LLaMA-2-7B. {inputs/machine}, float32",
    ),
    (
        "loss_curves",
        "LISA and OwLore train to a loss as low as LoRA's or lower (LISA, Fig. 1; OwLore, Fig. 4)",
        "the direction; curves not read off",
        "training loss at the end, LISA minus LoRA {differences/last_loss/lisa minus lora:.3~}, "
        "OwLore minus LoRA {differences/last_loss/owlore minus lora:.3~}, LISA minus full "
        "{differences/last_loss/lisa minus full:.3~}",
        "{same_direction}",
        "{inputs/steps} steps of {inputs/seq_len} tokens, SmolLM2-135M, each method at its own "
        "best learning rate: the start of a curve, not its end. In so few intervals many layers "
        "never have a turn",
    ),
    (
        "owlore_table1_lisa_d",
        "LISA-D, which trains early layers more often, beats LISA (OwLore, Table 1)",
        "the direction; scores not at hand",
        "held-out loss, LISA-D minus LISA {lisa_d_minus_lisa/held_out_loss:.3~}, training "
        "{lisa_d_minus_lisa/last_loss:.3~}",
        "{same_direction}",
        "Loss of word problems, not benchmark scores. Seeds differ by more than the two laws do",
    ),
    (
        "owlore_table3_methods",
        "OwLore beats LISA, GaLore and LoRA (OwLore, Tables 3 to 5)",
        "up to 1.1 % in commonsense reasoning, 3.0 % in MMLU, 10 % in MT-Bench",
        "held-out loss, OwLore minus LISA {owlore_minus/lisa:.3~}, minus GaLore "
        "{owlore_minus/galore:.3~}, minus LoRA {owlore_minus/lora:.3~}, minus full "
        "{owlore_minus/full:.3~}; weighting by LOD alone "
        "{what_each_step_gives/weighting by LOD (OwLore-Full minus LISA):.3~}",
        "{same_direction}",
        "Paired over seeds, not corrected for the number of comparisons. Exact match ranks "
        "nothing: a 135M model gets next to none of {methods/full/questions} problems right",
    ),
    (
        "owlore_appendix_m",
        "M from 9 to 13 is best, 3 worst (OwLore, App. B)",
        "score {published/score_by_m/3:.2f} at M = 3, {published/score_by_m/7:.2f} at 7, "
        "{published/score_by_m/13:.2f} at 13",
        "held-out loss, M = 13 minus 3 {differences/13 minus 3:.3~}, 13 minus 7 "
        "{differences/13 minus 7:.3~}; the three likeliest layers have "
        "{probabilities/3/share_of_three_largest:.2f} of all turns at M = 3, "
        "{probabilities/13/share_of_three_largest:.2f} at 13",
        "{same_direction}",
        "The columns' M in the paper are inferred from its text. Learning rate chosen with M = 7",
    ),
    (
        "owlore_appendix_gamma",
        "More sampled layers train better, up to a point (OwLore, Fig. 5, App. B)",
        "the direction; memory {published/memory_gb_llama_2_7b/1} to "
        "{published/memory_gb_llama_2_7b/8} GB from 1 to 8 layers",
        "held-out loss, 8 minus 1 {differences/held_out_loss/8 minus 1:.3~}, 2 minus 1 "
        "{differences/held_out_loss/2 minus 1:.3~}, 8 minus 2 "
        "{differences/held_out_loss/8 minus 2:.3~}; peak memory "
        "{peak_relative_to_gamma_1/measured/8/mean:.2f} times (printed "
        "{peak_relative_to_gamma_1/published/8:.2f})",
        "{same_direction}",
        "Learning rate chosen with 2 layers",
    ),
    (
        "memory_of_methods",
        "From least memory to most: OwLore, LISA, LoRA, GaLore, full (OwLore, Tables 2, 3)",
        "{published/gb/owlore}, {published/gb/lisa}, {published/gb/lora}, {published/gb/galore}, "
        "{published/gb/full} GB",
        "{order_measured/0}, {order_measured/1}, {order_measured/2}, {order_measured/3}, "
        "{order_measured/4}; planned and measured differ by {largest_difference_percent:.1f} % at "
        "most",
        "{same_direction}",
        "SmolLM2-135M on a CPU. In a small model the embedding is a fifth of the weights, and LISA "
        "and OwLore always train it",
    ),
)
#: How an answer that may be open is written.
ANSWERS = {True: "yes", False: "no", None: "not settled"}


class _Places(string.Formatter):
    """Fields are places in a JSON document."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Any) -> Any:
        """Return the value at a/b/c."""
        value = kwargs["found"]
        for part in field_name.split("/"):
            value = value[int(part) if isinstance(value, list) else part]
        return value, field_name

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Format a number, or with ~ a mean or rho and its interval, or an answer."""
        if value is None or isinstance(value, bool):
            return ANSWERS[value]
        if format_spec.endswith("~"):
            middle = value.get("mean", value.get("rho"))
            spec = format_spec[:-1] + "f"
            low, high = (format(end, spec) for end in value["interval"])
            text = f"{middle:{spec}} [{low}, {high}]"
        else:
            text = str(super().format_field(value, format_spec))
        return text.replace("-", "−") if isinstance(value, int | float | dict) else text


def table(figures: Path = FIGURES) -> str:
    """Return the table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for name, *cells in ROWS:
        found = json.loads((figures / f"{name}.json").read_text(encoding="utf-8"))
        filled = [_Places().vformat(cell, (), {"found": found}) for cell in cells]
        lines.append((f"[`{name}`]({name}.json)", *filled))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(figures: Path = FIGURES) -> None:
    """Put the table into README.md, between its two marks."""
    file = figures / "README.md"
    before, _, rest = file.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    text = f"{before}{START}\n{table(figures)}{END}{after}"
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
