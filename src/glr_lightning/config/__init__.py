"""Configurations: composed by Hydra from conf/, identified by a hash, and built into objects."""

from glr_lightning.config.building import TRUSTED, build, known_target, load_yaml, target_of, trusted_prefixes
from glr_lightning.config.composition import compose, composing, experiment_name, keys_of, resolve
from glr_lightning.config.groups import CONF_DIR, Groups, require_there, user_folders
from glr_lightning.config.identity import config_hash, experiment_hash
from glr_lightning.config.messages import in_one_line, is_users
from glr_lightning.config.root import TrainConfig, checked_root, require_names, require_options, store_root
from glr_lightning.config.short_forms import SHORT_FORMS, long_form, long_forms, short_name, short_overrides

__all__ = [
    "CONF_DIR",
    "SHORT_FORMS",
    "TRUSTED",
    "Groups",
    "TrainConfig",
    "build",
    "checked_root",
    "compose",
    "composing",
    "config_hash",
    "experiment_hash",
    "experiment_name",
    "in_one_line",
    "is_users",
    "keys_of",
    "known_target",
    "load_yaml",
    "long_form",
    "long_forms",
    "require_names",
    "require_options",
    "require_there",
    "resolve",
    "short_name",
    "short_overrides",
    "store_root",
    "target_of",
    "trusted_prefixes",
    "user_folders",
]
