"""The page's server: addresses, passwords, what is printed."""

import re
import threading
import urllib.error
import urllib.request

import pytest

from recipe.core import rental
from recipe.core.errors import InputWrong
from recipe.web import serve


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["host=0.0.0.0"], "there is no token"),
        (["host=192.168.1.5", "port=80"], "there is no token"),
        (["host=example.org"], "is not an IP address"),
        (["token=short"], "it needs at least 8"),
        (["port=http"], "is not a port"),
        (["port=0"], "is not a port"),
        (["model=base"], "is not a tuned model"),
        (["train.lr=1"], "is not an option of the page"),
    ],
)
def test_words_that_are_refused(given, says):
    with pytest.raises(InputWrong, match=re.escape(says)):
        serve.parse_options(given)


def test_what_is_printed():
    assert "http://localhost:8501" in serve.access_hints(serve.parse_options([]))[0]
    assert "ssh -L 8600:127.0.0.1:8600 " in serve.access_hints(serve.parse_options(["host=localhost", "port=8600"]))[1]
    far = "\n".join(serve.access_hints(serve.parse_options(["host=0.0.0.0"], "long enough")))
    assert "token=" in far
    assert "long enough" not in far
    assert "ssh -L" in far


RUNPOD = {"RUNPOD_POD_ID": "abc123", "RUNPOD_PUBLIC_IP": "203.0.113.7", "RUNPOD_TCP_PORT_22": "17445"}
VAST = {"VAST_TCP_PORT_22": "20544", "PUBLIC_IPADDR": "203.0.113.8", "VAST_TCP_PORT_8501": "33526"}


@pytest.mark.parametrize(
    ("known", "ssh", "hint", "address"),
    [
        (RUNPOD, "-p 17445 root@203.0.113.7", "", "https://abc123-8501.proxy.runpod.net/?token="),
        ({"RUNPOD_POD_ID": "abc123"}, "-p PORT root@HOST", "Connect tab", "https://abc123-8501.proxy.runpod.net/"),
        (VAST, "-p 20544 root@203.0.113.8", "", "http://203.0.113.8:33526/?token="),
        ({"VAST_CONTAINERLABEL": "C.1"}, "-p PORT root@HOST", "SSH button", ""),
        ({"AutoDLRegion": "west-B"}, "-p PORT root@HOST", "登录指令", ""),
    ],
)
def test_a_rented_machine_prints_the_tunnel_of_its_platform(known, ssh, hint, address, monkeypatch):
    monkeypatch.setattr(rental, "variables", lambda: known)
    near = "\n".join(serve.access_hints(serve.parse_options([])))
    assert f"ssh -L 8501:127.0.0.1:8501 {ssh}  and open the address there" in near
    assert hint in near
    assert bool(hint) == ("HOST" in near)
    far = "\n".join(serve.access_hints(serve.parse_options(["host=0.0.0.0"], "long enough")))
    assert address in far
    assert ("from another machine" in far) == bool(address)


def test_what_the_first_process_was_told_counts_where_the_login_does_not_have_it(tmp_path, monkeypatch):
    (tmp_path / "environ").write_bytes(b"RUNPOD_POD_ID=old\0RUNPOD_PUBLIC_IP=203.0.113.7\0PS1=a=b\0\0")
    monkeypatch.setenv("RUNPOD_POD_ID", "new")
    known = rental.variables(tmp_path / "environ")
    assert (known["RUNPOD_POD_ID"], known["RUNPOD_PUBLIC_IP"], known["PS1"]) == ("new", "203.0.113.7", "a=b")
    assert "RUNPOD_PUBLIC_IP" not in rental.variables(tmp_path / "none")


def test_a_platform_is_known_by_a_file_too(tmp_path):
    assert rental.platform({}, tmp_path) == ""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/network_turbo").write_text("")
    assert rental.platform({}, tmp_path) == "AutoDL"


@pytest.fixture
def doors():
    """Function: (place, headers, path) → (status, headers, body) of a door with an application behind it."""
    import asyncio

    from tornado import httpserver, web

    class Behind(web.RequestHandler):
        def get(self):
            self.write("behind")

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def opened(where, headers=None, path="/_stcore/health"):
        async def start():
            server = httpserver.HTTPServer(serve.add_access_control(web.Application([(r"/.*", Behind)]), where))
            server.listen(0, "127.0.0.1")
            return server, next(iter(server._sockets.values())).getsockname()[1]

        server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
        base = f"http://127.0.0.1:{port}"
        headers = {name: value.replace("PORT", str(port)) for name, value in (headers or {}).items()}
        opener = urllib.request.build_opener(Stay)
        try:
            with opener.open(urllib.request.Request(base + path, headers=headers), timeout=10) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()
        finally:
            loop.call_soon_threadsafe(server.stop)

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    yield opened
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_who_is_let_in(doors):
    here, token = serve.parse_options([]), serve.parse_options(["host=0.0.0.0", "token=long enough"])
    assert doors(here)[::2] == (200, "behind")
    assert doors(here, {"Origin": "http://127.0.0.1:PORT"})[0] == 200
    assert doors(here, {"Host": "evil.example:PORT"})[0] == 403  # a foreign name that leads here
    assert doors(here, {"Origin": "http://evil.example"})[0] == 403
    for path in ("/", "/_stcore/health", "/_stcore/stream", "/web/page.js", "/media/x", "/?token=wrong", "/?token="):
        status, _, body = doors(token, path=path)
        assert status == 401, path
        assert "behind" not in body
    status, headers, _ = doors(token, path="/?token=long%20enough")
    cookie = headers["Set-Cookie"]
    assert (status, headers["Location"]) == (302, "./")
    assert "HttpOnly" in cookie
    assert "long" not in cookie
    passed = {"Cookie": cookie.split(";")[0]}
    assert doors(token, passed)[::2] == (200, "behind")
    assert doors(token, {**passed, "Host": "gpu.example"})[0] == 200
    assert doors(token, {**passed, "Origin": "http://evil.example"})[0] == 403
    assert doors(token, {"Cookie": f"{serve.COOKIE}=long enough"})[0] == 401
    status, headers, page = doors(here, path="/")
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "web/page.js" in page
    assert "<script>" not in page
