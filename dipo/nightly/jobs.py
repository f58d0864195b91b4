"""The jobs file: the jobs of a night, checked before any starts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dipo.config import Config as JobConfig
from dipo.config import compose_config
from dipo.config.presets import own_folders
from dipo.errors import UserError
from dipo.nightly.settings import ClusterConfig, Config, GateConfig, overlay
from dipo.section import choose, from_plain, show

TOP_KEYS = ("jobs", "matrix", "defaults", "gate", "parallel", "cluster")
JOB_KEYS = ("name", "options", "gate")
MATRIX_KEYS = ("models", "algos", "platforms")
OWN_FILES = (".log", ".json", ".xml", ".html")
"""Endings of the files that a night writes beside its jobs' folders."""


@dataclass(frozen=True)
class NightJob:
    """One job of a night."""

    name: str
    options: tuple[str, ...]
    """In the words of `python -m dipo.launch`."""
    config: JobConfig
    """The configuration that the options make."""
    gate: GateConfig

    @property
    def model(self) -> str:
        """The network's name, as in the job's report."""
        return self.config.model.title

    @property
    def precision(self) -> str:
        """Widths of weights and activations, such as w4a8."""
        return self.config.precision.title


@dataclass(frozen=True)
class Listed:
    """A jobs file, with the command line's options applied."""

    jobs: tuple[NightJob, ...]
    parallel: int | None
    cluster: ClusterConfig


def read_jobs(path: Path, given: Mapping[str, Any]) -> Listed:
    """Read and check a jobs file.

    Args:
        path: YAML.
        given: The command line's values, which win over those of the file and of its jobs.

    Raises:
        UserError: The file, a job or one of its options is wrong.
    """
    content = _load(path)
    _refuse_unknown(str(path), content, TOP_KEYS)
    try:
        entries = [*_jobs(content.get("jobs")), *_matrix(content.get("matrix"))]
        defaults = _words("defaults", content.get("defaults", []))
        gate = _mapping("gate", content.get("gate"))
        shared: dict[str, Any] = {key: content[key] for key in ("parallel", "cluster") if key in content}
        settings = from_plain(Config, overlay(shared, {"gate": gate}, given))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not entries:
        raise UserError(f"{path}: no jobs, list them under jobs: or under matrix:")
    _check_names(path, [entry.name for entry in entries])
    own = own_folders(None)
    jobs = tuple(_checked(entry, defaults, (gate, given.get("gate", {})), own) for entry in entries)
    return Listed(jobs, settings.parallel, settings.cluster)


@dataclass(frozen=True)
class _Entry:
    name: str
    options: list[str]
    gate: dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"jobs={path}: cannot be read ({error.strerror}), give a YAML file that lists jobs") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or "not text"
        raise UserError(f"jobs={path}{line}: not valid YAML ({reason}), correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"jobs={path}: no mapping, give a YAML file with the keys {', '.join(TOP_KEYS)}")
    return content


def _refuse_unknown(where: str, content: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}': {choose(str(key), known)}")


def _mapping(where: str, content: Any) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{where}: {show(content)} is no mapping, give name: value pairs")
    return content


def _words(where: str, content: Any) -> list[str]:
    words = [] if content is None else content
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{where}: {show(words)} is no list of options, give one such as [+algo=qdrop, precision=w4a4]")
    return words


def _jobs(content: Any) -> Iterator[_Entry]:
    if not isinstance(content, list | None):
        raise UserError("jobs: no list, give entries with name and options")
    for number, entry in enumerate(content or [], 1):
        where = f"job {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UserError(f"{where}: no name, give it one that is a text")
        where = f"job '{entry['name']}'"
        _refuse_unknown(where, entry, JOB_KEYS)
        options = _words(f"{where}: options", entry.get("options"))
        yield _Entry(entry["name"], options, _mapping(f"{where}: gate", entry.get("gate")))


def _matrix(content: Any) -> Iterator[_Entry]:
    """Return the jobs of every model with every algorithm for every platform."""
    axes = _mapping("matrix", content)
    _refuse_unknown("matrix", axes, MATRIX_KEYS)
    if axes and not axes.get("models"):
        raise UserError("matrix: no models, give name: [options] pairs under models:")
    groups = {"models": "model", "algos": "algo", "platforms": "platform"}
    choices = [_axis(axis, groups[axis], axes[axis]) for axis in MATRIX_KEYS if axes.get(axis)]
    for cell in itertools.product(*choices) if choices else ():
        yield _Entry("-".join(name for name, _ in cell), [word for _, words in cell for word in words], {})


def _axis(axis: str, group: str, content: Any) -> list[tuple[str, list[str]]]:
    """Return the names on one axis of the matrix, with the options of each."""
    if isinstance(content, dict):
        return [(str(name), _words(f"matrix: {axis}: {name}", words)) for name, words in content.items()]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise UserError(f"matrix: {axis}: {show(content)}: give a list of names, or name: [options] pairs")
    return [(name, [f"{group}={name}"]) for name in content]


def _check_names(path: Path, names: list[str]) -> None:
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) or name.endswith(OWN_FILES):
            raise UserError(
                f"{path}: job '{name}' cannot be a folder's name, take letters, digits, dots, _ and - "
                f"and another ending than {', '.join(OWN_FILES)}"
            )
        if names.count(name) > 1:
            raise UserError(f"{path}: two jobs are named '{name}', give each a name of its own")


def _checked(entry: _Entry, defaults: list[str], gates: tuple[Any, Any], own: list[Path]) -> NightJob:
    """Return the job after checking its options and its gate."""
    words = (*defaults, *entry.options)
    try:
        config = compose_config(words, own)
        gate = from_plain(GateConfig, overlay(gates[0], entry.gate, gates[1]))
        _refuse_own(config)
    except UserError as error:
        raise UserError(f"job '{entry.name}': {error}") from error
    return NightJob(entry.name, words, config, gate)


def _refuse_own(config: JobConfig) -> None:
    """Refuse a job that sets an option which the night itself sets."""
    if config.model.path is None:
        raise UserError("no model: give +model=<name> or model.path=<file.onnx>")
    if not config.data.is_given and config.needs_samples:
        raise UserError("no samples: give data.path=<file or folder of samples>")
    if config.run.dir is not None or config.run.resume is not None:
        raise UserError("run.dir, run.resume: the night chooses the folders of its jobs, leave them out")
    if config.cluster.address is not None:
        raise UserError(
            "cluster.address: all jobs share the night's Ray, set it at the top of the file or leave it out"
        )
    if config.dry_run:
        raise UserError("dry_run: a night runs its jobs, leave the option out")
