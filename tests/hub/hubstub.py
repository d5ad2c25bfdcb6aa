#!/usr/bin/env python3
"""hubstub - a small loopback stand-in for the Hugging Face Hub, for tests.

Standard library only (PyYAML is used to read model cards when it can be imported;
hf_xet is used only in ``xet="local"`` mode). It implements the HTTP endpoints that
the ``huggingface_hub`` client calls to create a repository, upload a folder
(regular git blobs, LFS basic, LFS multipart, Xet through a local directory CAS),
list it, download it, and read safetensors headers by range.

It binds to 127.0.0.1 only, on two ports: the "hub" origin and a separate "cdn" origin,
because the real Hub hands large objects to another host, and a client must not send
its token there. A request that reaches the cdn with an Authorization header is
answered 400 and logged with ``"leak": true``.

In a test::

    with HubStub(root) as hub:                 # root: an empty folder
        env = dict(os.environ, HF_ENDPOINT=hub.url, HF_TOKEN=WRITE_TOKEN,
                   HF_HUB_DISABLE_XET="1")     # or xet="local" and no HF_HUB_DISABLE_XET
        subprocess.run([...], env=env)         # HF_ENDPOINT is read at import time
        hub.fault("POST", r"/commit/", status=503, times=2)
        assert hub.read("alice/merged", "config.json")
        assert [r for r in hub.requests if r["path"].endswith("/commit/main")]

On the command line::

    python hubstub.py --root DIR [--port N] [--log FILE] [--xet off|local]
                      [--multipart-threshold N] [--part-size N]

Control over HTTP (for another process): POST /_stub/fault {...same keywords...},
GET /_stub/requests, GET /_stub/state, POST /_stub/reset-log, POST /_stub/clear-faults.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import hmac
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WRITE_TOKEN = "hf_stub_alice_write"
READ_TOKEN = "hf_stub_bob_read"
DEFAULT_TOKENS = {
    WRITE_TOKEN: {"name": "alice", "role": "write", "orgs": ["acme"]},
    READ_TOKEN: {"name": "bob", "role": "read", "orgs": []},
}
GITATTRIBUTES = "".join(
    f"{pat} filter=lfs diff=lfs merge=lfs -text\n"
    for pat in (
        "*.7z",
        "*.arrow",
        "*.bin",
        "*.ckpt",
        "*.gguf",
        "*.gz",
        "*.h5",
        "*.msgpack",
        "*.npy",
        "*.npz",
        "*.onnx",
        "*.parquet",
        "*.pkl",
        "*.pt",
        "*.pth",
        "*.safetensors",
        "*.tar",
        "*.zip",
        "*.zst",
    )
)
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
MAX_REGULAR = 10 * 1024 * 1024  # a text file above this becomes LFS


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n".encode()


class HttpError(Exception):
    def __init__(self, status, message="", code=None, headers=None, body=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = dict(headers or {}), body


# ------------------------------------------------------------------------------ store


class Store:
    """Repositories, commits and objects, in one folder. Objects are content-addressed."""

    def __init__(self, root):
        self.root = os.path.abspath(root)
        self.lock = threading.RLock()
        for sub in ("lfs", "git", "tmp", "cas", "parts"):
            os.makedirs(os.path.join(self.root, sub), exist_ok=True)
        self.repos: dict[str, dict] = {}
        state = os.path.join(self.root, "state.json")
        if os.path.exists(state):
            with open(state, encoding="utf-8") as f:
                self.repos = json.load(f)

    def save(self):
        fd, tmp = tempfile.mkstemp(dir=self.root)
        with os.fdopen(fd, "w", encoding="utf-8") as f:
            json.dump(self.repos, f)
        os.replace(tmp, os.path.join(self.root, "state.json"))

    # objects
    def lfs_path(self, sha):
        return os.path.join(self.root, "lfs", sha)

    def put_git(self, data: bytes) -> str:
        oid = git_blob_id(data)
        path = os.path.join(self.root, "git", oid)
        if not os.path.exists(path):
            fd, tmp = tempfile.mkstemp(dir=os.path.join(self.root, "tmp"))
            with os.fdopen(fd, "wb") as f:
                f.write(data)
            os.replace(tmp, path)
        return oid

    def entry_path(self, entry):
        return self.lfs_path(entry["lfs"]) if entry["lfs"] else os.path.join(self.root, "git", entry["oid"])

    # repositories
    @staticmethod
    def key(kind, repo_id):
        return f"{kind}/{repo_id}"

    def create(self, kind, repo_id, private, author):
        with self.lock:
            lower = {k.lower() for k in self.repos}
            if self.key(kind, repo_id).lower() in lower:
                return None
            repo = {
                "id": repo_id,
                "kind": kind,
                "private": private,
                "gated": False,
                "created": now(),
                "branches": {},
                "tags": {},
                "prs": {},
                "discussions": [],
                "commits": {},
            }
            self.repos[self.key(kind, repo_id)] = repo
            oid = self.put_git(GITATTRIBUTES.encode())
            tree = {".gitattributes": {"oid": oid, "size": len(GITATTRIBUTES), "lfs": None, "xet": None}}
            self.add_commit(repo, "main", tree, "initial commit", "", author, parent=None)
            return repo

    def add_commit(self, repo, branch, tree, title, message, author, parent):
        payload = json.dumps([repo["id"], parent, title, message, time.time_ns(), sorted(tree.items())])
        oid = hashlib.sha1(payload.encode()).hexdigest()
        repo["commits"][oid] = {
            "parent": parent,
            "title": title,
            "message": message,
            "date": now(),
            "author": author,
            "tree": tree,
        }
        if branch.startswith("refs/pr/"):
            repo["prs"][branch] = oid
        else:
            repo["branches"][branch] = oid
        self.save()
        return oid

    def resolve(self, repo, rev):
        rev = rev or "main"
        for table in (repo["branches"], repo["tags"], repo["prs"]):
            if rev in table:
                return table[rev]
        if rev.startswith("refs/heads/") and rev[11:] in repo["branches"]:
            return repo["branches"][rev[11:]]
        if re.fullmatch(r"[0-9a-f]{7,40}", rev):
            hits = [c for c in repo["commits"] if c.startswith(rev)]
            if len(hits) == 1:
                return hits[0]
        raise HttpError(404, f"Invalid rev id: {rev}", "RevisionNotFound")


def lfs_patterns(store, repo, tree):
    entry = tree.get(".gitattributes")
    if not entry or entry["lfs"]:
        return []
    with open(store.entry_path(entry), encoding="utf-8") as f:
        return [line.split()[0] for line in f if "filter=lfs" in line and not line.startswith("#")]


def read_card(text: str):
    """YAML front matter of a README as (data, errors, warnings)."""
    m = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.S)
    if not m:
        return {}, [], [{"message": "empty or missing yaml metadata in repo card"}]
    try:
        import yaml
    except ImportError:
        return {}, [], []
    try:
        data = yaml.safe_load(m.group(1)) or {}
    except yaml.YAMLError as e:
        return {}, [{"message": f"YAML: {e}"}], []
    if not isinstance(data, dict):
        return {}, [{"message": "metadata must be a mapping"}], []
    errors = []
    bm = data.get("base_model")
    if bm is not None and not (isinstance(bm, str) or (isinstance(bm, list) and all(isinstance(x, str) for x in bm))):
        errors.append({"message": '"base_model" must be a string or a list of strings'})
    rel = data.get("base_model_relation")
    if rel is not None and rel not in ("adapter", "merge", "quantized", "finetune"):
        errors.append({"message": '"base_model_relation" must be one of [adapter, merge, quantized, finetune]'})
    tags = data.get("tags")
    if tags is not None and not (isinstance(tags, list) and all(isinstance(x, str) for x in tags)):
        errors.append({"message": '"tags" must be an array of strings'})
    if "license" in data and not isinstance(data["license"], (str, list)):
        errors.append({"message": '"license" must be a string'})
    return data, errors, []


def card_tags(data):
    """The derived tags the real Hub shows for a model card (the part a merge tool cares about)."""
    tags = []
    if data.get("library_name"):
        tags.append(data["library_name"])
    tags += [t for t in (data.get("tags") or []) if isinstance(t, str)]
    bases = data.get("base_model") or []
    bases = [bases] if isinstance(bases, str) else bases
    tags += [f"base_model:{b}" for b in bases]
    relation = data.get("base_model_relation") or ("merge" if len(bases) > 1 else "finetune")
    tags += [f"base_model:{relation}:{b}" for b in bases]
    if data.get("license"):
        tags.append(f"license:{data['license']}")
    return list(dict.fromkeys(tags))


# -------------------------------------------------------------------------------- xet


def mdb_sha_to_xet(path):
    """(sha256 -> (xet hash, size)) from one metadata shard written by hf_xet's local CAS."""
    import struct

    out = {}
    with open(path, "rb") as f:
        buf = f.read()
    hx = lambda b: "".join(f"{v:016x}" for v in struct.unpack("<4Q", b))  # noqa: E731
    pos = 48
    while pos + 48 <= len(buf) and buf[pos : pos + 32] != b"\xff" * 32:
        file_hash = hx(buf[pos : pos + 32])
        flags, n = struct.unpack("<II", buf[pos + 32 : pos + 40])
        pos += 48
        size = sum(struct.unpack("<I", buf[pos + 48 * i + 36 : pos + 48 * i + 40])[0] for i in range(n))
        pos += 48 * n
        if flags & 0x80000000:
            pos += 48 * n
        if flags & 0x40000000:
            out[hx(buf[pos : pos + 32])] = (file_hash, size)
            pos += 48
    return out


class XetLocal:
    """Hands each write-token request its own ``local://`` CAS folder, which hf_xet fills itself.

    Only one process at a time may open such a folder, so every token gets a fresh one. The stub
    reads an upload back from a copy of the folder, and answers a read token with a folder that it
    has filled from its own object store.
    """

    def __init__(self, store):
        self.store, self.n, self.lock = store, 0, threading.Lock()

    def new_dir(self, sub="cas"):
        with self.lock:
            self.n += 1
            path = os.path.join(self.store.root, sub, f"{os.getpid()}-{self.n}")
            os.makedirs(path)
            return path

    def find(self, sha):
        """(folder, xet hash, size) of an uploaded object, or None."""
        base = os.path.join(self.store.root, "cas")
        for d in os.listdir(base):
            shards = os.path.join(base, d, "xet", "xorbs", "shards")
            if os.path.isdir(shards):
                for name in os.listdir(shards):
                    if name.endswith(".mdb"):
                        hit = mdb_sha_to_xet(os.path.join(shards, name)).get(sha)
                        if hit:
                            return (os.path.join(base, d), *hit)
        return None

    def materialise(self, sha):
        """Rebuild the object in the LFS store from the CAS; returns its xet hash or None."""
        hit = self.find(sha)
        if not hit:
            return None
        folder, xet_hash, size = hit
        if not os.path.exists(self.store.lfs_path(sha)):
            import hf_xet

            src = tempfile.mkdtemp(dir=os.path.join(self.store.root, "tmp"))
            try:
                shutil.copytree(folder, src, dirs_exist_ok=True)
                out = os.path.join(src, "out.bin")
                group = hf_xet.XetSession().new_file_download_group(
                    endpoint="local://" + src, token="stub", token_expiry_unix_secs=int(time.time()) + 3600
                )
                group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), out)
                group.wait_to_finish()
                with open(out, "rb") as f:
                    got = hashlib.file_digest(f, "sha256").hexdigest()
                if got != sha:
                    raise HttpError(422, f"xet content of {sha} hashes to {got}")
                os.replace(out, self.store.lfs_path(sha))
            finally:
                shutil.rmtree(src, ignore_errors=True)
        return xet_hash

    def read_dir(self, shas):
        """A fresh CAS folder that holds these objects (closed again, so that the client may open it)."""
        import subprocess

        path = self.new_dir("tmp")
        code = (
            "import sys,time,hf_xet\n"
            "c=hf_xet.XetSession().new_upload_commit(endpoint='local://'+sys.argv[1],token='t',"
            "token_expiry_unix_secs=int(time.time())+3600)\n"
            "[c.start_upload_file(p,sha256=hf_xet.COMPUTE_SHA256) for p in sys.argv[2:]]\n"
            "c.wait_to_finish()\n"
        )
        subprocess.run([sys.executable, "-c", code, path, *[self.store.lfs_path(s) for s in shas]], check=True)
        return path


# ---------------------------------------------------------------------------- handler


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a reply is two writes; the second would wait for the client's acknowledgement
    server_version = "hubstub/1"
    stub: HubStub
    origin = "hub"

    def log_message(self, *a):
        pass

    # -- plumbing
    def _read_body(self):
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                if size == 0:
                    while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                        pass
                    return
                left = size
                while left:
                    block = self.rfile.read(min(left, 1 << 20))
                    if not block:
                        raise ConnectionError("body cut short")
                    left -= len(block)
                    yield block
                self.rfile.readline()
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            block = self.rfile.read(min(left, 1 << 20))
            if not block:
                raise ConnectionError("body cut short")
            left -= len(block)
            yield block

    def _bytes(self):
        if self._body is None:
            self._body = b"".join(self._read_body())
        return self._body

    def _json(self):
        data = self._bytes()
        return json.loads(data) if data else {}

    def reply(self, status, body=b"", headers=None, ctype="application/json"):
        if self._fault and self._fault.get("lose_reply"):  # done, but nobody is told
            self._rec["status"] = "lost"
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        self.send_response(status)
        for k, v in (headers or {}).items():
            self.send_header(k, v)
        if "Content-Type" not in (headers or {}):
            self.send_header("Content-Type", ctype)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Request-Id", self._rec["id"])
        self.end_headers()
        if self.command != "HEAD" and body:
            self.wfile.write(body)
        self._rec["status"] = status

    def send_file(self, path, headers):
        """A whole file or one byte range of it."""
        size = os.path.getsize(path)
        start, end, status = 0, size - 1, 200
        rng = self.headers.get("Range")
        if rng:
            m = re.fullmatch(r"bytes=(\d*)-(\d*)", rng.strip())
            if m and (m.group(1) or m.group(2)):
                if m.group(1):
                    start = int(m.group(1))
                    end = min(int(m.group(2)), size - 1) if m.group(2) else size - 1
                else:
                    start = max(0, size - int(m.group(2)))
                status = 206
                if start >= size or start > end:
                    raise HttpError(
                        416, "Requested Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"}
                    )
        length = end - start + 1 if size else 0
        cut = self._fault.get("truncate") if self._fault else None
        self.send_response(status)
        for k, v in headers.items():
            self.send_header(k, v)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self._rec["status"] = status
        self._rec["sent"] = 0
        if self.command == "HEAD":
            return
        with open(path, "rb") as f:
            f.seek(start)
            left = length if cut is None else min(length, cut)
            while left:
                block = f.read(min(left, 1 << 20))
                if not block:
                    break
                self.wfile.write(block)
                left -= len(block)
                self._rec["sent"] += len(block)
        if cut is not None and cut < length:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def handle_one(self):
        parts = urllib.parse.urlsplit(self.path)
        self.q = {k: v[-1] for k, v in urllib.parse.parse_qs(parts.query, keep_blank_values=True).items()}
        self.p = parts.path
        self._body = None
        self._fault = None
        stub = self.stub
        self._rec = {
            "id": f"stub-{stub.next_id()}",
            "t": round(time.time(), 3),
            "origin": self.origin,
            "method": self.command,
            "path": urllib.parse.unquote(self.p),
            "query": self.q,
            "auth": bool(self.headers.get("Authorization")),
            "range": self.headers.get("Range"),
            "length": self.headers.get("Content-Length"),
            "agent": self.headers.get("User-Agent"),
            "encoding": self.headers.get("Transfer-Encoding"),
            "status": None,
        }
        control = self.p.startswith("/_stub/")
        try:
            if not control:
                self._fault = stub.take_fault(self.command, self.p)
            fault = self._fault
            if fault:
                self._rec["fault"] = fault["n"]
                if fault.get("delay"):
                    time.sleep(fault["delay"])
                if fault.get("drop"):
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault.get("status"):
                    self._bytes()
                    self.reply(fault["status"], (fault.get("body") or "").encode(), fault.get("headers"))
                    return
            if self.origin == "cdn" and self.headers.get("Authorization"):
                self._rec["leak"] = True
                self._bytes()
                raise HttpError(400, "only one auth mechanism allowed: a Hub token was sent to the storage host")
            self.route()
        except HttpError as e:
            try:
                self._bytes()
            except Exception:  # noqa: BLE001 - the connection is of no more use, whatever happened
                self.close_connection = True
            headers = dict(e.headers)
            if e.code:
                headers["X-Error-Code"] = e.code
            if e.message:
                headers["X-Error-Message"] = e.message.replace("\n", " ")[:500]
            body = e.body if e.body is not None else {"error": e.message}
            self.reply(e.status, body, headers)
        except (BrokenPipeError, ConnectionError):
            self.close_connection = True
        except Exception as e:  # noqa: BLE001 - a defect of the stub: say so, loudly
            traceback.print_exc()
            self._rec["stub_error"] = repr(e)
            self.close_connection = True
            if self._rec["status"] is None:
                self.reply(500, {"error": f"hubstub failed: {e!r}"})
        finally:
            if not control:
                stub.log(self._rec)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_one

    # -- access
    def user(self, need=None):
        auth = self.headers.get("Authorization") or ""
        token = auth[7:] if auth.startswith("Bearer ") else None
        who = self.stub.tokens.get(token)
        if token and who is None:
            raise HttpError(401, "Invalid credentials in Authorization header")
        if need and who is None:
            raise HttpError(401, "Invalid username or password.")
        if need == "write" and who["role"] != "write":
            raise HttpError(403, "You don't have the required permissions (write)")
        return who

    def owns(self, who, namespace):
        return who and (namespace == who["name"] or namespace in who["orgs"])

    def repo(self, kind, repo_id, write=False):
        who = self.user()
        repo = self.stub.store.repos.get(Store.key(kind, repo_id))
        if repo is None or (repo["private"] and not self.owns(who, repo_id.split("/")[0])):
            raise HttpError(404 if who else 401, "Repository not found", "RepoNotFound")
        if write:
            who = self.user("write")
            if not self.owns(who, repo_id.split("/")[0]):
                raise HttpError(403, f"You don't have write access to {repo_id}")
        return repo

    def commit_of(self, repo, rev):
        oid = self.stub.store.resolve(repo, rev)
        return oid, repo["commits"][oid]

    # -- routes
    def route(self):
        for method, pattern, name in ROUTES[self.origin]:
            if self.command in method:
                m = re.fullmatch(pattern, self.p)
                if m:
                    args = [urllib.parse.unquote(x) if x is not None else None for x in m.groups()]
                    return getattr(self, name)(*args)
        self._bytes()
        raise HttpError(404, f"hubstub has no {self.command} {self.p}")

    # account
    def whoami(self):
        who = self.user("read")
        self.reply(
            200,
            {
                "type": "user",
                "id": who["name"],
                "name": who["name"],
                "fullname": who["name"],
                "email": None,
                "isPro": False,
                "canPay": False,
                "avatarUrl": "",
                "orgs": [{"type": "org", "name": o, "roleInOrg": "write"} for o in who["orgs"]],
                "auth": {"type": "access_token", "accessToken": {"displayName": "stub", "role": who["role"]}},
            },
        )

    # repositories
    def repo_create(self):
        body = self._json()
        who = self.user("write")
        ns = body.get("organization") or who["name"]
        kind = body.get("type") or "model"
        name = body["name"]
        if not re.fullmatch(r"[\w.-]{1,96}", name) or ".." in name or "--" in name:
            raise HttpError(400, f"Invalid repo name: {name}")
        if not self.owns(who, ns):
            raise HttpError(403, f'You don\'t have the rights to create a {kind} under the namespace "{ns}"')
        rid = f"{ns}/{name}"
        repo = self.stub.store.create(
            kind, rid, body.get("visibility") == "private" or bool(body.get("private")), who["name"]
        )
        url = self.stub.url + ("/" if kind == "model" else f"/{kind}s/") + rid
        if repo is None:
            raise HttpError(
                409,
                f"You already created this {kind} repo",
                body={"error": f"You already created this {kind} repo", "url": url},
            )
        self.reply(200, {"url": url, "name": rid, "id": rid})

    def repo_delete(self):
        body = self._json()
        who = self.user("write")
        rid = f"{body.get('organization') or who['name']}/{body['name']}"
        kind = body.get("type") or "model"
        self.repo(kind, rid, write=True)
        with self.stub.store.lock:
            del self.stub.store.repos[Store.key(kind, rid)]
            self.stub.store.save()
        self.reply(200, {})

    def repo_settings(self, kinds, rid):
        repo = self.repo(KINDS[kinds], rid, write=True)
        body = self._json()
        for k in ("private", "gated"):
            if k in body:
                repo[k] = body[k]
        if "visibility" in body:
            repo["private"] = body["visibility"] == "private"
        self.stub.store.save()
        self.reply(200, {"private": repo["private"], "gated": repo["gated"]})

    def validate_yaml(self):
        _, errors, warnings = read_card(self._json().get("content", ""))
        self.reply(400 if errors else 200, {"errors": errors, "warnings": warnings})

    def model_list(self, kinds):
        who = self.user()
        out = []
        for repo in self.stub.store.repos.values():
            ns = repo["id"].split("/")[0]
            if repo["kind"] != KINDS[kinds] or (repo["private"] and not self.owns(who, ns)):
                continue
            if "author" in self.q and ns != self.q["author"]:
                continue
            if self.q.get("search", "").lower() not in repo["id"].lower():
                continue
            out.append(self._info(repo, "main", short=True))
        self.reply(200, out)

    def _info(self, repo, rev, short=False, blobs=False):
        oid, commit = self.commit_of(repo, rev)
        data = {}
        readme = commit["tree"].get("README.md")
        if readme and not readme["lfs"]:
            with open(self.stub.store.entry_path(readme), encoding="utf-8") as f:
                data = read_card(f.read())[0]
        info = {
            "_id": "0" * 24,
            "id": repo["id"],
            "modelId": repo["id"],
            "author": repo["id"].split("/")[0],
            "sha": oid,
            "lastModified": commit["date"],
            "createdAt": repo["created"],
            "private": repo["private"],
            "gated": repo["gated"],
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card_tags(data),
            "library_name": data.get("library_name"),
        }
        if not short:
            info["cardData"] = data
            info["siblings"] = [
                {
                    "rfilename": p,
                    **(
                        {
                            "size": e["size"],
                            "blobId": e["oid"],
                            **(
                                {"lfs": {"sha256": e["lfs"], "size": e["size"], "pointerSize": 134}} if e["lfs"] else {}
                            ),
                        }
                        if blobs
                        else {}
                    ),
                }
                for p, e in sorted(commit["tree"].items())
            ]
            info["spaces"] = []
            info["usedStorage"] = sum(e["size"] for e in commit["tree"].values())
        return info

    def repo_info(self, kinds, rid, rev=None):
        self.reply(
            200, self._info(self.repo(KINDS[kinds], rid), rev, blobs=self.q.get("blobs") in ("true", "True", "1"))
        )

    def _node(self, path, e):
        node = {"type": "file", "path": path, "size": e["size"], "oid": e["oid"]}
        if e["lfs"]:
            node["lfs"] = {"oid": e["lfs"], "size": e["size"], "pointerSize": len(lfs_pointer(e["lfs"], e["size"]))}
        if e.get("xet") and self.stub.xet_reads:
            node["xetHash"] = e["xet"]
        return node

    def tree(self, kinds, rid, rev, path=None):
        repo = self.repo(KINDS[kinds], rid)
        _, commit = self.commit_of(repo, rev)
        prefix = f"{path.strip('/')}/" if path else ""
        recursive = self.q.get("recursive", "").lower() in ("true", "1")
        nodes, dirs = [], set()
        for p, e in sorted(commit["tree"].items()):
            if not p.startswith(prefix):
                continue
            rest = p[len(prefix) :].split("/")
            for i in range(1, len(rest)):
                d = prefix + "/".join(rest[:i])
                if d not in dirs and (recursive or i == 1):
                    dirs.add(d)
                    nodes.append(
                        {"type": "directory", "path": d, "size": 0, "oid": hashlib.sha1(d.encode()).hexdigest()}
                    )
            if recursive or len(rest) == 1:
                nodes.append(self._node(p, e))
        if path and not nodes:
            raise HttpError(404, f"{path} does not exist on {rev}", "EntryNotFound")
        start, size = int(self.q.get("cursor", 0)), self.stub.page_size
        headers = {}
        if start + size < len(nodes):
            q = dict(self.q, cursor=start + size)
            headers["Link"] = f'<{self.stub.url}{self.p}?{urllib.parse.urlencode(q)}>; rel="next"'
        self.reply(200, nodes[start : start + size], headers)

    def paths_info(self, kinds, rid, rev):
        repo = self.repo(KINDS[kinds], rid)
        _, commit = self.commit_of(repo, rev)
        raw = self._bytes().decode()
        if (self.headers.get("Content-Type") or "").startswith("application/json"):
            paths = json.loads(raw)["paths"]
        else:
            paths = urllib.parse.parse_qs(raw).get("paths", [])
        out = []
        for p in paths:
            p = p.rstrip("/")
            if p in commit["tree"]:
                out.append(self._node(p, commit["tree"][p]))
            elif any(x.startswith(p + "/") for x in commit["tree"]):
                out.append({"type": "directory", "path": p, "size": 0, "oid": hashlib.sha1(p.encode()).hexdigest()})
        self.reply(200, out)

    def refs(self, kinds, rid):
        repo = self.repo(KINDS[kinds], rid)
        fmt = lambda t, pre: [{"name": n, "ref": pre + n, "targetCommit": c} for n, c in t.items()]  # noqa: E731
        out = {
            "branches": fmt(repo["branches"], "refs/heads/"),
            "tags": fmt(repo["tags"], "refs/tags/"),
            "converts": [],
        }
        if "include_prs" in self.q:
            out["pullRequests"] = fmt(repo["prs"], "")
        self.reply(200, out)

    def commits(self, kinds, rid, rev):
        repo = self.repo(KINDS[kinds], rid)
        oid, _ = self.commit_of(repo, rev)
        out = []
        while oid:
            c = repo["commits"][oid]
            out.append(
                {
                    "id": oid,
                    "title": c["title"],
                    "message": c["message"],
                    "date": c["date"],
                    "authors": [{"user": c["author"]}],
                }
            )
            oid = c["parent"]
        self.reply(200, out)

    def make_ref(self, kinds, rid, table, name):
        repo = self.repo(KINDS[kinds], rid, write=True)
        body = self._json()
        names = repo["branches" if table == "branch" else "tags"]
        if table == "tag":
            name, body = body["tag"], {"startingPoint": name}
        if name in names:
            raise HttpError(409, "Reference already exists")
        names[name] = self.stub.store.resolve(repo, body.get("startingPoint"))
        self.stub.store.save()
        self.reply(200, {})

    def drop_ref(self, kinds, rid, table, name):
        repo = self.repo(KINDS[kinds], rid, write=True)
        names = repo["branches" if table == "branch" else "tags"]
        if name not in names or name == "main":
            raise HttpError(404 if name != "main" else 403, "Cannot delete reference")
        del names[name]
        self.stub.store.save()
        self.reply(200, {})

    # discussions and pull requests (only what upload_folder(create_pr=True) needs)
    def discussion_new(self, kinds, rid):
        repo = self.repo(KINDS[kinds], rid)
        who = self.user("read")
        body = self._json()
        num = len(repo["discussions"]) + 1
        repo["discussions"].append(
            {
                "num": num,
                "title": body["title"],
                "author": who["name"],
                "date": now(),
                "pr": bool(body.get("pullRequest")),
            }
        )
        if body.get("pullRequest"):
            repo["prs"][f"refs/pr/{num}"] = repo["branches"]["main"]
        self.stub.store.save()
        self.reply(200, {"num": num})

    def discussion_get(self, kinds, rid, num):
        repo = self.repo(KINDS[kinds], rid)
        try:
            d = repo["discussions"][int(num) - 1]
        except IndexError:
            raise HttpError(404, "Discussion not found") from None
        out = {
            "num": d["num"],
            "title": d["title"],
            "author": {"name": d["author"]},
            "createdAt": d["date"],
            "status": "draft" if d["pr"] else "open",
            "isPullRequest": d["pr"],
            "events": [],
            "repo": {"name": rid, "type": KINDS[kinds]},
            "diff": "",
        }
        if d["pr"]:
            out.update(changes={"base": "refs/heads/main"}, filesWithConflicts=[])
        self.reply(200, out)

    # upload
    def preupload(self, kinds, rid, rev):
        create_pr = "create_pr" in self.q
        repo = self.repo(KINDS[kinds], rid, write=not create_pr)
        self.user("read")
        _, commit = self.commit_of(repo, rev)
        body = self._json()
        patterns = lfs_patterns(self.stub.store, repo, commit["tree"])
        ignore = [x.strip() for x in (body.get("gitIgnore") or "").splitlines() if x.strip() and not x.startswith("#")]
        files = []
        if len(body["files"]) > 256:
            raise HttpError(400, "too many files in one preupload call")
        for f in body["files"]:
            base = f["path"].split("/")[-1]
            sample = base64.b64decode(f.get("sample") or "")
            is_lfs = (
                any(fnmatch.fnmatch(base, p) or fnmatch.fnmatch(f["path"], p) for p in patterns)
                or f["size"] > MAX_REGULAR
                or b"\0" in sample
            )
            entry = commit["tree"].get(f["path"])
            files.append(
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if is_lfs else "regular",
                    "shouldIgnore": any(fnmatch.fnmatch(f["path"], p) or fnmatch.fnmatch(base, p) for p in ignore),
                    "oid": (entry["lfs"] or entry["oid"]) if entry else None,
                }
            )
        self._rec["modes"] = {f["path"]: f["uploadMode"] for f in files}
        self.reply(200, {"files": files})

    def lfs_batch(self, prefix, rid):
        kind = {"datasets/": "dataset", "spaces/": "space"}.get(prefix, "model")
        self.repo(kind, rid, write=True)
        body = self._json()
        stub, out = self.stub, []
        for o in body["objects"]:
            oid, size = o["oid"], o["size"]
            if not re.fullmatch(r"[0-9a-f]{64}", oid):
                out.append({"oid": oid, "size": size, "error": {"code": 422, "message": "bad oid"}})
                continue
            if size > stub.max_lfs:
                out.append({"oid": oid, "size": size, "error": {"code": 422, "message": "File too large"}})
                continue
            if os.path.exists(stub.store.lfs_path(oid)):
                out.append({"oid": oid, "size": size})
                continue
            sig = stub.sign(oid)
            verify = {"href": f"{stub.url}/{prefix or ''}{rid}.git/info/lfs/objects/verify"}
            if size > stub.multipart_threshold and "multipart" in body.get("transfers", []):
                n = -(-size // stub.part_size)
                header = {"chunk_size": str(stub.part_size)}
                for i in range(1, n + 1):
                    header[str(i)] = f"{stub.cdn_url}/parts/{oid}/{i}?sig={sig}"
                upload = {"href": f"{stub.url}/api/complete_multipart?oid={oid}&n={n}&sig={sig}", "header": header}
            else:
                upload = {"href": f"{stub.cdn_url}/lfs/{oid}?sig={sig}"}
            out.append(
                {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}
            )
        self.reply(
            200,
            {
                "transfer": "multipart"
                if any("chunk_size" in o.get("actions", {}).get("upload", {}).get("header", {}) for o in out)
                else "basic",
                "objects": out,
            },
            {"Content-Type": "application/vnd.git-lfs+json"},
        )

    def lfs_verify(self, prefix, rid):
        body = self._json()
        path = self.stub.store.lfs_path(body["oid"])
        if not os.path.exists(path):
            raise HttpError(404, "Object not found")
        if os.path.getsize(path) != body["size"]:
            raise HttpError(422, "size mismatch")
        self.reply(200, {})

    def _receive(self, path, expect=None):
        fd, tmp = tempfile.mkstemp(dir=os.path.join(self.stub.store.root, "tmp"))
        sha, md5 = hashlib.sha256(), hashlib.md5()
        try:
            with os.fdopen(fd, "wb") as f:
                for block in self._read_body():
                    f.write(block)
                    sha.update(block)
                    md5.update(block)
            self._body = b""
            if expect and sha.hexdigest() != expect:
                raise HttpError(400, f"content hashes to {sha.hexdigest()}, not {expect}")
            os.replace(tmp, path)
        finally:
            if os.path.exists(tmp):
                os.unlink(tmp)
        return md5.hexdigest()

    def check_sig(self, oid):
        if not hmac.compare_digest(self.q.get("sig", ""), self.stub.sign(oid)):
            raise HttpError(403, "SignatureDoesNotMatch")

    def lfs_put(self, oid):
        self.check_sig(oid)
        md5 = self._receive(self.stub.store.lfs_path(oid), expect=oid)
        self.reply(200, b"", {"ETag": f'"{md5}"'})

    def part_put(self, oid, n):
        self.check_sig(oid)
        os.makedirs(os.path.join(self.stub.store.root, "parts", oid), exist_ok=True)
        md5 = self._receive(os.path.join(self.stub.store.root, "parts", oid, n))
        self.stub.etags[(oid, int(n))] = md5
        self.reply(200, b"", {"ETag": f'"{md5}"'})

    def multipart_done(self):
        oid = self.q["oid"]
        self.check_sig(oid)
        body = self._json()
        folder = os.path.join(self.stub.store.root, "parts", oid)
        if body.get("oid") != oid or len(body["parts"]) != int(self.q["n"]):
            raise HttpError(400, "bad completion request")
        fd, tmp = tempfile.mkstemp(dir=os.path.join(self.stub.store.root, "tmp"))
        sha = hashlib.sha256()
        with os.fdopen(fd, "wb") as out:
            for part in sorted(body["parts"], key=lambda p: p["partNumber"]):
                if part["etag"].strip('"') != self.stub.etags.get((oid, part["partNumber"])):
                    raise HttpError(400, f"InvalidPart {part['partNumber']}")
                with open(os.path.join(folder, str(part["partNumber"])), "rb") as f:
                    for block in iter(lambda: f.read(1 << 20), b""):
                        sha.update(block)
                        out.write(block)
        if sha.hexdigest() != oid:
            os.unlink(tmp)
            raise HttpError(400, "assembled object does not match its oid")
        os.replace(tmp, self.stub.store.lfs_path(oid))
        shutil.rmtree(folder, ignore_errors=True)
        self.reply(200, {})

    def xet_token(self, kinds, rid, which, rev=None):
        if self.stub.xet is None:
            raise HttpError(404, "Xet is not enabled for this repository")
        repo = self.repo(KINDS[kinds], rid, write=which == "write" and "create_pr" not in self.q)
        if which == "write":
            self.user("write")
            folder = self.stub.xet.new_dir()
        else:
            _, commit = self.commit_of(repo, rev)
            folder = self.stub.xet.read_dir(sorted({e["lfs"] for e in commit["tree"].values() if e.get("xet")}))
        exp, url = int(time.time()) + 3600, "local://" + folder
        self.reply(
            200,
            {"casUrl": url, "exp": exp, "accessToken": "stub"},
            {"X-Xet-Cas-Url": url, "X-Xet-Token-Expiration": str(exp), "X-Xet-Access-Token": "stub"},
        )

    def commit(self, kinds, rid, rev):
        create_pr = "create_pr" in self.q
        is_pr = rev.startswith("refs/pr/")
        repo = self.repo(KINDS[kinds], rid, write=not (create_pr or is_pr))
        who = self.user("read")
        lines = [json.loads(x) for x in self._bytes().split(b"\n") if x.strip()]
        self._rec["ops"] = [[x["key"], x["value"].get("path")] for x in lines if x["key"] != "header"]
        head = next((x["value"] for x in lines if x["key"] == "header"), None)
        if not head or not head.get("summary"):
            raise HttpError(400, "commit needs a header with a summary")
        store = self.stub.store
        # fetch xet content first, outside the lock
        xet = {}
        for x in lines:
            if x["key"] == "lfsFile" and self.stub.xet and not os.path.exists(store.lfs_path(x["value"]["oid"])):
                xet[x["value"]["oid"]] = self.stub.xet.materialise(x["value"]["oid"])
        with store.lock:
            base, old = self.commit_of(repo, rev)
            want = head.get("parentCommit")
            if want and not base.startswith(want):
                raise HttpError(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(old["tree"])
            for x in lines:
                key, v = x["key"], x["value"]
                if key == "header":
                    continue
                path = v["path"]
                if path.startswith("/") or ".." in path.split("/") or ".git" in path.split("/"):
                    raise HttpError(400, f"Invalid path: {path}")
                if key == "file":
                    data = base64.b64decode(v["content"])
                    tree[path] = {"oid": store.put_git(data), "size": len(data), "lfs": None, "xet": None}
                elif key == "lfsFile":
                    obj = store.lfs_path(v["oid"])
                    if not os.path.exists(obj):
                        raise HttpError(400, f"LFS pointer pointed to a file that does not exist: {path}")
                    size = os.path.getsize(obj)
                    if "size" in v and v["size"] != size:
                        raise HttpError(400, f"size of {path} does not match the uploaded object")
                    tree[path] = {
                        "oid": git_blob_id(lfs_pointer(v["oid"], size)),
                        "size": size,
                        "lfs": v["oid"],
                        "xet": xet.get(v["oid"]),
                    }
                elif key == "deletedFile":
                    if path not in tree:
                        raise HttpError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                    del tree[path]
                elif key == "deletedFolder":
                    pre = path.rstrip("/") + "/"
                    for p in [p for p in tree if p.startswith(pre)]:
                        del tree[p]
                else:
                    raise HttpError(400, f"Unknown operation {key}")
            branch = rev
            if create_pr:
                num = len(repo["discussions"]) + 1
                repo["discussions"].append(
                    {"num": num, "title": head["summary"], "author": who["name"], "date": now(), "pr": True}
                )
                branch = f"refs/pr/{num}"
            elif rev not in repo["branches"] and not is_pr:
                raise HttpError(400, f"{rev} is not a branch")
            oid = store.add_commit(repo, branch, tree, head["summary"], head.get("description", ""), who["name"], base)
        pre = "" if kinds == "models" else f"{kinds}/"
        self.reply(
            200,
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.stub.url}/{pre}{rid}/commit/{oid}",
                "hookOutput": "",
                **({"pullRequestUrl": f"{self.stub.url}/{pre}{rid}/discussions/{num}"} if create_pr else {}),
            },
        )

    # download
    def resolve(self, prefix, rid, rev, path):
        kind = {"datasets/": "dataset", "spaces/": "space"}.get(prefix, "model")
        repo = self.repo(kind, rid)
        if repo["gated"] and not self.owns(self.user(), rid.split("/")[0]):
            raise HttpError(403, f"Access to {kind} {rid} is restricted", "GatedRepo")
        oid, commit = self.commit_of(repo, rev)
        entry = commit["tree"].get(path)
        headers = {"X-Repo-Commit": oid}
        if entry is None:
            raise HttpError(404, "Entry not found", "EntryNotFound", headers)
        if not entry["lfs"]:
            headers["ETag"] = f'"{entry["oid"]}"'
            self.send_file(self.stub.store.entry_path(entry), headers)
            return
        headers.update(
            {"X-Linked-Etag": f'"{entry["lfs"]}"', "X-Linked-Size": str(entry["size"]), "ETag": f'"{entry["lfs"]}"'}
        )
        if self.stub.xet_reads and entry.get("xet"):
            headers["X-Xet-Hash"] = entry["xet"]
            headers["Link"] = f'<{self.stub.url}/api/{kind}s/{rid}/xet-read-token/{oid}>; rel="xet-auth"'
        headers["Location"] = f"{self.stub.cdn_url}/lfs/{entry['lfs']}?sig={self.stub.sign(entry['lfs'])}"
        self.reply(302, b"", headers)

    def cdn_get(self, oid):
        self.check_sig(oid)
        path = self.stub.store.lfs_path(oid)
        if not os.path.exists(path):
            raise HttpError(404, "NoSuchKey")
        self.send_file(path, {"ETag": f'"{oid}"'})

    def st_metadata(self, kinds, rid, name):
        """All shard headers of a sharded model in one answer (get_sharded_safetensors_metadata)."""
        repo = self.repo(KINDS[kinds], rid)
        _, commit = self.commit_of(repo, "main")
        if name not in commit["tree"]:
            raise HttpError(404, "Entry not found", "EntryNotFound")
        with open(self.stub.store.entry_path(commit["tree"][name]), encoding="utf-8") as f:
            index = json.load(f)
        headers = {}
        folder = name.rsplit("/", 1)[0] + "/" if "/" in name else ""
        for shard in sorted(set(index["weight_map"].values())):
            with open(self.stub.store.entry_path(commit["tree"][folder + shard]), "rb") as f:
                headers[shard] = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        self.reply(200, {"index": {"metadata": index.get("metadata")}, "headers": headers})

    # control
    def ctl(self, what):
        if what == "fault":
            body = self._json()
            self.stub.fault(body.pop("method", ".*"), body.pop("path", ".*"), **body)
            return self.reply(200, {})
        self._bytes()
        if what == "requests":
            return self.reply(200, self.stub.requests)
        if what == "state":
            return self.reply(200, self.stub.store.repos)
        if what == "reset-log":
            self.stub.requests.clear()
            return self.reply(200, {})
        if what == "clear-faults":
            self.stub.faults.clear()
            return self.reply(200, {})
        raise HttpError(404, "no such control")


RID = r"([^/]+/[^/]+)"
API = r"/api/(models|datasets|spaces)/" + RID
ROUTES = {
    "hub": [
        (("GET",), r"/api/whoami-v2", "whoami"),
        (("POST",), r"/api/repos/create", "repo_create"),
        (("DELETE",), r"/api/repos/delete", "repo_delete"),
        (("POST",), r"/api/validate-yaml", "validate_yaml"),
        (("POST",), r"/api/complete_multipart", "multipart_done"),
        (("GET", "POST"), r"/_stub/([\w-]+)", "ctl"),
        (("GET",), r"/api/(models|datasets|spaces)", "model_list"),
        (("PUT",), API + r"/settings", "repo_settings"),
        (("GET",), API + r"/refs", "refs"),
        (("GET",), API + r"/tree/([^/]+)(?:/(.+))?", "tree"),
        (("POST",), API + r"/paths-info/([^/]+)", "paths_info"),
        (("GET",), API + r"/commits/([^/]+)", "commits"),
        (("POST",), API + r"/(branch|tag)/([^/]+)", "make_ref"),
        (("DELETE",), API + r"/(branch|tag)/([^/]+)", "drop_ref"),
        (("POST",), API + r"/discussions", "discussion_new"),
        (("GET",), API + r"/discussions/(\d+)", "discussion_get"),
        (("POST",), API + r"/preupload/([^/]+)", "preupload"),
        (("POST",), API + r"/commit/([^/]+)", "commit"),
        (("GET",), API + r"/xet-(read|write)-token(?:/([^/]+))?", "xet_token"),
        (("GET",), API + r"/safetensors-metadata/(.+)", "st_metadata"),
        (("GET",), API + r"/revision/([^/]+)", "repo_info"),
        (("GET",), API, "repo_info"),
        (("POST",), r"/(datasets/|spaces/)?" + RID + r"\.git/info/lfs/objects/batch", "lfs_batch"),
        (("POST",), r"/(datasets/|spaces/)?" + RID + r"\.git/info/lfs/objects/verify", "lfs_verify"),
        (("GET", "HEAD"), r"/(datasets/|spaces/)?" + RID + r"/resolve/([^/]+)/(.+)", "resolve"),
    ],
    "cdn": [
        (("PUT",), r"/lfs/([0-9a-f]{64})", "lfs_put"),
        (("GET", "HEAD"), r"/lfs/([0-9a-f]{64})", "cdn_get"),
        (("PUT",), r"/parts/([0-9a-f]{64})/(\d+)", "part_put"),
    ],
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, ValueError, OSError)):
            super().handle_error(request, client_address)


class HubStub:
    def __init__(
        self,
        root,
        port=0,
        *,
        tokens=None,
        xet="off",
        xet_reads=False,
        log_file=None,
        multipart_threshold=1 << 62,
        part_size=5 << 20,
        page_size=1000,
        max_lfs=1 << 62,
    ):
        self.store = Store(root)
        self.tokens = dict(DEFAULT_TOKENS if tokens is None else tokens)
        self.xet = XetLocal(self.store) if xet == "local" else None
        self.xet_reads = bool(self.xet and xet_reads)
        self.multipart_threshold, self.part_size = multipart_threshold, part_size
        self.page_size, self.max_lfs = page_size, max_lfs
        self.requests: list[dict] = []
        self.faults: list[dict] = []
        self.etags: dict = {}
        self._secret = os.urandom(16)
        self._n, self._lock = 0, threading.Lock()
        self._log = open(log_file, "a", encoding="utf-8") if log_file else None  # noqa: SIM115 - closed by stop
        self._servers = []
        for origin, p in (("hub", port), ("cdn", 0)):
            handler = type(f"{origin.title()}Handler", (Handler,), {"stub": self, "origin": origin})
            self._servers.append(Server(("127.0.0.1", p), handler))
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        # another host *name*: clients before 2.0 compare names, not ports, to decide where a token may go
        self.cdn_url = f"http://localhost:{self._servers[1].server_port}"

    def start(self):
        for s in self._servers:
            threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self):
        for s in self._servers:
            s.shutdown()
            s.server_close()
        if self._log:
            self._log.close()

    __enter__ = start

    def __exit__(self, *exc):
        self.stop()

    def next_id(self):
        with self._lock:
            self._n += 1
            return self._n

    def sign(self, oid):
        return hmac.new(self._secret, oid.encode(), "sha256").hexdigest()[:32]

    def log(self, rec):
        with self._lock:
            self.requests.append(rec)
            if self._log:
                self._log.write(json.dumps(rec) + "\n")
                self._log.flush()

    def fault(
        self,
        method=".*",
        path=".*",
        *,
        status=None,
        times=1,
        skip=0,
        headers=None,
        body=None,
        delay=0,
        drop=False,
        truncate=None,
        lose_reply=False,
    ):
        """Answer the next `times` matching requests (after `skip`) with a failure.

        status: reply with it; drop: close the connection without a reply;
        lose_reply: do the work, then close the connection without a reply;
        truncate: for a file, close after that many bytes; delay: seconds before anything else.
        """
        self.faults.append(
            {
                "n": len(self.faults),
                "method": method,
                "path": path,
                "status": status,
                "left": times,
                "skip": skip,
                "headers": headers,
                "body": body,
                "delay": delay,
                "drop": drop,
                "truncate": truncate,
                "lose_reply": lose_reply,
            }
        )

    def take_fault(self, method, path):
        with self._lock:
            for f in self.faults:
                if f["left"] > 0 and re.fullmatch(f["method"], method) and re.search(f["path"], path):
                    if f["skip"] > 0:
                        f["skip"] -= 1
                        continue
                    f["left"] -= 1
                    return f
        return None

    def read(self, repo_id, path, rev="main", kind="model"):
        """Bytes of one file as stored, for assertions."""
        repo = self.store.repos[Store.key(kind, repo_id)]
        entry = repo["commits"][self.store.resolve(repo, rev)]["tree"][path]
        with open(self.store.entry_path(entry), "rb") as f:
            return f.read()

    def files(self, repo_id, rev="main", kind="model"):
        repo = self.store.repos[Store.key(kind, repo_id)]
        return sorted(repo["commits"][self.store.resolve(repo, rev)]["tree"])


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--root", required=True)
    ap.add_argument("--port", type=int, default=0)
    ap.add_argument("--log")
    ap.add_argument("--xet", choices=["off", "local"], default="off")
    ap.add_argument("--xet-reads", action="store_true")
    ap.add_argument("--multipart-threshold", type=int, default=1 << 62)
    ap.add_argument("--part-size", type=int, default=5 << 20)
    a = ap.parse_args()
    hub = HubStub(
        a.root,
        a.port,
        xet=a.xet,
        xet_reads=a.xet_reads,
        log_file=a.log,
        multipart_threshold=a.multipart_threshold,
        part_size=a.part_size,
    ).start()
    print(
        json.dumps({"url": hub.url, "cdn": hub.cdn_url, "write_token": WRITE_TOKEN, "read_token": READ_TOKEN}),
        flush=True,
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        hub.stop()


if __name__ == "__main__":
    main()
