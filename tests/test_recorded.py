"""Recorded GPU runs are shown as written; what is missing or failed is said. All made up here."""

import io
import json
import re

import numpy as np
import pytest
import torch
from helpers import refuses

from ddpm_edu.datasets.painted import parse, prompts
from ddpm_edu.errors import DataError
from ddpm_edu.metrics.obedience import read
from ddpm_edu.paths import data_folder
from ddpm_edu.show import plot, recorded

DAY = {"date": "2026-11-28", "command": "made up", "run": "1"}
MADE_UP = {
    "device": "Made-up GPU",
    "tiny": False,
    "weights": "random",
    "torch": "9.9",
    "results": {
        "roof/matmul": {"seconds": 0.001, "tflops": 700.0, **DAY},
        "sdxl/fast": {"seconds": 0.84, "tflop": 416.0, "off": 0.031, **DAY},
        "sdxl/diffusers": {"seconds": 1.4, "diffusers": "0.42.1", **DAY},
        "sdxl/diffusers_compiled": {"failed": "stopped after 280 s", **DAY},
        "vae/fast": {"seconds": 0.0234, "tflop": 10.47, "off": 0.012, **DAY},
        "throughput/bf16_4": {"seconds": 2.4, "images_per_s": 1.67, **DAY},
        "throughput/bf16_8": {"seconds": 4.0, "images_per_s": 2.0, **DAY},
        "ladder/graphed": {"seconds": 0.03, "rung": 7, "tflop": 13.52, **DAY},
        "ladder/bf16": {"seconds": 0.1, "rung": 2, "tflop": 13.52, **DAY},
        "ladder/float32": {"seconds": 0.4, "rung": 0, **DAY},
        "ladder/compiled": {"seconds": 0.03, "rung": 6, "failed": "off by 0.9", **DAY},
        "profile/step": {
            "total_ms": 30.0,
            "kernels": [["nvjet_hsh_256x128", 15.0, 70.0], ["triton_red_fused_0", 3.0, 46.0]],
            **DAY,
        },
    },
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "gpu_sampling_made_up.json").write_text(json.dumps(MADE_UP))
    tiny = {**MADE_UP, "tiny": True, "device": "a CPU"}
    (tmp_path / "gpu_sampling_tiny.json").write_text(json.dumps(tiny))
    (tmp_path / "approximations.json").write_text("{}")
    return tmp_path


def lines(report):
    return {line.split("  ")[0].strip(): line for line in str(report).splitlines()}


def test_a_run_on_a_cpu_is_no_record(folder):
    assert [record["device"] for record in recorded.records(folder)] == ["Made-up GPU"]


def test_times_of_a_system_and_what_is_missing(folder):
    shown = lines(recorded.times("sdxl", "vae", "throughput", folder=folder))
    assert "0.84 s" in shown["sdxl/fast"] and "3.1e-02" in shown["sdxl/fast"]
    assert f"{416 / 0.84 / 700:.0%}" in shown["sdxl/fast"]
    assert "23.4 ms" in shown["vae/fast"] and "1.67" in shown["throughput/bf16_4"]
    assert "2.00" in shown["throughput/bf16_8"]  # beyond what a full run is expected to have
    assert "not recorded" in shown["sdxl/plain"] and "not recorded" in shown["throughput/fp8_4"]
    assert "failed: stopped after 280 s" in shown["sdxl/diffusers_compiled"]
    caption = str(recorded.times("sdxl", folder=folder)).splitlines()[-1]
    for word in ("Made-up GPU", "PyTorch 9.9", "diffusers 0.42.1", "random", "2026-11-28"):
        assert word in caption


def test_the_ladder_goes_from_float32_to_all_changes(folder):
    [record] = recorded.records(folder)
    assert recorded.rungs(record) == [
        ("float32", 400.0, None),
        ("bf16", 100.0, pytest.approx(13.52 / 0.1 / 700)),
        ("graphed", 30.0, pytest.approx(13.52 / 0.03 / 700)),
    ]
    [picture] = recorded.ladder(folder).parts
    assert "float32 400 ms, bf16 100 ms, graphed 30 ms" in picture.alt
    assert "Made-up GPU" in picture.caption


def test_the_profile_names_kernels(folder):
    shown = lines(recorded.profile(folder=folder))
    assert "15.00" in shown["nvjet_hsh_256x128"] and "50%" in shown["nvjet_hsh_256x128"]
    assert "profile/vae: not recorded" in str(recorded.profile("vae", folder=folder))


@pytest.mark.parametrize("report", [recorded.ladder, recorded.profile, recorded.times])
def test_without_a_record_that_is_said(report, tmp_path):
    for empty in (tmp_path, tmp_path / "nowhere"):
        shown = report(folder=empty)
        assert str(shown) == recorded.NOTHING
        assert "NO GPU RUN" in shown._repr_mimebundle_()["text/html"]


def test_texts_are_escaped(folder):
    table = plot.Table(["a"], [["void kernel<float>"]], "x < y")
    assert "kernel&lt;float&gt;" in table._repr_mimebundle_()["text/html"]


def test_the_tables_know_every_row_that_the_benchmark_has(monkeypatch):
    """A row that a full run measures must not be missing in the tables."""
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent / "benchmarks")
    from gpu import bench, rows

    keys = [row.key for row in rows.all_rows(bench.Bench(bench.Setting(), 0))]
    extra = {"throughput/bf16_8", "throughput/fp8_8"}  # shown once they are recorded
    for task, names in recorded.ROWS.items():
        known = {f"{task}/{name}" for name in names}
        assert {key for key in keys if key.startswith(task + "/")} - extra == known


def five_minutes(tmp_path, seconds=300):
    """Made up."""
    shares = dict(digit=0.91, ink=0.92, ground=0.93, main=0.9, all=0.894)
    result = dict(command="python made_up.py", date="2026-11-28", machine="m", torch="9.9")
    result |= dict(
        updates=dict(vae=7, unet=9),
        vae_psnr=30.44,
        vae_read=0.971,
        wall=299.6,
        cpu=517.2,
        busy=False,
    )
    result |= dict(seconds=seconds, seen=shares, held_out={**shares, "main": 0.887})
    file = tmp_path / "five.npz"
    np.savez(
        file,
        sheet=np.zeros((2, 8, 32, 32, 3), np.uint8),
        sheet_at=np.array(["1000 170", "end 300"]),
        sheet_prompts=np.array([f"prompt {k}" for k in range(8)]),
        loss_vae=np.ones(5),
        loss_unet=np.ones(5),
        result=json.dumps(result),
    )
    return file


def test_a_system_from_nothing(tmp_path):
    pages = recorded.from_nothing(five_minutes(tmp_path))._repr_mimebundle_()
    page = pages["text/html"]
    for text in (
        "made_up.py, 2026-11-28",
        "torch 9.9",
        "prompt 7",
        "30.4 dB",
        "read right",
        "after 300 s",
    ):
        assert text in page, text
    assert "90.0%" in pages["text/plain"] and "88.7%" in pages["text/plain"]
    assert page.count("<img") == 2


def test_a_plan_without_a_clock_is_told_in_cpu_seconds(tmp_path):
    pages = recorded.from_nothing(five_minutes(tmp_path, None))._repr_mimebundle_()
    assert "517 CPU seconds" in pages["text/html"] and "300 s" not in pages["text/html"]


def test_no_run_from_nothing_yet(tmp_path):
    text = str(recorded.from_nothing(tmp_path / "none.npz"))
    assert "NO FIVE-MINUTE RUN" in text and "--seconds 300" in text


def test_a_training_is_read_as_it_was_written(tmp_path):
    shots = [
        {"updates": u, "seconds": 60.0 * u, "ema": {"right": u / 10, "frechet": 9.0 - u}}
        for u in (0, 5)
    ]
    card = {"command": "made up", "device": "CPU", "date": "today", "versions": "1"}
    arrays = {"losses": np.arange(3.0), "ema": np.zeros((2, 40, 1, 28, 28), np.uint8)}
    np.savez(tmp_path / "x.npz", card=json.dumps(card | {"snapshots": shots}), **arrays)
    run = recorded.run("x", tmp_path)
    assert run.updates == [0, 5] and run.minutes == [0, 5] and set(run.pictures) == {"ema"}
    assert (run.pictures["ema"] == -1).all()
    assert run.scores() == [(0, 9), (0.5, 4)] and "made up" in run.source()
    with refuses(DataError, "y.npz", "benchmarks/training_runs.py y"):
        recorded.run("y", tmp_path)


def test_a_measurement_of_flows_is_read_as_it_was_written(tmp_path):
    card = {"command": "made up", "device": "CPU", "date": "today", "versions": "1", "rows": [1]}
    arrays = {"losses, v": np.ones(3), "pictures, v, none": np.zeros((4, 3, 8, 8), np.uint8)}
    np.savez(tmp_path / "flow_x.npz", card=json.dumps(card), **arrays)
    flow = recorded.flow("x", tmp_path)
    assert (
        flow.card["rows"] == [1]
        and "made up" in flow.source()
        and list(flow.arrays) == ["losses, v"]
    )
    assert (flow.pictures["v, none"] == -1).all()
    with refuses(DataError, "flow_y.npz", "benchmarks/flow.py y"):
        recorded.flow("y", tmp_path)


FLOWS = sorted(p.stem for p in (data_folder() / "recorded").glob("flow_*.npz"))


@pytest.mark.parametrize("name", FLOWS)
def test_the_flows_that_ship(name):
    flow = recorded.flow(name.removeprefix("flow_"))
    script = f"python benchmarks/flow.py {name.removeprefix('flow_')}"
    assert f"{flow.card['command']} ".startswith(f"{script} ")
    for field in ("device", "date", "versions", "rows", "n"):
        assert flow.card[field], field
    assert (data_folder() / "recorded" / f"{name}.npz").stat().st_size <= 60 * 1024
    for array in flow.arrays.values():
        assert np.isfinite(array).all()
    for pictures in flow.pictures.values():
        assert -1 <= pictures.min() < pictures.max() <= 1 and len(pictures) in (4, 8)


WITH_LOSSES = sorted((data_folder() / "recorded").glob("*.npz"))
WITH_LOSSES = {p.stem: str(np.load(p)["card"]) for p in WITH_LOSSES if "losses" in np.load(p)}
NAMES = [name for name, card in WITH_LOSSES.items() if "beyond.py" not in card]
BESIDE = sorted(WITH_LOSSES.keys() - set(NAMES))


@pytest.mark.parametrize("name", BESIDE)
def test_mistakes_beside_what_ships(name):
    found = recorded.beside(name)
    assert found.card["command"] == f"python benchmarks/beyond.py broken --run {name}"
    assert found.card["figures"] and found.card["train"]["steps"] and found.card["seconds"]
    assert np.isfinite(found.losses).all() and 0 < len(found.losses) <= 200
    for pictures in found.pictures.values():
        assert -1 <= pictures.min() < pictures.max() <= 1
    assert (data_folder() / "recorded" / f"{name}.npz").stat().st_size <= 60 * 1024


def test_what_was_never_recorded_is_named(tmp_path):
    with refuses(DataError, "few_ways.npz", "beyond.py broken --run few_ways"):
        recorded.beside("few_ways", tmp_path)
    with refuses(DataError, "few_steps.npz", "benchmarks/beyond.py few`"):
        recorded.beside("few_steps", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_trainings_that_ship(name):
    run, edits = recorded.run(name), name.startswith(("inpaint", "upscale"))
    script = f"editing.py recorded --run {name}" if edits else f"training_runs.py {name}"
    assert run.card["command"].endswith(script)
    assert np.isfinite(run.losses).all() and len(run.losses) <= 200
    for kind, pictures in run.pictures.items():
        assert -1 <= pictures.min() < pictures.max() <= 1
        assert len(pictures) == len([shot[kind] for shot in run.card["snapshots"]])
        assert edits or len(pictures) == len(run.scores(kind))


@pytest.mark.parametrize("what", ["pairs", "nights"])
def test_the_pairs_that_ship(what):
    craft = recorded.craft(what)
    assert f"benchmarks/sdxl_craft.py {what} --" in craft.card["command"] and craft.card["date"]
    assert len(craft.pictures) > 2 and craft.pictures.keys() <= craft.card.keys()
    for shots in craft.pictures.values():
        assert shots.shape == (8, 3, 32, 32) and -1 <= shots.min() < shots.max() <= 1


def test_pairs_of_trainings_are_read_as_written(tmp_path):
    with refuses(DataError, "sdxl_pairs.npz", "benchmarks/sdxl_craft.py pairs"):
        recorded.craft("pairs", tmp_path)
    card = {"command": "made up", "device": "CPU", "date": "today", "versions": "1"}
    shots = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    card |= {"sizes": {"seen": 1}}
    np.savez(tmp_path / "sdxl_pairs.npz", card=json.dumps(card), sizes=shots)
    craft = recorded.craft("pairs", tmp_path)
    assert craft.card["sizes"]["seen"] == 1 and craft.source() == "made up, CPU, today, 1"
    assert list(craft.pictures) == ["sizes"]
    assert craft.pictures["sizes"].ravel().tolist() == [-1, 1]


def test_the_linear_start_that_ships():
    start = recorded.linear_start()
    kinds = {"copies", "noisy", "drawn"}
    assert start.right.keys() == start.pictures.keys() == kinds
    assert {right.shape for right in start.right.values()} == {(500, 5)}
    wanted = [parse(text) for text in prompts(8, seed=1)]
    found = read(torch.from_numpy(start.pictures["drawn"]))
    again = np.array([[a == b for a, b in zip(*pair)] for pair in zip(wanted, found)])
    assert (again == start.right["drawn"][:8]).all()


def test_the_controlnets_that_ship():
    """The hint alone: not followed after 50 updates, followed after 100, if it was the right one."""
    runs = {name: recorded.control(name) for name in ("zeros", "random", "shuffled")}
    for name, run in runs.items():
        updates, alone = run.scores("f1_alone")
        at = dict(zip(updates, alone))
        assert at[0] < 0.25 and at[50] < 0.25
        assert (at[100] > 0.6) == (name != "shuffled") and (at[300] > 0.6) == (name != "shuffled")
        assert len(run.card["loss"]) == 300 and updates[-1] == 300
        assert run.pictures.shape == (len(run.card["kept"]), 8, 3, 32, 32)
        assert run.hints.shape == (4, 1, 32, 32) and set(np.unique(run.hints)) == {-1.0, 1.0}
    first = {name: np.mean(run.card["loss"][:10]) for name, run in runs.items()}
    assert first["random"] > 1.05 * first["zeros"]  # what the UNet knew is spoilt


def test_ways_to_teach_a_new_thing(tmp_path):
    """Pictures come back from the sheet in which they lie, six in a row with gaps."""
    from PIL import Image

    x = np.random.default_rng(0).integers(0, 256, (7, 3, 1, 1)) + np.zeros((7, 3, 64, 64))
    out = io.BytesIO()
    sheet = plot.tile(x / 127.5 - 1, 6)
    Image.fromarray(sheet).save(out, "WEBP", lossless=True)
    card = {"command": "python made_up.py", "device": "d", "date": "2026-11-29", "versions": "v"}
    ways = {"rank-4": {"figures": {"others": 0.8}}}
    kept = dict(singular=np.ones((2, 33)), sheet_a=np.frombuffer(out.getvalue(), np.uint8))
    np.savez(tmp_path / "zibs.npz", card=json.dumps(card | {"ways": ways}), **kept)
    with refuses(DataError, "zibs_scale.npz", "slider"):
        recorded.taught(tmp_path)
    np.savez(tmp_path / "zibs_scale.npz", card=json.dumps({"scales": [0, 1]}))
    taught = recorded.taught(tmp_path)
    assert taught.ways == ways and taught.card["scales"] == [0, 1]
    assert np.abs(taught.pictures("a")[:7] - (x / 127.5 - 1)).max() < 0.01
    assert len(taught.pictures("a")) == 12 and "made_up.py" in taught.source()
    with refuses(DataError, "sheet", "'b'"):
        taught.pictures("b")


def test_what_is_recorded_names_no_folder_of_one_machine():
    """A command is there to be typed again elsewhere."""
    for file in sorted((data_folder() / "recorded").glob("*.npz")):
        with np.load(file) as run:
            texts = " ".join(str(run[name]) for name in run.files if run[name].dtype.kind == "U")
        assert not re.search(r"/(home|root|work|tmp/\w+)/", texts), file
