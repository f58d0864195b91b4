"""Completion of the words of a command line by the shell: a script for each shell, and the answers it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from dipo.cli.command import Command
from dipo.cli.words import Line, sort_words
from dipo.errors import UserError
from dipo.section import OneOf, Option

COMPLETE = "--complete"
"""What a script says before the words that were typed, the last of which is to be completed."""

BASH = f"""\
# Completion of dipo for bash:  source <(dipo completion bash)
_dipo() {{
    local line=${{COMP_LINE:0:COMP_POINT}} current key
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${{words[-1]}}
    mapfile -t COMPREPLY < <("${{words[0]}}" completion {COMPLETE} "${{words[@]:1}}" 2>/dev/null)
    key=${{current%"${{current##*[=:]}}"}}
    if [[ ${{#COMPREPLY[@]}} -eq 0 && $current == *=* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "${{current#*=}}")
    else
        # = and : part words in bash, which replaces what stands behind the last one alone.
        COMPREPLY=("${{COMPREPLY[@]#"$key"}}")
        [[ ${{COMPREPLY[0]-}} == *[=.,[] ]] && compopt -o nospace 2>/dev/null
    fi
    return 0
}}
complete -F _dipo dipo
"""
ZSH = f"""\
#compdef dipo
# Completion of dipo for zsh:  source <(dipo completion zsh), behind compinit
_dipo() {{
    local -a found open
    found=("${{(@f)$(${{words[1]}} completion {COMPLETE} "${{(@)words[2,CURRENT]}}" 2>/dev/null)}}")
    found=("${{(@)found:#}}")
    if (( ! $#found )) && [[ $words[CURRENT] == *=* ]]; then
        compset -P '*='
        _files
        return
    fi
    open=("${{(@M)found:#*[=.]}}")
    found=("${{(@)found:#*[=.]}}")
    (( $#open )) && compadd -Q -S '' -- "${{open[@]}}"
    (( $#found )) && compadd -Q -- "${{found[@]}}"
}}
compdef _dipo dipo
"""
FISH = f"""\
# Completion of dipo for fish:  dipo completion fish | source
function __dipo_choices
    dipo completion {COMPLETE} (commandline -opc)[2..] (commandline -ct) 2>/dev/null
end
complete -c dipo -f -a '(__dipo_choices)'
complete -c dipo -n 'string match -q "*=*" -- (commandline -ct); and not __dipo_choices | string length -q' -F
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def script(line: Line) -> str:
    """Return the script for the shell that the line names.

    Raises:
        UserError: It names none.
    """
    shell = line.words[0] if line.words else ""
    if shell not in SCRIPTS or len(line.words) > 1:
        raise UserError(f"completion '{' '.join(line.words)}': choose from {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


def complete(words: Sequence[str], *, commands: Mapping[str, Command], default: Command) -> list[str]:
    """Return what the last of the words may become, sorted.

    Args:
        words: Behind `dipo`, up to the cursor.
        commands: By name.
        default: What runs without a command.
    """
    *before, current = words or [""]
    command = commands.get(before[0]) if before else None
    found = [] if before else [*commands]
    if command is None:
        found += _candidates(default, before, current)
    else:
        found += _candidates(command, before[1:], current)
    return sorted({word for word in found if word.startswith(current)})


def _candidates(command: Command, before: Sequence[str], current: str) -> Iterator[str]:
    if current.startswith("-"):
        yield from (flag.name + "=" * (flag.value is not None) for flag in command.flags if flag.refusal is None)
        return
    plus = current[: len(current) - len(current.lstrip("+"))]
    key, equals, value = current[len(plus) :].partition("=")
    groups, options = _groups(command, before), command.options()
    if equals:
        found = groups[key] if key in groups else _values(options[key], value) if key in options else []
        yield from (f"{plus}{key}={choice}" for choice in found)
        return
    yield from command.names()
    yield from (f"{plus}{name}=" for name in (*groups, *options) if "." not in name or "." in key)
    yield from (f"{plus}{name.partition('.')[0]}." for name in options if "." in name and "." not in key)


def _groups(command: Command, before: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the groups, with the presets of a folder that the words before name."""
    try:
        return command.groups(sort_words(before, command.flags))
    except UserError:  # What is there so far is wrong; dipo's own presets are none the worse for it.
        return command.groups(Line(frozenset(), {}, ()))


def _values(option: Option, value: str) -> list[str]:
    """Return the choices of an option; in a list, behind the members that are there."""
    choices = list(option.limit.choices) if isinstance(option.limit, OneOf) else []
    if option.type is bool:
        choices = ["true", "false"]
    if option.optional and choices:
        choices.append("null")
    if not option.is_list or not value.startswith("["):
        return choices
    before = value[: max(value.rfind("["), value.rfind(",")) + 1]
    there = re.split(r"[\[,]", before)
    return [before + choice for choice in choices if choice not in there]
