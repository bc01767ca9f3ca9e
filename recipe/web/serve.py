"""Starts the web page: Streamlit's server behind a router that controls access.

Streamlit 1.24 has no token login, and its page can load from other hosts. The router refuses foreign hosts and origins
and requests without the token, if one is set. It serves Streamlit's index.html with our style and script, and with a
Content-Security-Policy that forbids requests to other hosts.
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
from typing import Any, Dict, List, NamedTuple, Sequence
from urllib.parse import urlsplit

import click

from recipe.core import rental
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong, reason
from recipe.core.run import is_locked
from recipe.core.translation import _, ngettext, use
from recipe.web import tunnel

HERE = Path(__file__).resolve().parent
PORT = 8501  # Streamlit's own
LOCAL = ("localhost", "127.0.0.1", "::1")
MIN_TOKEN_LENGTH = 8  # characters of a token
COOKIE = "web_token"


class ServerOptions(NamedTuple):
    """Options of the page."""

    host: str
    port: int
    token: str  # "": none needed
    model: str  # the tuned one: adapter, merged, or "" for the default


def parse_options(arguments: Sequence[str], token: str = "") -> ServerOptions:
    """Parse `port=`, `host=`, `token=` (default: WEB_TOKEN) and `model=`. Raises InputWrong, also for a public address
    without a token.
    """
    given = dict(argument.split("=", 1) for argument in arguments)
    for name in given:
        if name not in ("host", "port", "token", "model"):
            raise InputWrong(
                _(
                    "{name}=… is not an option of the page. It takes port=8502, host=0.0.0.0, token=…, and "
                    "model=adapter or model=merged.",
                    name=name,
                )
            )
    host, port, model = given.get("host", "127.0.0.1"), given.get("port", str(PORT)), given.get("model", "")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    token = given.get("token", token)
    if model not in ("", "adapter", "merged"):
        raise InputWrong(_("model={model} is not a tuned model: use model=adapter or model=merged.", model=model))
    if not (port.isdigit() and 0 < int(port) < 65536):
        raise InputWrong(_("port={port} is not a port: use a number from 1 to 65535, such as port=8502.", port=port))
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise InputWrong(
            _(
                "host={host} is not an IP address: omit it, or use host=0.0.0.0 for all addresses of this machine.",
                host=host,
            )
        )
    if not token and not local:
        raise InputWrong(
            _(
                "host={host} opens the page to other machines, but there is no token. Set one (WEB_TOKEN=… before the "
                "command, or token=…), or omit host and connect through ssh.",
                host=host,
            )
        )
    if token and len(token) < MIN_TOKEN_LENGTH:
        raise InputWrong(
            ngettext(
                "The token has {n} character; it needs at least {least}.",
                "The token has {n} characters; it needs at least {least}.",
                len(token),
                least=MIN_TOKEN_LENGTH,
            )
        )
    return ServerOptions(host, int(port), token, model)


def listen_address(options: ServerOptions) -> str:
    """The address to listen on; raises HostLacks if the port is not available.

    A container has its own network: there it listens on all addresses, and the engine publishes `options.host`.
    """
    host = "0.0.0.0" if os.environ.get("WEB_PUBLISHED") else options.host
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, options.port))
        except OSError as error:
            raise HostLacks(
                _(
                    "Port {port} of {host} is not available ({why}). Use another one: port={other}",
                    port=options.port,
                    host=host,
                    why=reason(error),
                    other=8502 if options.port != 8502 else 8503,
                )
            )
    return host


def cookie_value(token: str) -> str:
    """The cookie's value: proves that the browser sent the token, without containing it."""
    return hashlib.sha256(f"internlm2-recipe web {token}".encode()).hexdigest()


def _host(netloc: str) -> str:
    return urlsplit(f"//{netloc}").hostname or ""


def refusal_reason(headers: Dict[str, str], cookie: str, options: ServerOptions) -> str:
    """Why a request is refused: "host", "origin" or "token"; "" if it is allowed.

    Without a token, only local host names are allowed: a foreign name may be an attack through the user's browser (DNS
    rebinding).
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
    """The page's Content-Security-Policy: no other hosts."""
    return (
        "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        f"font-src 'self' data:; connect-src 'self' ws://{host} wss://{host}; frame-src 'self'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )


def index() -> str:
    """Streamlit's index.html without its inline script, which the policy forbids, and with our style and script."""
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

        def log_exception(self, *_error: Any) -> None:
            """Log nothing: the URL may contain the token."""

    class IndexHandler(PageHandler):
        def get(self) -> None:
            if options.token and self.get_query_argument("token", ""):  # has the cookie: remove the token from the URL
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

        def write_error(self, status_code: int, **_more: Any) -> None:
            with use(self.request.headers.get("Accept-Language", "")):
                self.finish(
                    _(
                        "{code}: open the page with the address that {command} printed.",
                        code=status_code,
                        command=command_line("web"),
                    )
                )

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
    "browser.gatherUsageStats": False,  # no telemetry
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 1,  # no uploads
    "server.runOnSave": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": False,
    "runner.magicEnabled": False,
    "runner.postScriptGC": False,  # takes half a second per click once torch is loaded
    "logger.level": "error",  # "debug" logs the questions
    "theme.base": "light",
    "theme.primaryColor": "#2457d6",
    "theme.backgroundColor": "#ffffff",
    "theme.secondaryBackgroundColor": "#f5f7fa",
    "theme.textColor": "#1c2431",
}


def serve(options: ServerOptions, queue: Any, preload: bool) -> None:
    """Serve until Ctrl-C or SIGTERM; `preload`: load the models at once. The caller sets shared.py first."""
    host = listen_address(options)
    import tornado
    from streamlit.web import bootstrap
    from streamlit.web.server import Server

    bootstrap.load_config_options({**STREAMLIT_OPTIONS, "server.address": host, "server.port": options.port})

    class GuardedServer(Server):
        def _create_app(self) -> Any:
            app = super()._create_app()
            # Since 6.5, Tornado waits for a pong only until the next ping, which Streamlit sends every second. Slow
            # connections would be closed.
            if tornado.version_info >= (6, 5):
                app.settings["websocket_ping_interval"] = app.settings["websocket_ping_timeout"]
            return add_access_control(app, options)

    async def run() -> None:
        server = GuardedServer(str(HERE / "app.py"), "")
        await server.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, server._runtime.stop)
        click.echo("\n".join(access_hints(options)))
        if preload:  # now: while libraries are imported, nothing is printed
            queue.preload()
        await server.stopped
        queue.cancel_all()  # waiting sessions would keep the process alive

    asyncio.run(run())


def access_hints(options: ServerOptions) -> List[str]:
    """How to open the page from this machine and from others."""
    name = f"[{options.host}]" if ":" in options.host else options.host
    shown = "localhost" if options.host in ("127.0.0.1", "0.0.0.0", "::") else name
    asked = _("/?token=(your token)") if options.token else ""
    found = [_("The page is at  {address}", address=f"http://{shown}:{options.port}{asked}")]
    # In a container, the runtime script passes the host's name.
    target = os.environ.get("WEB_PUBLISHED") or f"{os.environ.get('USER') or 'you'}@{socket.gethostname()}"
    rented = tunnel.access(options.port, rental.variables()) or tunnel.Access(target, "", "")
    if ipaddress.ip_address(options.host).is_loopback:
        forward = f"ssh -L {options.port}:{name}:{options.port} {rented.ssh}"
        found.append(_("from another machine  {command}  and open the address there", command=forward))
        found += [rented.hint] if rented.hint else []
    else:
        if rented.address:
            found.append(
                _(
                    "from another machine  {address}  (if the instance publishes port {port})",
                    address=f"{rented.address}{asked}",
                    port=options.port,
                )
            )
        found.append(_("Other machines can open it, and the traffic is not encrypted: ssh -L or a TLS proxy is safer."))
    return [*found, _("Ctrl-C ends it. Questions and answers are not logged.")]


def is_connected(session: str) -> bool:
    """Whether a session's tab is open."""
    from streamlit.runtime import get_instance

    return get_instance().is_active_session(session)


def start(name: str, arguments: Sequence[str], root: Path, output: Path) -> None:
    """Serve the page of a run (`just web`); only reads the run. Preloads the models unless a command is running in its
    folder, because a training may need the GPU's memory. Raises InputWrong, HostLacks.
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
    preload = (run.adapter.is_dir() or run.merged.is_dir()) and not is_locked(run.folder)
    serve(options, shared.queue, preload)
