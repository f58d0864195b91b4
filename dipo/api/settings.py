"""From the arguments of a call to a job's configuration, by the same presets and checks as on the command line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipo.config import Config, compose_config, to_plain
from dipo.config.presets import find_presets
from dipo.errors import UserError
from dipo.section import all_options, choose_option, from_plain

Preset = str | Mapping[str, Any] | None
"""The name of a preset, or options by name; None: the default."""
_ARGUMENTS = {
    "model.path": "model",
    "data.path": "data",
    "data.source": "data",
    "data.eval_path": "eval_data",
    "data.eval_source": "eval_data",
    "run.dir": "folder",
    "run.resume": "folder",
}
"""Options that are arguments of their own."""
_COMMAND_LINE = ("dry_run",)
_PRESETS_OF_OPTIONS = ("data",)
"""Groups of presets that are named among the options: `data`, how images are preprocessed."""


def compose(
    *,
    algo: Preset = None,
    calib: Preset = None,
    precision: Preset = None,
    target: str | None = None,
    cluster: Preset = None,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Return the configuration that the arguments make; options win over presets.

    Args:
        algo: Preset of `algo`, or its options.
        calib: Likewise.
        precision: Likewise.
        target: Name of the deploy target.
        cluster: Preset of `cluster`, or its options.
        seed: Of everything random.
        options: By the names of the command line, such as `algo.iters`; `data` may name a preset.

    Raises:
        UserError: A preset or an option is unknown, or has a value that it cannot have.
    """
    groups = {"algo": algo, "calib": calib, "precision": precision, "platform": target, "cluster": cluster}
    options = options_of(options)
    groups |= {group: choice for group, choice in options.items() if group in _PRESETS_OF_OPTIONS}
    given: dict[str, Any] = {} if seed is None else {"seed": seed}
    words = []
    for group, choice in groups.items():
        if isinstance(choice, Mapping):
            given |= {f"{group}.{name}": value for name, value in choice.items()}
        elif choice is not None:
            words.append(f"{group}={choice}")
    own = {key: value for key, value in options.items() if key not in _PRESETS_OF_OPTIONS}
    return with_options(compose_config(words), {**given, **own})


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """Return the configuration with other values of some options.

    Args:
        config: The configuration.
        options: By the names of the command line.

    Raises:
        UserError: One is unknown, or has a value that it cannot have.
    """
    known = {option.key: option for option in all_options(Config)}
    plain = to_plain(config)
    for key, value in options.items():
        if key in _ARGUMENTS:
            raise UserError(f"options: {key} is the argument {_ARGUMENTS[key]}, give it there")
        if key in _COMMAND_LINE:
            raise UserError(f"options: {key} is of the command line alone, leave it out")
        if key not in known:
            raise UserError(f"unknown option '{key}': {choose_option(Config, str(key), groups=list(find_presets([])))}")
        section, _, name = key.rpartition(".")
        (plain[section] if section else plain)[name] = _plain(value)
    return from_plain(Config, plain)


def options_of(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what was given as `options`.

    Raises:
        UserError: It is no mapping of names to values.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"options is {given!r}: give names with their values, as {{'algo.iters': 100}}")
    return dict(given)


def folder_of(given: str | os.PathLike[str], *, argument: str = "folder") -> Path:
    """Return a folder that files can be written to, and that is made where it is missing.

    Args:
        given: Its path.
        argument: What the user gave it as.

    Raises:
        UserError: It is no path, or cannot be made.
    """
    path = path_of(given, argument=argument)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}), choose another folder") from error
    return path


def path_of(given: object, *, argument: str = "folder") -> Path:
    """Return a path.

    Raises:
        UserError: It is none.
    """
    if not isinstance(given, str | os.PathLike):
        raise UserError(f"{argument} is {given!r}: give the path of a folder")
    return Path(given).expanduser()


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Give torch back the number of threads that it had."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _plain(value: Any) -> Any:
    """Tuples and sets as the lists that options are, NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple | set | frozenset) else value
