"""Errors of Hydra's in one line: what does not exist, what comes close to it, what to do."""

import re
from collections.abc import Mapping
from traceback import walk_tb
from typing import Any

from hydra._internal.config_repository import IConfigRepository
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigSource
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError

from glr_lightning.config.groups import Groups
from glr_lightning.config.short_forms import SHORT_FORMS, short_name
from glr_lightning.errors import words_of
from glr_lightning.validation.words import closest, shown

NO_GROUP = re.compile(
    r"(?:In '(?P<file>[^']+)': )?"
    r"Could not (?:override|delete) '(?P<group>[^'=@]+)[^']*'\. ?No match in the defaults list"
)

NOTHING_THERE = re.compile(
    r"Could not delete (?:'(?P<group>[^'=@]+)[^']*'\. ?No match in the defaults list|from config\. '(?P<option>[^']+)')"
)

_NO_DEFAULTS = "Unsupported item value in defaults"
"""How Hydra begins the refusal of a file's defaults list with a list of what can be no names."""

MOVED = {
    "revive": "callbacks=[class_collapse] callbacks.class_collapse.revive=VALUE",
    "learn_sigma": "callbacks=[learned_sigma] callbacks.learned_sigma.per=VALUE",
    "sigma_lr": "callbacks=[learned_sigma] callbacks.learned_sigma.lr=VALUE",
    "lr_factors": "callbacks=[layer_rates] callbacks.layer_rates.factors=VALUE",
    "diagnostics": "callbacks=[gradient_quality]",
    "sigma_schedule": "callbacks=[annealing] callbacks.annealing.sigma.end=VALUE",
    "copies_schedule": "callbacks=[annealing] with callbacks.annealing.copies",
}
"""Root keys and groups of version 0.4 that are callbacks now, and what to write in their place."""


def in_one_line(error: Exception) -> str:
    """Return what a user has to know of an error that Hydra or OmegaConf raised.

    (Hydra advises a plus sign before an option that does not exist, which would add it for nobody to read.)
    """
    groups = Groups.of_error(error)
    group = group_without_name(error)
    if group is not None:
        name, value = group
        if not name:
            return f"{name}={shown(value)} names no option; write OPTION=VALUE. --help lists the options."
        choices = ", ".join(groups.options(name))
        return (
            f"{short_name(name)}={shown(value)} names no option of the group; leave it out, or choose from {choices}."
        )
    if isinstance(error, UnicodeDecodeError):
        return f"{_file_of(error)} is no text, so it cannot be a configuration; remove it, or name another."
    if isinstance(error, ValueError) and str(error).startswith(_NO_DEFAULTS) and _file_of(error):
        return f"{_file_of(error)}: {words_of(error)}; correct its defaults."
    if isinstance(error, OverrideParseException):
        reason = words_of(error).partition(" See https")[0]
        words = f"cannot be read ({reason})" if "=" in error.override else "has no value"
        return f"{error.override} {words}; write OPTION=VALUE. --help lists the options."
    cause: Any = error.__cause__ or error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _no_option(cause, groups)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_choice(error.missing_cfg_file, groups)
    if isinstance(cause, ValidationError) and "is not Optional" in str(cause):
        name = short_name(str(cause.full_key))
        return f"{name} cannot be null; leave it out, or give it a value: {name}=VALUE."
    if isinstance(cause, ValidationError):
        return f"{short_name(str(cause.full_key))}: {str(cause).splitlines()[0]}."
    absent = NOTHING_THERE.search(str(error))
    if absent is not None and not (absent["group"] and not groups.is_group(absent["group"])):
        name = short_name(absent["group"] or absent["option"])
        near = closest(name, [each for each in groups.groups() if each != name])
        return f"~{name}: there is no {name} to leave out here; drop ~{name}.{near}"
    no_group = NO_GROUP.search(str(error))
    if no_group is not None:
        return _no_group(no_group["group"], no_group["file"], groups)
    return words_of(error)


def is_users(error: BaseException) -> bool:
    """Whether an error that Hydra lets through is the user's to correct, which its type alone does not tell."""
    if isinstance(error, UnicodeDecodeError):
        return bool(_file_of(error))
    if str(error).startswith(_NO_DEFAULTS):
        return bool(_file_of(error))
    return group_without_name(error) is not None or str(error).startswith("No config source registered")


def _file_of(error: BaseException) -> str:
    """Return the configuration file that Hydra was reading when it raised an error, or nothing."""
    files = []
    for frame, _ in walk_tb(error.__traceback__):
        names = frame.f_locals
        if isinstance(names.get("self"), IConfigRepository) and "config_path" in names:
            files.append(f"{names['config_path']}.yaml")
        elif isinstance(names.get("self"), ConfigSource) and "full_path" in names:
            files.append(str(names["full_path"]))
    return files[-1] if files else ""


def group_without_name(error: BaseException) -> tuple[str, Any] | None:
    """Return the group and the value that Hydra refused, if it is a value that can be no name, such as null.

    (Hydra raises a plain ValueError, which does not say which group it is about.)
    """
    refusals = ("Config group override must be", "Config group override deletion value must be")
    if not isinstance(error, ValueError) or not str(error).startswith(refusals):
        return None
    given = [value for frame, _ in walk_tb(error.__traceback__) for value in frame.f_locals.values()]
    found = [each for each in given if isinstance(each, Override)]
    return (found[-1].key_or_group, found[-1].value()) if found else None


def lacks(option: str, setting: str, origin: str, groups: Groups) -> str:
    """Return the refusal of a setting that the chosen estimator does not have.

    Args:
        option: the estimator, as in estimator=OPTION.
        setting: the key or group below `estimator`.
        origin: the file that sets it, such as `method/lrt`, or nothing for the command line.
        groups: where the estimators that have it are looked up.
    """
    having = ", ".join(groups.having("estimator", setting))
    others = f"These have it: {having}." if having else "No estimator has it."
    if not origin:
        return f"estimator={option} has no {setting}; leave it out, or choose another estimator. {others}"
    group, _, name = origin.partition("/")
    parts = ("setting", "activation", "loss")
    by_hand = [f"{part}={groups.choices[part]}" for part in parts if groups.choices.get(part) is not None]
    methods = groups.choosing("method", "estimator", option)
    named = f", or choose a method that has it: {', '.join(methods)}" if methods else ""
    return (
        f"estimator={option} has no {setting}, which {group}={name} sets. To train as {group}={name} says, leave out "
        f"estimator={option}. To train with estimator={option}, give in place of experiment and method "
        f"~experiment {' '.join(by_hand)} estimator={option}{named}. "
        f"{others.replace('These', 'These estimators', 1)}"
    )


def _no_option(cause: Any, groups: Groups) -> str:
    parent, (*above, name) = cause.parent_node, str(cause.full_key or cause.key).split(".")
    known = [str(key) for key in parent] if isinstance(parent, Mapping) else []
    if above == ["estimator"] and groups.having("estimator", name):
        target = str(parent.get("_target_"))
        return lacks(groups.option_of("estimator", target) or target, name, "", groups)
    if not above and name in SHORT_FORMS:
        long = SHORT_FORMS[name]
        return f"{name} is a short form of {long} for the command line; a file of the configuration has to name {long}."
    if not above and name in MOVED:
        return f"{name} is an option of 0.4; use {MOVED[name]} now. CHANGELOG.md has the others."
    if above == ["threat"]:
        threats = groups.options("threat")
        if name not in threats:
            return f"there is no threat {name!r}.{closest(name, threats)} Choose from {', '.join(threats)}."
        return f"threat.{name} has no options here, since {name} is not chosen; name it too: threat=[clean,{name}]."
    if not above and name == "threat":
        return "these are options of a threat that is not chosen; name the threat too, as in threat=[clean,pgd_linf]."
    if above == ["trainer"]:
        others = f"Other options of Lightning's Trainer are added with a plus: +trainer.{name}=VALUE."
        return f"there is no option {name!r} in trainer.{closest(name, known)} {others}"
    known += [] if above else [*groups.groups(), *SHORT_FORMS]
    where = f" in {short_name('.'.join(above))}" if above else ""
    return f"there is no option {name!r}{where}.{closest(name, known)} --cfg job lists all of them."


def _no_choice(missing: str, groups: Groups) -> str:
    parts = missing.split("/")
    if len(parts) == 1:
        return f"there is no configuration {missing!r} of this command; leave out --config-name."
    # the longest group that there is: experiment/wide/lrtt is an option of experiment
    depth = next((n for n in range(len(parts) - 1, 0, -1) if _is_chosen("/".join(parts[:n]), groups)), 1)
    group, name = "/".join(parts[:depth]), "/".join(parts[depth:])
    known = groups.options(group) if groups.is_group(group) else []
    choices = f"Choose from {', '.join(known)}." if known else "--help lists the groups."
    return f"there is no {short_name(group)}={name}.{closest(name, known)} {choices}"


def _is_chosen(group: str, groups: Groups) -> bool:
    return groups.is_group(group) and ("/" not in group or groups.is_choice(group))


def _no_group(group: str, file: str | None, groups: Groups) -> str:
    parent, _, setting = group.rpartition("/")
    if parent == "estimator" and groups.having("estimator", setting):
        return lacks(str(groups.choices.get("estimator")), setting, file or "", groups)
    if groups.is_group(group):
        return f"this command does not take {group}=OPTION. --help lists the groups that it takes, and how."
    known = [*groups.groups(), *SHORT_FORMS]
    return f"there is no group {group!r} here.{closest(group, known)} --help lists those that there are."
