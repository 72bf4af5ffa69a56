"""The axolotl plugin under a stand-in of axolotl's plugin manager and its order of calls."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import Trainer

from layerstats.errors import LayerstatsError, MissingError, UsageError
from layerstats.integrations.transformers import LayerScheduleCallback
from tests.integrations.tiny import Snapshots, lisa, make_model, make_trainer, moved

PLUGIN = "layerstats.integrations.axolotl.LayerstatsPlugin"


class Config(dict[str, Any]):
    """axolotl's configuration: a dictionary with attributes, None for what is not set."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __missing__(self, name: str) -> None:
        return None


class BasePlugin:
    """All hooks that axolotl's manager calls, each doing nothing."""

    def register(self, cfg: Any) -> None: ...
    def get_input_args(self) -> str | None: ...
    def get_training_args_mixin(self) -> str | None: ...
    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None: ...
    def pre_model_load(self, cfg: Any) -> None: ...
    def post_model_build(self, cfg: Any, model: Any) -> None: ...
    def pre_lora_load(self, cfg: Any, model: Any) -> None: ...
    def post_lora_load(self, cfg: Any, model: Any) -> None: ...
    def post_model_load(self, cfg: Any, model: Any) -> None: ...
    def get_trainer_cls(self, cfg: Any) -> None: ...
    def post_trainer_create(self, cfg: Any, trainer: Any) -> None: ...
    def post_train(self, cfg: Any, model: Any) -> None: ...
    def post_train_unload(self, cfg: Any) -> None: ...

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        return []

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        return []


@pytest.fixture
def plugin_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    """The plugin as it is where axolotl is installed: a child of its BasePlugin."""
    for name in ("axolotl", "axolotl.integrations", "axolotl.integrations.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(
        sys.modules["axolotl.integrations.base"], "BasePlugin", BasePlugin, raising=False
    )
    module_name, _, class_name = PLUGIN.rpartition(".")
    module = importlib.reload(importlib.import_module(module_name))
    yield getattr(module, class_name)
    monkeypatch.undo()
    importlib.reload(module)


def run_axolotl(plugin_class: type[Any], cfg: Config, folder: Path) -> tuple[Trainer, Snapshots]:
    """What `axolotl train` does with one plugin, as far as plugins see it."""
    pydantic = pytest.importorskip("pydantic")
    # load_cfg: plugins are made without arguments and registered with the raw file, then their
    # models are imported by name, merged with axolotl's own, and the file is checked.
    plugin = plugin_class()
    assert isinstance(plugin, BasePlugin)
    plugin.register(cfg)
    module_name, _, class_name = plugin.get_input_args().rpartition(".")
    arguments = getattr(importlib.import_module(module_name), class_name)

    class Base(pydantic.BaseModel):
        base_model: str
        lisa_n_layers: int | None = None
        unfrozen_parameters: list[str] | None = None

    merged = type("AxolotlInputConfig", (Base, arguments), {})
    cfg = Config(merged(**cfg).model_dump(exclude_none=True))
    # Model and adapters.
    plugin.pre_model_load(cfg)
    model = make_model()
    for hook in ("post_model_build", "pre_lora_load", "post_lora_load", "post_model_load"):
        getattr(plugin, hook)(cfg, model)
    # The trainer's builder: callbacks that are falsy are left out.
    seen = Snapshots()
    callbacks = list(plugin.add_callbacks_pre_trainer(cfg=cfg, model=model) or [])
    trainer = make_trainer(model, folder, callbacks, steps=10)
    for callback in plugin.add_callbacks_post_trainer(cfg, trainer) or []:
        if callback:
            trainer.add_callback(callback)
    trainer.add_callback(seen)
    plugin.post_trainer_create(cfg, trainer)
    trainer.train()
    plugin.post_train(cfg, model)
    plugin.post_train_unload(cfg)
    return trainer, seen


def test_two_lines_of_yaml_train_by_the_schedule(tmp_path: Path, plugin_class: type[Any]) -> None:
    plan = lisa()
    file = plan.save(tmp_path / "schedule.json")
    cfg = Config(base_model="tiny", plugins=[PLUGIN], layerstats_schedule=str(file))
    trainer, seen = run_axolotl(plugin_class, cfg, tmp_path)
    for step, (before, after) in enumerate(zip(seen.weights, seen.weights[1:], strict=False)):
        layers = set(map(str, plan.active_layers(step // 5)))
        assert moved(before, after) == layers | {"embed", "head", "norm"}
    added = [
        one for one in trainer.callback_handler.callbacks if type(one) is LayerScheduleCallback
    ]
    assert len(added) == 1
    assert added[0].history == dict(enumerate(plan.plan(2)))
    assert len(set(seen.state_bytes)) == 1


def test_state_can_be_kept(tmp_path: Path, plugin_class: type[Any]) -> None:
    file = lisa().save(tmp_path / "schedule.json")
    cfg = Config(base_model="tiny", layerstats_schedule=str(file), layerstats_state="keep")
    _, seen = run_axolotl(plugin_class, cfg, tmp_path)
    assert seen.state_bytes[-1] > seen.state_bytes[0]
    with pytest.raises(ValueError, match="'drop' or 'keep'"):
        run_axolotl(plugin_class, cfg | {"layerstats_state": "lose"}, tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({}, UsageError, "set layerstats_schedule: schedule.json"),
        ({"layerstats_schedule": "nowhere.json"}, MissingError, r"nowhere\.json"),
        ({"lisa_n_layers": 2}, UsageError, "lisa_n_layers freezes layers"),
        ({"unfrozen_parameters": ["model"]}, UsageError, "unfrozen_parameters freezes layers"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
    plugin_class: type[Any],
    settings: dict[str, Any],
    error: type[LayerstatsError],
    said: str,
) -> None:
    cfg = Config(base_model="tiny", **settings)
    if len(settings) and "layerstats_schedule" not in settings:
        cfg["layerstats_schedule"] = str(lisa().save(tmp_path / "schedule.json"))
    plugin = plugin_class()
    plugin.register(cfg)
    with pytest.raises(error, match=said):
        plugin.pre_model_load(cfg)


def test_the_module_can_be_imported_without_axolotl_and_pydantic() -> None:
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['axolotl', 'pydantic'])\n"
        "from layerstats.integrations.axolotl import LayerstatsPlugin\n"
        "assert LayerstatsPlugin.__bases__ == (object,)\n"
        "print(LayerstatsPlugin().get_input_args(), 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["layerstats.integrations.axolotl.LayerstatsArgs", "False"]
