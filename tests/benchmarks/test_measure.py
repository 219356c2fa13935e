"""Time by turns, published and measured peaks, memory, and XLA's count of work."""

import types

import jax
import jax.numpy as jnp
import pytest

from fsseg_jax.benchmarks import measure


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_functions_are_called_by_turns_and_warm_up_is_not_counted():
    calls = []
    functions = [lambda: calls.append("a"), lambda: calls.append("b")]
    seconds = measure.by_turns(functions, repeats=3, warm_up=2)
    assert seconds.shape == (3, 2)
    assert (seconds > 0).all()
    assert "".join(calls) == "ab" * 5


def fake_device(kind, platform="gpu"):
    return types.SimpleNamespace(device_kind=kind, platform=platform)


@pytest.mark.parametrize("kind", ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "TPU v5 lite"])
def test_published_devices_have_plausible_peaks(monkeypatch, kind):
    monkeypatch.setattr(measure, "peaks", measure.peaks.__wrapped__)  # a fake has no hash
    peak = measure.peaks(fake_device(kind))
    assert peak.source == "published, dense"
    assert 1e14 < peak.of("float32") <= peak.of("bfloat16") < 1e15
    assert 5e11 < peak.bandwidth < 1e13


def test_a_device_without_bfloat16_multiplies_it_as_float32():
    peak = measure.peaks.__wrapped__(fake_device("Tesla T4"))
    assert peak.of("bfloat16") == peak.of("float32") == 8.1e12


def test_a_cpu_and_unknown_devices_are_measured(monkeypatch):
    monkeypatch.setattr(measure, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measure, "COPY", {"cpu": 2**20})
    peak = measure.peaks.__wrapped__(jax.devices("cpu")[0], "bfloat16")
    assert set(peak.flops) == {"float32", "bfloat16"}
    assert min(*peak.flops.values(), peak.bandwidth) > 0
    assert peak.source == "measured: a product of 64 x 64, a copy of 1 MiB"


def test_a_part_of_a_device_is_not_taken_for_all_of_it():
    patterns = [pattern for pattern, *_ in measure._PUBLISHED]
    assert not any(measure.re.fullmatch(p, "NVIDIA H200 MIG 1g.18gb") for p in patterns)


def test_memory_of_a_program_is_arguments_results_and_what_is_between():
    array = jnp.ones((256, 256))
    compiled = jax.jit(lambda x: (x @ x) @ x).lower(array).compile()
    between = compiled.memory_analysis().temp_size_in_bytes
    assert between >= array.nbytes
    assert measure.memory(compiled) == 2 * array.nbytes + between
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(array).compile()
    between = donated.memory_analysis().temp_size_in_bytes
    assert measure.memory(donated) == array.nbytes + between


def test_peak_memory_holds_what_has_been_allocated():
    peak, where = measure.peak_memory(jax.devices("cpu")[0])
    assert where == "of the process"
    assert 2**26 < peak < 2**40  # bytes: more than Python alone, less than a machine has


def test_work_is_of_all_operations():
    found = measure.work(lambda x, y: (x @ y) + 1, shape(8, 16), shape(16, 32))
    assert found.flops == 2 * 8 * 16 * 32 + 8 * 32
    assert found.bytes >= 4 * (8 * 16 + 16 * 32 + 8 * 32)


def test_work_counts_the_body_of_a_loop_once():
    product = measure.work(lambda x: x @ x, shape(16, 16)).flops
    looped = measure.work(
        lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=50), shape(16, 16)
    )
    assert product <= looped.flops < 2 * product


def test_work_does_not_depend_on_where_the_arguments_are():
    array = jax.device_put(jnp.ones((4, 4)), jax.devices()[-1])
    assert measure.work(lambda x: x @ x, array) == measure.work(lambda x: x @ x, shape(4, 4))
