"""Configurations of earlier versions, brought into the present shape in memory; run folders are never rewritten."""

from collections.abc import Callable, Mapping
from typing import Any


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration in the shape that this version composes.

    A configuration that has this shape already is returned as an equal copy. Nothing in it is built or checked.

    Args:
        config: what a config.yaml holds, of version 0.4 or later.
    """
    upgraded = dict(config)
    for step in STEPS:
        upgraded = step(upgraded)
    return upgraded


def settings_to_callbacks(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of what surrounds the estimator in training, root keys until 0.4, as callbacks."""
    package = "glr_lightning.training.callbacks"
    rest = {key: value for key, value in config.items() if key not in _SETTINGS}
    callbacks: dict[str, Any] = dict(config.get("callbacks") or {})
    schedules = {name: config.get(f"{name}_schedule") for name in ("sigma", "copies")}
    schedules = {name: None if _is_constant(schedule) else schedule for name, schedule in schedules.items()}
    if any(schedules.values()):
        callbacks["annealing"] = {"_target_": f"{package}.Annealing"} | schedules
    if config.get("learn_sigma") is not None:
        options = {"per": config["learn_sigma"], "lr": config.get("sigma_lr")}
        callbacks["learned_sigma"] = {"_target_": f"{package}.LearnedSigma"} | options
    if config.get("lr_factors") is not None:
        callbacks["layer_rates"] = {"_target_": f"{package}.LayerRates", "factors": config["lr_factors"]}
    if config.get("revive") is not None:
        callbacks["class_collapse"] = {"_target_": f"{package}.ClassCollapse", "revive": config["revive"]}
    if config.get("diagnostics"):
        callbacks["gradient_quality"] = {"_target_": f"{package}.GradientQuality"}
    return rest | {"callbacks": callbacks}


_SETTINGS = ("learn_sigma", "sigma_lr", "lr_factors", "revive", "diagnostics", "sigma_schedule", "copies_schedule")


def _is_constant(schedule: Any) -> bool:
    return not isinstance(schedule, dict) or schedule.get("_target_") == "glr_lightning.schedules.Constant"


def without_repeated_noise(config: dict[str, Any]) -> dict[str, Any]:
    """Remove the root keys that the estimator repeated where it read them."""
    return {key: value for key, value in config.items() if key not in _REPEATED}


def options_of_lightning(config: dict[str, Any]) -> dict[str, Any]:
    """Move the root keys that are options of Lightning's Trainer into a section of their own."""
    if "trainer" in config:
        return config
    names = {"device": "accelerator", "devices": "devices", "strategy": "strategy", "precision": "precision"}
    trainer = {new: config[old] for old, new in names.items() if old in config}
    rest = {key: value for key, value in config.items() if key not in names}
    return rest | {"trainer": trainer | {"deterministic": False}}


_REPEATED = ("sigma", "copies", "chunk", "noise", "sampling", "baseline", "injection")

STEPS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    settings_to_callbacks,
    without_repeated_noise,
    options_of_lightning,
)
"""Each takes a configuration in the shape of an earlier version or of the present one, and changes only the former."""
