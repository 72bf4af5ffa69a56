"""One question of the LISA and OwLore papers a script, on the public API alone.

`python -m analyses.NAME` does the full run on SmolLM2-135M and writes figures/NAME.png and .json;
with `--quick` the same on a tiny random model, which shows that the script works and nothing else.
"""
