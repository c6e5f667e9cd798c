"""benchmarks/gpu_sampling.py from end to end at tiny size: every task gives results, and ours agree with diffusers."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu_sampling.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("gpu_sampling", SCRIPT)
    module = sys.modules["gpu_sampling"] = importlib.util.module_from_spec(
        spec
    )  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_all_of_it_at_tiny_size(script, tmp_path, capsys):
    out = tmp_path / "results.json"
    script.main(["--tiny", "--out", str(out)])
    file = json.loads(out.read_text())
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        said["results"] == file["results"]
        and file["tiny"]
        and file["weights"] == "random"
        and "CPU" in file["device"]
    )
    results = file["results"]
    assert {key.split("/")[0] for key in results} == set(script.TASKS)
    for key, result in results.items():
        assert result["seconds"] > 0 and result["date"] and "--tiny" in result["command"], key
    for system in ("sdxl", "sd15"):
        assert {
            f"{system}/{way}" for way in ("plain", "fast", "diffusers", "diffusers_compiled")
        } <= results.keys()
        for way in ("fast", "diffusers", "diffusers_compiled"):
            assert results[f"{system}/{way}"]["off_plain_after_3_steps"] < 1e-4
    assert results["vae/fast"]["off_plain"] < 1e-5 and results["vae/diffusers"]["off_plain"] < 1e-5
    assert [key for key in results if key.startswith("ladder/")] == [
        f"ladder/{rung}" for rung in ("float32", "tf32", "bf16", *script.CHANGES)
    ]
    assert (
        results["ladder/float32"]["off_float32"]
        < 1e-6
        < results["ladder/bf16"]["off_float32"]
        < 0.1
    )
    assert 1e-3 < results["throughput/fp8_1"]["off_plain_one_call"] < 0.2


@pytest.mark.slow
def test_what_is_there_is_kept(script, tmp_path, capsys):
    out = tmp_path / "results.json"
    for only, keys in (
        ("roof/matmul", {"roof/matmul"}),
        ("roof/copy,roof/matmul", {"roof/matmul", "roof/copy"}),
    ):
        script.main(["--tiny", "--only", only, "--out", str(out)])
        assert json.loads(out.read_text())["results"].keys() == keys
    assert (
        sum(line.startswith("roof/matmul ") for line in capsys.readouterr().out.splitlines()) == 1
    )
    out.write_text(out.read_text().replace('"torch": "', '"torch": "0.'))
    with pytest.raises(SystemExit):
        script.main(["--tiny", "--only", "roof/copy", "--out", str(out)])
    assert "another machine" in capsys.readouterr().err
