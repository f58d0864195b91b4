"""The command `dipo`: one of its commands, or, without one, a job."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence

from dipo.cli.command import Command, columns
from dipo.cli.completion import COMPLETE, SCRIPTS, complete, script
from dipo.cli.export import EXPORT
from dipo.cli.help import front_page, topic_page, topics
from dipo.cli.nightly import NIGHTLY
from dipo.cli.page import examples, page, wrap
from dipo.cli.quantize import QUANTIZE, presets_of
from dipo.cli.verify import VERIFY
from dipo.cli.words import Line
from dipo.errors import UserError
from dipo.section import choose

COMPLETION_EXAMPLES = {
    "source <(dipo completion bash)": "In ~/.bashrc.",
    "source <(dipo completion zsh)": "In ~/.zshrc, behind compinit.",
    "dipo completion fish | source": "In ~/.config/fish/config.fish.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own, and return the exit status.

    0: done. 1: it broke. 2: the user's input is wrong. 130: interrupted. 143: terminated.
    """
    words = sys.argv[1:] if argv is None else argv
    if [*words[:2]] == [COMPLETION.name, COMPLETE]:
        sys.stdout.writelines(f"{word}\n" for word in complete(words[2:], commands=COMMANDS, default=DIPO))
        return 0
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]].main(words[1:])
    return DIPO.main(words)


def _help_page(line: Line, width: int) -> str:
    """Return the page of the topic that is named, or the front page."""
    own = presets_of(line)
    topic = next((word for word in line.words if "=" not in word), None)
    if topic is None:
        commands = {command.name: command.summary for command in COMMANDS.values()}
        return front_page(width=width, commands=commands, own=own)
    if topic == "options":
        return QUANTIZE.page(line, width)
    if topic in COMMANDS:
        return COMMANDS[topic].page(dataclasses.replace(line, words=()), width)
    if topic not in topics(own):
        known = dict.fromkeys([*COMMANDS, *topics(own)])
        raise UserError(f"no help on '{topic}': {choose(topic, known)}")
    return topic_page(topic, width=width, own=own)


def _help(line: Line) -> int:
    sys.stdout.write(f"{_help_page(line, columns())}\n")
    return 0


def _script(line: Line) -> int:
    sys.stdout.write(script(line))
    return 0


def _completion_page(line: Line, width: int) -> str:
    del line
    return page(
        {
            "NAME": [wrap("dipo completion - a script by which a shell completes dipo's words", width)],
            "SYNOPSIS": [wrap(f"dipo completion {'|'.join(SCRIPTS)}", width)],
            "EXAMPLES": examples(COMPLETION_EXAMPLES, width),
        }
    )


def _quantize(line: Line) -> int:
    first = line.words[0] if line.words else ""
    if "=" not in first and difflib.get_close_matches(first, COMMANDS, n=1, cutoff=0.65):
        raise UserError(f"unknown command '{first}': {choose(first, COMMANDS)}")
    return QUANTIZE.run(line)


COMPLETION = Command(
    "completion",
    "Print a script for the shell, which then completes words.",
    _completion_page,
    _script,
    dict,
    names=lambda: tuple(SCRIPTS),
)
HELP = Command(
    "help",
    "Explain a command, a group, or all options.",
    _help_page,
    _help,
    dict,
    flags=QUANTIZE.flags,
    names=lambda: (*COMMANDS, *topics()),
)
COMMANDS: Mapping[str, Command] = {
    command.name: command for command in (QUANTIZE, EXPORT, VERIFY, NIGHTLY, COMPLETION, HELP)
}
"""What may be the first word."""
DIPO = dataclasses.replace(QUANTIZE, page=_help_page, run=_quantize)
"""What happens without one of them."""
