"""Pages of help: chapters of wrapped text and of tables, as wide as the terminal."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from dipo.section import Option, Section, options, show

MARGIN = 4


def page(chapters: Mapping[str, Iterable[list[str]]]) -> str:
    """Return a page of chapters, each of blocks of lines, with a line between the blocks."""
    return "\n\n".join(
        f"{title}\n" + "\n\n".join("\n".join(block) for block in blocks) for title, blocks in chapters.items()
    )


def paragraphs(text: str, width: int) -> list[list[str]]:
    """Return the blocks of a text whose paragraphs have an empty line between them."""
    return [wrap(paragraph, width) for paragraph in text.strip().split("\n\n")]


def wrap(text: str, width: int, margin: int = MARGIN) -> list[str]:
    """Return the text in lines of at most `width` columns, `margin` of them blank; no word is cut."""
    indent = " " * margin
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def command(text: str, width: int) -> list[str]:
    """Return a command to copy: its lines but the last end in a backslash."""
    *lines, last = wrap(text, width - 2)
    return [*(f"{line} \\" for line in lines), last]


def examples(rows: Mapping[str, str], width: int) -> list[list[str]]:
    """Return a block for each command: the command, and below it what it does."""
    return [[*command(words, width), *wrap(text, width, 2 * MARGIN)] for words, text in rows.items()]


def table(rows: Mapping[str, str], width: int, margin: int = MARGIN) -> list[str]:
    """Return terms, and beside them (below them where the page is narrow) what they mean."""
    column = margin + max(map(len, rows)) + 2
    lines = []
    for term, text in rows.items():
        if column > width // 2:
            lines += [" " * margin + term, *wrap(text, width, margin + MARGIN)]
        else:
            first, *rest = wrap(text, width, column)
            lines += [f"{' ' * margin}{term}".ljust(column) + first.lstrip(), *rest]
    return lines


def option_blocks(section: type[Section], width: int) -> Iterator[list[str]]:
    """Return a block for each option of the section's own."""
    docs = docs_of(section)
    for option in options(section):
        yield option_block(option, docs[option.name], width)


def option_block(option: Option, doc: str, width: int) -> list[str]:
    """Return an option with its default, what it is, and its type."""
    has_none = option.default is None and not option.optional
    first = f"{' ' * MARGIN}{option.key}={'' if has_none else _plain(option.default)}"
    return [first, *wrap(f"{doc} ({_type(option)})", width, 2 * MARGIN)]


def docs_of(section: type[Section]) -> dict[str, str]:
    """Return what stands beneath each field in the source, of the section or of the class that it inherits it from."""
    docs: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if base is not Section and issubclass(base, Section):
            docs |= _own_docs(base)
    return docs


def _own_docs(section: type[Section]) -> dict[str, str]:
    docs = {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    for statement, below in pairwise(definition.body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _type(option: Option) -> str:
    """Return the option's type and limits, as in `list of float above 0, or null`."""
    name = option.type.__name__
    limit = str(option.limit or "").replace("|", " | ")
    words = limit if option.type is str and limit else f"{name} {limit}".rstrip()
    nests = ", bare or as {NAME:{OPTION:VALUE}}" * option.nests
    return "list of " * option.is_list + words + nests + ", or null" * option.optional


def _plain(value: object) -> str:
    """Return a default as the user would type it."""
    return value if isinstance(value, str) else show(value)
