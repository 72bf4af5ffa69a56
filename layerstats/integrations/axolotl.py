"""A schedule inside axolotl: `LayerstatsPlugin`, two lines of YAML.

    plugins: [layerstats.integrations.axolotl.LayerstatsPlugin]
    layerstats_schedule: schedule.json

The hook names and when they are called are those of axolotl's BasePlugin and PluginManager
(repository axolotl-ai-cloud/axolotl, src/axolotl/integrations/base.py and config.py,
src/axolotl/cli/config.py). Without axolotl the module can be imported all the same.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from layerstats.errors import UsageError
from layerstats.schedules import Schedule

__all__ = ["LayerstatsArgs", "LayerstatsPlugin"]

_FREEZERS = ("lisa_n_layers", "lisa_step_interval", "unfrozen_parameters", "spectrum_top_fraction")


def _base(module: str, name: str) -> Any:
    """Return a class of an optional package, `object` where the package is missing."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return object


class LayerstatsArgs(_base("pydantic", "BaseModel")):  # type: ignore[misc]
    """The keys that this plugin adds to axolotl's configuration.

    `layerstats_schedule` is the path of a schedule file, `layerstats_state` what happens to the
    optimizer state of a layer that stops training.
    """

    layerstats_schedule: str | None = None
    layerstats_state: Literal["drop", "keep"] | None = None


class LayerstatsPlugin(_base("axolotl.integrations.base", "BasePlugin")):  # type: ignore[misc]
    """Adds `LayerScheduleCallback` to axolotl's trainer.

    Examples
    --------
    >>> plugin = LayerstatsPlugin()
    >>> plugin.get_input_args()
    'layerstats.integrations.axolotl.LayerstatsArgs'
    """

    def get_input_args(self) -> str:
        """Return the dotted path of the configuration model; axolotl imports and merges it."""
        return f"{LayerstatsArgs.__module__}.{LayerstatsArgs.__qualname__}"

    def pre_model_load(self, cfg: Any) -> None:
        """Read the schedule and refuse settings that freeze layers too; no model is loaded yet."""
        Schedule.from_json(_file(cfg))
        if clash := [key for key in _FREEZERS if cfg.get(key)]:
            msg = f"{clash[0]} freezes layers as layerstats_schedule does; take one of them out"
            raise UsageError(msg)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Return the callback; axolotl adds it to the trainer it has made."""
        from layerstats.integrations.transformers import LayerScheduleCallback

        return [LayerScheduleCallback(_file(cfg), state=cfg.get("layerstats_state") or "drop")]


def _file(cfg: Any) -> str:
    path = cfg.get("layerstats_schedule")
    if not path:
        msg = "the plugin has no schedule; set layerstats_schedule: schedule.json in the YAML file"
        raise UsageError(msg)
    return str(path)
