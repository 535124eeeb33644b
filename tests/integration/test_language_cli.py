"""A language model from the shell: fit, chat, export, import, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

import protea

TEXT = "the cat sat on the mat.\n\nthe dog ran to the cat.\n\nthe mat is red and the dog is big.\n\n"
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
          "required": ["age"], "additionalProperties": False}  # fmt: skip


def run(cwd: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "protea.cli", *words], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a little Llama, trained for a few steps."""
    folder = tmp_path_factory.mktemp("language")
    lines = "".join(TEXT.replace("cat", f"cat{i}").replace("red", f"red{i % 7}") for i in range(60))
    (folder / "corpus.txt").write_text(lines)
    small = ["--set", "n_layers=2", "--set", "d_model=32", "--set", "n_heads=2", "--set", "n_kv_heads=1",
             "--set", "d_ff=64", "--set", "context=96", "--option", "block=32"]  # fmt: skip
    done = run(folder, "fit", "llama", "corpus.txt", "--budget", "30steps", "--out", "r", *small)
    assert done.returncode == 0, done.stderr
    return folder


def test_one_answer_and_its_facts(home):
    words = ["chat", "r", "-p", "the cat", "-n", "12", "--seed", "3"]
    told, plain = run(home, *words, "--json"), run(home, *words)
    facts = json.loads(told.stdout)
    assert facts["finish"] == "length" and facts["tokens"] == 12
    assert plain.stdout.rstrip("\n") == facts["text"].rstrip("\n")


def test_a_conversation_outlives_what_it_cannot_do(home):
    said = "\n".join(["the dog", "x" * 200, "/reset", "the mat", "/exit", "never"]) + "\n"
    done = run(home, "chat", "r", "-n", "6", "--json", stdin=said)
    answers = [json.loads("{" + part) for part in done.stdout.split("\n{")[1:]]
    answers = [json.loads(done.stdout.split("\n}\n")[0] + "\n}"), *answers]
    assert done.returncode == 0 and [a["prompt"] for a in answers] == ["the dog", "the mat"]
    assert "does not fit in the model's context of 96" in done.stderr and "Traceback" not in done.stderr
    alone = run(home, "chat", "r", "-n", "6", "-p", "the mat", "--seed", "1", "--json")  # a turn has its own seed
    assert json.loads(alone.stdout)["text"] == answers[1]["text"]  # what was said before is forgotten


def test_answers_keep_to_a_schema(home):
    (home / "schema.json").write_text(json.dumps(SCHEMA))
    done = run(home, "chat", "r", "-p", "age: ", "--schema", "schema.json", "-n", "40", "-t", "1.5")
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["chat", "r", "-p", "x", "-t", "-1"], "temperature must not be negative"),
        (["chat", "r", "-p", "x", "-n", "-2"], "max_new_tokens must not be negative"),
        (["chat", "r", "-p", "x", "--system", "be kind"], "no chat template"),
        (["chat", "r", "-p", "x", "--regex", "(a", "--temperature", "0"], "regular expression"),
        (["chat", "r", "-p", "x", "--schema", "impossible.json"], "cannot be met"),
        (["chat", "nowhere", "-p", "x"], "does not exist"),
        (["export", "r", "--to", "ggml"], "Did you mean gguf"),
        (["import", "nowhere"], "Give hf:FOLDER"),
        (["import", "hf:nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_done_is_told(home, words, cause):
    (home / "impossible.json").write_text('{"type": "integer", "minimum": 3, "maximum": 1}')
    done = run(home, *words)
    assert done.returncode != 0 and cause in done.stderr and "Traceback" not in done.stderr, done.stderr


@torch.no_grad()
def test_exports_say_the_same_and_come_back(home, evidence):
    pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    for to, out in (("hf", "folder"), ("onnx", "graph.onnx"), ("onnx-past", "past.onnx")):
        done = run(home, "export", "r", "--to", to, "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        parity = json.loads(done.stdout)["parity"]
        assert parity["tokens"] == 36
        evidence(id="AR-20", system="Export of a language model", claim=f"logits and greedy text, --to {to}",
                 reference=parity["reader"], reached=parity["gap"], tolerance=1e-4, unit="relative")  # fmt: skip
    assert run(home, "export", "r", "--to", "hf", "--out", "folder").stderr.count("exists already") == 1
    back = run(home, "import", "hf:folder", "--out", "again")
    assert back.returncode == 0, back.stderr
    ids = torch.randint(0, 256, (2, 20))
    ours, theirs = protea.load(home / "r").model, protea.load(home / "again").model
    assert torch.equal(ours.logits(ids), theirs.logits(ids))  # type: ignore[attr-defined]
    assert run(home, "chat", "again", "-p", "the", "-n", "5", "--json").returncode == 0
    direct = protea.from_pretrained(home / "folder")
    assert torch.equal(protea.generate(direct, ids, max_new_tokens=4), protea.generate(ours, ids, max_new_tokens=4))  # type: ignore[arg-type]


def test_gguf_opens_in_llama_cpp(home, evidence):
    pytest.importorskip("llama_cpp")
    done = run(home, "export", "r", "--to", "gguf", "--out", "m.gguf", "--json")
    assert done.returncode == 0, done.stderr
    parity = json.loads(done.stdout)["parity"]
    evidence(id="AR-20", system="Export of a language model", claim="logits and greedy text, --to gguf",
             reference="llama.cpp", reached=parity["gap"], tolerance=1e-4, unit="relative")  # fmt: skip


def test_a_wrong_export_is_not_kept(home, monkeypatch):
    """The check fails where the file says something else."""
    from dataclasses import replace

    from protea.errors import ParityError
    from protea.interop import export as forms

    pytest.importorskip("onnxruntime")

    def spoilt(path, model, dtype):  # a gain that is wrong while the graph is traced
        model.net.norm.g.data.mul_(1.1)
        forms.write_onnx(path, model)
        model.net.norm.g.data.div_(1.1)

    monkeypatch.setitem(forms.FORMS, "onnx", replace(forms.FORMS["onnx"], write=spoilt))
    with pytest.raises(ParityError, match="says something else"):
        forms.export(protea.load(home / "r").model, "onnx", home / "wrong.onnx")  # type: ignore[arg-type]
    assert not list(home.glob("*wrong*"))
