"""How the devices of a machine are dealt to programs."""

import pytest

from fsseg_jax.errors import UserError
from fsseg_jax.reproduction.machine import Machine, share

GIB = 2**30
CPU, GPU = Machine("cpu", "cpu", 1, 16 * GIB), Machine("gpu", "H100", 1, 80 * GIB)


def test_several_gpus_are_dealt(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    four = GPU._replace(count=4)

    def dealt(machine, *arguments):
        slots, own = share(machine, *arguments)
        fractions = {slot.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for slot in slots}
        assert fractions == ({None} if own.memory == machine.memory else {"0.45"})
        return [slot["CUDA_VISIBLE_DEVICES"] for slot in slots], own.count, own.memory // GIB

    assert dealt(four, None) == (["0", "1", "2", "3"], 1, 80)
    assert dealt(four, 2) == (["0,1", "2,3"], 2, 80)
    assert dealt(four, None, 2) == (["0,1", "2,3"], 2, 80)
    assert dealt(four, 6) == (["0", "1", "2", "3", "0", "1"], 1, 40)
    assert dealt(GPU, None) == (["0"], 1, 80)
    assert dealt(GPU, 2) == (["0", "0"], 1, 40)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert dealt(GPU._replace(count=2), None) == (["5", "7"], 1, 80)
    assert share(CPU, 3) == ([{}] * 3, CPU._replace(memory=CPU.memory // 3))
    with pytest.raises(UserError, match="devices = 4: there are 2; choose at most as many"):
        share(GPU._replace(count=2), None, 4)
