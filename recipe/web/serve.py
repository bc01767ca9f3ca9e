"""Starts the page: Streamlit's own server behind a door that lets in who may come in.

Streamlit 1.24 knows no token, and its page as shipped may ask other hosts. So requests pass a router of ours first: it
refuses foreign hosts and origins and, options there is a token, whoever does not bring it; and it hands out Streamlit's
index.html with our style and script, under a policy by model a browser asks no other host, whatever a page holds.
"""

import asyncio
import hashlib
import hmac
import html
import ipaddress
import os
import signal
import socket
from pathlib import Path
from typing import Any, Dict, List, Sequence
from urllib.parse import urlsplit

import click

from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import is_locked

HERE = Path(__file__).resolve().parent
PORT = 8501  # Streamlit's own
LOCAL = ("localhost", "127.0.0.1", "::1")
MIN_TOKEN_LENGTH = 8  # characters of a token
COOKIE = "web_token"


class ServerOptions:
    """Where the page is: host, port, token ("": none needed) and model model is the tuned one."""

    def __init__(self, host: str, port: int, token: str, model: str) -> None:
        self.host, self.port, self.token, self.model = host, port, token, model


def parse_options(arguments: Sequence[str], token: str = "") -> ServerOptions:
    """From `port=`, `host=`, `token=` (default: WEB_TOKEN's) and `model=`. Raises InputWrong, also for an address that
    others reach when there is no token.
    """
    given = dict(argument.split("=", 1) for argument in arguments)
    for name in given:
        if name not in ("host", "port", "token", "model"):
            raise InputWrong(
                f"{name}=…: the run is as it was made; the page takes port=8502, host=0.0.0.0, token=… and "
                f"model=adapter or model=merged."
            )
    host, port, model = given.get("host", "127.0.0.1"), given.get("port", str(PORT)), given.get("model", "")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    token = given.get("token", token)
    if model not in ("", "adapter", "merged"):
        raise InputWrong(f"model={model}: beside the base stands the adapter or the merged model.")
    if not (port.isdigit() and 0 < int(port) < 65536):
        raise InputWrong(f"port={port}: a port is a number from 1 to 65535, such as port=8502.")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise InputWrong(f"host={host} is no address of this machine: leave it out, or host=0.0.0.0 for all of them.")
    if not token and not local:
        raise InputWrong(
            f"host={host} opens the page to other machines, and there is no token: name one (WEB_TOKEN=… before the "
            f"command, or token=…), or leave host out and come through ssh."
        )
    if token and len(token) < MIN_TOKEN_LENGTH:
        raise InputWrong(f"The token has {len(token)} characters; it needs {MIN_TOKEN_LENGTH}, for whoever guesses.")
    return ServerOptions(host, int(port), token, model)


def listen_address(options: ServerOptions) -> str:
    """The address to listen at; raises HostLacks if its port cannot be had. A container's own network is its
    namespace: there it listens at all addresses, and the engine publishes at `options.host`.
    """
    host = "0.0.0.0" if os.environ.get("WEB_PUBLISHED") else options.host
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, options.port))
        except OSError as error:
            raise HostLacks(
                f"Port {options.port} of {host} cannot be had ({error.strerror}). Take another: port=8502"
                if options.port != 8502
                else f"Port 8502 of {host} cannot be had ({error.strerror}). Take another: port=8503"
            )
    return host


def cookie_value(token: str) -> str:
    """What the browser keeps: shows that it once had the token, without being it."""
    return hashlib.sha256(f"internlm2-recipe web {token}".encode()).hexdigest()


def _host(netloc: str) -> str:
    return urlsplit(f"//{netloc}").hostname or ""


def refusal_reason(headers: Dict[str, str], cookie: str, options: ServerOptions) -> str:
    """Why a request is not let in: "host", "origin", "token"; "" for one that is.

    Without a token only who asks for this machine by a local name is: a foreign name that leads here is a page that
    reaches for it through somebody's browser (DNS rebinding).
    """
    host, origin = headers.get("Host", ""), headers.get("Origin")
    if not options.token and _host(host) not in (*LOCAL, options.host):
        return "host"
    if origin and urlsplit(origin).netloc != host:
        return "origin"
    if options.token and not hmac.compare_digest(cookie.encode(), cookie_value(options.token).encode()):
        return "token"
    return ""


def policy(host: str) -> str:
    """The page's Content-Security-Policy: nothing from elsewhere."""
    return (
        "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        f"font-src 'self' data:; connect-src 'self' ws://{host} wss://{host}; frame-src 'self'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )


def index() -> str:
    """Streamlit's index.html without its inline script, model the policy refuses, and with our style and script."""
    from streamlit import file_util

    text = (Path(file_util.get_static_dir()) / "index.html").read_text(encoding="utf-8")
    text = text.replace("<script>window.prerenderReady=!1</script>", "").replace(
        "<title>Streamlit<", "<title>InternLM2<"
    )
    return text.replace(
        "</head>", '<link rel="stylesheet" href="./web/style.css"><script defer src="./web/page.js"></script></head>'
    )


def add_access_control(app: Any, options: ServerOptions) -> Any:
    """A router in front of Streamlit's application."""
    from tornado import routing, web

    class PageHandler(web.RequestHandler):
        def set_default_headers(self) -> None:
            self.set_header("Content-Security-Policy", policy(html.escape(self.request.host)))
            self.set_header("Referrer-Policy", "no-referrer")
            self.set_header("X-Content-Type-Options", "nosniff")
            self.set_header("Cache-Control", "no-store")

        def log_exception(self, *_: Any) -> None:
            """Nothing: what was asked may hold a token."""

    class IndexHandler(PageHandler):
        def get(self) -> None:
            if options.token and self.get_query_argument("token", ""):  # let in already: the address shall not hold it
                self.redirect("./")
                return
            self.finish(index())

    class RefusedHandler(PageHandler):
        def initialize(self, why: str) -> None:
            self.why = why

        def prepare(self) -> None:
            if self.why != "token":
                self.send_error(403)
                return
            given = self.get_query_argument("token", "")
            if given and hmac.compare_digest(given.encode(), options.token.encode()):
                # Lax: with Strict, a link from a mail would lead to the form.
                self.set_cookie(COOKIE, cookie_value(options.token), httponly=True, samesite="Lax", path="/")
                self.redirect("./")
                return
            self.set_status(401)
            self.finish((HERE / "token.html").read_text(encoding="utf-8"))

        def write_error(self, status_code: int, **_: Any) -> None:
            self.finish(f"{status_code}: open the page by the address that {command_line('web')} printed.")

    class AssetHandler(web.StaticFileHandler):
        def set_extra_headers(self, path: str) -> None:
            self.set_header("Cache-Control", "no-store")

    pages = web.Application(
        [(r"/(?:index\.html)?", IndexHandler), (r"/web/(style\.css|page\.js)", AssetHandler, {"path": str(HERE)})]
    )
    refused = web.Application([])

    class AccessRouter(routing.Router):
        def find_handler(self, request: Any, **kwargs: Any) -> Any:
            cookie = request.cookies.get(COOKIE)
            why = refusal_reason(request.headers, cookie.value if cookie else "", options)
            if why:
                return refused.get_handler_delegate(request, RefusedHandler, {"why": why})
            if request.path in ("/", "/index.html") or request.path.startswith("/web/"):
                return pages.find_handler(request, **kwargs)
            return app.find_handler(request, **kwargs)

    return AccessRouter()


STREAMLIT_OPTIONS = {
    "browser.gatherUsageStats": False,  # nothing is told to Streamlit's makers
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 1,  # nothing is uploaded
    "server.runOnSave": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": False,
    "runner.magicEnabled": False,
    "runner.postScriptGC": False,  # with torch in memory it takes half a second of every click
    "logger.level": "error",  # at "debug" it writes down what is asked
    "theme.base": "light",
    "theme.primaryColor": "#2457d6",
    "theme.backgroundColor": "#ffffff",
    "theme.secondaryBackgroundColor": "#f5f7fa",
    "theme.textColor": "#1c2431",
}


def serve(options: ServerOptions, queue: Any) -> None:
    """Serve until Ctrl-C or SIGTERM. What app.py shows is set up before: see shared.py."""
    host = listen_address(options)
    import tornado
    from streamlit.web import bootstrap
    from streamlit.web.server import Server

    bootstrap.load_config_options({**STREAMLIT_OPTIONS, "server.address": host, "server.port": options.port})

    class GuardedServer(Server):
        def _create_app(self) -> Any:
            app = super()._create_app()
            # From 6.5 on Tornado waits for the answer to a ping no longer than until the next, model to Streamlit is a
            # second: over a slow link the page would be cut off.
            if tornado.version_info >= (6, 5):
                app.settings["websocket_ping_interval"] = app.settings["websocket_ping_timeout"]
            return add_access_control(app, options)

    async def run() -> None:
        server = GuardedServer(str(HERE / "app.py"), "")
        await server.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, server._runtime.stop)
        click.echo("\n".join(access_hints(options)))
        await server.stopped
        queue.cancel_all()  # sessions that wait for an answer would keep the process

    asyncio.run(run())


def access_hints(options: ServerOptions) -> List[str]:
    """How to get to the page, from here and from elsewhere."""
    # In a container the engine's script says whose machine it is.
    target = os.environ.get("WEB_PUBLISHED") or f"{os.environ.get('USER') or 'you'}@{socket.gethostname()}"
    name = f"[{options.host}]" if ":" in options.host else options.host
    shown = "localhost" if options.host in ("127.0.0.1", "0.0.0.0", "::") else name
    asked = "/?token=(your token)" if options.token else ""
    found = [f"The page is at  http://{shown}:{options.port}{asked}"]
    if ipaddress.ip_address(options.host).is_loopback:
        found.append(
            f"from elsewhere  ssh -L {options.port}:{name}:{options.port} {target}  and then the same address there"
        )
    else:
        found.append(
            "Others reach it, and what is typed goes over the network unencrypted: ssh -L or a proxy with TLS is safer."
        )
    return [*found, "Ctrl-C ends it. Nothing that is asked or answered is written down."]


def is_connected(session: str) -> bool:
    """Whether a session's tab is open."""
    from streamlit.runtime import get_instance

    return get_instance().is_active_session(session)


def start(name: str, arguments: Sequence[str], root: Path, output: Path) -> None:
    """`just web`: the page of a run, model is only read. Its models are loaded at once, but while somebody is at work
    on it with the first question: a training may need the card. Raises InputWrong, HostLacks.
    """
    from recipe.reporting import run_view
    from recipe.web import shared
    from recipe.web.inference_queue import InferenceQueue, load

    options = parse_options(arguments, os.environ.get("WEB_TOKEN", ""))

    def find_run() -> Any:
        return run_view.find_run(name, root, output)

    def load_run() -> Any:
        run = find_run()
        run.use_trained_settings()
        return run

    run = find_run()
    shared.find_run, shared.queue = find_run, InferenceQueue(lambda: load(load_run(), options.model), is_connected)
    if (run.adapter.is_dir() or run.merged.is_dir()) and not is_locked(run.folder):
        shared.queue.preload()
    serve(options, shared.queue)
