"""Which model a run may use, and by what credential."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import SecretStr

from shared.errors import InvalidInput
from shared.settings.providers import ANTHROPIC, address_of, split_model
from shared.settings.sections import ModelEntry
from shared.settings.tree import Settings


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model and how it is reached.

    ``name`` is what people call it, ``model`` its id at the API, ``base_url`` None for Anthropic's own.
    ``api_keys`` are used in turn (the next after a 401 or a 429); ``auth_token`` goes instead of a key.
    """

    name: str
    model: str
    base_url: str | None = None
    api_keys: tuple[SecretStr, ...] = field(default=(), repr=False)
    auth_token: SecretStr | None = field(default=None, repr=False)


def model_choices(
    settings: Settings, asked: str | None = None, allowed: tuple[str, ...] | None = None
) -> tuple[ModelChoice, ...]:
    """Return the models for a run, in the order they are to be tried.

    ``asked`` is what the request wants. Without a ``model_list`` any id may be asked for; with one only its
    names: ``InvalidInput`` otherwise. The last is the fallback model, if there is one. ``allowed``: names of
    those that may be used at all; where the usual one isn't among them, the first of them is.
    """
    named = _named(settings, asked)
    if allowed is not None and named[0].name not in allowed:
        if asked is not None or not allowed:
            raise InvalidInput(f"model: {named[0].name} is not allowed; allowed: {', '.join(allowed)}")
        named = _named(settings, allowed[0])
    fallback = fallback_choice(settings)
    if fallback is None or fallback in named or (allowed is not None and fallback.name not in allowed):
        return named
    return (*named, fallback)


def model_names(settings: Settings) -> tuple[str, ...]:
    """Return the names that requests may ask for; empty when any id will do."""
    return tuple(dict.fromkeys(entry.model_name for entry in settings.models))


def configured(settings: Settings) -> tuple[ModelChoice, ...]:
    """Return every model that the settings name."""
    listed = tuple(_listed(settings, entry) for entry in settings.models)
    fallback = fallback_choice(settings)
    return (*(listed or (_plain(settings, settings.model.model),)), *([fallback] if fallback else []))


def _named(settings: Settings, asked: str | None) -> tuple[ModelChoice, ...]:
    if not settings.models:
        return (_plain(settings, asked or settings.model.model),)
    name = asked or settings.agents.defaults.model_name or settings.models[0].model_name
    found = tuple(_listed(settings, entry) for entry in settings.models if entry.model_name == name)
    if not found:
        raise InvalidInput(f"model: must be one of {', '.join(model_names(settings))}")
    return found


def fallback_choice(settings: Settings) -> ModelChoice | None:
    """Return the model to go on with when the first is overloaded, None without one."""
    name = settings.model.fallback_model
    if name is None:
        return None
    listed = (entry for entry in settings.models if entry.model_name == name)
    entry = next(listed, None)
    return _plain(settings, name) if entry is None else _listed(settings, entry)


def _plain(settings: Settings, model: str) -> ModelChoice:
    access = settings.model
    return ModelChoice(
        name=model,
        model=model,
        base_url=access.base_url,
        api_keys=(access.api_key,) if access.api_key else (),
        auth_token=access.auth_token or access.oauth_token,
    )


def _listed(settings: Settings, entry: ModelEntry) -> ModelChoice:
    """Return an entry; the general credential stands in for its keys, but only at the general address."""
    _, model = split_model(entry.model)
    general = _plain(settings, model)
    base_url = address_of(entry.model, entry.api_base) or general.base_url
    own = bool(entry.api_keys) or (base_url or ANTHROPIC) != (general.base_url or ANTHROPIC)
    return ModelChoice(
        name=entry.model_name,
        model=model,
        base_url=base_url,
        api_keys=entry.api_keys if own else general.api_keys,
        auth_token=None if own else general.auth_token,
    )
