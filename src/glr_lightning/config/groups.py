"""The groups of the configuration and their options, wherever Hydra finds them.

Hydra searches conf/, the folder of `--config-dir` and those of `hydra.searchpath`. All of them are listed here, so that
a user's own option is as good as one of this package.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from glr_lightning.errors import ConfigurationError

CONF = Path(__file__).parents[1] / "conf"
CONF_DIR = str(CONF if CONF.is_dir() else Path(__file__).parents[3] / "conf")
"""The configuration folder: inside the wheel, or beside `src` in a checkout."""

_BUILT_IN = {"hydra", "main", "schema"}
"""Providers of search paths that every command has."""


DEEPEST = 6
"""Folders below a group that are looked into; a link may lead back to where it lies."""


class Groups:
    """The groups that a composition found, failed or not."""

    def __init__(self, repository: Any, choices: Mapping[str, Any] | None = None) -> None:
        self._repository = repository
        self.choices = dict(choices or {})
        """By group, the option that was chosen, as far as it is known."""

    @classmethod
    def present(cls) -> "Groups":
        """Return those of the Hydra application that runs, or those of conf/ if none does."""
        Plugins.instance()  # registers how folders and packages are read
        path = ConfigSearchPathImpl()
        running = GlobalHydra.instance()
        if running.is_initialized():
            for each in running.config_loader().get_search_path().get_path():
                path.append(str(each.provider), str(each.path))
        else:
            path.append("main", f"file://{CONF_DIR}")
        for folder in user_folders():
            path.append("user", folder)
        # a file is read once, however often it is asked for
        return cls(CachingConfigRepository(ConfigRepository(path)))

    @classmethod
    def of_error(cls, error: BaseException) -> "Groups":
        """Return those that were searched when Hydra raised an error, by looking into its frames.

        Hydra forgets its search path before `hydra.main` returns, and its errors name neither it nor the choices.
        """
        repository: Any = None
        choices: dict[str, Any] = {}
        for frame in _frames(error.__traceback__):
            owner = frame.f_locals.get("self")
            searched = [frame.f_locals.get(name) for name in ("caching_repo", "repo")]  # with hydra.searchpath
            if isinstance(owner, ConfigLoaderImpl):
                repository = owner.repository
            repository = next((each for each in searched if isinstance(each, IConfigRepository)), repository)
            choices |= getattr(owner, "known_choices", None) or {}
        return cls.present() if repository is None else cls(repository, choices)

    def options(self, group: str) -> list[str]:
        """Return the names of a group's options, those in folders below it included: `tiny10/lrt`. Sorted."""
        names = self._repository.get_group_options(group, ObjectType.CONFIG)
        below = self._repository.get_group_options(group, ObjectType.GROUP)
        deeper = [
            f"{folder}/{name}"
            for folder in below
            if group.count("/") < DEEPEST and not self.is_choice(f"{group}/{folder}")
            for name in self.options(f"{group}/{folder}")
        ]
        return sorted([*names, *deeper])

    def is_choice(self, group: str) -> bool:
        """Return whether a folder below a group is chosen from on its own, as estimator/noise is."""
        parent, _, own = group.rpartition("/")
        return any(own in self.settings(parent, name) for name in self._repository.get_group_options(parent))

    def groups(self, parent: str = "") -> list[str]:
        """Return the groups directly below another, or at the root. Sorted."""
        return sorted(set(self._repository.get_group_options(parent, ObjectType.GROUP)) - {"hydra"})

    def is_group(self, name: str) -> bool:
        """Return whether there is a group of this name."""
        return bool(self._repository.group_exists(name))

    def settings(self, group: str, option: str) -> set[str]:
        """Return what an option declares: the keys of its file and the groups of its defaults list."""
        found = self._repository.load_config(f"{group}/{option}")
        if found is None or not OmegaConf.is_dict(found.config):
            return set()
        nested = {str(d.group) for d in found.defaults_list or [] if isinstance(d, GroupDefault) and not d.override}
        return {str(key) for key in found.config} | nested

    def having(self, group: str, setting: str) -> list[str]:
        """Return the options of a group that declare a setting."""
        return [name for name in self.options(group) if setting in self.settings(group, name)]

    def choosing(self, group: str, other: str, option: str) -> list[str]:
        """Return the options of a group that choose an option of another group, as method=lrt chooses an estimator."""
        return [name for name in self.options(group) if (other, option) in self._chosen_by(f"{group}/{name}")]

    def _chosen_by(self, file: str) -> set[tuple[str, str]]:
        found = self._repository.load_config(file)
        entries = [] if found is None else found.defaults_list or []
        return {(str(each.group).lstrip("/"), str(each.value)) for each in entries if isinstance(each, GroupDefault)}

    def option_of(self, group: str, target: str) -> str | None:
        """Return the option whose `_target_` this is, or None."""
        for name in self.options(group):
            found = self._repository.load_config(f"{group}/{name}")
            if found is not None and found.config.get("_target_") == target:
                return name
        return None


def user_folders() -> list[str]:
    """Return the search paths, as URLs, that the user of the running Hydra application has added."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    return [f"{s.schema}://{s.path}" for s in sources if s.provider not in _BUILT_IN and s.path]


def as_url(folder: str | Path) -> str:
    """Return a folder as a search path of Hydra's; what is a URL already, such as pkg://my_package.conf, stays."""
    return str(folder) if "://" in str(folder) else f"file://{Path(folder).expanduser().resolve()}"


def require_there(search_path: Iterable[str]) -> None:
    """Refuse search paths that do not exist; Hydra passes over them.

    Raises:
        ConfigurationError: names the first of them.
    """
    Plugins.instance()  # registers how folders and packages are read
    for url in search_path:
        scheme = url.partition("://")[0] if "://" in url else "file"  # as Hydra reads it
        try:
            there = SourcesRegistry.instance().resolve(scheme)("user", url).available()
        except ValueError:  # neither a folder nor a package
            there = False
        if not there:
            raise ConfigurationError(
                f"there is no folder or package {url.removeprefix('file://')} to search for configurations; name one "
                "that exists, such as /path/to/conf or pkg://my_package.conf, or leave it out.",
                option="hydra.searchpath",
            )


def listing(roots: Iterable[str]) -> str:
    """Return the lines of a command's help that list some groups with what is below them."""
    found = Groups.present()
    return "\n".join(line for root in roots if found.is_group(root) for line in _lines(found, root))


def _lines(found: Groups, group: str) -> list[str]:
    lines = [f"  {group}: {', '.join(found.options(group))}"]
    below = [f"{group}/{name}" for name in found.groups(group)]
    return [*lines, *(line for each in below if found.is_choice(each) for line in _lines(found, each))]


def _frames(trace: TracebackType | None) -> Sequence[Any]:
    return [frame for frame, _ in walk_tb(trace)]
