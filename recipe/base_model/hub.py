"""ModelScope and Hugging Face: what a revision holds, and the files themselves, resumed and checked.

What there is (revisions, files, sizes, checksums) is asked through each hub's own client, and where its calls fail by
plain addresses (hub_addresses). The bytes are not:
modelscope 1.9.5 takes the length of the rest for that of the whole, so a file that was cut never arrives, and a
command that was stopped loses every unfinished file; huggingface_hub 0.21.4 keeps multiples of 10 MB, and appends
a whole file to its beginning where a server knows no ranges.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple
from urllib.parse import urlsplit

from recipe.base_model import hub_addresses
from recipe.core.errors import HostLacks, InputWrong, RecipeError
from recipe.core.settings import Model

NAMES = {"modelscope": "ModelScope", "huggingface": "Hugging Face"}
MIRRORS = {"modelscope": "MODELSCOPE_DOMAIN=host", "huggingface": "HF_ENDPOINT=https://host"}
LIMIT = 60  # seconds for an answer of a hub's API
SILENCE = 30  # seconds without a byte, after which a transfer is taken up again
TRIES = 5  # in a row that brought nothing new
PARALLEL = 4  # files at a time, as modelscope's own parts
STACK_DAY = datetime(2024, 3, 18, tzinfo=timezone.utc)  # as in docker/locks/lock.py: packages are of the day before
BLOCK = 1 << 16  # bytes; of a cut transfer the last block is lost
HEADER = 1 << 16  # bytes in which the header of a 2 GB shard lies

CLIENT = "its client"  # who asked the hub what it holds

Files = Dict[str, Dict[str, Any]]


def branch(model: Model) -> str:
    """The revision that a recipe asks for: what is `master` at ModelScope is `main` at Hugging Face."""
    return "main" if model.source == "huggingface" and model.revision == "master" else model.revision


def resolve(model: Model) -> Dict[str, Any]:
    """What the hub has at the asked revision: source, id, revision, commit, and by path the files' size,
    sha256 or git (blob id) where the hub states them, and the commit at which to fetch them ("" where it does not
    state one); `listed_by` says how it was asked.

    Raises InputWrong for a model or revision that is not there, HostLacks if the hub cannot be asked.
    """
    with told(model):
        try:
            commit, files = _modelscope(model) if model.source == "modelscope" else _hugging_face(model)
            listed_by = CLIENT
        except Exception as error:  # two clients, requests and urllib3 raise as they like
            if not _may_be_the_client(error):
                raise
            found = hub_addresses.resolve(model, branch(model), _headers(model))
            if found is None:
                raise
            listed_by, commit, files = found
            first = [*_causes(error)][-1]
            listed_by += f", as the client failed ({type(first).__name__}: {str(first).strip()[:100]})"
    astray = [name for name in files if name.startswith("/") or ".." in name.split("/")]
    if astray:
        raise InputWrong(f"{model.id} holds a file that would lie outside its folder: {astray[0]}. It was not fetched.")
    return {
        "source": model.source, "id": model.id, "revision": branch(model), "commit": commit, "listed_by": listed_by,
        "files": files,
    }  # fmt: skip


def _may_be_the_client(error: Exception) -> bool:
    """Whether the hub's plain addresses may answer where its client failed: not without a way to the hub at all."""
    import requests

    if any(type(cause).__name__ in ("HFValidationError", "InvalidParameter") for cause in _causes(error)):
        return False
    if isinstance(error, requests.exceptions.ConnectionError):  # the proxy, the certificate, the name, the port
        return _status(error) is not None
    return not isinstance(error, OSError) or isinstance(error, requests.RequestException)


def revisions(model: Model) -> List[str]:
    """Branches and tags that the hub has; empty where it does not say."""
    try:
        if model.source == "modelscope":
            branches, tags = _api().get_model_branches_and_tags(model.id)
            return [*branches, *tags]
        from huggingface_hub import HfApi

        refs = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).list_repo_refs(model.id)
        return [ref.name for ref in [*refs.branches, *refs.tags]]
    except Exception:  # asked to complete another error's text
        return []


def of_its_day(model: Model) -> str:
    """The newest revision of which the hub says that it is as old as this stack; "" where it says nothing.

    Hugging Face dates every commit. ModelScope dates tags, and its API of 1.9.5 knows no older commits.
    """
    try:
        if model.source == "modelscope":
            return next(iter(_api().list_model_revisions(model.id, cutoff_timestamp=int(STACK_DAY.timestamp()))), "")
        from huggingface_hub import HfApi

        commits = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).list_repo_commits(model.id, revision=branch(model))
        return next((commit.commit_id for commit in commits if commit.created_at < STACK_DAY), "")
    except Exception:  # asked to complete another error's text
        return ""


def _api() -> Any:
    logging.getLogger("modelscope").disabled = True  # it tells of PyTorch versions and of indexes of its own code
    from modelscope.hub.api import HubApi, ModelScopeConfig

    home = Path(ModelScopeConfig.path_credential)
    if not (home / "cookies").is_file():  # nobody is logged in: nothing is written outside our folders
        ModelScopeConfig.path_credential = os.path.join(os.environ.get("MODELSCOPE_CACHE", ".cache"), "login")
    return HubApi()


def _modelscope(model: Model) -> Tuple[str, Files]:
    """The newest commit among the files stands for the revision: the API of 1.9.5 does not tell the branch's own."""
    api = _api()
    from modelscope.hub.api import ModelScopeConfig

    try:
        listed = api.get_model_files(
            model.id, model.revision, recursive=True, use_cookies=ModelScopeConfig.get_cookies() or False
        )
    except TypeError:  # an unknown revision is answered with files: null
        raise InputWrong(_no_revision(model))
    files = [file for file in listed if file["Type"] != "tree"]
    if not files:
        raise InputWrong(f"{model.id} holds no files at revision {model.revision}.")
    newest = max(files, key=lambda file: file.get("CommittedDate") or 0)
    return newest["Revision"], {
        file["Path"]: {"size": file["Size"], "sha256": file.get("Sha256") or "", "at": file["Revision"]}
        for file in files
    }


def _hugging_face(model: Model) -> Tuple[str, Files]:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    found = api.model_info(model.id, revision=branch(model), files_metadata=True, timeout=LIMIT)
    return found.sha, {
        file.rfilename: {
            "size": file.lfs["size"] if file.lfs else file.size,
            "sha256": file.lfs["sha256"] if file.lfs else "",
            "git": "" if file.lfs else file.blob_id or "",
            "at": found.sha,
        }
        for file in found.siblings
        if file.rfilename not in (".gitattributes", ".gitignore")
    }


def _headers(model: Model) -> Dict[str, str]:
    """Headers with which to ask a hub for a file: who asks, and where somebody is logged in, their token."""
    if model.source == "huggingface":
        from huggingface_hub.utils import build_hf_headers

        return dict(build_hf_headers())
    headers = {}
    with contextlib.suppress(Exception):  # the client's own files, which another version may have written
        from modelscope.hub.api import ModelScopeConfig

        headers["user-agent"] = ModelScopeConfig.get_user_agent()
        cookies = "; ".join(f"{c.name}={c.value}" for c in ModelScopeConfig.get_cookies() or ())
        headers.update({"Cookie": cookies} if cookies else {})
    return headers


def safetensors_header(model: Model, name: str, file: Dict[str, Any]) -> Dict[str, List[int]]:
    """Name → shape of the tensors in a safetensors file at the hub, of which no more than its header is fetched."""
    import requests

    def start(length: int) -> bytes:
        failure: Exception = OSError(f"{name}: no address")
        for url in hub_addresses.of_file(model, name, file["at"]):
            try:
                return hub_addresses.first_bytes(url, name, file["size"], _headers(model), length)
            except requests.RequestException as error:
                failure = error
                if _status(error) not in hub_addresses.ELSEWHERE:
                    break
        raise failure

    with told(model):
        raw = start(HEADER)
        length = int.from_bytes(raw[:8], "little")
        if 8 + length > min(file["size"], 1 << 27):
            raise InputWrong(f"{name} of {model.id} is no safetensors file: its header does not fit it.")
        if 8 + length > len(raw):
            raw = start(8 + length)
        try:
            header = json.loads(raw[8 : 8 + length])
            return {key: list(value["shape"]) for key, value in header.items() if key != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputWrong(f"{name} of {model.id} is no safetensors file: its header cannot be read.")


def part_of(place: Path, name: str) -> Path:
    """Where the bytes of a file wait until it is whole."""
    return place / ".recipe" / (name.replace("/", "__") + ".part")


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none (another thread may just have renamed it)."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def held(place: Path, name: str) -> int:
    """Bytes of a file that are already here."""
    return _size(part_of(place, name)) or _size(place / name)


def fetch(
    model: Model, files: Files, names: List[str], place: Path, done: Callable[[str], None], show: Callable[[], None]
) -> None:
    """Fetch `names` of `files` into `place`, a few at a time; `done` is called for each one that is whole and
    checked (its entry then holds its sha256), `show` twice a second.

    What is there of a file is kept and gone on with, also after this raises: HostLacks, InputWrong.
    """
    if not names:
        return
    if model.source == "modelscope":
        with contextlib.suppress(Exception):  # no more than its cookies are wanted
            _api()
    stop = threading.Event()
    from multiprocessing import TimeoutError as NotYet
    from multiprocessing.pool import ThreadPool  # here: who fetches nothing need not wait for these

    with told(model), ThreadPool(PARALLEL) as pool:
        jobs = pool.imap_unordered(lambda name: _fetch(model, name, files[name], place, stop), names)
        try:
            while True:
                with contextlib.suppress(NotYet):
                    done(jobs.next(timeout=0.5))
                show()
        except StopIteration:
            pass
        finally:
            stop.set()


def _fetch(model: Model, name: str, file: Dict[str, Any], place: Path, stop: threading.Event) -> str:
    """One file: into its part, from where that ends; then checked and renamed."""
    import requests

    part = part_of(place, name)
    part.parent.mkdir(parents=True, exist_ok=True)
    headers, urls = _headers(model), hub_addresses.of_file(model, name, file["at"])
    most = failures = 0
    while not part.exists() or _size(part) != file["size"]:
        have = _size(part)
        if have > file["size"]:
            have = 0
            part.unlink()
        # Not packed on the way, or offsets would count something else.
        asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        try:
            with requests.get(urls[0], headers=asked, stream=True, timeout=SILENCE) as answer:
                answer.raise_for_status()
                hub_addresses.refuse_other(answer, name, file["size"] if len(urls) > 1 else None)
                # A server that knows no ranges starts again.
                with part.open("ab" if answer.status_code == 206 else "wb") as stream:
                    for block in answer.iter_content(BLOCK):
                        if stop.is_set():
                            return name
                        stream.write(block)
        except requests.RequestException as error:
            if len(urls) > 1 and _status(error) in hub_addresses.ELSEWHERE:
                urls = urls[1:]
                continue
            if not _passes(error):
                raise
            failure: Exception = error
        else:
            failure = OSError(f"{name} came with a length other than the {file['size']:,} bytes that the hub states")
        now = _size(part)
        if now == file["size"]:
            break
        failures = 0 if most < now < file["size"] else failures + 1
        most = max(most, now)
        if failures == TRIES:
            raise failure
        stop.wait(2**failures / 4)
        if stop.is_set():
            return name
    _check(model, name, file, part)
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(str(part), str(place / name))
    return name


def _passes(error: Exception) -> bool:
    """Whether a failure may be over in a moment."""
    import requests

    if isinstance(error, requests.exceptions.ProxyError) or _refuses_certificate(error):
        return False
    status = _status(error)
    return status is None or status in (408, 429) or status >= 500


def _refuses_certificate(error: Exception) -> bool:
    import ssl

    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _check(model: Model, name: str, file: Dict[str, Any], part: Path) -> None:
    """Compare a whole file with the checksum that the hub states, and note its sha256."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {file['size']}\0".encode())
    with part.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            sha256.update(block)
            if file.get("git"):
                git.update(block)
    found = sha256.hexdigest()
    if found != (file["sha256"] or found) or git.hexdigest() != (file.get("git") or git.hexdigest()):
        part.unlink()
        raise HostLacks(
            f"{name} of {model.id} arrived damaged: sha256 {found[:12]}…, not the checksum that {NAMES[model.source]} "
            f"states. It was deleted, all else is kept: type the same command again to fetch it anew. If that "
            f"repeats, something between here and the hub changes files: use a mirror ({MIRRORS[model.source]})."
        )
    file["sha256"] = found


@contextlib.contextmanager
def told(model: Model) -> Iterator[None]:
    """Every failure of a hub or of the way to it becomes one paragraph with its remedy."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # two clients, requests and urllib3 raise as they like
        raise explained(error, model)


def _causes(error: Any) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Exception) -> Any:
    """The HTTP status behind an error, or None."""
    answers = [getattr(cause, "response", None) for cause in _causes(error)]
    return next((answer.status_code for answer in answers if answer is not None), None)


def _redirected(error: Exception, model: Model) -> str:
    """The host that could not be reached, where it is not the one that was asked; "" otherwise."""
    asked = urlsplit(hub_addresses.endpoint(model)).netloc
    requests = (getattr(cause, "request", None) for cause in _causes(error))
    hosts = [urlsplit(str(getattr(one, "url", ""))).netloc for one in requests if one is not None]
    return next((host for host in hosts if host and host != asked), "")


def _no_revision(model: Model) -> str:
    known = revisions(model)
    has = f"it has {', '.join(known[:12])}{' …' if len(known) > 12 else ''}, and commits" if known else "see its page"
    return f"{model.id} has no revision {branch(model)} at {NAMES[model.source]}: {has}. Name one: model.revision=…"


def explained(error: Exception, model: Model) -> RecipeError:
    """What went wrong between here and the hub, where, and what to do."""
    import requests

    hub = NAMES[model.source]
    *_, first = _causes(error)  # what the libraries wrapped says it shortest
    reason = f"{type(first).__name__}: {first}".splitlines()[0][:200]
    status = _status(error)
    kinds = requests.exceptions
    retry = "Type the same command again: what has arrived is kept."
    elsewhere = f"or use a mirror ({MIRRORS[model.source]}), or a folder you have ({model.placed}=/some/folder)"
    numbers = [getattr(cause, "errno", None) for cause in _causes(error)]
    if errno.ENOSPC in numbers or errno.EDQUOT in numbers:
        return HostLacks(f"The disk is full while {model.id} is being fetched. Free some space. {retry}")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return HostLacks(f"{error.filename}: {error.strerror}. Make it writable. {retry}")
    if any(type(cause).__name__ in ("HFValidationError", "InvalidParameter") for cause in _causes(error)):
        return InputWrong(f"{model.named}={model.id} is no name that {hub} could have: {reason}")
    if _refuses_certificate(error):
        return HostLacks(
            f"{hub}'s certificate is not accepted: {reason}. Check the clock; behind a proxy that opens TLS, name its "
            f"certificate: REQUESTS_CA_BUNDLE=/path/to/ca.pem."
        )
    if isinstance(error, kinds.ProxyError):
        return HostLacks(f"The proxy (HTTPS_PROXY) does not let through to {hub}: {reason}. Correct or unset it.")
    if status in (401, 403):
        login = {
            "huggingface": "name a token of an account that may read it: HF_TOKEN=hf_…",
            "modelscope": "log in with ModelScope's own command (modelscope login)",
        }[model.source]
        return HostLacks(
            f"{hub} does not give {model.id} to everybody (HTTP {status}): it is private, gated or misspelt. Accept "
            f"its terms on its page and {login}, {elsewhere}."
        )
    if status == 404 or type(error).__name__ == "RequestError":  # ModelScope's for a refusal that comes as HTTP 200
        known = revisions(model)
        if known and branch(model) not in known:
            return InputWrong(_no_revision(model))
        return InputWrong(f"{hub} has no {model.id} (revision {branch(model)}): {reason}. Check {model.named}.")
    if status is not None or isinstance(error, kinds.RetryError):
        return HostLacks(f"{hub} answers HTTP {status or '5xx'} ({reason}). {retry} Later, {elsewhere}.")
    if "OfflineModeIsEnabled" in type(error).__name__:
        return HostLacks(f"HF_HUB_OFFLINE is set, and {model.id} is not here. Unset it for this command.")
    asked, other = urlsplit(hub_addresses.endpoint(model)).netloc, _redirected(error, model)
    if other:
        return HostLacks(
            f"{asked} redirects to {other}, which cannot be reached from here: {reason}. Name a mirror that holds the "
            f"files itself ({MIRRORS[model.source]}), or a folder you have ({model.placed}=/some/folder)."
        )
    strange = isinstance(error, (KeyError, TypeError, AttributeError, ValueError)) and not isinstance(error, OSError)
    if strange or "JSON" in type(error).__name__:
        return HostLacks(
            f"{asked} does not answer as {hub} did ({reason}), and gives no config.json of {model.id} at its plain "
            f"address. Check {model.named} and what stands between here and the hub (a page to log in, a mirror of "
            f"something else), {elsewhere}."
        )
    if any(type(cause).__name__ in ("NameResolutionError", "gaierror") for cause in _causes(error)):
        return HostLacks(
            f"{hub}'s name cannot be resolved: no network here, or no DNS ({reason}). Connect, {elsewhere}."
        )
    return HostLacks(f"{model.id} could not be fetched from {hub}: {reason}. {retry} If that repeats: {elsewhere[3:]}.")
