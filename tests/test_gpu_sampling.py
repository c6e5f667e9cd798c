"""benchmarks/gpu_sampling.py: every row answers, and whatever happens in one the others stand."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_sampling.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_sampling

    return gpu_sampling


def run(script, *args, cwd, **more):
    """A run of its own in a folder that is not the repository: (exit status, lines printed)."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "GPU_DEADLINE")} | more
    command = [sys.executable, str(script), "--tiny", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=250)
    return done.returncode, done.stdout.splitlines() + done.stderr.splitlines()[-20:]


def read(folder):
    return json.loads((folder / "gpu_sampling_tiny.json").read_text())


# ---------------------------------------------------------------- all of it


@pytest.mark.slow
def test_every_row_answers_at_tiny_size(tmp_path):
    out, copied = tmp_path / "out", tmp_path / "copied"
    status, lines = run(SCRIPT, "--budget", 200, "--out", out, "--copy", copied, cwd=tmp_path)
    assert status == 0, lines
    file = read(out)
    assert file == read(copied) and file["running"] is None
    assert file["tiny"] and file["weights"] == "random" and "CPU" in file["device"]
    results = file["results"]
    last = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    assert last["no_time"] == [] and last["failed"] == []
    for key, result in results.items():
        assert "failed" not in result, (key, result)
        assert result["date"] and "--tiny" in result["command"] and result["run"], key
        assert result.get("seconds", 1) > 0, key
    tasks = {key.split("/")[0] for key in results}
    assert tasks == {
        *("check", "roof", "parts", "attention", "upsample", "sdxl", "sd15", "vae"),
        *("ladder", "profile", "throughput", "train", "step"),
    }
    for key in ("sdxl/fast", "sdxl/graphed_only", "sd15/fast", "vae/fast", "ladder/graphed"):
        assert results[key]["off"] < 1e-4
    for key in ("sdxl/diffusers", "sdxl/diffusers_compiled", "sd15/diffusers"):
        assert results[key]["off_plain"] < 1e-4 and results[key]["diffusers"]
    assert "sdxl/diffusers_regional" not in results  # superfluous beside the compiled row
    assert 1e-6 < results["ladder/bf16"]["off"] < 0.1
    assert 1e-3 < results["throughput/fp8_4"]["off"] < 0.2
    seen = {line.removeprefix("PASS ").split(":")[0] for line in results["check/eager"]["lines"]}
    run_here = {"versions", "unets", "twins", "vaes", "systems", "training steps", "nan weights"}
    assert seen == run_here | {"eight bits"}  # the others need a GPU
    assert results["profile/step"]["kernels"][0][1] > 0
    assert (copied / "emoji_unet.safetensors").exists()


# ---------------------------------------------------------------- what can happen in a row

PLANTED = """
    import dataclasses, os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {benchmarks!r})
    import gpu_sampling as run
    from gpu.bench import judged
    from gpu.rows import Row

    run.GRACE, log = 1, Path("log.txt")
    run.TINY = dataclasses.replace(run.TINY, patience=1, hurry=0.1)

    def row(key, happens, need=1):
        def measure(bench):
            first = key not in (log.read_text() if log.exists() else "")
            with log.open("a") as file:
                print(key, file=file)
            return (happens() if first else None) or {{"seconds": 1.0}}
        return Row(key, need, measure)

    def raises():
        raise ValueError("planted")

    def kills():
        os.kill(os.getpid(), signal.SIGKILL)

    def deaf():
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        time.sleep(60)

    def dead():
        Path("dead").touch()
        raise RuntimeError("an illegal memory access was encountered")

    def context_is_dead():  # until there is a new process
        return Path("dead").exists()

    run.context_is_dead = context_is_dead
    rows = [
        row("a/good", lambda: None),
        row("b/raises", raises),
        row("c/hangs", lambda: time.sleep(60)),
        row("d/wrong", lambda: judged({{"seconds": 1.0, "off": float("nan")}}, 0.1)),
        row("e/deaf", deaf),
        row("f/dead", dead),
        row("g/long", lambda: None, need=1e6),
        row("h/good", lambda: None),
        row("i/kills", kills),
        row("j/good", lambda: None),
    ]
    if __name__ == "__main__":
        Path("dead").unlink(missing_ok=True)
        run.main(lambda bench: rows)
"""


@pytest.mark.slow
def test_whatever_happens_in_one_row_the_others_stand(tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(textwrap.dedent(PLANTED.format(benchmarks=str(BENCHMARKS))))
    status, lines = run(driver, "--budget", 100, "--out", tmp_path, cwd=tmp_path)
    assert status == -9, lines  # kill -9, in the ninth row
    file = read(tmp_path)
    results, good = file["results"], {"a/good", "h/good"}
    why = {key: r["failed"] for key, r in results.items() if "failed" in r}
    assert results.keys() == {*good, "b/raises", "c/hangs", "d/wrong", "e/deaf", "f/dead"}
    assert file["running"][0] == "i/kills"
    assert why.keys() == results.keys() - good
    assert "planted" in why["b/raises"] and "raises" in results["b/raises"]["trace"]
    assert "stopped after" in why["c/hangs"] and "limit" in why["d/wrong"]
    assert "ended inside" in why["e/deaf"] and "illegal" in why["f/dead"]
    assert len({result["run"] for result in results.values()}) == 1  # one deadline
    tried = (tmp_path / "log.txt").read_text().split()
    assert len(tried) == len(set(tried)) == 8  # started again twice, and nothing was done twice
    tried.remove("i/kills")

    one = next(iter(results.values()))["run"]  # as benchmarks/gpu.md types it: the same deadline
    status, lines = run(driver, "--out", tmp_path, cwd=tmp_path, GPU_DEADLINE=one)
    assert status == 0, lines
    assert any("no time for: g/long" in line for line in lines)
    results = read(tmp_path)["results"]
    assert "ended inside" in results["i/kills"]["failed"] and results["j/good"]["seconds"] == 1.0
    assert (tmp_path / "log.txt").read_text().split() == [*tried, "i/kills", "j/good"]

    status, lines = run(driver, "--budget", 100, "--out", tmp_path, cwd=tmp_path)
    assert status == 0, lines  # another deadline: what had failed is tried once more
    again = (tmp_path / "log.txt").read_text().split()[len(tried) + 2 :]
    assert again == [*why, "i/kills"]
    results = read(tmp_path)["results"]
    assert all(result["seconds"] == 1.0 for result in results.values()) and len(results) == 9


def test_another_machines_file_stays_as_it_is(script, tmp_path):
    here = {"device": "NVIDIA H100 80GB HBM3", "tiny": False, "torch": "2.11.0"}
    record = script.Record([tmp_path], here, "1")
    record.start("roof/copy")
    record.put("roof/copy", {"seconds": 1.0})
    assert record.name == "gpu_sampling_h100_80gb_hbm3.json"
    first = (tmp_path / record.name).read_text()
    same = script.Record([tmp_path], here, "2")
    assert same.name == record.name and same.results["roof/copy"]["seconds"] == 1.0
    other = script.Record([tmp_path], here | {"torch": "2.14.1"}, "3")
    other.put("roof/copy", {"seconds": 2.0})
    assert other.name == "gpu_sampling_h100_80gb_hbm3_2.json"
    (tmp_path / "gpu_sampling_h100_80gb_hbm3_3.json").write_text("{ half a file")
    third = script.Record([tmp_path], here | {"torch": "9"}, "4")
    assert third.name == "gpu_sampling_h100_80gb_hbm3_4.json"
    assert (tmp_path / record.name).read_text() == first


@pytest.mark.parametrize("share, late", [(1.0, {"throughput/fp8_4"}), (0.8, set())])
def test_two_short_calls_measure_the_goals(script, share, late):
    """325 s twice, 30 and 15 s gone before the first row, where rows take `share` of their need."""
    from gpu.rows import all_rows

    done = set()
    for left in (295, 310):
        bench = script.Bench(script.Setting(), 0)
        for row in all_rows(bench):
            need = row.seconds(bench)
            if row.key not in done and row.unless not in done and need <= left:
                left -= share * need
                bench.compiled |= set(row.compiles)
                done.add(row.key)
    goals = {
        *("check/eager", "check/compiled", "roof/matmul", "parts/step", "profile/step"),
        *("sdxl/plain", "sdxl/fast", "sdxl/diffusers", "sdxl/diffusers_compiled", "sd15/fast"),
        *("vae/fast", "throughput/bf16_4", "throughput/fp8_4", "ladder/graphed", "ladder/float32"),
    }
    assert goals - done == late


def test_without_diffusers_its_rows_say_so(script, monkeypatch):
    from gpu import rivals, rows

    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None)
    bench = script.Bench(script.TINY, 0)
    for result in (rows.rival(bench, "sdxl"), rows.their_decoding(bench)):
        assert "not installed" in result["failed"] and "gpu.md" in result["failed"]


# ---------------------------------------------------------------- what it measures with


def test_parts_are_the_networks(script):
    """A tiny UNet's census: a product a linear layer and so on, two attentions a block."""
    from gpu import parts

    bench = script.Bench(script.TINY, 0)
    kinds = {}
    for (function, *_), times in parts.census(bench, "sdxl").items():
        kind = parts.OPERATIONS[function]
        kinds[kind] = kinds.get(kind, 0) + times
    modules = [type(m).__name__ for m in bench.network("unet", "sdxl").modules()]
    count, blocks = modules.count, modules.count("TransformerBlock")
    assert kinds["product"] == count("Linear") - 4 * blocks  # one for Q, K, V; the text's are kept
    assert kinds["convolution"] == count("Conv2d") - count("Upsample")
    assert kinds["transposed convolution"] == count("Upsample") and "upsample" not in kinds
    assert kinds["GroupNorm"] == count("GroupNorm") and kinds["attention"] == 2 * blocks


@pytest.mark.slow
def test_operations_are_counted_right(script):
    from gpu.bench import FLOPS, SD15, SDXL, count

    assert {"sdxl": count(SDXL), "sd15": count(SD15)} == FLOPS


def test_the_limit_is_never_below_what_rounding_does(script, monkeypatch):
    bench = script.Bench(script.TINY, 0)
    for plain, kind, limit in ((0, None, 1e-4), (0.03, None, 0.045), (0.03, "fp8", 0.24)):
        monkeypatch.setattr(bench, "plain_error", lambda *_, plain=plain: plain)
        assert bench.limit("unet", "sdxl", kind) == pytest.approx(limit)
    from gpu.bench import judged

    assert "failed" in judged({"off": 0.05}, 0.045) and "failed" not in judged({"off": 0.04}, 0.045)
