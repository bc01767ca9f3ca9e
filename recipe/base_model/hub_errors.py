"""Turns a failure of a hub, or of the connection to it, into one paragraph: what, where, what to do."""

import contextlib
from typing import Iterator, Optional

from recipe.base_model.hub_addresses import MIRRORS, NAMES, branch, endpoint
from recipe.base_model.hub_clients import revisions, unknown_revision
from recipe.core import http
from recipe.core.errors import HostLacks, InputWrong, RecipeError
from recipe.core.http import RETRY, causes, has_cause, status
from recipe.core.settings import Model


@contextlib.contextmanager
def as_recipe_errors(model: Model) -> Iterator[None]:
    """Raise every failure inside as a RecipeError."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # the clients, requests and urllib3 raise many types
        raise explain(error, model)


def is_client_fault(error: Exception) -> bool:
    """Whether plain addresses may work where a hub's client failed: not if the hub cannot be reached at all."""
    import requests

    if has_cause(error, "HFValidationError", "InvalidParameter"):
        return False
    if isinstance(error, requests.exceptions.ConnectionError):  # proxy, certificate, DNS, port
        return status(error) is not None
    return not isinstance(error, OSError) or isinstance(error, requests.RequestException)


def explain(error: Exception, model: Model) -> RecipeError:
    """The RecipeError that names cause, place and remedy of a failure."""
    reason = http.reason(error)
    return (
        http.explain_disk(error, model.id)
        or _explain_name(error, model, reason)
        or http.explain_connection(error, NAMES[model.source])
        or _explain_status(error, model, reason)
        or _explain_response(error, model, reason)
    )


def _other_source(model: Model) -> str:
    other = ", or Hugging Face (model.source=huggingface)" if _is_at_both(model) else ""
    return f"or use a mirror ({MIRRORS[model.source]}){other}, or a local folder ({model.placed}=/some/folder)"


def _is_at_both(model: Model) -> bool:
    """Whether the recipe names the model at Hugging Face beside ModelScope's."""
    return model.source == "modelscope" and bool(model.huggingface.id)


def _explain_name(error: Exception, model: Model, reason: str) -> Optional[RecipeError]:
    if has_cause(error, "HFValidationError", "InvalidParameter"):
        return InputWrong(f"{model.named}={model.id} is not a valid name at {NAMES[model.source]}: {reason}")
    return None


def _explain_status(error: Exception, model: Model, reason: str) -> Optional[RecipeError]:
    import requests

    hub, code = NAMES[model.source], status(error)
    if code in (401, 403):
        login = {
            "huggingface": "set the token of an account that may read it: HF_TOKEN=hf_…",
            "modelscope": "log in with ModelScope's own command (modelscope login)",
        }[model.source]
        return HostLacks(
            f"{hub} denies access to {model.id} (HTTP {code}): it is private, gated or misspelt. Accept its terms on "
            f"its page and {login}, {_other_source(model)}."
        )
    if code == 404 or has_cause(error, "RequestError"):  # ModelScope's class for an error sent with status 200
        known = revisions(model)
        if known and branch(model) not in known:
            return unknown_revision(model)
        return InputWrong(f"{hub} has no {model.id} (revision {branch(model)}): {reason}. Check {model.named}.")
    if code is not None or isinstance(error, requests.exceptions.RetryError):
        return HostLacks(f"{hub} answers HTTP {code or '5xx'} ({reason}). {RETRY} Later, {_other_source(model)}.")
    return None


def _explain_response(error: Exception, model: Model, reason: str) -> RecipeError:
    hub, host = NAMES[model.source], http.server(endpoint(model))
    if "OfflineModeIsEnabled" in type(error).__name__:
        return HostLacks(f"HF_HUB_OFFLINE is set, and {model.id} has not been downloaded. Unset it for this command.")
    other = _redirected_host(error, host)
    if other:
        return HostLacks(
            f"{host} redirects to {other}, which cannot be reached from here: {reason}. Use a mirror that hosts the "
            f"files itself ({MIRRORS[model.source]}), or a folder you have ({model.placed}=/some/folder)."
        )
    unreadable = isinstance(error, (KeyError, TypeError, AttributeError, ValueError)) and not isinstance(error, OSError)
    if unreadable or "JSON" in type(error).__name__:
        return HostLacks(
            f"{host} does not respond like {hub} ({reason}) and has no config.json for {model.id}. Check "
            f"{model.named} and the connection (a login page, a mirror of something else), {_other_source(model)}."
        )
    if http.is_unresolved(error):
        return HostLacks(
            f"{hub}'s name cannot be resolved: no network here, or no DNS ({reason}). Connect, {_other_source(model)}."
        )
    remedy = _other_source(model)[len("or ") :]
    return HostLacks(f"{model.id} could not be fetched from {hub}: {reason}. {RETRY} If it keeps failing, {remedy}.")


def _redirected_host(error: Exception, host: str) -> str:
    """The host that failed, if it is not `host`; else ""."""
    requests = (getattr(cause, "request", None) for cause in causes(error))
    hosts = [http.server(str(getattr(request, "url", ""))) for request in requests if request is not None]
    return next((other for other in hosts if other and other != host), "")
