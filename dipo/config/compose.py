"""Presets and overrides in, a checked `Config` out.

The only file that knows Hydra, which is imported when something is composed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dipo.config.job import ClusterConfig, Config, to_plain
from dipo.config.presets import PRIMARY, defaults, find_presets, packaged_folder, refuse_shadowing
from dipo.errors import UserError
from dipo.export.targets import TARGETS
from dipo.section import all_options, choose, choose_option, from_plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

_HYDRA = threading.Lock()
"""Hydra keeps what it does in globals, one at a time."""


def compose_config(overrides: Sequence[str], own: Sequence[Path] = ()) -> Config:
    """Compose the configuration of the presets and the overrides; overrides of options win over presets.

    With `run.resume` the configuration of that run takes the place of the presets' defaults.

    Args:
        overrides: `group=choice` and `option=value`, each with any number of leading `+` up to two.
        own: The user's folders of presets.

    Raises:
        UserError: An override or a preset is wrong.
    """
    resumed = _resumed(overrides)
    if resumed is None:
        return from_plain(Config, _compose([_translate(override, own) for override in overrides], own))
    from dipo.run import RunFolder

    stored = RunFolder.stored_config(resumed, whole=to_plain(Config()))
    from_plain(Config, stored)
    with tempfile.TemporaryDirectory() as folder:
        # The run's options stand for the presets that it was begun with; others may be named on top of them.
        groups = [entry if isinstance(entry, str) else dict.fromkeys(entry) for entry in defaults()]
        primary = {"defaults": groups, **_to_go_on_with(stored, overrides)}
        (Path(folder) / f"{PRIMARY}.yaml").write_text(yaml.safe_dump(primary), encoding="utf-8")
        words = [_translate(override, own) for override in overrides]
        return from_plain(Config, _compose(words, [*own, packaged_folder().resolve()], primary=Path(folder)))


def to_yaml(config: Config) -> str:
    """Return the whole configuration as YAML, as `--cfg` prints it."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def _resumed(overrides: Sequence[str]) -> Path | None:
    """Return the folder of `run.resume`; None where it is not given."""
    values = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("run.resume=")]
    if not values or values[-1] in {"", "null"}:
        return None
    return Path(values[-1].strip("'\"")).expanduser()


def _to_go_on_with(stored: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a run's configuration without the options of the process that began it.

    These are its folder and, where other workers go on (`cluster=inline` instead of Ray, say), the options of the
    workers that results do not depend on.
    """
    run = {key: value for key, value in stored["run"].items() if key not in {"dir", "resume"}}
    cluster = stored["cluster"]
    if any(re.match(r"\+{0,2}cluster=", word) for word in overrides):
        kept = set(ClusterConfig.DECISIVE)
        own = dataclasses.asdict(ClusterConfig())
        cluster = {key: value if key in kept else own[key] for key, value in cluster.items()}
    return {**stored, "run": run, "cluster": cluster}


def _translate(override: str, own: Sequence[Path]) -> str:
    """Translate an override to Hydra's grammar, after checking that it names a preset or an option."""
    match = re.fullmatch(r"\+{0,2}([^=+~]+)(?:=(.*))?", override, re.DOTALL)
    if match is None:
        raise UserError(f"'{override}': give group=choice or option=value, see --help")
    key, value = match.groups()
    presets = find_presets(own)
    if key == "platform" and value not in presets[key] and value in TARGETS:
        return f"++platform.name={value}"  # of another package, which brings no preset
    if key in presets:
        return f"{key}={_choice(key, value or '', presets[key], own)}"
    known = {option.key: option for option in all_options(Config)}
    mapping = known.get(key.rpartition(".")[0])
    if key not in known and value and mapping is not None and mapping.type is dict and not mapping.is_list:
        return f"++{key}={_value(key, value, literal=False)}"  # an entry of a mapping
    if key not in known:
        raise UserError(f"unknown option '{key}': {choose_option(Config, key, groups=list(presets))}")
    option = known[key]
    if not value:
        raise UserError(f"{key} has no value: give {option.wanted()}")
    literal = option.type is str and not option.is_list and option.limit is None
    if option.nests and value.startswith("{"):
        value = f"[{value}]"  # Hydra would merge the mapping into the list of a preset
    return f"++{key}={_value(key, value, literal=literal)}"


def _choice(group: str, choice: str, presets: dict[str, Path], own: Sequence[Path]) -> str:
    if choice not in presets:
        if "," in choice and all(part in presets for part in choice.split(",")):
            raise UserError(f"{group}={choice}: sweeps are not supported, start dipo once for each choice")
        if not choice:
            raise UserError(f"{group} has no value: {choose('', presets)}")
        is_file = group in {"model", "data"} and re.search(r"[./]", choice)
        hint = f", or give the file as {group}.path={choice}" if is_file else ""
        raise UserError(f"unknown {group} '{choice}': {choose(choice, presets)}{hint}")
    refuse_shadowing(own, group, choice)
    return choice


def _value(key: str, value: str, *, literal: bool) -> str:
    """Return the value in Hydra's grammar; `literal` text, such as a path, needs no quotes from the user."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    if literal and value != "null" and not re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL):
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    try:
        parsed = OverridesParser.create().parse_override(f"++{key}={value}")
    except HydraException as error:
        raise UserError(f"{key}={value}: cannot be read, check its brackets and quotes") from error
    if parsed.is_sweep_override():
        raise UserError(f"{key}={value}: sweeps are not supported, start dipo once for each value; lists are [a,b]")
    return value


def _compose(overrides: Sequence[str], own: Sequence[Path], *, primary: Path | None = None) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    urls = [QuotedString(text=f"file://{folder}", quote=Quote.single).with_quotes() for folder in own]
    try:
        with (
            _hydra_aside(),
            initialize_config_dir(config_dir=str(primary or packaged_folder().resolve()), version_base="1.3"),
        ):
            composed: DictConfig = compose(PRIMARY, overrides=[*overrides, f"hydra.searchpath=[{','.join(urls)}]"])
            plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{key or 'presets'}: {str(error).splitlines()[0]}, correct it there, see --help") from error
    except YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"presets: not valid YAML ({reason}), correct the file of that name") from error
    assert isinstance(plain, dict), "a composed configuration is a mapping"
    return {str(key): value for key, value in plain.items()}


@contextlib.contextmanager
def _hydra_aside() -> Iterator[None]:
    """Clear Hydra's global state for the block, and restore it at the end: the calling program may use Hydra."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.version import VersionBase
    from omegaconf.basecontainer import BaseContainer

    with _HYDRA:
        resolvers = dict(BaseContainer._resolvers)
        before = {kind: Singleton._instances.pop(kind, None) for kind in (GlobalHydra, VersionBase)}
        try:
            yield
        finally:
            BaseContainer._resolvers = resolvers
            for kind, instance in before.items():
                Singleton._instances.pop(kind, None)
                if instance is not None:
                    Singleton._instances[kind] = instance
