"""``.security.yml`` as a layer of settings: secrets over ``config.json``; nothing here echoes a value."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from shared.settings.files import SettingsFile
from shared.settings.leaves import Keys, config_sections, did_you_mean, member, section_of
from shared.settings.models import ModelEntry, address_of
from shared.settings.sections import Section, SettingsError
from shared.settings.tree import Settings

NAME: Final = ".security.yml"
ROOT_KEYS: Final = ("api_token", "api_token_previous", "seal_key")
MOST_NODES: Final = 10_000
DEEPEST: Final = 32
EMPTY: Final[tuple[Any, ...]] = (None, "", [], {}, [""])
"""What stands where nothing was filled in."""


class SecurityYml(SettingsFile):
    """The parsed file and, for what it set, where in it that was said."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tree = self._parsed() if self.text else {}
        warning = exposed(path) if self.text else None
        if warning:
            self.warnings.append(warning)

    def merge_into(self, tree: dict[str, Any]) -> None:
        """Lay this file over a tree of settings; an empty entry wipes nothing, a typo is a warning."""
        known = [*sorted(config_sections()), *ROOT_KEYS]
        for name, value in self._tree.items():
            if name not in known:
                self._typo((name,), known)
            elif name == "model_list":
                self._merge_models(tree, value)
            elif value is not None:
                self._merge(tree, name, value, section_of(Settings, name), (name,))

    def _merge(self, node: dict[str, Any], name: str, value: Any, kind: Any, keys: Keys) -> None:
        """Lay one value over ``node[name]``; ``keys`` is its path in the file and in the tree."""
        if not isinstance(value, dict) or kind is None:
            self._set(node, name, value, keys)
            return
        below = node.setdefault(name, {})
        if not isinstance(below, dict):
            below = node[name] = {}
        for key, item in self._settings_of(keys, value).items():
            if item is None:
                continue
            if isinstance(kind, type) and issubclass(kind, Section):
                if key not in kind.model_fields:
                    self._typo((*keys, key), kind.model_fields)
                    continue
                self._merge(below, key, item, section_of(kind, key), (*keys, key))
            elif key not in below and member(kind) is not None:
                self._typo((*keys, key), below)
            else:
                self._merge(below, key, item, member(kind), (*keys, key))

    def _settings_of(self, keys: Keys, value: dict[str, Any]) -> dict[str, Any]:
        """Return a channel's entry with its ``settings`` lifted up, as the seed's files have them."""
        nested = value.get("settings")
        if len(keys) == 2 and keys[0] == "channels" and isinstance(nested, dict):
            return {**nested, **{key: item for key, item in value.items() if key != "settings"}}
        return value

    def _merge_models(self, tree: dict[str, Any], value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, dict):
            raise SettingsError(f"{self.at(('model_list',))} must map model names to their api_keys")
        entries = tree.get("model_list")
        listed = entries if isinstance(entries, list) else []
        # Keys by a bare name first, so that those by an indexed one count where both mean an entry.
        for name, entry in sorted(value.items(), key=lambda item: bool(_index(item[0])[1])):
            places = list(_places(listed, name))
            if not places:
                names = sorted({str(item.get("model_name")) for item in listed if isinstance(item, dict)})
                self._typo(("model_list", name), names)
            elif isinstance(entry, dict):
                for place in self._at_one_address(listed, places, name):
                    self._merge_model(listed, place, name, entry)
            elif entry is not None:
                said = self.at(("model_list", name))
                raise SettingsError(f"{said} must be an object with api_keys")

    def _at_one_address(self, listed: list[Any], places: list[int], name: str) -> list[int]:
        """Return the entries at the first one's address: keys were given for one, others hear of it."""
        addresses = {place: _address(listed[place]) for place in places}
        same = [place for place in places if addresses[place] == addresses[places[0]]]
        if len(same) < len(places):
            said = self.at(("model_list", name))
            self.warnings.append(
                said
                + f" counts at the first entry's address alone; keys of others stand under {name}:1, {name}:2"
            )
        return same

    def _merge_model(self, listed: list[Any], place: int, name: str, entry: dict[str, Any]) -> None:
        for key, item in entry.items():
            keys: Keys = ("model_list", name, key)
            field, value = ("api_keys", [item]) if key == "api_key" else (key, item)
            if field not in ModelEntry.model_fields or key == "model_name":
                self._typo(keys, ModelEntry.model_fields)
            elif item not in EMPTY:
                listed[place][field] = value
                self.origins["model_list", place, field] = keys

    def _set(self, node: dict[str, Any], name: str, value: Any, keys: Keys) -> None:
        if value in EMPTY:
            return
        node[name] = value
        self.origins[keys] = keys

    def _typo(self, keys: Keys, known: Iterable[str]) -> None:
        self.warnings.append(f"{self.at(keys)} names nothing{did_you_mean(str(keys[-1]), known)}")

    def _parsed(self) -> dict[str, Any]:
        tree = _plain(self._loaded(), [MOST_NODES], self.path)
        if tree is None:
            return {}
        if not isinstance(tree, dict):
            raise SettingsError(f"{self.path} must hold a mapping")
        return tree

    def _loaded(self) -> Any:
        from ruamel.yaml import YAML
        from ruamel.yaml.constructor import DuplicateKeyError
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        try:
            return YAML(typ="safe", pure=True).load(self.text)
        except DuplicateKeyError as error:
            raise SettingsError(f"{self._marked(error)} has the same key twice") from None
        except MarkedYAMLError as error:
            raise SettingsError(f"{self._marked(error)} is not YAML") from None
        except (YAMLError, ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
            raise SettingsError(f"{self.path} is not YAML") from None

    def _marked(self, error: Any) -> str:
        return f"{self.path}, line {error.problem_mark.line + 1}:" if error.problem_mark else f"{self.path}"


def exposed(path: Path) -> str | None:
    """Return a sentence when a file of secrets is not its user's own or others may read it."""
    try:
        state = path.stat()
    except OSError:
        return None
    if state.st_uid != os.geteuid():
        return f"SECURITY: {path} belongs to another user; chown it to the one who runs this"
    if stat.S_IMODE(state.st_mode) & 0o077:
        return f"SECURITY: {path} can be read by others; run chmod 600 {path}"
    return None


def _places(listed: list[Any], name: str) -> list[int]:
    """Return the entries that ``name`` means: all of that name, for ``name:i`` the i-th (from 0).

    A bare name without an entry of its own means all that are indexed by it.
    """
    named = [place for place, item in enumerate(listed) if isinstance(item, dict)]
    names = {place: str(listed[place].get("model_name")) for place in named}
    base, index = _index(name)
    if exact := [place for place, other in names.items() if other == name]:
        return exact
    if index:
        return [place for place, other in names.items() if other == base][int(index) : int(index) + 1]
    return [place for place, other in names.items() if _index(other)[0] == name]


def _address(entry: dict[str, Any]) -> str | None:
    base = entry.get("api_base")
    return address_of(str(entry.get("model")), base if isinstance(base, str) else None)


def _index(name: str) -> tuple[str, str]:
    """Return the base and the index of ``name:3``, an empty index without one."""
    base, _, index = name.rpartition(":")
    return (base, index) if index.isdecimal() and len(index) < 6 else (name, "")


def _plain(value: Any, budget: list[int], path: Path, depth: int = 0) -> Any:
    """Return YAML as JSON has it; bounded, because aliases can make an endless tree of a small file."""
    budget[0] -= 1
    if budget[0] < 0 or depth > DEEPEST:
        raise SettingsError(f"{path} is nested or repeated beyond all use")
    if isinstance(value, dict):
        return {str(key): _plain(item, budget, path, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, budget, path, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [None]  # a date, a set, bytes: of no setting's form, so that validation names the key
