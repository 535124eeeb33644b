"""`protea serve` as its clients meet it: OpenAI's own client, many at once, and those who mean harm or err."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jsonschema
import pytest

import protea

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
TEXT = "the cat sat on the mat.\n\nthe dog ran to the cat.\n\nthe mat is red and the dog is big.\n\n"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
          "required": ["age"], "additionalProperties": False}  # fmt: skip


class Server(NamedTuple):
    url: str
    token: str
    run: Path
    process: subprocess.Popen[str]

    def post(self, path: str, body: object = None, **more: object):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        headers |= more.pop("headers", {})  # type: ignore[operator]
        content = more.pop("content", None) or json.dumps(body).encode()
        return httpx.post(self.url + path, content=content, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    lines = "".join(TEXT.replace("cat", f"cat{i}").replace("red", f"red{i % 7}") for i in range(60))
    (folder / "corpus.txt").write_text(lines)
    small = {"n_layers": 2, "d_model": 32, "n_heads": 2, "n_kv_heads": 1, "d_ff": 64, "context": 96}
    words = [w for k, v in small.items() for w in ("--set", f"{k}={v}")]
    fit = [sys.executable, "-m", "protea.cli", "fit", "llama", "corpus.txt", "--budget", "20steps", "--out", "r"]
    subprocess.run([*fit, *words, "--option", "block=32"], cwd=folder, check=True, capture_output=True, timeout=300)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "protea.cli", "serve", "r", "--port", "0", "--json", "--waiting", "40"],
            cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        told = json.loads("".join(lines))
        for _ in range(200):
            try:
                assert httpx.get(told["url"].replace("/v1", "/health")).json()["status"] == "ok"
                break
            except httpx.TransportError:
                continue
        yield Server(told["url"], told["token"], folder / "r", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130, -signal.SIGINT)
    assert "Traceback" not in (folder / "log").read_text()


def direct(server: Server, text: str, n: int) -> str:
    """The greedy text by Python."""
    model = protea.load(server.run).model
    ids = [model.begin, *text.encode()]  # type: ignore[attr-defined]
    out = protea.generate(model, [ids], max_new_tokens=n)  # type: ignore[arg-type]
    return bytes(out[0].tolist()).decode("utf-8", "replace")


def test_openai_client_reads_it(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url, api_key=server.token, max_retries=0)
    assert [m.id for m in client.models.list()] == ["r"]
    whole = client.completions.create(model="r", prompt="the cat", max_tokens=12, temperature=0, logprobs=2)
    assert whole.choices[0].text == direct(server, "the cat", 12) and whole.choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens == 8 and whole.usage.completion_tokens == 12
    said = whole.choices[0].logprobs
    assert "".join(said.tokens) == whole.choices[0].text
    assert all(max(top.values()) == p for top, p in zip(said.top_logprobs, said.token_logprobs))
    pieces = list(client.completions.create(
        model="r", prompt="the cat", max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text
    assert pieces[-1].usage.completion_tokens == 12 and len(pieces) > 4
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="r", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.AuthenticationError, match="token is missing or wrong"):
        openai.OpenAI(base_url=server.url, api_key="other", max_retries=0).models.list()


def test_company_does_not_change_an_answer(server):
    asks = [{"prompt": "the " + w, "max_tokens": 5 + 3 * i, "temperature": 0.9, "seed": i, "n": 1 + i % 2}
            for i, w in enumerate(["cat", "dog", "mat", "red", "", "cat sat on"] * 2)]  # fmt: skip

    def ask(body: dict) -> list[str]:
        return [c["text"] for c in server.post("/completions", body).raise_for_status().json()["choices"]]

    alone = [ask(body) for body in asks]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, asks)) == alone
    assert len({str(a) for a in alone}) == len(alone)


def test_answers_keep_to_a_schema_and_seeds_come_back(server):
    body = {"prompt": "age: ", "max_tokens": 40, "temperature": 1.5, "n": 8, "response_format": formed(SCHEMA)}
    first = server.post("/completions", body).raise_for_status().json()
    for choice in first["choices"]:
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)
    again = server.post("/completions", body | {"seed": first["seed"]}).json()
    assert [c["text"] for c in again["choices"]] == [c["text"] for c in first["choices"]]
    assert server.post("/completions", {"prompt": [256, 97], "max_tokens": 0}).json()["choices"][0]["text"] == ""


def formed(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


WRONG = [
    ({"prompt": "x" * 500}, "context of 96"),
    ({"prompt": []}, "prompt is empty"),
    ({"prompt": [70000]}, "no token 70000"),
    ({"prompt": "x", "max_tokens": -1}, "must not be negative"),
    ({"prompt": "x", "temperature": -1}, "temperature must not be negative"),
    ({"prompt": "x", "temperature": "hot"}, "temperature: 'hot' is not of type"),
    ({"prompt": "x", "top_p": 7}, "top_p"),
    ({"prompt": "x", "max_tokns": 7}, "Did you mean max_tokens"),
    ({"prompt": "x", "stop": [""]}, "stop string is empty"),
    ({"prompt": "x", "regex": "(a"}, "regular expression"),
    ({"prompt": "x", "regex": "a", "grammar": "b"}, "at once"),
    ({"prompt": ["x"] * 40, "n": 2}, "too many"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({}, "'prompt' is a required property"),
    ([], "not an object"),
    ({"prompt": "x", "response_format": formed({"type": "no"})}, "schema is wrong"),
    ({"prompt": "x", "response_format": formed({"type": "integer", "minimum": 3, "maximum": 1})}, "cannot be met"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "cause"), WRONG, ids=[cause for _, cause in WRONG])
def test_bad_requests_are_told_and_it_stays_up(server, body, cause):
    answer = server.post("/completions", body)
    assert answer.status_code == 400 and cause in answer.json()["error"]["message"], answer.text
    assert server.post("/completions", {"prompt": "the", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"{", b'{"prompt": NaN}', b"[" * 100_000, b'{"prompt": "' + b"x" * 2**23]
)
def test_bodies_that_are_not_json(server, content):
    answer = server.post("/completions", content=content)
    assert answer.status_code == 400 and "Traceback" not in answer.text
    assert server.post("/completions", {"prompt": "the", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": ""}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_strangers_are_refused(server, headers, status):
    answer = server.post("/completions", {"prompt": "the", "max_tokens": 2}, headers=headers)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_its_own_page_may_ask_and_others_paths_are_not_there(server):
    origin = server.url.removesuffix("/v1")
    assert server.post("/completions", {"prompt": "a", "max_tokens": 1}, headers={"Origin": origin}).status_code == 200
    assert server.post("/nothing", {}).status_code == 404
    assert (
        httpx.request("DELETE", server.url + "/models", headers={"Authorization": f"Bearer {server.token}"}).status_code
        == 405
    )


def test_who_leaves_frees_the_place_and_too_many_are_refused(server):
    def health() -> dict[str, int]:
        return httpx.get(server.url.replace("/v1", "/health")).json()

    assert server.post("/completions", {"prompt": "the", "n": 64}).status_code == 429
    before = health()["steps"]
    body = {"prompt": "the", "max_tokens": 90, "n": 32, "stream": True, "stop": ["no such text"], "regex": "[a-z]{90}"}
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.stream("POST", server.url + "/completions", json=body, headers=headers, timeout=60) as answer:
        next(answer.iter_lines())
    for _ in range(500):
        if health()["running"] + health()["waiting"] == 0:
            break
    now = health()
    assert now["running"] + now["waiting"] == 0
    assert now["steps"] - before < 4 * 90  # 32 answers of 90 tokens, 8 at once, were not worked out
    assert server.post("/completions", {"prompt": "the", "max_tokens": 2}).status_code == 200


def test_chat_speaks_by_the_models_template(tmp_path):
    """In this process: a model with a template, through the application itself."""
    from starlette.testclient import TestClient

    from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    from protea.serving.engine import Engine
    from protea.serving.http.app import application
    from protea.spaces import Tokens
    from protea.spaces.chat import Chat

    space = Tokens(200, chat=Chat(TEMPLATE))
    model = language_model("llama", space, ARCHITECTURES["llama"].scaled(1, 16, 200))
    app = application(Engine(model), "toy", "secret", frozenset({"testserver"}))
    with TestClient(app, headers={"Authorization": "Bearer secret"}) as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0, "logprobs": True,
                "top_logprobs": 2}  # fmt: skip
        told = client.post("/v1/chat/completions", json=body).json()
        prompt = "<user>hi\n<assistant>"
        assert told["usage"]["prompt_tokens"] in (len(prompt), len(prompt) + 1)
        assert told["choices"][0]["message"]["role"] == "assistant"
        assert len(told["choices"][0]["logprobs"]["content"]) == 6
        streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
        chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
        assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == told["choices"][0]["message"]["content"]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and streamed.endswith("data: [DONE]\n\n")


def test_an_engine_that_fails_is_told_of_and_goes_on(caplog):
    from starlette.testclient import TestClient

    from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    from protea.serving.engine import Engine
    from protea.serving.http.app import application
    from protea.spaces import Tokens

    engine = Engine(language_model("llama", Tokens(32), ARCHITECTURES["llama"].scaled(1, 16, 32)))
    step, fails = engine.step, [True]

    def broken() -> None:
        if fails.pop() if fails else False:
            raise RuntimeError("boom")
        step()

    engine.step = broken  # type: ignore[method-assign]
    with TestClient(
        application(engine, "toy", "s", frozenset({"testserver"})), headers={"Authorization": "Bearer s"}
    ) as client:
        first = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
        assert first.status_code == 500 and "engine failed: RuntimeError" in first.json()["error"]["message"]
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).status_code == 200


def test_what_cannot_be_served_is_told(server):
    from protea.errors import DataError
    from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    from protea.serving.engine import Engine
    from protea.serving.http.app import application
    from protea.spaces import Tokens

    numbers = language_model("llama", Tokens(32, 9, "ids"), ARCHITECTURES["llama"].scaled(1, 16, 32))
    with pytest.raises(DataError, match="stand for no text"):
        application(Engine(numbers), "numbers", "s", frozenset())
    taken = server.url.removesuffix("/v1").rpartition(":")[2]
    serve = [sys.executable, "-m", "protea.cli", "serve", str(server.run), "--port", taken]
    done = subprocess.run(serve, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "Choose another --port" in done.stderr and "Traceback" not in done.stderr
