"""A hub on this machine: speaks as much of ModelScope's and of Hugging Face's API as the pinned clients call, over
TLS, and behaves as badly as it is told to: cuts, throttles, corrupts, refuses, knows no ranges.
"""

import contextlib
import hashlib
import json
import re
import ssl
import subprocess
import threading
import time
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


def certificate(place):
    """A certificate for localhost, made on the spot: (its file, its key's file)."""
    cert, key = place / "cert.pem", place / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", str(key), "-out", str(cert),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


ID = "org/tiny"
REST = {"id": ID, "private": False, "disabled": False, "gated": False, "downloads": 0, "likes": 0, "tags": []}


class Hub:
    """One repository, `org/tiny`, with a history of commits, each a dictionary path → bytes; branches and tags name
    commits by number. What it is asked stands in `asked`: (method, path, headers); `sent` counts file bytes.
    """

    id = ID

    def __init__(self, files, cert, key):
        self.history, self.names = [dict(files)], {"master": 0, "main": 0}
        self.dates = [datetime(2024, 1, 17, tzinfo=timezone.utc)]
        self.asked, self.sent = [], {}
        self.cut = None  # bytes of a file after which each connection is cut
        self.cuts = 10**9  # how many are
        self.pause = 0.0  # seconds after every 64 KB of a file
        self.ranges = True
        self.corrupt = set()  # paths sent with one wrong byte
        self.status = {}  # part of an address → HTTP status
        self.body = {}  # part of an address → what is answered in JSON with status 200
        self.page = {}  # part of an address → the page (HTML) that is answered
        self.redirect = ""  # where every request is sent on to
        self.raw = {}  # address → bytes, as raw.githubusercontent.com serves a repository's files
        self.states_size = True  # whether files come with their length
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    hub.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(cert), str(key))
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.address = f"localhost:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    @staticmethod
    def commit(number):
        return hashlib.sha1(b"commit %d" % number).hexdigest()

    def push(self, files, *names, date=None):
        """A new commit: the last one with `files` put in, under `names`; a day later if no date is given."""
        self.dates.append(date or self.dates[-1] + timedelta(days=1))
        self.history.append({**self.history[-1], **files})
        self.names.update({name: len(self.history) - 1 for name in names})

    def number(self, revision):
        commits = {self.commit(number): number for number in range(len(self.history))}
        return self.names.get(revision, commits.get(revision))

    def paths(self, part=""):
        """Addresses asked for so far that hold `part`."""
        return [path for path, _ in self.asked if part in path]

    def answer(self, to):
        path, query = urlsplit(to.path).path, parse_qs(urlsplit(to.path).query)
        with self.lock:
            self.asked.append((unquote(to.path), dict(to.headers)))
        for part, status in self.status.items():
            if part in unquote(to.path):
                return self.send(to, {"error": "as told", "Code": status, "Message": "as told"}, status)
        if self.redirect:
            return self.send(to, {}, 308, Location=f"{self.redirect}{to.path}")
        if unquote(path) in self.raw:
            return self.file(to, unquote(path), self.raw[unquote(path)])
        for part, value in self.body.items():
            if part in unquote(to.path):
                return self.send(to, value(self) if callable(value) else value)
        for part, text in self.page.items():
            if part in unquote(to.path):
                return self.send(to, text, **{"Content-Type": "text/html"})
        if path.startswith(f"/models/{self.id}/resolve/"):  # ModelScope's plain addresses
            words = path.split("/")
            number, name = self.number(words[5]), unquote("/".join(words[6:]))
            if number is None or name not in self.history[number]:
                return self.send(to, {"Code": 404, "Message": "not found"}, 404)
            return self.file(to, name, self.history[number][name])
        if path.startswith("/api/v1/models/"):
            return self.modelscope(to, path, {name: value[0] for name, value in query.items()})
        return self.hugging_face(to, path)

    def modelscope(self, to, path, query):
        _, _, what = path.partition(f"/api/v1/models/{self.id}/")
        number = self.number(query.get("Revision", "master"))
        if what == "revisions":
            until = float(query.get("EndTime", "inf"))
            tags = [name for name in self.names if name not in ("main", "master")]
            tags = [{"Revision": name} for name in reversed(tags) if self.dates[self.names[name]].timestamp() < until]
            return self.data(to, {"RevisionMap": {"Branches": [{"Revision": "master"}], "Tags": tags or None}})
        if what == "repo/files":
            if number is None or query.get("Revision") == "main":
                return self.data(to, {"Files": None})
            files = [self.listed(number, path) for path in self.history[number]]
            if query["Revision"] not in self.names:  # modelscope's own source notes that commits come without
                files = [{**file, "Sha256": None} for file in files]
            return self.data(to, {"Files": files})
        if what == "repo" and number is not None and query["FilePath"] in self.history[number]:
            return self.file(to, query["FilePath"], self.history[number][query["FilePath"]])
        return self.send(to, {"Code": 10010205001, "Message": "record not found", "Success": False}, 404)

    def listed(self, number, path):
        """A file as ModelScope lists it; Revision is the commit that brought its content."""
        body, since = self.history[number][path], number
        while since and self.history[since - 1].get(path) == body:
            since -= 1
        date = int(self.dates[since].timestamp())
        return {
            "Name": path.split("/")[-1], "Path": path, "Type": "blob", "Size": len(body), "CommittedDate": date,
            "Revision": self.commit(since), "IsLFS": path.endswith(".safetensors"),
            "Sha256": hashlib.sha256(body).hexdigest(),
        }  # fmt: skip

    def hugging_face(self, to, path):
        words = path.strip("/").split("/")
        if path.startswith("/cdn/"):  # large files lie on another host
            number, name = int(words[1]), "/".join(words[2:])
            return self.file(to, name, self.history[number][name])
        if path == f"/api/models/{self.id}/refs":
            refs = [
                {"name": n, "ref": n, "targetCommit": self.commit(i)} for n, i in self.names.items() if n != "master"
            ]
            return self.send(to, {"branches": refs[:1], "converts": [], "tags": refs[1:]})
        if path.startswith(f"/api/models/{self.id}/revision/"):
            number = self.number(words[-1]) if words[-1] != "master" else None
            if number is None:
                return self.send(to, {"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
            files = [self.sibling(name, body) for name, body in self.history[number].items()]
            return self.send(to, {**REST, "sha": self.commit(number), "siblings": files})
        if path == f"/api/models/{self.id}/commits/main":
            made = [
                {"id": self.commit(n), "date": f"{self.dates[n]:%Y-%m-%dT%H:%M:%S.000Z}", "title": "", "message": ""}
                for n in reversed(range(len(self.history)))
            ]
            return self.send(to, [{**commit, "authors": []} for commit in made])
        if "/resolve/" in path and path.startswith(f"/{self.id}/"):
            number, name = self.number(words[3]) if words[3] != "master" else None, "/".join(words[4:])
            if number is None or name not in self.history[number]:
                return self.send(to, {"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
            stated = self.stated(number, name)
            if name.endswith(".safetensors"):
                port = self.address.split(":")[1]
                return self.send(to, {}, 302, Location=f"https://127.0.0.1:{port}/cdn/{number}/{name}", **stated)
            return self.file(to, name, self.history[number][name], **stated)
        return self.send(to, {"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})

    def stated(self, number, name):
        """The headers in which Hugging Face says what a file is."""
        file = self.sibling(name, self.history[number][name])
        tag = {"X-Linked-Etag": f'"{file["lfs"]["sha256"]}"'} if "lfs" in file else {"ETag": f'"{file["blobId"]}"'}
        return {"X-Repo-Commit": self.commit(number), **tag}

    @staticmethod
    def sibling(name, body):
        git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        file = {"rfilename": name, "size": len(body), "blobId": git}
        if name.endswith(".safetensors"):
            file["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
        return file

    def data(self, to, data):
        self.send(to, {"Code": 200, "Data": data, "Message": "success", "Success": True})

    def send(self, to, value, status=200, **headers):
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        to.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            to.send_header(name, str(text))
        to.end_headers()
        to.wfile.write(body)

    def file(self, to, name, body, **headers):
        if name in self.corrupt:
            body = body[:-5] + bytes([body[-5] ^ 1]) + body[-4:]
        start, end = 0, len(body)
        ranged = to.headers.get("Range") if self.ranges else None
        if ranged:
            first, _, last = ranged.split("=")[1].partition("-")
            start, end = int(first), min(end, int(last) + 1) if last else end
        looked = bool(re.search(r"-\d+$", to.headers.get("Range") or ""))
        to.send_response(206 if ranged else 200)
        if self.states_size:
            to.send_header("Content-Length", str(end - start))
        if ranged:
            to.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        for key, value in headers.items():
            to.send_header(key, value)
        to.end_headers()
        if self.cut and not looked and self.cuts > 0 and end - start > self.cut:
            end, self.cuts = start + self.cut, self.cuts - 1
        for at in range(start, end, 1 << 16):
            piece = body[at : min(end, at + (1 << 16))]
            to.wfile.write(piece)
            with self.lock:
                if not looked:  # into its beginning
                    self.sent[name] = self.sent.get(name, 0) + len(piece)
            time.sleep(self.pause)
        to.close_connection = True
