"""What a GPU would run is counted from XLA's own account of it."""

import importlib.util
import re
import subprocess
import sys

import pytest

from benchmarks.count_gpu_program import (
    count_bytes,
    count_kernels,
    count_launches,
    main,
)

BEFORE = """\
000: kCopy         [source | sink] kCopy
001: kWhile        [prev=000 (1) | next=009 (1)]
condition:
    002: kCustomKernel [source | sink] loop_compare_fusion
  body:
    003: kConvolution  [source | next=004] kConvolution
    004: kWhile        [prev=003]
condition:
        005: kCustomKernel [source | sink] loop_compare_fusion
      body:
        006: kCustomKernel [source | sink] loop_add_fusion
    007: kCustomKernel [prev=004] loop_multiply_fusion
    008: kCustomKernel [prev=007] loop_multiply_fusion
009: kCopy         [prev=001] kCopy
"""
AFTER = """\
000: kWhile        [source | sink]
condition:
    001: kCustomKernel [source | sink] loop_compare_fusion
  body:
    002: kConvolution  [source | next=003] kConvolution
    000: kCommandBuffer [prev=002]
        003: kCustomKernel [source | sink] loop_multiply_fusion
        004: kCustomKernel [source | sink] loop_multiply_fusion
"""
HLO = """\
%fused (p: bf16[8]) -> bf16[8] {
  ROOT %copy.9 = bf16[8]{0} copy(%p)
}

%body (state: (s32[], u8[50,3])) -> (s32[], u8[50,3]) {
  %images = u8[50,3]{1,0} get-tuple-element(%state), index=1
  %picked = s32[4]{0} iota(), iota_dimension=0
  %batch = (f32[4,3]{1,0}, pred[]) fusion(%images, %picked), kind=kLoop
  ROOT %copy.1 = bf16[2]{0} copy(%picked), metadata={}
}

ENTRY %main (state: (s32[], u8[50,3])) -> (s32[], u8[50,3]) {
  ROOT %while = (s32[], u8[50,3]) while(%state), condition=%c, body=%body
}
"""


def test_thunks_of_the_steps_are_counted():
    assert count_kernels(BEFORE) == {
        "kernels and library calls": 5,
        "loops of unknown length": 1,
    }
    assert count_launches(AFTER) == 2


def test_bytes_of_the_steps_are_counted():
    read, written = 4 * 4 + 4 * 4, 4 * 12 + 1 + 2 * 2
    assert count_bytes(HLO, "u8[50,") == read + written
    # JAX 0.11 names an element of a tuple so.
    element = HLO.replace("copy(%picked)", "copy(%batch#1)")
    assert count_bytes(element, "u8[50,") == 4 * 4 + 1 + written


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "nope"], "unknown recipe"),
        (["--arch", "nope"], "unknown arch"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--precision", "f16"], "precision"),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments, text, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda12_plugin"),
    reason="needs the wheels of CUDA's compiler, 180 MB",
)
def test_a_step_does_not_grow():
    command = [sys.executable, "-m", "benchmarks.count_gpu_program"]
    output = subprocess.run(command, capture_output=True, check=True, text=True)
    launches, kernels, loops, megabytes = map(
        int, re.findall(r"^ *(\d+)  ", output.stdout, re.M)
    )
    assert launches <= 1
    assert kernels <= 306
    assert loops == 0
    assert megabytes <= 858
