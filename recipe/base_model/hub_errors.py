"""Turns a failure of a hub, or of the connection to it, into one paragraph: what, where, what to do.

The record of a download from another hub holds the first sentence in English: it is a message of its own.
"""

import contextlib
from typing import Iterator, Optional

from recipe.base_model.hub_addresses import MIRRORS, NAMES, branch, endpoint
from recipe.base_model.hub_clients import revisions, unknown_revision
from recipe.core import http
from recipe.core.errors import HostLacks, InputWrong, RecipeError
from recipe.core.http import causes, has_cause, status
from recipe.core.settings import Model
from recipe.core.translation import _


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
    values = dict(mirror=MIRRORS[model.source], setting=model.placed)
    if _is_at_both(model):
        return _(
            "use a mirror ({mirror}), or Hugging Face (model.source=huggingface), or a local folder "
            "({setting}=/some/folder)",
            **values,
        )
    return _("use a mirror ({mirror}), or a local folder ({setting}=/some/folder)", **values)


def _is_at_both(model: Model) -> bool:
    """Whether the recipe names the model at Hugging Face beside ModelScope's."""
    return model.source == "modelscope" and bool(model.huggingface.id)


def _explain_name(error: Exception, model: Model, reason: str) -> Optional[RecipeError]:
    if has_cause(error, "HFValidationError", "InvalidParameter"):
        return InputWrong(
            _(
                "{setting}={model} is not a valid name at {hub}: {reason}",
                setting=model.named,
                model=model.id,
                hub=NAMES[model.source],
                reason=reason,
            )
        )
    return None


def _explain_status(error: Exception, model: Model, reason: str) -> Optional[RecipeError]:
    import requests

    hub, code = NAMES[model.source], status(error)
    if code in (401, 403):
        problem = _(
            "{hub} denies access to {model} (HTTP {code}): it is private, gated or misspelt",
            hub=hub,
            model=model.id,
            code=code,
        )
        if model.source == "modelscope":
            return HostLacks(
                _(
                    "{problem}. Accept its terms on its page and log in with ModelScope's own command (modelscope "
                    "login), or {remedy}.",
                    problem=problem,
                    remedy=_other_source(model),
                )
            )
        return HostLacks(
            _(
                "{problem}. Accept its terms on its page and set the token of an account that may read it: "
                "HF_TOKEN=hf_…, or {remedy}.",
                problem=problem,
                remedy=_other_source(model),
            )
        )
    if code == 404 or has_cause(error, "RequestError"):  # ModelScope's class for an error sent with status 200
        known = revisions(model)
        if known and branch(model) not in known:
            return unknown_revision(model)
        problem = _(
            "{hub} has no {model} (revision {revision}): {reason}",
            hub=hub,
            model=model.id,
            revision=branch(model),
            reason=reason,
        )
        return InputWrong(_("{problem}. Check {setting}.", problem=problem, setting=model.named))
    if code is not None or isinstance(error, requests.exceptions.RetryError):
        return HostLacks(
            _(
                "{problem}. Type the same command again: what has arrived is kept. Later, or {remedy}.",
                problem=_("{hub} answers HTTP {code} ({reason})", hub=hub, code=code or "5xx", reason=reason),
                remedy=_other_source(model),
            )
        )
    return None


def _explain_response(error: Exception, model: Model, reason: str) -> RecipeError:
    hub, host = NAMES[model.source], http.server(endpoint(model))
    if "OfflineModeIsEnabled" in type(error).__name__:
        return HostLacks(
            _(
                "{problem}. Unset it for this command.",
                problem=_("HF_HUB_OFFLINE is set, and {model} has not been downloaded", model=model.id),
            )
        )
    other = _redirected_host(error, host)
    if other:
        return HostLacks(
            _(
                "{problem}. Use a mirror that hosts the files itself ({mirror}), or a folder you have "
                "({setting}=/some/folder).",
                problem=_(
                    "{host} redirects to {other}, which cannot be reached from here: {reason}",
                    host=host,
                    other=other,
                    reason=reason,
                ),
                mirror=MIRRORS[model.source],
                setting=model.placed,
            )
        )
    unreadable = isinstance(error, (KeyError, TypeError, AttributeError, ValueError)) and not isinstance(error, OSError)
    if unreadable or "JSON" in type(error).__name__:
        return HostLacks(
            _(
                "{problem}. Check {setting} and the connection (a login page, a mirror of something else), or "
                "{remedy}.",
                problem=_(
                    "{host} does not respond like {hub} ({reason}) and has no config.json for {model}",
                    host=host,
                    hub=hub,
                    reason=reason,
                    model=model.id,
                ),
                setting=model.named,
                remedy=_other_source(model),
            )
        )
    if http.is_unresolved(error):
        return HostLacks(
            _(
                "{problem}. Connect, or {remedy}.",
                problem=_(
                    "{hub}'s name cannot be resolved: no network here, or no DNS ({reason})", hub=hub, reason=reason
                ),
                remedy=_other_source(model),
            )
        )
    return HostLacks(
        _(
            "{problem}. Type the same command again: what has arrived is kept. If it keeps failing, {remedy}.",
            problem=_("{model} could not be fetched from {hub}: {reason}", model=model.id, hub=hub, reason=reason),
            remedy=_other_source(model),
        )
    )


def _redirected_host(error: Exception, host: str) -> str:
    """The host that failed, if it is not `host`; else ""."""
    requests = (getattr(cause, "request", None) for cause in causes(error))
    hosts = [http.server(str(getattr(request, "url", ""))) for request in requests if request is not None]
    return next((other for other in hosts if other and other != host), "")
