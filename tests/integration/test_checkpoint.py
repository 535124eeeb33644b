"""Files are written whole or not at all; damage is seen, named, and survived where there is an older checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from protea.errors import CheckpointError
from protea.training import files
from protea.training.checkpoint import VERSION, Keeper, load_weights, read_tensors, weights, write_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False]), "none": torch.empty(0, 3)}


def test_round_trip_is_exact_and_repeatable(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for path in (one, two):
        write_tensors(path, TENSORS, {"step": 3, "lr": 0.1})
    tensors, values = read_tensors(one)
    assert values == {"step": 3, "lr": 0.1}
    assert all(torch.equal(tensors[k], TENSORS[k]) and tensors[k].dtype == TENSORS[k].dtype for k in TENSORS)
    assert one.read_bytes() == two.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": TENSORS["a"], "same": TENSORS["a"]}, {})
    assert torch.equal(read_tensors(tmp_path / "t.safetensors")[0]["same"], TENSORS["a"])


@pytest.mark.parametrize("where", [0.02, 0.5, 0.999])
def test_truncation_is_seen(tmp_path: Path, where: float) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS, {})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(where * len(raw))])
    with pytest.raises(CheckpointError, match="truncated"):
        read_tensors(path)


def test_every_flipped_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS, {"step": 3})
    raw = path.read_bytes()
    for at in range(8, len(raw), 7):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        try:
            tensors, values = read_tensors(path)
        except CheckpointError:
            continue
        assert values == {"step": 3} and set(tensors) == set(TENSORS), f"byte {at} changed what was read"
        assert all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS), f"byte {at} changed what was read"


def test_foreign_newer_and_pickled_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(CheckpointError, match="not written by Protea"):
        read_tensors(path)
    save_file(TENSORS, path, metadata={"protea": json.dumps({"version": VERSION + 1, "sha256": "", "values": "{}"})})
    with pytest.raises(CheckpointError, match="Upgrade"):
        read_tensors(path)
    path.write_bytes(b"\x80\x04\x95cposix\nsystem\n.")  # a pickle
    with pytest.raises(CheckpointError, match="no safetensors"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_tensors(tmp_path / "absent.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"old": 1})

    def full(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        files.write(path, full)
    assert files.read_json(path) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        files.write_json(tmp_path / "file" / "x.json", {})
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_tensors(tmp_path / "file" / "x.safetensors", TENSORS, {})


def test_a_damaged_newest_falls_back_with_a_warning(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    assert keeper.newest() is None
    for step in (10, 20, 30):
        keeper.save(step, TENSORS, {"step": step})
    names = sorted(p.name for p in (tmp_path / "checkpoint").iterdir())
    assert names == ["step-00000020.safetensors", "step-00000030.safetensors"]
    newest = tmp_path / "checkpoint" / names[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="Falling back"):
        _, values = keeper.newest()
    assert values["step"] == 20
    (tmp_path / "checkpoint" / names[0]).write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="Every checkpoint"):
        keeper.newest()


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / f".step-00000001.safetensors.123{files.PARTIAL}").write_bytes(b"half")
    assert Keeper(tmp_path).newest() is None
    assert not list((tmp_path / "checkpoint").iterdir())


class Sized(nn.Module):
    def __init__(self, knots: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("knots", torch.zeros(knots))
        self.register_buffer("found", None)


def test_buffers_take_the_shape_of_the_file_and_parameters_do_not() -> None:
    fitted, fresh = Sized(7), Sized()
    fitted.found = torch.ones(3)
    load_weights(fresh, weights(fitted))
    assert torch.equal(fresh.found, fitted.found) and torch.equal(fresh.layer.weight, fitted.layer.weight)
    with pytest.raises(CheckpointError, match=r"layer.weight has shape \(3, 2\)"):
        load_weights(fresh, weights(fitted) | {"layer.weight": torch.zeros(3, 2)})
    with pytest.raises(CheckpointError, match="unknown: "):
        load_weights(fresh, weights(fitted) | {"layer.wieght": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="missing: "):
        load_weights(fresh, {"knots": torch.zeros(7)})
