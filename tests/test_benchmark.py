"""The benchmark runs and writes what it says; its times are not asserted."""

import json

from keras_resnet_cifar import benchmark, cli


def test_it_measures_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "import_seconds", lambda: 0.0)
    options = ["--arch", "resnet8", "--batch-size", "16", "--precision"]
    options += ["float32", "--steps", "2", "--rounds", "2"]
    output = tmp_path / "benchmark.json"
    assert cli.main(["benchmark", *options, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert len(found["fit"]) == len(found["bare_step"]) == 2
    assert found["ratio"]["least"] <= found["ratio"]["median"]
    assert found["peak_memory_mib"] > 100
    assert f"{found['ratio']['median']:.3f}" in capsys.readouterr().out
