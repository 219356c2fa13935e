"""Command-line overrides, and differences between configurations."""

import difflib
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fsseg_jax.config.checks import check, flatten
from fsseg_jax.config.presets import apply_preset
from fsseg_jax.errors import UserError


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """A copy of `config` with `--config.field=value` arguments applied.

    Raises:
        UserError: a field does not exist or a value is not of its type.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> config = override(load_config("panet_vgg16"), ["--config.train.steps=500"])
        >>> config.train.steps
        500
    """
    original = config
    arguments = joined(arguments)
    known = flatten(config).keys()
    for argument in arguments:
        name = argument.split("=")[0]
        field = name.removeprefix("--config.")
        if name.startswith("--config.") and field not in known:
            close = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean --config.{close[0]}?" if close else "see docs/config.md."
            raise UserError(f"{name}: there is no such config key; {hint}")
    changed = _parse(config, arguments)
    if any(argument.startswith("--config.eval.protocol=") for argument in arguments):
        # The protocol for the requested data set, and then the other overrides again.
        preset = ConfigDict(original.to_dict())
        preset.data.name, preset.data.tfds.name = changed.data.name, changed.data.tfds.name
        apply_preset(preset, changed.eval.protocol)
        changed = _parse(preset, arguments)
    for name, (old, new) in differences(original, changed).items():
        if name == "eval.scales" and {*map(type, new)} - {int, float}:
            raise UserError(f"eval.scales = {new}: it must be one or more positive numbers.")
        if name in ("model.stages", "eval.scales"):  # tuples of any length
            old = (0,) * len(new)
        if isinstance(old, tuple) and list(map(_kind, old)) != list(map(_kind, new)):
            raise UserError(f"--config.{name} = {new}: expected {len(old)} numbers, such as {old}.")
    # Explicit steps override the file's epochs, and vice versa.
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        before, after = original.train, changed.train
        if after[name] and after[name] != before[name] and after[other] == before[other]:
            after[other] = 0
    if changed.method != original.method:
        raise UserError(
            f"method = {changed.method}: the config file determines the method and its options; "
            "choose another file."
        )
    check(changed)
    return changed


def joined(arguments: Sequence[str]) -> list[str]:
    """Arguments as `--config.field=value`, each field once.

    `--config.field value` is joined. If a field is given twice the last value counts, where the
    library would append to a tuple.
    """
    joined: dict[str, str] = {}
    for argument in arguments:
        last = next(reversed(joined), "")
        if last.startswith("--config.") and joined[last] == last and not argument.startswith("--"):
            joined[last] = f"{last}={argument}"
        else:
            joined.pop(name := argument.split("=")[0], None)  # so that it comes last
            joined[name] = argument
    return list(joined.values())


def _parse(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """A copy of `config` with the values of the arguments, unchecked."""
    values = flags.FlagValues()
    command = ["fsseg_jax", *arguments]
    copy = ConfigDict(config.to_dict())
    holder = config_flags.DEFINE_config_dict("config", copy, flag_values=values, sys_argv=command)
    try:
        rest = values(command)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"{' '.join(str(error).split()).rstrip('.')}.") from None
    if rest[1:]:
        raise UserError(f"{rest[1]}: expected --config.field=value.")
    return holder.value


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, by dotted name, with both values."""
    before, after = flatten(old), flatten(new)
    return {
        name: (before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }


def _kind(value: Any) -> type:
    return float if isinstance(value, int) else type(value)
