"""The stages that a GPU runs: their results are kept and put into a table."""

import json

import pytest

from benchmarks import gpu


def test_the_table_holds_every_stage_that_was_run(
    tmp_path, capsys, monkeypatch
):
    stages = {
        "one": lambda args: iter([("fit", "5 images/s")]),
        "two": lambda args: iter([("cosine", "1.0 s"), ("fast", "2.0 s")]),
        "three": lambda args: pytest.fail("not asked for"),
    }
    monkeypatch.setattr(gpu, "STAGES", stages)
    for name in ("two", "one"):
        assert gpu.main(["--only", name, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "| stage | what | result |",
        "| --- | --- | --- |",
        "| one | fit | 5 images/s |",
        "| two | cosine | 1.0 s |",
        "| two | fast | 2.0 s |",
    ]


def test_a_stage_that_fails_keeps_the_earlier_result(
    tmp_path, capsys, monkeypatch
):
    def fail(args):
        gpu._benchmark("--rounds", "0")
        yield "never", "measured"

    monkeypatch.setattr(gpu, "STAGES", {"one": fail})
    (tmp_path / "one.json").write_text('[["fit", "5 images/s"]]')
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--output", str(tmp_path)])
    output, errors = capsys.readouterr()
    assert "| one | fit | 5 images/s |" in output
    assert "not finished: one (exit code 2); to continue: python -m" in errors
    (tmp_path / "one.json").write_text("{")
    assert gpu.main(["--output", str(tmp_path)]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_an_unknown_stage_is_refused(tmp_path, capsys):
    assert gpu.main(["--only", "quik", "--output", str(tmp_path / "new")]) == 2
    assert "unknown stage 'quik'" in capsys.readouterr().err
    assert gpu.main(["--only", ",", "--output", str(tmp_path / "new")]) == 2
    assert "--only names no stage" in capsys.readouterr().err
    absent = ["--data-dir", str(tmp_path / "absent")]
    assert gpu.main([*absent, "--output", str(tmp_path / "new")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_whole_path_on_a_cpu(tmp_path, capfd):
    assert gpu.main(["--smoke", "--output", str(tmp_path)]) == 0
    output = capfd.readouterr().out
    for name in gpu.STAGES:
        lines = json.loads((tmp_path / f"{name}.json").read_text())
        assert lines
        for what, result in lines:
            assert f"| {name} | {what} | {result} |" in output
            assert "failed" not in result
            assert "0 of 1" not in result
