"""Hub models: from the local cache without a network, from a small local server, and when there is none."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import threading
import urllib.parse

import pytest
import torch
import transformers

from microtome.errors import ModelError, ResourceError
from microtome.model import catalog, hub
from microtome.model.load import load_module
from test_model_load_fakes import make_registry, use_registry

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of a tiny model with a tokenizer, and some that must never be fetched."""
    from microtome.model.gguf_file import inspect_gguf, read_gguf_model, read_gguf_tokenizer

    root = tmp_path_factory.mktemp("files")
    info = inspect_gguf(make_registry(root / "registry").gguf)
    module, _ = read_gguf_model(info, dtype=torch.float32)
    module.save_pretrained(root / "repo")
    read_gguf_tokenizer(info).save_pretrained(root / "repo")
    found = {path.name: path.read_bytes() for path in (root / "repo").iterdir()}
    return {**found, "pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit", "onnx/a.json": b"{}"}


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    import huggingface_hub.constants

    use_registry(monkeypatch, None, tmp_path / "cache")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def put_in_cache(cache, name, files):
    repo = cache / f"models--{name.replace('/', '--')}"
    folder = repo / "snapshots" / COMMIT
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return folder


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a snapshot needs."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.server.asked.append(path)
        files, name = self.server.files, "org/tiny"
        if path.startswith(f"/api/models/{name}/tree/"):
            listing = [self.entry(p, d) for p, d in files.items()]
            return self.answer(json.dumps(listing).encode())
        if path.startswith(f"/api/models/{name}"):
            siblings = [{"rfilename": p, "size": len(d), "blobId": self.mark(d)} for p, d in files.items()]
            return self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        if path.startswith(f"/{name}/resolve/"):
            wanted = path.removeprefix(f"/{name}/resolve/").split("/", 1)[1]
            if wanted in files:
                data = files[wanted]
                return self.answer(data, {"ETag": f'"{self.mark(data)}"', "X-Repo-Commit": COMMIT})
        return self.answer(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    @staticmethod
    def mark(data):
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def entry(self, path, data):
        return {"type": "file", "path": path, "size": len(data), "oid": self.mark(data)}

    def answer(self, body, headers=None, status=200):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(files, monkeypatch):
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    running.files, running.asked = files, []
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_cached_model_loads_without_a_network(files, empty_home, no_network):
    folder = put_in_cache(empty_home, "org/tiny", files)
    loaded = load_module("org/tiny")
    assert loaded.name == "org/tiny" and loaded.source == f"hub: org/tiny@{COMMIT}"
    assert isinstance(loaded.hf, transformers.LlamaForCausalLM) and loaded.tokenizer is not None
    (entry,) = [e for e in catalog.list_models() if e.kind == "hub cache"]
    assert entry.name == "org/tiny" and entry.present and entry.folder.resolve() == folder.resolve()


def test_a_model_that_is_not_cached_is_not_fetched(no_network):
    with pytest.raises(ResourceError) as caught:
        load_module("org/tiny")
    text = str(caught.value)
    assert "microtome models pull org/tiny" in text and "MICROTOME_ONLINE=1" in text


def test_a_misspelt_embedded_name_is_recognised(no_network):
    with pytest.raises(ResourceError, match="did you mean 'smollm2-135m-instruct'"):
        load_module("SmolLM2-135M-Instuct")


def test_a_part_of_a_model_in_the_cache_names_what_is_missing(files, empty_home, no_network):
    put_in_cache(empty_home, "org/tiny", {"config.json": files["config.json"]})
    with pytest.raises(ModelError, match=r"missing model\.safetensors.*tokenizer"):
        load_module("org/tiny")
    (entry,) = [e for e in catalog.list_models() if e.kind == "hub cache"]
    assert not entry.present and "missing" in entry.note


def test_pull_takes_config_tokenizer_and_safetensors_only(server, empty_home):
    said = []
    entry = catalog.pull("org/tiny", progress=said.append)
    assert entry.present and any("downloading org/tiny" in line for line in said)
    fetched = {path.rsplit("/", 1)[1] for path in server.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched and not fetched & {"pytorch_model.bin", "modeling.py", "a.json"}


def test_after_a_pull_no_network_is_needed(server, monkeypatch):
    catalog.pull("org/tiny")
    before = len(server.asked)
    assert load_module("org/tiny").name == "org/tiny" and len(server.asked) == before


def test_online_is_a_permission_that_must_be_given(server, files, monkeypatch, empty_home):
    with pytest.raises(ResourceError):
        load_module("org/tiny")
    assert server.asked == []
    monkeypatch.setenv("MICROTOME_ONLINE", "1")
    assert load_module("org/tiny").source.startswith("hub: org/tiny@")


def test_what_the_hub_does_not_have(server):
    with pytest.raises(ModelError, match="no such repository"):
        catalog.pull("org/absent")


def test_a_repository_of_pickles_is_refused(server, files):
    server.files = {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"}
    with pytest.raises(ModelError, match="no safetensors weights"):
        catalog.pull("org/tiny")
    assert not any("pytorch_model" in path for path in server.asked)


def test_a_disk_too_small_for_the_download(server, monkeypatch):
    monkeypatch.setattr("microtome.model.paths.free_bytes", lambda path: 10)
    with pytest.raises(ResourceError, match="free disk"):
        catalog.pull("org/tiny")


def test_an_unreachable_hub(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="could not be reached") as caught:
        catalog.pull("org/tiny")
    assert "default" in caught.value.instead


@pytest.mark.parametrize(
    "value, meaning", [("1", True), ("true", True), ("0", False), ("", False), ("no", False)]
)
def test_online_values(monkeypatch, value, meaning):
    monkeypatch.setenv("MICROTOME_ONLINE", value)
    assert hub.online() is meaning
